"""The resident worker on a real server: it runs the loop in its own process, merges what piled up, asks by events."""

import os
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from flows.clock import utc_now
from flows.deployments import make_work_pools, register_deployments, trigger_flow
from flows.resident import ResidentWorker, expire_empty_runs, merge_backlog
from flows.run_context import share_resources
from flows.watchdog import Watchdog
from infra.kept_open import KeptOpenResources
from infra.loop_files import Beat, process_began_at, read_beat, read_findings, write_beat
from infra.prefect_events import emit
from infra.settings import load_settings

pytestmark = [pytest.mark.server, pytest.mark.timeout(180)]

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture(scope="module")
def registered(prefect_server):
    make_work_pools()
    register_deployments()


@pytest.fixture
def client(registered):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def kept(small_world, monkeypatch):
    """The small world as a worker keeps it open: a refresh is asked for when three events wait."""
    home = small_world.resources.home
    monkeypatch.setenv("NEARLINE_HOME", str(home))
    resources = KeptOpenResources(load_settings(home=home, nearline={"trigger_events": 3}))
    with share_resources(resources):
        yield resources
    resources.close()


@pytest.fixture
def worker(kept, client, api):
    """Not at work yet; nothing is due from the tests before."""
    deployment = api.get("deployments/name/nearline/nearline")["id"]
    client.pause_deployment(deployment)
    wanted = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    for run in api.post("flow_runs/filter", wanted):
        client.delete_flow_run(run["id"])
    yield ResidentWorker(kept.settings, kept)
    client.resume_deployment(deployment)


def like(world, *users):
    world.add_events(*(world.event(user, "i05") for user in users))


def work_until(worker, client, is_done, seconds=40):
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline
        if wait := worker._do_next(client):
            worker._use_pause(client)
            time.sleep(wait / 5)


def test_runs_that_were_asked_for_are_ordinary_runs_of_the_deployment(worker, client, small_world, api):
    like(small_world, "u01")
    asked = [trigger_flow("nearline", {}).id for _ in range(2)]
    work_until(worker, client, lambda: all(api.get(f"flow_runs/{run}")["state_type"] in FINAL for run in asked))
    first, second = (api.get(f"flow_runs/{run}") for run in asked)
    assert (first["state_name"], second["state_name"]) == ("Completed", "Skipped")
    assert first["state"]["message"].startswith("Refreshed: 1 users from 1 events, lag p95 ")
    assert {"nearline", "version:v1"} <= set(first["tags"])
    assert first["end_time"] <= second["start_time"]
    assert first["work_pool_name"] == "nearline-resident"
    limit = api.get("deployments/name/nearline/nearline")["global_concurrency_limit"]
    assert limit["active_slots"] == 0


def test_a_failed_run_says_why_and_the_next_one_gets_its_turn(worker, client, api):
    failed, good = trigger_flow("nearline", {"version": "v9"}).id, trigger_flow("nearline", {}).id
    work_until(worker, client, lambda: api.get(f"flow_runs/{good}")["state_type"] in FINAL)
    assert api.get(f"flow_runs/{failed}")["state_type"] == "FAILED"
    assert "no watermark" in api.get(f"flow_runs/{failed}")["state"]["message"]
    assert api.get(f"flow_runs/{good}")["state_type"] == "COMPLETED"


def test_enough_waiting_events_make_a_run_through_an_event_and_an_automation(worker, client, small_world, api):
    before = api.post("flow_runs/filter", {"flows": {"name": {"any_": ["nearline"]}}})

    def new_runs():
        found = api.post("flow_runs/filter", {"flows": {"name": {"any_": ["nearline"]}}})
        return [run for run in found if run["id"] not in {other["id"] for other in before}]

    like(small_world, "u01", "u02")
    worker._use_pause(client)
    assert api.events("nearline.events.waiting", seconds=1) == []
    like(small_world, "u03")
    work_until(worker, client, lambda: any(run["state_name"] == "Completed" for run in new_runs()))
    (run,) = new_runs()
    assert run["state"]["message"].startswith("Refreshed: 3 users from 3 events")
    assert run["created_by"]["type"] == "AUTOMATION"
    assert api.events("nearline.events.waiting")[0]["payload"]["events"] == 3


def test_of_a_backlog_the_newest_scheduled_run_and_all_that_were_asked_for_are_done():
    deployment, other = uuid4(), uuid4()

    def run(name, minute, *, auto=True, of=deployment):
        due = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
        return SimpleNamespace(
            id=name, auto_scheduled=auto, deployment_id=of, next_scheduled_start_time=due, expected_start_time=due
        )

    runs = [run("a", 3), run("b", 5), run("c", 4), run("asked", 4, auto=False), run("again", 1, auto=False)]
    todo, drop = merge_backlog([*runs, run("x", 2, of=other)])
    assert [found.id for found in todo] == ["again", "x", "asked", "b"]
    assert sorted(found.id for found in drop) == ["a", "c"]
    assert merge_backlog([]) == ([], [])


