"""What the repository promises about itself: links, compose file, constraints."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_compose_has_no_default_password_and_checks_every_server() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    services = yaml.safe_load(text)["services"]
    for variable in ("POSTGRES_PASSWORD", "QDRANT_API_KEY"):
        assert f"${{{variable}:?" in text, f"{variable} must be required"
        assert f"${{{variable}:-" not in text, f"{variable} must not have a default"
    servers = {"postgres", "qdrant", "prefect-server", "dask-scheduler"}
    assert servers <= {name for name, service in services.items() if "healthcheck" in service}
    for service in services.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{port} is open to other machines"


def test_compose_builds_from_the_file_that_exists() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    dockerfile = ROOT / services["worker"]["build"]["dockerfile"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), flags=re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), f"the image copies {source}, which does not exist"
    assert "/constraints.txt" in dockerfile.read_text()


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.split("[=<> ;]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[=<>\[; ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= pinned
