"""A disk that is full and one that is closed to writing: an error that says so, at once, and what was there is whole.

A process with mounts of its own fills a small file system and then mounts it read-only; what it finds comes back as
JSON. Root ignores the modes of folders, so a mount is the only honest way, and it goes when the process ends.
"""

import json
import resource
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.domain.errors import StorageError
from tasks.ingest import import_files

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = Path(__file__).parents[2]
BUSY_SECONDS = 30.0
PROGRAM = """
import gc, json, os, subprocess, sys, time
from datetime import UTC, datetime
from pathlib import Path

import flows.cli
from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.ingest import import_files
from tasks.intake import Intake
from tasks.transform import build_models

folder, busy_seconds = Path(sys.argv[1]), float(sys.argv[2])
now = datetime(2026, 3, 1, 12, tzinfo=UTC)
disk = folder / "disk"
disk.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
resources = LocalResources(load_settings(home=disk / "var", warehouse={"busy_timeout_seconds": busy_seconds}))
found = {}


def event(user):
    return {"user_id": user, "item_id": "i1", "event_type": "like", "occurred_at": "2026-01-01"}


def bring(user):
    file = folder / f"{user}.jsonl"
    file.write_text(json.dumps(event(user)))
    return import_files(resources, "events", [file], now=now)[0].n_out


def send(user):
    with Intake(resources, clock=lambda: now, commit_seconds=0.0, max_waiting_rows=10) as intake:
        return intake.accept("events", [event(user)], source="test", timeout_seconds=busy_seconds).n_accepted


def count():
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read("select count(*) as n from raw_events")["n"][0].as_py()


def index():
    with resources.index() as index:
        index.create_version("v1", 4)


def command(*arguments):
    os.environ["NEARLINE_HOME"] = str(disk / "var")
    sys.argv = ["nearline", *arguments]
    return flows.cli.main()


def attempt(name, function, *arguments):
    started = time.monotonic()
    try:
        kind, told = "ok", function(*arguments)
    except Exception as error:
        kind, told = type(error).__name__, str(error)
    found[name] = [kind, told, time.monotonic() - started]


attempt("first", bring, "first")
held = resources.warehouse(read_only=True)  # as the service holds it
held.__enter__()
try:
    with (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
except OSError:
    pass
attempt("full: file", bring, "second")
attempt("full: request", send, "third")
attempt("full: models", lambda: build_models(resources, now=now))
attempt("full: index", index)
held.__exit__(None, None, None)
(disk / "filler").unlink()
attempt("freed: file", bring, "second")
attempt("freed: request", send, "third")
attempt("freed: read", count)
gc.collect()  # a collection that Qdrant could not make keeps its file open until then
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
attempt("closed: file", bring, "fourth")
attempt("closed: request", send, "fifth")
attempt("closed: models", lambda: build_models(resources, now=now))
attempt("closed: index", index)
attempt("closed: command", command, "keys", "create", "shop")
attempt("closed: read", count)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_small_disk(tmp_path_factory):
    """What each attempt came to: the error or ``ok``, its message or result, and its seconds."""
    own_mounts = ["unshare", "--map-root-user", "--mount"]
    probe = [*own_mounts, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path_factory.mktemp("probe"))]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system of their own (unshare --map-root-user --mount)")
    folder = tmp_path_factory.mktemp("small")
    command = [*own_mounts, sys.executable, "-c", PROGRAM, str(folder), str(BUSY_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def assert_told(found, words):
    kind, told, seconds = found
    assert kind in ("StorageError", "IndexUnavailableError")
    assert words in told
    assert "run it again" in told
    assert seconds < BUSY_SECONDS / 2, "a full disk is not waited for like a busy warehouse"


@pytest.mark.parametrize("way", ["file", "request", "models", "index"])
def test_a_full_disk_is_told_at_once(on_small_disk, way):
    assert_told(on_small_disk[0][f"full: {way}"], "full")


@pytest.mark.parametrize("way", ["file", "request", "models", "index"])
def test_a_folder_that_is_closed_to_writing_is_told(on_small_disk, way):
    assert_told(on_small_disk[0][f"closed: {way}"], "Read-only file system")


def test_what_was_stored_is_whole_and_the_rest_comes_once_there_is_room(on_small_disk):
    results = {name: result for name, (kind, result, _) in on_small_disk[0].items() if kind == "ok"}
    assert results["first"] == 1
    assert (results["freed: file"], results["freed: request"]) == (1, 1)
    assert results["freed: read"] == results["closed: read"] == 3


def test_a_command_ends_with_a_message_and_no_stack_trace(on_small_disk):
    found, stderr = on_small_disk
    assert found["closed: command"][:2] == ["ok", 1]
    assert "Read-only file system" in stderr
    assert "Traceback" not in stderr


def test_a_file_that_may_not_grow_leaves_nothing_half_written(local_resources, tmp_path):
    """The kernel refuses the write, as it does where the disk or a quota is full; no mount is needed for this one."""
    row = {"user_id": "u", "item_id": "i", "event_type": "like", "occurred_at": "2026-01-01"}
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(json.dumps(row | {"user_id": f"u{n}", "text": f"{n:0200}"}) for n in range(10_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            import_files(local_resources, "events", [path], now=NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with local_resources.warehouse(read_only=True) as warehouse:
        assert warehouse.read("select count(*) as n from raw_events")["n"].to_pylist() == [0]
    assert import_files(local_resources, "events", [path], now=NOW)[0].n_out == 10_000
