"""What ``nearline up`` puts in order on its server: runs that nobody works on, runs that were missed, deployments."""

import time
from datetime import timedelta

import pytest

from flows.clock import utc_now
from flows.deployments import (
    crash_unfinished_runs,
    drop_missed_runs,
    load_recent_runs,
    make_work_pools,
    register_deployments,
    trigger_flow,
)
from infra.loop_files import worker_name
from tasks.domain.errors import InputError, NotFoundError

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def registered(prefect_server):
    make_work_pools()
    make_work_pools()
    register_deployments()


def test_an_unfinished_run_of_a_deployment_is_crashed_and_its_slot_is_free(registered, api):
    run = trigger_flow("backfill", {"users": ["u1"]})
    for state in ("PENDING", "RUNNING"):
        answer = api.post(f"flow_runs/{run.id}/set_state", {"state": {"type": state}})
        assert answer["status"] == "ACCEPT"
    waiting = trigger_flow("backfill", {})
    held = api.post(f"flow_runs/{waiting.id}/set_state", {"state": {"type": "PENDING"}})
    assert held["state"]["name"] == "AwaitingConcurrencySlot"

    assert crash_unfinished_runs("the worker is gone") == 1
    found = api.get(f"flow_runs/{run.id}")
    assert (found["state_type"], found["state"]["message"]) == ("CRASHED", "the worker is gone")
    freed = api.post(f"flow_runs/{waiting.id}/set_state", {"state": {"type": "PENDING"}, "force": False})
    assert freed["state"]["type"] == "PENDING"
    assert crash_unfinished_runs("again") == 1
    assert crash_unfinished_runs("again") == 0


def test_on_a_server_that_others_use_only_the_runs_of_the_worker_of_this_home_are_crashed(registered, api, tmp_path):
    assert worker_name(tmp_path) == worker_name(tmp_path) != worker_name(tmp_path / "other")
    runs = {}
    for name in (worker_name(tmp_path), "somebody"):
        runs[name] = trigger_flow("tune_factors", {}).id
        api.post(f"flow_runs/{runs[name]}/set_state", {"state": {"type": "RUNNING"}, "force": True})
        labels = {"prefect.worker.name": name}
        api.client.patch(f"flow_runs/{runs[name]}/labels", json=labels).raise_for_status()
    assert crash_unfinished_runs("started again", worker=worker_name(tmp_path)) == 1
    states = {name: api.get(f"flow_runs/{run}")["state_type"] for name, run in runs.items()}
    assert states == {worker_name(tmp_path): "CRASHED", "somebody": "RUNNING"}
    assert crash_unfinished_runs("the owner of the server") == 1


def test_of_the_runs_that_were_missed_the_newest_stays(registered, api):
    wanted = {"flows": {"name": {"any_": ["nearline"]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def due(now):
        runs = api.post("flow_runs/filter", wanted)
        return sorted(run["expected_start_time"] for run in runs if run["expected_start_time"] < now.isoformat())

    later = utc_now() + timedelta(minutes=10)
    deadline = time.monotonic() + 60
    while len(before := due(later)) <= 5:
        assert time.monotonic() < deadline, "the scheduler makes no runs"
        time.sleep(0.5)
    assert drop_missed_runs(later) == len(before) - 1
    assert due(later) == before[-1:]


def test_a_trigger_names_what_is_wrong(registered):
    with pytest.raises(NotFoundError, match="backfill, daily_batch, maintenance, nearline, tune_factors"):
        trigger_flow("nightly", {})
    with pytest.raises(InputError, match=r"does not take days.*keep_days"):
        trigger_flow("maintenance", {"days": 3})
    with pytest.raises(InputError, match="was refused"):
        trigger_flow("maintenance", {"keep_days": 0})


def test_recent_runs_are_the_last_of_each_flow(registered):
    url, runs = load_recent_runs()
    assert url.startswith("http://127.0.0.1:")
    assert len({run.flow for run in runs}) == len(runs)
