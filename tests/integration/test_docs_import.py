"""docs/import.md: the example on MovieLens ml-latest-small, where it is at hand, and the tables of the page."""

import os
import re
import tomllib
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from infra.settings import DEFAULT_EVENT_TYPES, GateSettings
from tasks.domain.mappings import CANONICAL, REQUIRED
from tasks.domain.records import EventType
from tasks.ingest import import_files, propose_mapping
from tasks.quality import check_gate
from tasks.transform import build_models
from warehouse.catalog import GATES

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples" / "ml-latest-small"
PAGE = (DOCS / "import.md").read_text(encoding="utf-8")
FILES = (("items", "movies"), ("events", "ratings"), ("events", "tags"))
HEADERS = {
    "movies": ["movieId", "title", "genres"],
    "ratings": ["userId", "movieId", "rating", "timestamp"],
    "tags": ["userId", "movieId", "tag", "timestamp"],
}
LINES = {
    "movies": "1,Toy Story (1995),Adventure|Animation",
    "ratings": "1,1,4.0,964982703",
    "tags": "2,1,pixar,1445714994",
}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def mapping(name):
    return yaml.safe_load((EXAMPLES / f"{name}.yml").read_text())


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_the_mapping_files_are_what_is_proposed(kind, name):
    proposed = propose_mapping(kind, HEADERS[name])
    assert {column: value for column, value in mapping(name).items() if "." not in column} == proposed


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_the_mapping_files_fit_the_columns_of_the_page(local_resources, tmp_path, kind, name):
    path = tmp_path / f"{name}.csv"
    path.write_text(",".join(HEADERS[name]) + "\n" + LINES[name] + "\n")
    (receipt,) = import_files(local_resources, kind, [path], now=NOW, mapping=mapping(name))
    assert (receipt.n_in, receipt.n_out, receipt.note) == (1, 1, "")


def test_ml_latest_small(local_resources):
    folder = os.environ.get("NEARLINE_TEST_ML_LATEST")
    if not folder:
        pytest.skip("NEARLINE_TEST_ML_LATEST does not name a folder with MovieLens ml-latest-small")
    n_rows = {}
    for kind, name in FILES:
        path = Path(folder) / f"{name}.csv"
        (receipt,) = import_files(local_resources, kind, [path], now=NOW, mapping=mapping(name))
        assert receipt.n_in == receipt.n_out
        n_rows[name] = receipt.n_out
    assert n_rows == {"movies": 9742, "ratings": 100836, "tags": 3683}
    build_models(local_resources, now=NOW)
    assert [
        result for result in check_gate(local_resources, "transform", run_id="r", now=NOW) if not result.passed
    ] == []
    with local_resources.warehouse(read_only=True) as warehouse:
        (row,) = warehouse.read(
            "select (select count(*) from fct_interactions) as n_interactions,"
            " (select count(*) from fct_interactions where weight > 0) as n_liked,"
            " (select count(*) from raw_events where event_type = 'rating' and value >= 3.5) as n_high,"
            " (select count(*) from int_user_texts) as n_texts,"
            " (select count(*) from stg_users) as n_users,"
            " (select count(*) from stg_items where categories = []) as n_without_genres"
        ).to_pylist()
    assert row["n_interactions"] == 100836
    assert row["n_liked"] == row["n_high"]
    assert row["n_texts"] == 3683
    assert row["n_users"] == 610
    assert row["n_without_genres"] == 34


def test_the_page_names_every_column():
    for kind, columns in CANONICAL.items():
        section = PAGE.split(f"**{kind}**")[1].split("**")[0] if kind != "events" else PAGE.split("**events**")[1]
        for column in columns:
            assert re.search(rf"\| `{column}` \|{' yes' if column in REQUIRED[kind] else ''}", section), (kind, column)


def test_the_page_names_every_event_type_with_its_weight():
    table = PAGE.split("## Event types")[1].split("Change them")[0]
    for name, settings in DEFAULT_EVENT_TYPES.items():
        (line,) = [line for line in table.splitlines() if line.startswith("| `") and f"`{name}`" in line.split("|")[1]]
        assert settings.effect in line
        if settings.effect in ("positive", "negative", "rating", "text"):
            assert f"| {settings.weight} |" in line
        if settings.threshold is not None:
            assert f"{settings.threshold}" in line


def test_the_settings_on_the_page_are_accepted():
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    for name, values in tomllib.loads(text)["event_types"].items():
        assert EventType(name=name, **values)
        assert set(values) <= {field.name for field in fields(EventType)}


def test_the_page_of_the_gates_names_every_gate_and_limit():
    page = (DOCS / "gates.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(GATES)
    for name, field in GateSettings.model_fields.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `gates.{name}`")]
        assert line.rstrip("| ").endswith(str(field.default))
