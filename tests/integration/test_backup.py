"""A home is copied while others write, made again elsewhere, and nothing that was killed or damaged looks whole."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import flows.cli
import infra.home_backup
from flows.backups import make_backup, migrate_home, restore_backup, verify_backup
from infra.key_store import KeyStore
from infra.settings import load_settings
from tasks.backup import repeat_erasures
from tasks.domain.errors import InputError, NotFoundError, StorageError, TerminalError, WarehouseBusyError
from tasks.domain.online import SlateRequest
from tasks.erase import erase_user, verify_erasure
from tasks.export import export_user
from tasks.recommend import answer
from tests.conftest import SmallResources, SmallWorld

USERS = ("u00", "u01", "u07", "late")


def counts(resources):
    with resources.warehouse(read_only=True) as warehouse:
        tables = warehouse.read("select table_name from information_schema.tables")["table_name"].to_pylist()
        return {table: warehouse.read(f'from "{table}"').num_rows for table in tables}


def slates(resources):
    found = [answer(resources, SlateRequest(user_id=user, k=10)) for user in USERS]
    return [[(item.item_id, round(item.score, 6)) for item in slate.items] for slate in found]


def back_up(world, parent):
    return make_backup(world.resources.settings, parent, now=world.tick())


def restore(world, backup, home, **options):
    report = restore_backup(backup, home, now=world.tick(), open_home=SmallResources, **options)
    return report, SmallResources(load_settings(home=home))


def test_a_restored_home_publishes_the_same(two_versions, tmp_path, monkeypatch):
    world = two_versions
    world.add_events(world.event("u03", "i05"))  # one row, which lies in the catalog
    pseudonym = world.resources.pseudonym("u00")
    KeyStore(world.resources.home).create("shop", ["read"], now=world.tick())
    (world.resources.home / "nearline.toml").write_text("interaction_half_life_days = 900\n")
    world = replace(world, resources=SmallResources(load_settings(home=world.resources.home)))
    monkeypatch.setenv("NEARLINE_INDEX__TIMEOUT_SECONDS", "29")
    before, answers = counts(world.resources), slates(world.resources)

    made = back_up(world, tmp_path / "copies")
    _, manifest, damage = verify_backup(tmp_path / "copies")
    assert (manifest.rows, manifest.n_rows, damage) == (before, made.n_rows, [])
    report, restored = restore(world, tmp_path / "copies", tmp_path / "new" / "home")

    assert report.serving == "v2"
    assert report.outside_settings == ("NEARLINE_INDEX__TIMEOUT_SECONDS",)
    after = counts(restored)
    assert after.pop("publications") == before.pop("publications") + 1, "making the index again is recorded"
    refreshed = {"nearline_runs", "gate_results"}
    assert {table for table in before if before[table] != after[table]} <= refreshed, "u03 waited for a refresh"
    assert slates(restored) == answers
    assert restored.settings.interaction_half_life_days == 900
    assert [key.name for key in KeyStore(restored.home).list()] == ["shop"]
    assert restored.pseudonym("u00") == pseudonym


def test_what_a_version_was_trained_on_can_still_be_read(two_versions, tmp_path):
    make_backup(two_versions.resources.settings, tmp_path / "copies", now=two_versions.tick())
    _, restored = restore(two_versions, tmp_path / "copies", tmp_path / "new")
    with restored.warehouse(read_only=True) as warehouse:
        trained = warehouse.read("select training_snapshot from model_versions")["training_snapshot"].to_pylist()
        for snapshot in trained:
            with warehouse.at(snapshot) as past:
                assert past.read("from raw_events").num_rows > 0


def test_it_holds_no_more_than_is_needed_and_only_its_user_reads_it(small_world, tmp_path):
    made = back_up(small_world, tmp_path / "copies")
    assert {path.name for path in made.folder.iterdir()} <= {"manifest.json", "warehouse", "serving"}
    assert made.folder.stat().st_mode & 0o077 == 0
    assert (made.folder / "warehouse" / "catalog.sqlite").stat().st_mode & 0o077 == 0
    assert not list((made.folder / "warehouse").glob("*-wal"))


def test_each_backup_has_a_folder_of_its_own(small_world, tmp_path):
    now = small_world.tick()
    settings = small_world.resources.settings
    folders = [make_backup(settings, tmp_path / "copies", now=now).folder.name for _ in range(2)]
    later = make_backup(settings, tmp_path / "copies", now=now + timedelta(days=1)).folder
    assert folders == [f"nearline-{now:%Y%m%dT%H%M%SZ}", f"nearline-{now:%Y%m%dT%H%M%SZ}-2"]
    assert verify_backup(tmp_path / "copies")[0] == later


def test_others_write_meanwhile_and_every_commit_is_there_whole_or_not_at_all(small_world, tmp_path):
    world, stop = small_world, threading.Event()

    def write():
        while not stop.is_set():
            event = world.event("u03", "i05")
            world.add_events(event, {**event, "event_id": f"twin-{event['event_id']}"})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [back_up(world, tmp_path / "copies").folder for _ in range(2)]
    finally:
        stop.set()
        writer.join()
    sizes = []
    for n, folder in enumerate(made):
        assert verify_backup(folder)[2] == []
        _, restored = restore(world, folder, tmp_path / f"new{n}")
        with restored.warehouse(read_only=True) as warehouse:
            rows = warehouse.read("select event_id from raw_events where batch_id > 'batch-'")["event_id"].to_pylist()
        twins = {row.removeprefix("twin-") for row in rows if row.startswith("twin-")}
        assert twins <= set(rows)
        sizes.append(len(twins))
    assert sizes == sorted(sizes) and sizes[-1] > 0


@pytest.fixture
def disturbed(monkeypatch):
    """Something happens just before the first data file is copied."""

    def arrange(happening, times=1):
        real, calls = infra.home_backup.copy_file, []

        def copy(source, target):
            if source.suffix == ".parquet" and len(calls) < times:
                calls.append(source)
                happening(source)
            return real(source, target)

        monkeypatch.setattr(infra.home_backup, "copy_file", copy)
        return calls

    return arrange


def test_a_person_erased_meanwhile_is_not_in_it(small_world, tmp_path, disturbed):
    world = small_world
    world.add_events(world.event("person-4711", "i00"), *(world.event("u00", "i00") for _ in range(600)))  # a file
    calls = disturbed(lambda _: erase_user(world.resources, "person-4711", now=world.tick()))
    made = back_up(world, tmp_path / "copies")
    assert calls
    assert verify_backup(made.folder)[2] == []
    assert not [path for path in made.folder.rglob("*") if path.is_file() and b"person-4711" in path.read_bytes()]


def test_a_damaged_warehouse_is_not_backed_up(small_world, tmp_path, disturbed):
    disturbed(lambda source: source.unlink(missing_ok=True))
    with pytest.raises(TerminalError, match=r"damaged: its catalog names .*\.parquet"):
        back_up(small_world, tmp_path / "copies")
    assert not list((tmp_path / "copies").glob("nearline-*"))


def test_an_older_backup_does_not_bring_back_who_was_removed_since(two_versions, tmp_path):
    world = two_versions
    old = back_up(world, tmp_path / "copies").folder
    erase_user(world.resources, "u01", now=world.tick())
    back_up(world, tmp_path / "copies")
    report, restored = restore(world, old, tmp_path / "new")
    assert (report.n_erased, report.n_unknown, report.serving) == (1, 0, "v2")
    assert all(place.n_left == 0 for place in verify_erasure(restored, "u01"))
    kept, before = export_user(restored, "u02"), export_user(world.resources, "u02")
    assert kept.keys() == before.keys() - {"vector index, v1"}
    assert all(kept[place] == before[place] for place in kept)


def test_a_home_that_is_still_there_tells_who_was_removed(small_world, tmp_path):
    old = back_up(small_world, tmp_path / "copies").folder
    erase_user(small_world.resources, "u01", now=small_world.tick())
    report, _ = restore(small_world, old, tmp_path / "unaware")
    assert report.n_erased == 0
    report, restored = restore(small_world, old, tmp_path / "new", erasures_of=[small_world.resources.home])
    assert report.n_erased == 1
    assert all(place.n_left == 0 for place in verify_erasure(restored, "u01"))


def test_erasures_under_another_salt_are_counted(small_world, tmp_path):
    world = small_world
    world.resources.pseudonym("anybody")
    old = back_up(world, tmp_path / "copies").folder
    (world.resources.home / "serving" / "salt").unlink()
    erase_user(world.resources, "u01", now=world.tick())
    back_up(world, tmp_path / "copies")
    report, _ = restore(world, old, tmp_path / "new")
    assert (report.n_erased, report.n_unknown) == (0, 1)


def test_erasures_of_nobody_cost_nothing(small_world):
    assert repeat_erasures(small_world.resources, (), now=small_world.tick()) == ()
    assert repeat_erasures(small_world.resources, {"0" * 16}, now=small_world.tick()) == ()


KILLED = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
import infra.home_backup, infra.backup_files
from flows.backups import make_backup, restore_backup
from infra.settings import load_settings
what, where, home, parent = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), 9)
def after(times):
    left = iter(range(times))
    def copy(*arguments):
        return real(*arguments) if next(left, None) is not None else die()
    return copy
real = infra.backup_files.copy_file
if where == "copying":
    infra.home_backup.copy_file = infra.backup_files.copy_file = after(2)
elif where == "naming":
    Path.rename = die
else:
    moves, rename = iter(range(1)), Path.rename
    Path.rename = lambda path, to: rename(path, to) if next(moves, None) is not None else die()
if what == "backup":
    make_backup(load_settings(home=home), Path(parent), now=datetime.now(UTC))
else:
    restore_backup(Path(parent), Path(home), now=datetime.now(UTC))
"""


