"""``docker-compose.yml`` names nothing that does not exist: variables, commands, files, and words of the specification.

No engine starts it here. docs/deployment.md says what that leaves untried.
"""

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import typer
import yaml
from check_jsonschema import builtin_schemas
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker
from jsonschema import Draft202012Validator
from prefect.cli._app import _app as prefect

from flows.cli import app
from infra.catalog_address import CatalogAddress, parse_catalog_url
from infra.prefect_server import prefect_environment
from infra.settings import Settings, load_settings, setting_names, setting_variable

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
SECRETS = {"POSTGRES_PASSWORD", "CATALOG_PASSWORD", "QDRANT_API_KEY", "PREFECT_PASSWORD"}
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("nearline:")}


def variables(prefix):
    return {
        (name, variable): value
        for name, service in SERVICES.items()
        for variable, value in service.get("environment", {}).items()
        if variable.startswith(prefix)
    }


def test_the_file_obeys_the_specification_of_compose():
    schema = json.loads((files(builtin_schemas) / "vendor" / "compose-spec.json").read_text(encoding="utf-8"))
    specification = Draft202012Validator(schema)
    assert [f"{list(error.absolute_path)}: {error.message}" for error in specification.iter_errors(COMPOSE)] == []
    assert not specification.is_valid({"services": {"one": {"imge": "x"}}})


def test_every_part_of_the_shape_is_there_with_health_limits_and_restarts():
    shape = {
        "postgres",
        "qdrant",
        "prefect-server",
        "dask-scheduler",
        "dask-worker",
        "dask-worker-gpu",
        "worker",
        "service",
    }
    assert set(SERVICES) == shape
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}, (name, other)
            assert other in SERVICES


def test_nothing_starts_without_every_secret_and_none_is_written_down():
    assert set(re.findall(r"\$\{(\w+)", TEXT)) == SECRETS
    assert all(":?" in use for use in re.findall(r"\$\{[^}]*\}", TEXT))
    assert not re.search(r"\$[A-Za-z]", TEXT)
    for (name, variable), value in variables("").items():
        if re.search("PASSWORD|KEY|AUTH|SECRET|CATALOG_URL", variable):
            secret = r"(postgresql://)?(nearline:)?\$\{\w+:\?[^}]+\}(@postgres:5432/nearline)?"
            assert re.fullmatch(secret, value), (name, variable)


def test_only_loopback_is_published():
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_images_and_their_bases_have_a_version():
    dockerfile = (ROOT / OURS["worker"]["build"]["dockerfile"]).read_text()
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.M)
    for image in [*(service["image"] for service in SERVICES.values()), *bases]:
        assert re.search(r":v?\d+\.\d+", image), image
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"] for service in OURS.values()} == {f"nearline:{version}"}


def test_the_image_is_built_from_files_that_exist_with_the_constraints():
    build = OURS["worker"]["build"]
    file = ROOT / build["dockerfile"]
    text = file.read_text()
    sources = " ".join(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)).split()
    allowed = re.findall(r"^!(.+)$", file.with_suffix(".dockerignore").read_text(), re.M)
    assert set(sources) == set(allowed)
    assert all((ROOT / source).exists() for source in sources)
    installs = re.findall(r"pip install (.*)", text)
    assert len(installs) == 2
    assert all("--constraint" in install and "constraints.txt" in install for install in installs)


def test_our_variables_are_settings_and_pass_their_checks(monkeypatch):
    known = {setting_variable(name) for name in (*setting_names(), *Settings.model_fields)}
    ours = variables("NEARLINE_")
    assert {variable for _, variable in ours} <= known
    for (_, variable), value in ours.items():
        monkeypatch.setenv(variable, re.sub(r"\$\{[^}]+\}", "0123abcd", value))
    settings = load_settings()
    assert settings.index.url == "http://qdrant:6333"
    assert settings.compute.scheduler_address == "tcp://dask-scheduler:8786"
    assert settings.warehouse.data_path == Path("/state/lake")
    catalog = parse_catalog_url(settings.warehouse.catalog_url.get_secret_value())
    assert catalog == CatalogAddress("postgres", 5432, "nearline", "nearline", "0123abcd")


def test_files_that_are_mounted_exist():
    mounted = [v.split(":") for service in SERVICES.values() for v in service.get("volumes", ()) if v.startswith(".")]
    assert mounted and all((ROOT / source).is_file() and mode == "ro" for source, _, mode in mounted)


def test_variables_of_prefect_are_its_settings():
    from prefect.settings import PREFECT_API_URL  # noqa: F401 -- the registry is filled with it
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings as PrefectSettings

    known = set(_get_settings_fields(PrefectSettings))
    assert {variable for _, variable in variables("PREFECT_")} <= known


def test_the_server_of_prefect_keeps_what_up_would_keep(tmp_path):
    expected = prefect_environment(Settings(home=tmp_path))
    expected = {
        name: value
        for name, value in expected.items()
        if name.startswith("PREFECT_SERVER_") and "EPHEMERAL" not in name
    }
    there = SERVICES["prefect-server"]["environment"]
    assert expected.keys() <= there.keys()
    for name, value in expected.items():
        if value.startswith("{"):
            assert json.loads(there[name]) == json.loads(value)
        else:
            assert there[name] == value


@pytest.mark.parametrize("name", OURS)
def test_commands_and_their_options_exist(name):
    program, *rest = OURS[name]["command"]
    if program == "prefect":
        prefect.parse_args(rest, print_error=False, exit_on_error=False)
        return
    word, *rest = rest
    commands = {
        "nearline": typer.main.get_command(app).commands,
        "dask": {"scheduler": dask_scheduler, "worker": dask_worker},
    }
    commands[program][word].make_context(word, rest).close()


def test_the_ports_that_are_checked_and_published_are_those_that_are_listened_on():
    for name, service in OURS.items():
        command = service["command"]
        ports = {command[i + 1] for i, word in enumerate(command) if word in ("--port", "--worker-port")}
        checked = set(re.findall(r"127\.0\.0\.1'?[:,] ?(\d+)", " ".join(service["healthcheck"]["test"])))
        assert checked <= ports, name
        assert {port.rpartition(":")[2] for port in service.get("ports", ())} <= ports, name


def test_the_page_of_deployment_names_every_service_and_secret():
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in SERVICES)
    assert all(secret in page for secret in SECRETS)
