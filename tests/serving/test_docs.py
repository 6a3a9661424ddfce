"""The pages about the service: every line of them that can be run is run, on a real service over the small world."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import ServiceSettings
from serving import models, routes
from serving.app import create_app
from serving.errors import as_http_error
from tasks.domain import errors
from tests.serving.conftest import ScriptedOnline

DOCS = Path(__file__).parents[2] / "docs"
TOUR, REFERENCE = ((DOCS / name).read_text(encoding="utf-8") for name in ("connect-your-site.md", "http.md"))
DESCRIPTION = create_app(ScriptedOnline(), settings=ServiceSettings(), keys=None).openapi()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TOUR, re.DOTALL)


def run(live, *command):
    url, key = live
    environment = {**os.environ, "API": url, "KEY": key, "NO_PROXY": "*"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.server
def test_the_lines_of_the_tour_do_what_the_page_says(live):
    """All blocks in one shell; between them a line, to tell the answers apart."""
    script = "set -euo pipefail\n" + "\n".join(
        re.sub(r"^curl -s", "curl -sS --fail-with-body", block, flags=re.M) + "\necho" for block in blocks("sh")
    )
    script = re.sub(r'(similar\?k=5"|popular\?k=5") (-H "X-API-Key: \$KEY")$', r"\1 \2; echo", script, flags=re.M)
    answers = [json.loads(line) for line in run(live, "bash", "-c", script).splitlines() if line]
    health, first, second, slate, asked, similar, popular, latest, items, profile = answers
    assert health["state"] in ("ready", "degraded")
    assert (first["accepted"], first["rejected"]) == (1, [])
    assert (second["accepted"], [row["index"] for row in second["rejected"]]) == (1, [1])
    liked = popular["items"][0]["item_id"]
    assert slate["pending_events"] == 2
    assert slate["stale_seconds"] == 0
    assert slate["fallbacks"] == []
    assert slate["items"][0]["because"]
    assert liked not in {item["item_id"] for item in slate["items"]}
    assert len(asked["items"]) == len(similar["items"]) == len(latest["items"]) == 5
    assert items["accepted"] == 1
    assert profile["n_history"] == 1


@pytest.mark.server
def test_the_python_client_sends_and_asks(live):
    (program,) = blocks("python")
    said = run(live, sys.executable, "-W", "error", "-c", program)
    assert re.fullmatch(r"1 \['The .+'\]\n", said)


def test_the_python_client_is_typed(tmp_path):
    file = tmp_path / "client.py"
    file.write_text(blocks("python")[0])
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--no-error-summary",
         "--follow-imports=skip", str(file)],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert checked.stdout == ""


def test_the_reference_names_every_route_with_its_scope():
    for path, operations in DESCRIPTION["paths"].items():
        for method in operations:
            assert re.search(rf"^\| `{method.upper()} {re.escape(path)}` \|", REFERENCE, re.M), (method, path)
    assert len(re.findall(r"^\| `(?:GET|POST|DELETE) /", REFERENCE, re.M)) == sum(
        map(len, DESCRIPTION["paths"].values())
    )


def test_the_reference_names_every_parameter_and_member():
    asked = {*models.SlateBody.model_fields, *routes.SlateQuery.model_fields, *routes.SimilarQuery.model_fields}
    answered = {*models.SlateAnswer.model_fields, *models.SlateItem.model_fields, *models.Parts.model_fields}
    told = {*models.ReceiptAnswer.model_fields, *models.ErrorDetail.model_fields}
    for name in asked | answered - {"user_id"} | told:
        assert re.search(rf"`{name}[`=]|\*\*{name}\*\*|\"{name}\"", REFERENCE), name


def test_the_reference_names_every_error():
    kinds = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]
    found = {(error.status, error.type) for error in (as_http_error(kind("x"), "r") for kind in kinds)}
    for status, kind in found:
        (line,) = re.findall(rf"^\| {status} \|.*", REFERENCE, re.M)
        assert f"`{kind}`" in line


def test_the_reference_names_settings_with_their_defaults():
    for name in (
        "max_batch_rows",
        "max_body_bytes",
        "requests_per_second",
        "max_waiting_rows",
        "request_timeout_seconds",
    ):
        assert f"`service.{name}`" in REFERENCE


def test_the_page_of_the_reference_is_whole_and_loads_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.status_code == 200
    assert not re.search(r"(?:https?:)?//", page.text)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)
    named = [target for target in re.findall(r'(?:src|href)="([^"]+)"', page.text) if not target.startswith("data:")]
    assert {"docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.json"} <= set(named)
    kinds = {"js": "text/javascript", "css": "text/css", "json": "application/json"}
    for target in named:
        asset = client.get(f"/{target}")
        assert asset.status_code == 200, target
        assert asset.headers["content-type"].startswith(kinds[target.rpartition(".")[2]]), target


def test_the_page_of_the_reference_asks_no_public_validator(client):
    start = client.get("/docs/start.js").text
    assert "validatorUrl: null" in start
    assert '"openapi.json"' in start
    assert "//" not in start