def run_killed(*arguments):
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9, ended.stderr


@pytest.mark.parametrize("where", ["copying", "naming"])
def test_a_killed_backup_does_not_look_whole_and_the_next_one_clears_it_away(small_world, tmp_path, where):
    parent = tmp_path / "copies"
    run_killed("backup", where, small_world.resources.home, parent)
    assert list(parent.glob("*.unfinished"))
    with pytest.raises(NotFoundError, match="is no backup and holds none"):
        verify_backup(parent)
    made = back_up(small_world, parent)
    assert [path.name for path in parent.glob("nearline-*")] == [made.folder.name]
    assert verify_backup(parent)[2] == []


@pytest.mark.parametrize("where", ["copying", "moving"])
def test_a_killed_restore_is_begun_again(small_world, tmp_path, where):
    small_world.resources.pseudonym("anybody")
    made = back_up(small_world, tmp_path / "copies")
    run_killed("restore", where, tmp_path / "new", made.folder)
    assert not (tmp_path / "new" / "warehouse").exists()
    _, restored = restore(small_world, made.folder, tmp_path / "new")
    assert counts(restored) == counts(small_world.resources)
    assert not (tmp_path / "new" / ".restoring").exists()


@pytest.mark.parametrize("damage", ["change", "cut", "remove", "add"])
def test_damage_is_found_and_never_restored(small_world, tmp_path, damage):
    made = back_up(small_world, tmp_path / "copies")
    victim = next((made.folder / "warehouse" / "data").rglob("*.parquet"))
    content = victim.read_bytes()
    match damage:
        case "change":
            victim.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "cut":
            victim.write_bytes(content[:-1])
        case "remove":
            victim.unlink()
        case "add":
            victim.with_name("stranger.parquet").write_bytes(content)
    (problem,) = verify_backup(made.folder)[2]
    assert ("stranger" if damage == "add" else victim.name) in problem
    if damage != "add":
        with pytest.raises(InputError, match=r"cannot be restored.*Nothing was changed"):
            restore(small_world, made.folder, tmp_path / "new")
        assert not (tmp_path / "new" / "warehouse").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 9}, "newer Nearline made it"),
        ({"rows": 3}, "is damaged"),
        ({"files": [{"path": "../up", "size": 1, "sha256": ""}]}, "is damaged"),
        ({"files": [{"path": "/etc/passwd", "size": 1, "sha256": ""}]}, "is damaged"),
    ],
)
def test_a_manifest_is_checked_first(small_world, tmp_path, change, match):
    made = back_up(small_world, tmp_path / "copies")
    file = made.folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=match):
        restore(small_world, made.folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_home_with_anything_in_it_is_left_alone(small_world, tmp_path):
    made = back_up(small_world, tmp_path / "copies")
    with pytest.raises(InputError, match=r"it is not empty \(index, .*warehouse"):
        restore(small_world, made.folder, small_world.resources.home)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "nearline.toml").write_text("")
    with pytest.raises(InputError, match=r"not empty \(nearline.toml\)"):
        restore(small_world, made.folder, tmp_path / "new")


