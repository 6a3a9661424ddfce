"""One process owns the index folder; the others wait for it or ask it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from infra.index_owner import DATA_FOLDER, OWNER_FILE, open_index, serve_index
from infra.qdrant_index import QdrantIndex
from infra.settings import IndexSettings
from infra.shared_index import SharedIndex
from tasks.domain.errors import IndexUnavailableError, NotFoundError, TerminalError
from tasks.domain.records import IndexFilter, ItemPayload, UserPayload

QUICK = IndexSettings(timeout_seconds=1)
PATIENT = IndexSettings(timeout_seconds=30)


def _fill(index, version="v1", n=5):
    index.create_version(version, 4)
    vectors = np.arange(n * 4, dtype=np.float32).reshape(n, 4)
    index.upsert_items(version, vectors, [ItemPayload(f"i{row}", f"I {row}") for row in range(n)])
    index.upsert_users(version, vectors, [UserPayload(f"u{row}", 1, 0.5, 0.5, 3) for row in range(n)])
    index.switch(version)
    return vectors


class Other:
    """Another process that holds the folder, in the way that ``how`` says, until it is ended."""

    def __init__(self, folder, how: str) -> None:
        script = f"""
            import sys, time
            from pathlib import Path
            from infra.index_owner import open_index, serve_index
            from infra.settings import IndexSettings
            with {how}(Path(sys.argv[1]), IndexSettings()) as index:
                print("holds", flush=True)
                sys.stdin.readline()
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "holds\n"

    def end(self, how=None) -> None:
        if how is not None:
            self.process.send_signal(how)
            self.process.wait(30)
        else:
            self.process.communicate("\n", timeout=30)
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()


@pytest.fixture
def other(tmp_path):
    started: list[Other] = []

    def start(how: str) -> Other:
        started.append(Other(tmp_path / "index", how))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.end(signal.SIGKILL)


def test_vectors_and_aliases_stay_in_the_folder(tmp_path):
    with open_index(tmp_path / "index", QUICK) as index:
        vectors = _fill(index)

    with open_index(tmp_path / "index", QUICK) as index:
        assert index.serving_version() == "v1"
        assert index.count("v1") == (5, 5)
        np.testing.assert_array_equal(index.items("v1", ["i3"])["i3"][1], vectors[3])


def test_points_are_committed_one_by_one_but_synced_once_a_batch(tmp_path):
    with open_index(tmp_path / "index", QUICK) as index:
        _fill(index)
        storage = index._local.collections["items__v1"].storage.storage
        assert storage.execute("pragma journal_mode").fetchone() == ("wal",)
        assert storage.execute("pragma synchronous").fetchone() == (1,)
    with open_index(tmp_path / "index", QUICK) as index:
        storage = index._local.collections["items__v1"].storage.storage
        assert storage.execute("pragma synchronous").fetchone() == (1,)


def test_contexts_of_one_process_share_one_client(tmp_path):
    with open_index(tmp_path / "index", QUICK) as outer:
        with open_index(tmp_path / "index", QUICK) as inner:
            assert inner is outer
            _fill(inner)
        assert outer.serving_version() == "v1"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "index")
    with open_index(tmp_path / "index", QUICK) as outer, open_index(link, QUICK) as inner:
        assert inner is outer


