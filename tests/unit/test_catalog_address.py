"""The URL of a catalog in PostgreSQL: what it may be, and that no error repeats it."""

import pytest

from infra.catalog_address import CatalogAddress, parse_catalog_url
from infra.settings import load_settings
from infra.settings_docs import effective_settings
from tasks.domain.errors import SettingsError

WRONG = [
    "hunter2",
    "mysql://nearline:hunter2@host/lake",
    "postgresql://nearline:hunter2@host",
    "postgresql://host/lake",
    "postgresql://nearline:hunter2@host:x/lake",
    "postgresql://nearline:hunter2@one:1,two:2/lake",
    "postgresql://nearline:hunter2@host/lake?password=hunter2",
    "postgresql://nearline:hunter2@host/lake?options=-c%20x",
    "postgresql://nearline:hunter2@host/lake#x",
    "postgresql://nearline:pass/hunter2@host/lake",
]


def test_every_part_is_found():
    url = "postgresql://near%20line:p%40ss%2Fw@db.example:6432/lake?sslmode=require"
    expected = CatalogAddress("db.example", 6432, "lake", "near line", "p@ss/w", {"sslmode": "require"})
    assert parse_catalog_url(url) == expected
    assert "p@ss" not in repr(expected)
    assert parse_catalog_url("postgres://me@/lake?host=/var/run/postgresql") == CatalogAddress(
        "/var/run/postgresql", 5432, "lake", "me", None
    )


@pytest.mark.parametrize("url", WRONG)
def test_what_is_wrong_is_told_without_the_url(url, monkeypatch, tmp_path):
    monkeypatch.setenv("NEARLINE_HOME", str(tmp_path))
    monkeypatch.setenv("NEARLINE_WAREHOUSE__CATALOG_URL", url)
    with pytest.raises(SettingsError, match=r"warehouse\.catalog_url.*postgresql://user:password@host") as caught:
        load_settings()
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_settings_do_not_show_it(monkeypatch, tmp_path):
    monkeypatch.setenv("NEARLINE_HOME", str(tmp_path))
    monkeypatch.setenv("NEARLINE_WAREHOUSE__CATALOG_URL", "postgresql://nearline:hunter2@host/lake")
    settings = load_settings()
    assert "hunter2" not in f"{settings!r} {settings.model_dump()} {effective_settings(settings)}"
