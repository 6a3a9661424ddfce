"""Writers and readers in processes of their own: no failed read, no lost row, no doubled row."""

import json
import subprocess
import sys
import time

from infra.ducklake_warehouse import open_warehouse
from infra.settings import WarehouseSettings

N_COMMITS = 30
ROWS_PER_COMMIT = 3

WRITER = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from infra.ducklake_warehouse import open_warehouse
from infra.settings import WarehouseSettings

folder, name, n_commits, n_rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
awaited = Path(sys.argv[5]) if len(sys.argv) > 5 else None  # half of the commits come after this file
with open_warehouse(folder, WarehouseSettings()) as warehouse:
    for number in range(n_commits):
        deadline = time.monotonic() + 60
        while awaited and number == n_commits // 2 and not awaited.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        now = datetime.now(UTC)
        rows = pa.table({
            "version": [f"{name}-{number}-{row}" for row in range(n_rows)],
            "snapshot": [number] * n_rows,
            "updated_at": [now] * n_rows,
        })
        run = pa.table({"built_at": [now], "table_name": [name], "n_rows": [n_rows], "inputs_hash": [str(number)]})

        def work(transaction):
            transaction.append("watermarks", rows)
            transaction.append("builds", run)  # a second table in the same commit

        warehouse.commit(work)
"""

READER = """
import json, sys, time
from pathlib import Path

from infra.ducklake_warehouse import open_warehouse
from infra.settings import WarehouseSettings

folder, n_rows = Path(sys.argv[1]), int(sys.argv[2])
sql = (
    "select count(*) as n, count(distinct version) as n_distinct,"
    " (select count(*) from builds) as n_commits from watermarks"
)
seen, slowest, stop, overlapped = [], 0.0, Path(sys.argv[3]), Path(sys.argv[4])
while True:
    last = stop.exists()
    began = time.perf_counter()
    with open_warehouse(folder, WarehouseSettings(), read_only=True) as warehouse:
        row = warehouse.read(sql).to_pylist()[0]
    slowest = max(slowest, time.perf_counter() - began)
    assert row["n"] == row["n_distinct"] == n_rows * row["n_commits"], row
    seen.append(row["n"])
    if len(seen) == 4:
        overlapped.touch()
    if last:
        break
print(json.dumps({"reads": len(seen), "last": seen[-1], "ascending": seen == sorted(seen), "slowest": slowest}))
"""

ANALYST = """
import sys, time
from pathlib import Path

import duckdb
import duckdb_extension_ducklake
import duckdb_extension_sqlite_scanner

folder, n_commits, n_rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection = duckdb.connect()
for package in (duckdb_extension_sqlite_scanner, duckdb_extension_ducklake):
    (path,) = Path(package.__path__[0]).glob("extensions/*/*.duckdb_extension")
    connection.execute(f"load '{path}'")
connection.execute(f"attach 'ducklake:sqlite:{folder}/catalog.sqlite' as lake (read_only, meta_busy_timeout 5000)")
deadline, seen = time.monotonic() + 60, 0
while seen < n_commits * n_rows and time.monotonic() < deadline:
    now = connection.execute("select count(*) from lake.watermarks").fetchall()[0][0]
    assert now >= seen and now % n_rows == 0, (seen, now)
    seen = now
print(seen)
"""


def start(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process, timeout=120):
    out, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    return out


def test_two_writers_and_a_reader(tmp_path):
    """All begin at once on a warehouse that does not exist yet, so they race to make it, too."""
    folder, stop, overlapped = tmp_path / "warehouse", tmp_path / "stop", tmp_path / "overlapped"
    reader = start(READER, folder, ROWS_PER_COMMIT, stop, overlapped)
    writers = [start(WRITER, folder, name, N_COMMITS, ROWS_PER_COMMIT, overlapped) for name in ("ann", "bob")]
    for writer in writers:
        finished(writer)
    stop.touch()
    report = json.loads(finished(reader))
    assert report["last"] == 2 * N_COMMITS * ROWS_PER_COMMIT
    assert report["ascending"]
    assert overlapped.exists(), "the reader did not read while the writers wrote"
    with open_warehouse(folder, WarehouseSettings()) as warehouse:
        rows = warehouse.read("select version from watermarks")["version"].to_pylist()
        first = warehouse.read("select min(snapshot_id) as id from lake.snapshots()")["id"][0].as_py()
        feed = warehouse.insertions("watermarks", first, warehouse.latest_snapshot())["version"].to_pylist()
    expected = {
        f"{name}-{number}-{row}"
        for name in ("ann", "bob")
        for number in range(N_COMMITS)
        for row in range(ROWS_PER_COMMIT)
    }
    assert len(rows) == len(expected)
    assert set(rows) == expected
    assert sorted(feed) == sorted(expected)


def test_a_killed_writer_leaves_whole_commits_and_no_lock(tmp_path):
    folder = tmp_path / "warehouse"
    with open_warehouse(folder, WarehouseSettings()):
        pass
    writer = start(WRITER, folder, "ann", 10_000, ROWS_PER_COMMIT)
    deadline = time.monotonic() + 60
    with open_warehouse(folder, WarehouseSettings(), read_only=True) as warehouse:
        while warehouse.read("select version from watermarks").num_rows < 5 * ROWS_PER_COMMIT:
            assert time.monotonic() < deadline and writer.poll() is None
    writer.kill()
    writer.communicate()
    with open_warehouse(folder, WarehouseSettings()) as warehouse:
        row = warehouse.read(
            "select count(*) as n, count(distinct version) as n_distinct,"
            " (select count(*) from builds) as n_commits from watermarks"
        ).to_pylist()[0]
    assert row["n"] == row["n_distinct"] == ROWS_PER_COMMIT * row["n_commits"]
    began = time.monotonic()
    finished(start(WRITER, folder, "bob", 1, 1))
    assert time.monotonic() - began < 30


def test_a_plain_duckdb_reads_while_flows_write(tmp_path):
    """What docs/sql.md tells an analyst to do, in a process that knows nothing of Nearline."""
    folder = tmp_path / "warehouse"
    with open_warehouse(folder, WarehouseSettings()):
        pass
    analyst = start(ANALYST, folder, N_COMMITS, ROWS_PER_COMMIT)
    finished(start(WRITER, folder, "ann", N_COMMITS, ROWS_PER_COMMIT))
    assert int(finished(analyst)) == N_COMMITS * ROWS_PER_COMMIT
