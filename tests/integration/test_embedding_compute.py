"""Dask workers: order, backpressure, errors, lost workers, and what the caller's process is spared."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import dask_runner
from infra.dask_runner import open_compute
from infra.settings import ComputeSettings
from tasks.domain.errors import ComputeLostError, InputError, NearlineError


@pytest.fixture(scope="module")
def compute():
    with open_compute(ComputeSettings(n_workers=2)) as compute:
        yield compute


def by_value(function):
    """Workers cannot import a test module: send the function itself."""
    function.__module__ = "__main__"
    return function


def test_every_partition_comes_back_once(compute) -> None:
    assert sorted(compute.map(abs, range(-50, 0))) == list(range(1, 51))
    assert list(compute.map(abs, [])) == []


@pytest.mark.parametrize("in_flight", [1, 2])
def test_partitions_are_drawn_as_they_are_needed(compute, in_flight) -> None:
    """With one in flight for each thread, each is drawn when a worker is free for it."""
    drawn, ahead = 0, []

    def partitions():
        nonlocal drawn
        for n in range(40):
            drawn += 1
            yield n

    for n_done, _ in enumerate(compute.map(abs, partitions(), in_flight=in_flight), start=1):
        ahead.append(drawn - n_done)
    assert max(ahead) == 2 * in_flight - 1
    assert drawn == 40


def test_an_error_of_a_partition_is_raised_as_it_is(compute) -> None:
    @by_value
    def fail(n):
        raise InputError(f"partition {n}")

    with pytest.raises(InputError, match="partition 3"):
        list(compute.map(fail, [3]))
    assert list(compute.map(abs, [-1])) == [1], "the workers are still there"


def test_one_that_stops_listening_cancels_the_rest(compute, tmp_path) -> None:
    @by_value
    def leave_trace(n):
        time.sleep(0.2)
        Path(tmp_path, str(n)).touch()

    next(iter(compute.map(leave_trace, range(20))))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) < 6


def test_a_partition_of_a_lost_worker_is_done_again(compute, tmp_path) -> None:
    @by_value
    def die_once(n):
        mark = Path(tmp_path, "died")
        if n == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return n

    assert sorted(compute.map(die_once, range(4))) == [0, 1, 2, 3]


def test_a_partition_that_kills_every_worker_is_given_up(compute) -> None:
    with pytest.raises(ComputeLostError, match="memory"):
        list(compute.map(os._exit, [1]))
    assert issubclass(ComputeLostError, NearlineError)


def test_workers_have_the_threads_that_are_set_and_the_caller_keeps_its_own(compute) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    with open_compute(ComputeSettings(n_workers=1, threads_per_worker=3)) as other:
        assert list(other.map(os.getenv, ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"])) == ["3", "3"]
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_an_external_scheduler_is_used_and_left_running(compute) -> None:
    address = compute._client.scheduler.address
    with open_compute(ComputeSettings(scheduler_address=address)) as other:
        assert list(other.map(abs, [-2])) == [2]
    assert list(compute.map(abs, [-3])) == [3]


def test_a_scheduler_that_is_not_there(monkeypatch) -> None:
    monkeypatch.setattr(dask_runner, "_NO_WORKERS_SECONDS", 1)
    with (
        pytest.raises(ComputeLostError, match="NEARLINE_COMPUTE__SCHEDULER_ADDRESS"),
        open_compute(ComputeSettings(scheduler_address="tcp://127.0.0.1:9")),
    ):
        pass


SCRIPT = """
import sys
print("main ran", flush=True)
from infra.dask_runner import open_compute
from infra.settings import ComputeSettings
with open_compute(ComputeSettings(n_workers=2)) as compute:  # no `if __name__ == "__main__"`
    print(sum(compute.map(lambda n: n * n, range(4))))
"""


def test_a_script_without_a_guard_is_not_run_again_by_workers(tmp_path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "tasks").mkdir()  # a folder of that name must not hide ours from the workers
    (tmp_path / "tasks" / "__init__.py").write_text("raise AssertionError")
    done = subprocess.run(
        [sys.executable, "-P", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["main ran", "14"]), done.stderr
    assert "AssertionError" not in done.stderr  # Dask may tell there that a connection was closed at the end
