"""A warehouse that an older program wrote is brought forward with its rows, from a kill at any step too, and never by
surprise."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from flows.backups import make_backup, migrate_home, restore_backup, verify_backup
from infra.duckdb_instances import give_back, take_instance
from infra.ducklake_storage import LakeStorage
from infra.lake_catalogs import SqliteCatalog
from infra.migrations import LAYOUT, MIGRATIONS, check_layout
from infra.settings import load_settings
from tasks.domain.errors import InputError, MigrationNeededError, NotFoundError
from tasks.domain.online import SlateRequest
from tasks.publish import rebuild_index
from tasks.recommend import answer
from tests.conftest import NOW, SmallResources

LAYOUT_1 = yaml.safe_load(Path(__file__).with_name("layout_1.yml").read_text())


@pytest.fixture(scope="module")
def first_home(published_home, tmp_path_factory):
    """The published world as the program of layout 1 would have stored it: its tables, its columns, its options."""
    home = tmp_path_factory.mktemp("first") / "var"
    lake = home / "warehouse"
    lake.mkdir(parents=True)
    connection = take_instance()
    SqliteCatalog(lake / "catalog.sqlite", 60).attach(connection, lake / "data", ())
    connection.execute("use lake")
    with published_home.resources.warehouse(read_only=True) as warehouse:
        for table, columns in LAYOUT_1.items():
            definitions = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
            names = ", ".join(f'"{name}"' for name in columns)
            connection.execute(f'create table "{table}" ({definitions})')
            if table != "layouts":
                rows = warehouse.read(f'select {names} from "{table}"')  # noqa: S608
                connection.register("copied", rows)
                connection.execute(f'insert into "{table}" select * from copied')  # noqa: S608
                connection.unregister("copied")
    connection.execute("insert into layouts values (1, $now)", {"now": NOW})
    (snapshot,) = connection.execute("select id from lake.current_snapshot()").fetchone()
    for table, column in (("watermarks", "snapshot"), ("model_versions", "training_snapshot")):
        connection.execute(f"update {table} set {column} = $snapshot", {"snapshot": snapshot})  # noqa: S608
    give_back(connection, "lake")
    return home


@pytest.fixture
def old_home(first_home, tmp_path):
    """The settings of a copy of it."""
    shutil.copytree(first_home, tmp_path / "old")
    return load_settings(home=tmp_path / "old")


def sizes(settings):
    with LakeStorage(settings.home / "warehouse", settings.warehouse).attached(read_only=True) as connection:
        return {
            table: connection.execute(f'select count(*) from "{table}"').fetchone()[0]  # noqa: S608
            for table in LAYOUT_1
        }


def slates(resources):
    found = [answer(resources, SlateRequest(user_id=user, k=10)) for user in ("u00", "u01", "late")]
    return [[(item.item_id, round(item.score, 5)) for item in slate.items] for slate in found]


def test_steps_are_numbered_without_a_gap():
    assert [step.number for step in MIGRATIONS] == list(range(2, LAYOUT + 1))


@pytest.mark.parametrize("read_only", [True, False])
def test_opening_it_changes_nothing_and_says_what_to_do(old_home, read_only):
    message = (
        r"has layout 1, .* needs layout \d.*the tables erasures, .*refresh_requests and the columns .*nearline migrate"
    )
    before = sizes(old_home)
    with pytest.raises(MigrationNeededError, match=message), SmallResources(old_home).warehouse(read_only=read_only):
        pass
    assert sizes(old_home) == before


def test_it_is_backed_up_brought_forward_and_serves_the_same(old_home, published_home):
    before = sizes(old_home)
    report = migrate_home(old_home, now=NOW)

    assert [done.split(":")[0] for done in report.done[1:]] == [f"layout {step.number}" for step in MIGRATIONS]
    assert "watermarks.texts_snapshot" in report.done[0]
    _, manifest, damage = verify_backup(report.backup)
    assert (manifest.layout, manifest.rows, damage) == (1, before, [])
    assert sizes(old_home) == before | {"layouts": 1 + len(MIGRATIONS)}
    resources = SmallResources(old_home)
    with resources.warehouse(read_only=True) as warehouse:
        chosen = warehouse.read("select value from ducklake_options('lake') where option_name = 'parquet_version'")
        assert chosen["value"].to_pylist() == ["V2"]
    assert rebuild_index(resources, now=published_home.clock).version == "v2"
    assert slates(resources) == slates(published_home.resources)


def test_a_second_time_there_is_nothing_to_do(old_home):
    first = migrate_home(old_home, now=NOW)
    again = migrate_home(old_home, now=NOW)
    assert (again.done, again.backup) == ((), None)
    assert len(list(first.backup.parent.glob("nearline-*"))) == 1


def test_a_backup_of_it_is_brought_forward_when_it_is_restored(old_home, tmp_path):
    made = make_backup(old_home, tmp_path / "copies", now=NOW)
    assert made.layout == 1
    report = restore_backup(made.folder, tmp_path / "new", now=NOW, open_home=SmallResources)
    assert report.migrated[-1].startswith(f"layout {LAYOUT}")
    assert report.serving == "v2"
    with SmallResources(load_settings(home=tmp_path / "new")).warehouse(read_only=True) as warehouse:
        assert warehouse.read("from raw_events").num_rows == sizes(old_home)["raw_events"]


def test_it_is_left_as_it_is_where_it_cannot_be_backed_up(old_home, tmp_path):
    (tmp_path / "file").write_text("")
    before = sizes(old_home)
    with pytest.raises(InputError, match="Backups cannot be written to"):
        migrate_home(old_home, now=NOW, parent=tmp_path / "file" / "below")
    assert sizes(old_home) == before


KILLED = """
import os, sys
from datetime import UTC, datetime
import infra.migrations
from flows.backups import migrate_home
from infra.settings import load_settings
home, name, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
real, left = getattr(infra.migrations, name), iter(range(nth))
def dies(*arguments):
    return real(*arguments) if next(left, None) is not None else os.kill(os.getpid(), 9)
setattr(infra.migrations, name, dies)
migrate_home(load_settings(home=home), now=datetime.now(UTC), with_backup=False)
"""


@pytest.mark.parametrize(("name", "nth"), [("_add_columns", 0), ("_add_columns", 2), ("_record", 0)])
def test_a_kill_at_any_step_is_made_good_by_the_next_time(old_home, name, nth):
    command = [sys.executable, "-c", KILLED, str(old_home.home), name, str(nth)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9, ended.stderr
    before = sizes(old_home)
    with pytest.raises(MigrationNeededError), SmallResources(old_home).warehouse():
        pass
    assert migrate_home(old_home, now=NOW, with_backup=False).done
    assert sizes(old_home) == before | {"layouts": 1 + len(MIGRATIONS)}
    with LakeStorage(old_home.home / "warehouse", old_home.warehouse).attached(read_only=True) as connection:
        check_layout(connection)


def test_a_catalog_of_an_older_ducklake_is_said(old_home):
    with closing(sqlite3.connect(old_home.home / "warehouse" / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("update ducklake_metadata set value = '0.3' where key = 'version'")
    message = r"catalog version is 0\.3.*nearline migrate"
    with pytest.raises(MigrationNeededError, match=message), SmallResources(old_home).warehouse():
        pass


def test_there_must_be_something_to_migrate(tmp_path):
    with pytest.raises(NotFoundError, match="no warehouse"):
        migrate_home(load_settings(home=tmp_path / "none"), now=NOW)