def test_old_empty_runs_go_and_those_that_did_something_stay(worker, client, small_world, api):
    like(small_world, "u04")
    runs = [trigger_flow("nearline", {}).id for _ in range(3)]
    work_until(worker, client, lambda: api.get(f"flow_runs/{runs[-1]}")["state_type"] in FINAL)
    deployment = api.get("deployments/name/nearline/nearline")["id"]
    assert expire_empty_runs(client, [deployment], utc_now() - timedelta(hours=1)) == 0
    assert expire_empty_runs(client, [deployment], utc_now() + timedelta(hours=1)) >= 2
    assert [api.client.get(f"flow_runs/{run}").status_code for run in runs] == [200, 404, 404]
    assert expire_empty_runs(client, [], utc_now()) == 0


def test_a_process_that_is_gone_or_has_another_ones_number_is_not_alive():
    def alive(pid, began_at):
        return Beat(pid=pid, at=1.0, polled_at=1.0, pid_began_at=began_at).is_alive

    mine = os.getpid(), process_began_at(os.getpid())
    assert alive(*mine) and alive(mine[0], None)
    assert mine[1] is None or not alive(mine[0], 1), "a container gives the number again"
    assert not alive(2**22 + 1, None)


def test_a_worker_tells_what_it_does_and_settles_what_the_one_before_it_left(worker, kept, client, api, small_world):
    lost = trigger_flow("nearline", {}).id
    for state in ("PENDING", "RUNNING"):
        api.post(f"flow_runs/{lost}/set_state", {"state": {"type": state}})
    before = Beat(pid=os.getpid(), pid_began_at=1, at=1.0, polled_at=1.0, run_id=lost, run_began_at=1.0)
    write_beat(kept.home, before)
    like(small_world, "u05")

    class Enough(Exception):
        pass

    def one_turn(_client):
        raise Enough

    worker._do_next = one_turn
    with pytest.raises(Enough):
        worker.work()
    assert api.get(f"flow_runs/{lost}")["state_type"] == "CRASHED"
    assert read_beat(kept.home).pid == os.getpid()


@pytest.fixture
def watchdog(worker, kept):
    restarted = []
    dog = Watchdog(kept.settings, owns_server=True, restart_worker=restarted.append)
    dog.restarted = restarted
    return dog


def test_a_run_that_nobody_works_on_is_freed_and_announced_once(watchdog, kept, api):
    held = trigger_flow("nearline", {}).id
    for state in ("PENDING", "RUNNING"):
        api.post(f"flow_runs/{held}/set_state", {"state": {"type": state}})
    write_beat(kept.home, Beat(pid=os.getpid(), at=time.time(), polled_at=time.time()))
    assert "slot_held" not in {problem.name for problem in watchdog.look(utc_now())}
    later = utc_now() + timedelta(seconds=25)
    assert "slot_held" in {problem.name for problem in watchdog.look(later)}
    assert "slot_held" in {problem.name for problem in read_findings(kept.home, later)}
    assert api.get(f"flow_runs/{held}")["state_type"] == "CRASHED"
    assert api.get("deployments/name/nearline/nearline")["global_concurrency_limit"]["active_slots"] == 0
    assert "slot_held" not in {problem.name for problem in watchdog.look(later)}
    assert len(api.events("nearline.watchdog.slot_held")) == 1


def test_a_slot_that_no_run_holds_is_freed_at_the_second_look(watchdog, kept, api):
    limit = api.get("deployments/name/nearline/nearline")["global_concurrency_limit"]
    api.client.post("v2/concurrency_limits/increment", json={"names": [limit["name"]], "slots": 1}).raise_for_status()
    looks = [{problem.name for problem in watchdog.look(utc_now())} for _ in range(3)]
    assert ["slot_held" in names for names in looks] == [False, True, False]
    assert api.get("deployments/name/nearline/nearline")["global_concurrency_limit"]["active_slots"] == 0


def test_a_silent_worker_is_started_again_and_waiting_events_stall_the_schedule(watchdog, kept):
    old = time.time() - 100
    write_beat(kept.home, Beat(pid=os.getpid(), at=old, polled_at=old, n_waiting_events=4, oldest_waiting_at=old))
    found = {problem.name: problem for problem in watchdog.look(utc_now() + timedelta(seconds=40))}
    assert set(found) >= {"worker_gone", "schedule_stalled"}
    assert "4 events wait" in found["schedule_stalled"].text
    assert watchdog.restarted == ["it is silent"]


def test_a_kept_warehouse_sees_what_others_commit_and_is_opened_anew_after_it_was_closed(kept, small_world):
    def rows():
        with kept.warehouse(read_only=True) as warehouse:
            return warehouse.read("select count(*) as n from raw_events")["n"][0].as_py()

    before = rows()
    like(small_world, "u06")
    assert rows() == before + 1
    kept.close()
    kept.close()
    assert rows() == before + 1


def test_an_event_is_sent_or_not_but_never_raises(api, monkeypatch, tmp_path):
    assert emit("nearline.test", "nearline.test.1", {"n": 1})
    assert api.events("nearline.test")[0]["payload"] == {"n": 1}
    assert not emit("nearline.test", "nearline.test.1", {"n": object()})
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert not emit("nearline.test", "nearline.test.1", {})
    monkeypatch.delenv("PREFECT_API_URL")
    assert not emit("nearline.test", "nearline.test.1", {}, home=tmp_path)
