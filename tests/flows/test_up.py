"""``nearline up`` as people use it: a server on loopback, the deployments, the workers, the HTTP service, and runs
through the REST API."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from infra.prefect_server import find_server, free_port

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def environment(home):
    """Only what a person has: no variable of Prefect's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "NEARLINE", "COV"))}
    return {**kept, "NEARLINE_HOME": str(home), "NEARLINE_SERVICE__PORT": "0"}


def nearline(home, *arguments):
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home), check=False, timeout=120)


@pytest.fixture
def up(small_world, tmp_path):
    """A running ``nearline up`` on the small world: its process and its address."""
    home, log = small_world.resources.home, tmp_path / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "up", "--port", str(free_port())],
            env=environment(home),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
    try:
        deadline = time.monotonic() + 120
        while "Nearline is up" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        server = find_server(home)
        assert server is not None
        yield process, server, log
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def children(pid):
    """Processes that a process started, and theirs."""
    import psutil

    return psutil.Process(pid).children(recursive=True)


def wait_until_healthy(api):
    deadline = time.monotonic() + 60
    while True:
        try:
            return api.get("health").raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "the server does not answer again"
            time.sleep(0.3)


def ask(api, path, document):
    """Ask again where the server says that its database is busy."""
    for _ in range(20):
        answer = api.post(path, json=document)
        if answer.status_code != 503:
            break
        time.sleep(0.5)
    return answer.raise_for_status().json()


def trigger(api, flow, parameters):
    """As docs/api.md says it; returns the run when it has ended."""
    wait_until_healthy(api)
    deployment = api.get(f"deployments/name/{flow}/{flow}").raise_for_status().json()
    run = ask(api, f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    deadline = time.monotonic() + 100
    while run["state_type"] not in FINAL:
        assert time.monotonic() < deadline, run["state"]
        time.sleep(0.3)
        run = api.get(f"flow_runs/{run['id']}").raise_for_status().json()
    return run


def test_up_registers_schedules_serves_the_api_and_ends_whole(up, small_world):
    process, server, log = up
    home = small_world.resources.home
    started = children(process.pid)
    with httpx.Client(base_url=f"{server.api_url}/", timeout=30) as api:
        check_deployments(api)
        check_service(log)
        small_world.add_events(small_world.event("u01", "i05"))
        check_nearline(trigger(api, "nearline", {}), api)
        run = trigger(api, "maintenance", {"keep_days": 3})
        assert run["state"]["message"].startswith("Tidied: ")
        assert run["parameters"] == {"keep_days": 3}
        run = trigger(api, "nearline", {"version": "v9"})
        assert run["state_type"] == "FAILED"
        assert "no watermark" in run["state"]["message"]
        wrong = {"parameters": {"version": ["not", "a", "text"]}}
        answer = api.post(f"deployments/{run['deployment_id']}/create_flow_run", json=wrong)
        assert answer.status_code == 409

    second = nearline(home, "up")
    assert second.returncode == 1
    assert f"is up already for {home}: its UI is at {server.url}" in second.stderr.replace("\n", " ")
    triggered = nearline(home, "trigger", "maintenance", "--wait", "--json")
    assert triggered.returncode == 0, triggered.stderr
    assert json.loads(triggered.stdout)["message"].startswith("Tidied: ")
    status = json.loads(nearline(home, "status", "--json").stdout)
    assert status["ui"] == server.url
    assert {run["flow"]: run["message"] for run in status["last_runs"]}["maintenance"].startswith("Tidied: ")

    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 0
    assert find_server(home) is None
    assert not [child for child in started if child.is_running() and child.status() != "zombie"]


def check_deployments(api):
    found = api.post("deployments/filter", json={}).raise_for_status().json()
    names = ["backfill", "daily_batch", "maintenance", "nearline", "tune_factors"]
    assert sorted(deployment["name"] for deployment in found) == names
    for deployment in found:
        assert deployment["description"], deployment["name"]
        assert deployment["concurrency_limit"] == 1 or deployment["global_concurrency_limit"]["limit"] == 1
        for name, parameter in deployment["parameter_openapi_schema"]["properties"].items():
            assert parameter.get("description"), f"{deployment['name']}: {name}"
    schedules = {d["name"]: [s["schedule"] for s in d["schedules"] if s["active"]] for d in found}
    assert schedules["backfill"] == []
    assert schedules["nearline"][0]["interval"] == 15
    assert (schedules["daily_batch"][0]["cron"], schedules["daily_batch"][0]["timezone"]) == ("0 2 * * *", "UTC")


def check_nearline(run, api):
    """It refreshed the one event; or a scheduled run came first and did."""
    assert run["state_type"] == "COMPLETED", run["state"]
    assert run["state_name"] in ("Completed", "Skipped")
    artifact = api.get("artifacts/nearline-refresh/latest").raise_for_status().json()
    (row,) = json.loads(artifact["data"])
    assert (row["users"], row["events"]) == (1, 1)


def check_service(log):
    """It answers who has the key that was printed, and nobody else."""
    url, key = re.search(r"HTTP service: (\S+)  API key: (\S+)", log.read_text()).groups()
    with httpx.Client(base_url=url, timeout=30) as service:
        answer = service.get("/v1/users/u01/recommendations", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["items"]) == 10
        assert service.get("/v1/users/u01/recommendations").status_code == 401


def wait_for_service(log):
    deadline = time.monotonic() + 60
    while True:
        try:
            return check_service(log)
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the service does not answer again"
            time.sleep(0.3)


def kill_child(pid, word):
    """Kill one, and return when another has taken its place and could begin to work."""
    first = next(child for child in children(pid) if word in child.cmdline())
    first.kill()
    deadline = time.monotonic() + 60
    while not any(word in child.cmdline() for child in children(pid) if child.pid != first.pid):
        assert time.monotonic() < deadline, f"{word} was not started again"
        time.sleep(0.2)


def test_killed_children_come_back_and_a_killed_up_takes_them_with_it(up, small_world):
    process, server, log = up
    kill_child(process.pid, "worker")
    kill_child(process.pid, "flows.resident")
    kill_child(process.pid, "serve")
    wait_for_service(log)
    kill_child(process.pid, "server")
    with httpx.Client(base_url=f"{server.api_url}/", timeout=30) as api:
        run = trigger(api, "nearline", {})
    assert run["state_type"] == "COMPLETED"
    started = children(process.pid)
    assert len(started) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(child.is_running() and child.status() != "zombie" for child in started):
        assert time.monotonic() < deadline, "children outlive their parent"
        time.sleep(0.2)
    assert find_server(small_world.resources.home) is None