def test_threads_of_one_process_share_one_client(tmp_path):
    counts: list[tuple[int, int]] = []

    def write(version: str) -> None:
        with open_index(tmp_path / "index", PATIENT) as index:
            index.create_version(version, 4)
            index.upsert_items(version, np.ones((300, 4), np.float32), [ItemPayload(f"i{n}", "") for n in range(300)])
            counts.append(index.count(version))

    threads = [threading.Thread(target=write, args=(f"v{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counts == [(300, 0)] * 4


def test_a_command_waits_for_another_to_end(tmp_path, other):
    holder = other("open_index")
    threading.Timer(0.7, holder.end).start()

    with open_index(tmp_path / "index", PATIENT) as index:
        assert isinstance(index, QdrantIndex)


def test_a_command_that_waited_too_long_is_told_who_holds_the_folder(tmp_path, other):
    holder = other("open_index")

    told = pytest.raises(IndexUnavailableError, match=rf"{holder.process.pid}.*nearline up")
    with told, open_index(tmp_path / "index", QUICK):
        pass


def test_others_ask_the_resident_owner(tmp_path, other):
    holder = other("serve_index")
    with open_index(tmp_path / "index", QUICK) as index:
        assert isinstance(index, SharedIndex)
        assert index.owner_pid == holder.process.pid
        vectors = _fill(index)
        hits = index.search("v1", vectors[4], 2, IndexFilter())
        assert [hit.item_id for hit in hits] == ["i4", "i3"]
        with pytest.raises(NotFoundError, match="v7"):
            index.count("v7")
        assert index.count("v1") == (5, 5)
    holder.end()

    with open_index(tmp_path / "index", QUICK) as index:
        assert isinstance(index, QdrantIndex)
        assert index.serving_version() == "v1"


def test_the_address_is_readable_by_its_user_alone(tmp_path, other):
    other("serve_index")
    mode = (tmp_path / "index" / OWNER_FILE).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_without_the_key_nothing_is_answered(tmp_path, other):
    other("serve_index")
    owner_file = tmp_path / "index" / OWNER_FILE
    document = json.loads(owner_file.read_text())
    owner_file.write_text(json.dumps({**document, "key": "00" * 32}))
    with pytest.raises(IndexUnavailableError), open_index(tmp_path / "index", QUICK):
        pass

    owner_file.write_text(json.dumps(document))
    with socket.create_connection(("127.0.0.1", document["port"])) as stalled:
        stalled.sendall(b"\x00")
        with open_index(tmp_path / "index", QUICK) as index:
            assert index.serving_version() is None


def test_an_owner_that_was_killed_leaves_a_folder_that_opens(tmp_path, other):
    holder = other("serve_index")
    with open_index(tmp_path / "index", QUICK) as index:
        _fill(index)
    holder.end(signal.SIGKILL)
    assert json.loads((tmp_path / "index" / OWNER_FILE).read_text())["port"]

    with open_index(tmp_path / "index", QUICK) as index:
        assert isinstance(index, QdrantIndex)
        assert index.count("v1") == (5, 5)


def test_an_owner_that_dies_while_it_is_asked_is_an_error_that_says_so(tmp_path, other):
    holder = other("serve_index")
    with open_index(tmp_path / "index", QUICK) as index:
        holder.end(signal.SIGKILL)
        with pytest.raises(IndexUnavailableError, match="run it again"):
            index.serving_version()


def test_an_owner_that_hangs_is_not_waited_for_without_end(tmp_path, other):
    holder = other("serve_index")
    with open_index(tmp_path / "index", QUICK) as index:
        holder.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        try:
            with pytest.raises(IndexUnavailableError, match="1 seconds"):
                index.serving_version()
            with pytest.raises(IndexUnavailableError):
                index.serving_version()
        finally:
            holder.process.send_signal(signal.SIGCONT)
    assert time.monotonic() - started < 5


def test_the_folder_is_shared_once(tmp_path, other):
    told = pytest.raises(TerminalError, match=str(os.getpid()))
    with serve_index(tmp_path / "index", QUICK), told, serve_index(tmp_path / "index", QUICK):
        pass
    holder = other("serve_index")
    with pytest.raises(TerminalError, match=str(holder.process.pid)), serve_index(tmp_path / "index", QUICK):
        pass


def test_a_folder_that_was_killed_while_it_was_made_opens(tmp_path):
    data = tmp_path / "index" / DATA_FOLDER
    data.mkdir(parents=True)
    (data / "meta.json").touch()

    with open_index(tmp_path / "index", QUICK) as index:
        assert index.versions() == []


def test_a_folder_that_cannot_be_read_says_how_to_make_it_again(tmp_path):
    data = tmp_path / "index" / DATA_FOLDER
    data.mkdir(parents=True)
    (data / "meta.json").write_text("{half")

    with pytest.raises(TerminalError, match="rebuild-index"), open_index(tmp_path / "index", QUICK):
        pass
    (data / "meta.json").unlink()
    with open_index(tmp_path / "index", QUICK) as index:
        assert index.versions() == []


def test_a_reader_during_switches_always_gets_a_whole_version(tmp_path, other):
    other("serve_index")
    stop = threading.Event()
    seen: list[tuple[str, tuple[int, int]]] = []

    def read() -> None:
        with open_index(tmp_path / "index", PATIENT) as index:
            while not stop.is_set():
                version = index.serving_version()
                seen.append((version, index.count(version)))

    with open_index(tmp_path / "index", PATIENT) as index:
        _fill(index, "v1", 3)
        _fill(index, "v2", 6)
        reader = threading.Thread(target=read)
        reader.start()
        while len({version for version, _ in seen}) < 2 or len(seen) < 50:
            index.switch("v1")
            index.switch("v2")
        stop.set()
        reader.join()

    assert set(seen) == {("v1", (3, 3)), ("v2", (6, 6))}


def test_what_was_deleted_or_replaced_is_in_no_file_of_the_folder(tmp_path):
    def bytes_there():
        return b"".join(path.read_bytes() for path in sorted((tmp_path / "index").rglob("*")) if path.is_file())

    with open_index(tmp_path / "index", QUICK) as index:
        _fill(index)
        for seen, as_of in (("first-film", 5), ("second-film", 6)):
            users = [UserPayload("erased-person", 1, 0.5, 0.5, as_of, (seen,)), UserPayload("kept", 1, 0.5, 0.5, as_of)]
            index.upsert_users("v1", np.full((2, 4), 123.456, np.float32), users)
        assert b"erased-person" in bytes_there()
        assert b"first-film" not in bytes_there()

        assert index.delete_users(["erased-person"]) == 1

        stored = index._local.collections["users__v1"]
        assert "erased-person" not in repr(stored.payload)
        assert b"erased-person" not in bytes_there()
        assert b"second-film" not in bytes_there()
    with open_index(tmp_path / "index", QUICK) as index:
        assert set(index.users("v1", ["erased-person", "kept", "u1"])) == {"kept", "u1"}
