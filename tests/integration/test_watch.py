"""A watched folder: files are taken once they are at rest, each once, and a bad one holds nobody up."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from flows.watch import FolderWatch
from tasks.domain.errors import GateError, InputError, WarehouseBusyError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HEADER = "user_id,item_id,event_type,occurred_at\n"


def rows_of(*users):
    return HEADER + "".join(f"{user},i1,click,2026-02-01\n" for user in users)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "incoming"
    path.mkdir()
    return path


@pytest.fixture
def look(local_resources, folder):
    """Look once; gives what was reported, by file name."""
    watched = FolderWatch(local_resources, "events", folder, lambda: NOW)

    def look():
        found = {}
        watched.look(lambda path, result: found.__setitem__(path.name, result))
        return found

    return look


def users_taken(resources):
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read("select user_id from raw_events order by user_id")["user_id"].to_pylist()


def test_a_file_is_taken_once_it_is_at_rest_and_once(look, folder, local_resources):
    assert look() == {}
    (folder / "a.csv").write_text(rows_of("u1"))
    assert look() == {}
    (folder / "a.csv").write_text(rows_of("u1", "u2"))
    assert look() == {}  # still growing
    assert look()["a.csv"].n_out == 2
    assert [look(), look()] == [{}, {}]
    (folder / "copy.csv").write_text(rows_of("u1", "u2"))
    (folder / "notes.pdf").write_text("no rows")
    look()
    assert {name: receipt.reused for name, receipt in look().items()} == {"copy.csv": True}
    assert users_taken(local_resources) == ["u1", "u2"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.csv", "copy.csv", "notes.pdf"]


def test_a_bad_file_is_named_once_and_the_others_go_on(look, folder, local_resources):
    (folder / "1.csv").write_text("nothing,here\n1,2\n")
    (folder / "2.csv").write_text(HEADER + ",,,\n")
    (folder / "3.csv").write_text(rows_of("u3"))
    look()
    found = look()
    assert [type(found[name]) for name in ("1.csv", "2.csv")] == [InputError, GateError]
    assert users_taken(local_resources) == ["u3"]
    assert look() == {}
    (folder / "1.csv").write_text(rows_of("u1"))  # corrected
    look()
    assert list(look()) == ["1.csv"]
    assert users_taken(local_resources) == ["u1", "u3"]


def test_a_busy_warehouse_is_asked_again(look, folder, monkeypatch):
    import flows.watch

    (folder / "a.csv").write_text(rows_of("u1"))
    look()
    with monkeypatch.context() as patch:

        def busy(*_, **__):
            raise WarehouseBusyError("locked")

        patch.setattr(flows.watch, "import_files", busy)
        assert isinstance(look()["a.csv"], WarehouseBusyError)
    assert look()["a.csv"].n_out == 1


def test_a_folder_that_is_not_there_is_an_error_and_one_that_goes_is_awaited(look, folder, local_resources):
    with pytest.raises(InputError, match="no such folder"):
        FolderWatch(local_resources, "events", folder / "nowhere", lambda: NOW)
    folder.rmdir()
    assert look() == {}
    folder.mkdir()
    (folder / "a.csv").write_text(rows_of("u1"))
    look()
    assert look()["a.csv"].n_out == 1


def test_the_command_watches_until_it_is_interrupted(folder, local_resources):
    (folder / "a.csv").write_text(rows_of("u1"))
    command = [sys.executable, "-m", "flows.cli", "watch", "events", str(folder), "--interval", "0.1"]
    environment = {**os.environ, "NEARLINE_HOME": str(local_resources.home), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert "Watching" in lines[0]
    assert "a.csv: 1 rows, 1 taken" in lines[1]