def test_there_must_be_something_to_back_up(tmp_path):
    with pytest.raises(NotFoundError, match="no warehouse"):
        make_backup(load_settings(home=tmp_path / "none"), tmp_path / "copies", now=SmallWorld.clock)


def test_two_backups_to_one_folder_take_turns(small_world, tmp_path):
    with infra.home_backup._alone(tmp_path), pytest.raises(WarehouseBusyError, match="Another backup"):
        back_up(small_world, tmp_path)


def test_a_disk_that_is_too_small_is_said_before(small_world, tmp_path, monkeypatch):
    usage = infra.home_backup.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(infra.home_backup.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match="MB free"):
        back_up(small_world, tmp_path / "copies")
    assert not list((tmp_path / "copies").glob("nearline-*"))


def test_maintenance_meanwhile_does_no_harm(small_world, tmp_path, disturbed):
    world, after_all = small_world, datetime(2100, 1, 1, tzinfo=UTC)
    for _ in range(2):
        world.add_items(*((f"more{n}", f"More {n}", True) for n in range(600)))  # a file each, which are merged

    def tidy(_):
        with world.resources.warehouse() as warehouse:
            done = warehouse.maintain(keep_from=None, keep=(), older_than=after_all, unused_since=after_all)
        assert done["deleted_files"]

    assert disturbed(tidy) == []
    made = back_up(world, tmp_path / "copies")
    assert verify_backup(made.folder)[2] == []
    with world.resources.warehouse(read_only=True) as warehouse:
        assert made.snapshot == warehouse.latest_snapshot()


