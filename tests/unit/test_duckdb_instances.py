"""What DuckDB cannot hold in its memory goes to files, and those of a killed process are deleted."""

import subprocess
import sys

import psutil
import pytest

from infra import duckdb_instances
from infra.duckdb_instances import give_back, take_instance


@pytest.fixture
def fresh(monkeypatch):
    """No instance of this process is idle, and each may hold little."""
    monkeypatch.setattr(duckdb_instances, "_IDLE", {})
    monkeypatch.setattr(duckdb_instances, "MEMORY_LIMIT", "60MB")


def test_what_is_beyond_memory_goes_to_the_folder_and_away_again(fresh, tmp_path):
    connection = take_instance(tmp_path)
    connection.execute("create temp table big as select range as a, hash(range) as b from range(8000000)")
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["overflow"]
    assert connection.execute("select count(distinct a) from big").fetchone() == (8_000_000,)
    connection.close()
    assert not list(tmp_path.iterdir())


def test_an_idle_instance_holds_no_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(duckdb_instances, "_IDLE", {})
    connection = take_instance(tmp_path)
    limit = connection.execute("select current_setting('memory_limit')").fetchone()
    connection.execute("attach ':memory:' as lake; use lake")
    connection.execute("select count(distinct hash(range)::varchar || 'x') from range(5_000_000)").fetchall()
    held = psutil.Process().memory_info().rss
    give_back(connection, "lake")
    assert held - psutil.Process().memory_info().rss > 200e6
    assert take_instance(tmp_path) is connection
    assert connection.execute("select current_setting('memory_limit')").fetchone() == limit
    connection.close()


def test_folders_of_dead_processes_are_deleted_and_others_stay(fresh, tmp_path):
    program = (
        "import sys; from infra.duckdb_instances import _overflow as o, Path as P; print(o(P(sys.argv[1])), end='')"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    dead = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    alive = duckdb_instances._overflow(tmp_path)
    for folder in (dead, alive):
        duckdb_instances.Path(folder).mkdir()
    take_instance(tmp_path).close()
    assert [str(path) for path in tmp_path.iterdir()] == [alive]
