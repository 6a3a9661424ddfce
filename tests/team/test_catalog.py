"""A catalog in PostgreSQL: several writers, a server that goes away, says no or says nothing, and what is left."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from infra.ducklake_warehouse import open_warehouse
from infra.lake_catalogs import lake_catalog
from infra.settings import WarehouseSettings
from tasks.domain.errors import (
    NearlineError,
    SettingsError,
    TerminalError,
    WarehouseBusyError,
    WarehouseUnavailableError,
)
from tests.conftest import NOW
from tests.team.postgres import OWNER, PASSWORD

pytestmark = [pytest.mark.server, pytest.mark.timeout(120)]

N_COMMITS = 10
WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from infra.ducklake_warehouse import open_warehouse
from infra.settings import load_settings

folder, name, n_commits = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with open_warehouse(folder, load_settings(home=folder).warehouse) as warehouse:
    for number in range(n_commits):
        now = datetime.now(UTC)
        rows = pa.table({"version": [f"{name}-{number}"] * 2, "snapshot": [1, 2], "updated_at": [now] * 2})
        run = pa.table({"built_at": [now], "table_name": [name], "n_rows": [2], "inputs_hash": [str(number)]})

        def work(transaction):
            transaction.append("watermarks", rows)
            transaction.append("builds", run)  # a second table in the same commit

        warehouse.commit(work)
        print(number, flush=True)
"""


@pytest.fixture
def url(postgres):
    return postgres.url(postgres.new_database())


def with_catalog(url, **changed):
    return WarehouseSettings(**{"catalog_url": url, "busy_timeout_seconds": 20, **changed})


def opened(folder, settings):
    with open_warehouse(folder, settings):
        pass


def start_writer(url, folder, name, n_commits):
    environment = {**os.environ, "NEARLINE_WAREHOUSE__CATALOG_URL": url}
    command = [sys.executable, "-c", WRITER, str(folder), name, str(n_commits)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def marks(*versions):
    return pa.table({"version": versions, "snapshot": [1] * len(versions), "updated_at": [NOW] * len(versions)})


def append(warehouse, *versions):
    warehouse.commit(lambda transaction: transaction.append("watermarks", marks(*versions)))


def versions(warehouse):
    return sorted(warehouse.read("select version from watermarks")["version"].to_pylist())


def test_three_writers_that_begin_without_a_warehouse_lose_nothing(url, tmp_path):
    names = ("ann", "bob", "cy")
    writers = [start_writer(url, tmp_path / "warehouse", name, N_COMMITS) for name in names]
    for writer in writers:
        _, said = writer.communicate(timeout=100)
        assert writer.returncode == 0, said
    expected = sorted(f"{name}-{number}" for name in names for number in range(N_COMMITS) for _ in range(2))
    with open_warehouse(tmp_path / "warehouse", with_catalog(url), read_only=True) as warehouse:
        assert versions(warehouse) == expected
        assert warehouse.read("select * from builds").num_rows == len(names) * N_COMMITS
        first = warehouse.read("select min(snapshot_id) as id from lake.snapshots()")["id"][0].as_py()
        feed = warehouse.insertions("watermarks", first, warehouse.latest_snapshot())
        assert sorted(feed["version"].to_pylist()) == expected


def test_a_killed_writer_leaves_whole_commits_and_no_lock(url, tmp_path):
    folder = tmp_path / "warehouse"
    writer = start_writer(url, folder, "ann", 10_000)
    for _ in range(5):
        assert writer.stdout.readline()
    writer.kill()
    writer.communicate()
    with open_warehouse(folder, with_catalog(url)) as warehouse:
        began = time.monotonic()
        append(warehouse, "after")
        assert time.monotonic() - began < 10
        rows = versions(warehouse)
        n_commits = warehouse.read("select * from builds").num_rows
    assert n_commits >= 5
    assert rows == sorted(["after", *(f"ann-{number}" for number in range(n_commits) for _ in range(2))])


def test_a_killed_creation_is_gone_on_with(url, tmp_path, monkeypatch):
    from infra import ducklake_storage

    def die(connection):
        connection.execute("create table watermarks (version varchar)")
        connection.execute("drop table watermarks")
        raise RuntimeError("killed")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="killed"):
        broken.setattr(ducklake_storage, "create_layout", die)
        with open_warehouse(tmp_path, with_catalog(url)):
            pass
    with open_warehouse(tmp_path, with_catalog(url)) as warehouse:
        append(warehouse, "v1")
        assert versions(warehouse) == ["v1"]


def test_connections_that_are_lost_are_made_again(postgres, url, tmp_path):
    with open_warehouse(tmp_path, with_catalog(url)) as warehouse:
        append(warehouse, "v1")
        postgres.let_go(url.rpartition("/")[2])
        assert versions(warehouse) == ["v1"]
        postgres.let_go(url.rpartition("/")[2])
        append(warehouse, "v2")
        assert versions(warehouse) == ["v1", "v2"]


def test_a_server_lost_during_a_commit_is_told_and_nothing_is_written_twice(postgres, url, tmp_path):
    with open_warehouse(tmp_path, with_catalog(url)) as warehouse:
        n_calls = 0

        def work(transaction):
            nonlocal n_calls
            n_calls += 1
            transaction.append("watermarks", marks("v1"))
            postgres.let_go(url.rpartition("/")[2])

        with pytest.raises(WarehouseUnavailableError, match="not known whether that was written"):
            warehouse.commit(work)
        assert n_calls == 1
        assert versions(warehouse) == []
        append(warehouse, "v2")
        assert versions(warehouse) == ["v2"]