def test_a_catalog_in_postgresql_is_left_to_its_own_tools(small_world, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARLINE_WAREHOUSE__CATALOG_URL", "postgresql://someone:secret@127.0.0.1:1/lake")
    settings = load_settings(home=small_world.resources.home)
    with pytest.raises(InputError, match=r"pg_dump .* then a copy of the folder") as refused:
        make_backup(settings, tmp_path / "copies", now=small_world.tick())
    assert "secret" not in str(refused.value)


def test_files_that_lay_outside_the_home_are_restored_into_it(small_world, tmp_path, monkeypatch):
    world, outside = small_world, tmp_path / "outside"
    (world.resources.home / "warehouse" / "data").rename(outside)
    (world.resources.home / "nearline.toml").write_text(f'[warehouse]\ndata_path = "{outside}"\n')
    settings = load_settings(home=world.resources.home)
    made = make_backup(settings, tmp_path / "copies", now=world.tick())
    outside.rename(tmp_path / "gone")
    _, restored = restore(world, made.folder, tmp_path / "new")
    assert restored.settings.warehouse.data_path is None
    assert counts(restored)["raw_events"] > 0
    monkeypatch.setenv("NEARLINE_WAREHOUSE__DATA_PATH", str(outside))
    with pytest.raises(InputError, match="name another place"):
        restore(world, made.folder, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_the_commands_say_what_they_did(small_world, tmp_path, monkeypatch, capsys):
    def nearline(*arguments):
        monkeypatch.setattr(sys, "argv", ["nearline", *map(str, arguments)])
        try:
            code = flows.cli.main()
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr()

    monkeypatch.setenv("NEARLINE_HOME", str(small_world.resources.home))
    code, said = nearline("backup", tmp_path / "copies", "--json")
    made = json.loads(said.out)
    assert (code, made["n_rows"]) == (0, sum(counts(small_world.resources).values()))
    code, said = nearline("backup", tmp_path / "copies", "--verify")
    assert code == 0 and "is whole" in said.out
    code, said = nearline("migrate")
    assert code == 0 and "Nothing to do" in said.out
    code, said = nearline("restore", tmp_path / "copies", "--home", tmp_path / "new")
    assert code == 0 and f"export NEARLINE_HOME={tmp_path / 'new'}" in said.out.replace("\n", "")
    code, said = nearline("restore", tmp_path / "copies", "--home", tmp_path / "new")
    assert code == 2 and "not empty" in said.err
    (Path(made["folder"]) / "warehouse" / "catalog.sqlite").write_bytes(b"")
    code, said = nearline("backup", tmp_path / "copies", "--verify")
    assert code == 1 and "is damaged" in said.out


@pytest.mark.server
def test_a_catalog_in_postgresql_comes_back_from_its_dump_and_the_files(postgres, tmp_path, monkeypatch):
    def resources_on(database):
        monkeypatch.setenv("NEARLINE_WAREHOUSE__CATALOG_URL", postgres.url(database))
        return SmallResources(load_settings(home=tmp_path / "var"))

    monkeypatch.setenv("NEARLINE_WAREHOUSE__DATA_PATH", str(tmp_path / "files"))
    first, second = postgres.new_database(), postgres.new_database()
    world = SmallWorld(resources_on(first))
    world.add_events(*(world.event("u00", "i00") for _ in range(600)), world.event("u01", "i01"))
    world.add_events(world.event("u02", "i02"))  # a row in the catalog beside a file
    before = counts(world.resources)
    copied = tmp_path / "catalog.dump"
    subprocess.run(
        [postgres.programs / "pg_dump", "--format=custom", f"--file={copied}", postgres.url(first)], check=True
    )
    shutil.copytree(tmp_path / "files", tmp_path / "kept")

    shutil.rmtree(tmp_path / "files")
    shutil.copytree(tmp_path / "kept", tmp_path / "files")
    subprocess.run([postgres.programs / "pg_restore", f"--dbname={postgres.url(second)}", copied], check=True)

    restored = resources_on(second)
    assert before["raw_events"] == 602 and counts(restored) == before
    with restored.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.execute("alter table watermarks drop column texts_snapshot"))
    with pytest.raises(InputError, match="pg_dump"):
        migrate_home(restored.settings, now=world.tick())
    report = migrate_home(restored.settings, now=world.tick(), with_backup=False)
    assert report.done == ("added the columns watermarks.texts_snapshot",)
    assert counts(restored) == before