@pytest.fixture
def silent_port():
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_what_cannot_be_had_is_said_in_time_and_without_the_password(postgres, url, silent_port, tmp_path):
    name, secret = url.rpartition("/")[2], "hunter2/secret"
    postgres.ask("create role stranger login password 'hunter2/secret'")
    cases = [
        (postgres.url(name, password=secret), SettingsError, "password authentication failed"),
        (postgres.url("no_such_place", user="stranger", password=secret), SettingsError, "does not exist"),
        (postgres.url(name, user="nobody_here", password=secret), SettingsError, "authentication failed"),
        (postgres.url(name, user="stranger", password=secret), SettingsError, "permission denied for"),
        (f"postgresql://{OWNER}:{'hunter2%2Fsecret'}@127.0.0.1:1/{name}", WarehouseUnavailableError, "refused"),
        (f"postgresql://{OWNER}:{'hunter2%2Fsecret'}@127.0.0.1:{silent_port}/{name}", WarehouseUnavailableError, "2 s"),
    ]
    for address, error, words in cases:
        began = time.monotonic()
        with pytest.raises(error, match=words) as caught:
            opened(tmp_path / "warehouse", with_catalog(address, busy_timeout_seconds=2))
        assert time.monotonic() - began < 15
        told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
        assert "hunter2" not in told


def test_a_slow_server_is_given_up_on(postgres, url, tmp_path):
    """Somebody holds a table of the catalog for longer than the wait that is allowed."""
    with open_warehouse(tmp_path, with_catalog(url, busy_timeout_seconds=1)) as warehouse:
        append(warehouse, "v1")
        with postgres.holding(url.rpartition("/")[2], "ducklake_snapshot"):
            with pytest.raises(WarehouseBusyError, match="within 1 s"):
                append(warehouse, "v2")
            with pytest.raises(WarehouseBusyError, match="within 1 s"):
                versions(warehouse)
        append(warehouse, "v3")
        assert versions(warehouse) == ["v1", "v3"]


def test_a_query_finds_no_password(url, tmp_path):
    with open_warehouse(tmp_path, with_catalog(url)) as warehouse:
        told = str(
            [warehouse.read(f"from {table}").to_pylist() for table in ("duckdb_databases()", "duckdb_secrets()")]
        )
        assert "nearline_catalog" in told
        assert PASSWORD not in told
        with pytest.raises(NearlineError):
            warehouse.read("from duckdb_secrets(redact => false)")
    assert PASSWORD not in repr(with_catalog(url)) + str(vars(lake_catalog(tmp_path, with_catalog(url))))


def test_a_catalog_of_other_files_is_not_taken(url, tmp_path):
    opened(tmp_path / "one", with_catalog(url))
    with pytest.raises(SettingsError, match="belongs to other files") as caught:
        opened(tmp_path / "two", with_catalog(url))
    assert str(tmp_path / "one" / "data") in str(caught.value)
    own = with_catalog(url, data_path=tmp_path / "one" / "data")
    with open_warehouse(tmp_path / "two", own) as warehouse:
        append(warehouse, *(f"v{n}" for n in range(600)))
    assert list((tmp_path / "one" / "data").rglob("*.parquet"))
    with pytest.raises(TerminalError, match="holds files of another one"):
        opened(tmp_path / "one", WarehouseSettings())


def test_strange_values_come_back_from_the_catalog_as_they_were(url, tmp_path):
    """Small commits stay in PostgreSQL's own types, texts and lists among them, until they are flushed."""
    texts = [
        "a, b",
        "it's",
        'say "hi"',
        "[x]",
        "{y: 1}",
        "null",
        " lead",
        "",
        "\\n",
        "a\nb",
        "电影",
        "😀",
        "\x01",
    ]
    stamp = {"batch_id": "b", "source": "s", "ingested_at": NOW}
    rows = [
        {
            "item_id": f"i{n:02}",
            "title": text,
            "categories": [text, "plain"],
            "available": True,
            "source_row": n,
            **stamp,
        }
        for n, text in enumerate(texts)
    ]
    with open_warehouse(tmp_path, with_catalog(url)) as warehouse:
        schema = warehouse.read(
            "select item_id, title, categories, available, source_row, batch_id, source, ingested_at from raw_items"
        )
        table = pa.Table.from_pylist(rows, schema=schema.schema)
        warehouse.commit(lambda transaction: transaction.append("raw_items", table))
        for _ in range(2):
            seen = warehouse.read("select item_id, title, categories from raw_items order by item_id").to_pylist()
            assert seen == table.select(["item_id", "title", "categories"]).to_pylist()
            warehouse.flush("raw_items")


def test_purged_rows_are_in_no_file_of_the_server(postgres, url, tmp_path):
    (place,) = postgres.ask("show data_directory")

    def files_with(text):
        postgres.ask("checkpoint")
        return [
            path for path in Path(place, "base").rglob("*") if path.is_file() and text.encode() in path.read_bytes()
        ]

    with open_warehouse(tmp_path, with_catalog(url)) as warehouse:
        append(warehouse, "person-to-forget", "other")
        assert files_with("person-to-forget")
        warehouse.commit(
            lambda transaction: transaction.replace("watermarks", pa.table({}), {"version": "person-to-forget"})
        )
        done = warehouse.purge(lambda transaction, snapshot: None)
        assert done["catalog_compacted"] == 1
        assert versions(warehouse) == ["other"]
    assert files_with("person-to-forget") == []


def test_a_frozen_server_does_not_hang_who_comes_new(postgres, url, tmp_path):
    os.kill(postgres.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(WarehouseUnavailableError, match="did not answer"):
            opened(tmp_path, with_catalog(url, busy_timeout_seconds=2))
        assert time.monotonic() - began < 15
    finally:
        os.kill(postgres.process.pid, signal.SIGCONT)
