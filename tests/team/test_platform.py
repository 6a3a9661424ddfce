"""The team's shape on one machine: Prefect's server and the catalog on PostgreSQL, a Dask scheduler with a worker, the
HTTP service and the flows, each a process of its own."""

import csv
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from infra.ducklake_warehouse import open_warehouse
from infra.key_store import KeyStore
from infra.prefect_server import free_port
from infra.settings import WarehouseSettings

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
PREFECT_PASSWORD = "only-for-tests"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def prefect_api(postgres, tmp_path):
    """The API of a Prefect server whose database is PostgreSQL, and the name of that database."""
    postgres.ask(f"create role prefect login password '{PREFECT_PASSWORD}'", "create database prefect owner prefect")
    port, home = free_port(), tmp_path / "prefect"
    environment = {
        **own_environment(),
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect:{PREFECT_PASSWORD}@127.0.0.1:"
        f"{postgres.port}/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, environment, tmp_path / "prefect.log") as log:
        url = f"http://127.0.0.1:{port}/api"
        wait_for(lambda: httpx.get(f"{url}/health").is_success, log)
        yield url


@pytest.fixture
def dask_scheduler(tmp_path):
    """The address of a scheduler with a worker, each a process of its own."""
    port, environment = free_port(), own_environment()
    address = f"tcp://127.0.0.1:{port}"
    start = ["dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    work = ["dask", "worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    work += ["--local-directory", str(tmp_path / "dask")]
    with (
        running(start, environment, tmp_path / "scheduler.log"),
        running(work, environment, tmp_path / "worker.log"),
    ):
        yield address


def own_environment():
    """Only what a person has, and this repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "NEARLINE", "COV"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


@contextmanager
def running(arguments, environment, log):
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=environment, stdout=output, stderr=output, cwd=log.parent
        )
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(is_there, log, seconds=90):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_there():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def write_small_catalog(folder):
    """Twelve items of two tastes and twelve users who like one of them."""
    tastes = ("space robot", "love paris")
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *((f"i{n:02}", f"{tastes[n % 2]} {n}") for n in range(12))])
    with (folder / "events.csv").open("w", newline="") as file:
        rows = [
            (f"u{user:02}", f"i{item:02}", "like", (START + timedelta(days=item, minutes=user)).isoformat())
            for user in range(12)
            for item in range(user % 2, 12, 2)
            if item // 2 != user // 2
        ]
        csv.writer(file).writerows([("user_id", "item_id", "event_type", "occurred_at"), *rows])
    return {"items": [str(folder / "items.csv")], "events": [str(folder / "events.csv")]}


@contextmanager
def flows_process(environment, log):
    """``run(flow, **parameters)`` runs a flow in another process; returns its outcome."""
    command = [sys.executable, "-m", "tests.team.flows_process"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )

    def run(flow, **parameters):
        process.stdin.write(json.dumps([flow, parameters]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, log.read_text()
        return json.loads(answer)

    try:
        yield run
    finally:
        process.kill()
        process.communicate()


def test_a_batch_intake_and_a_refresh(postgres, prefect_api, dask_scheduler, tmp_path):
    home, url = tmp_path / "var", postgres.url(postgres.new_database())
    environment = {
        **own_environment(),
        "NEARLINE_HOME": str(home),
        "NEARLINE_WAREHOUSE__CATALOG_URL": url,
        "NEARLINE_WAREHOUSE__DATA_PATH": str(tmp_path / "files"),
        "NEARLINE_COMPUTE__SCHEDULER_ADDRESS": dask_scheduler,
        "NEARLINE_ENCODER__PARTITION_ITEMS": "4",  # a single partition would be embedded where the flow runs
        "PREFECT_API_URL": prefect_api,
    }
    _, key = KeyStore(home).create("test", ["read", "write"], now=datetime.now(UTC))
    service = ["flows.cli", "serve", "--port", "0", "--json"]
    with (
        flows_process(environment, tmp_path / "flows.log") as run,
        running(service, environment, tmp_path / "serve.log") as log,
    ):
        assert run("daily_batch", **write_small_catalog(tmp_path), slate_length=5) == "Published"
        assert tasks_done(dask_scheduler) > 0, "the workers of the scheduler embedded nothing"
        wait_for(lambda: '"url"' in log.read_text(), log)
        address = next(json.loads(line)["url"] for line in log.read_text().splitlines() if '"url"' in line)
        with httpx.Client(base_url=address, headers={"X-API-Key": key}, timeout=60) as client:
            event = {"event_id": "new-1", "user_id": "newcomer", "item_id": "i02", "event_type": "like"}
            event["occurred_at"] = datetime.now(UTC).isoformat()
            receipt = client.post("/v1/events", json=event).raise_for_status().json()
            assert receipt["accepted"] == 1, receipt
            assert run("nearline") == "Refreshed"
            answer = client.get("/v1/users/newcomer/recommendations", params={"k": 3}).raise_for_status().json()
            assert answer["n_history"] == 1 and len(answer["items"]) == 3

    settings = WarehouseSettings(catalog_url=url, data_path=tmp_path / "files")
    with open_warehouse(home / "warehouse", settings, read_only=True) as warehouse:
        rows = warehouse.read("select user_id from user_profiles where user_id = 'newcomer'")
        assert rows.num_rows == 1
    assert not (home / "warehouse" / "catalog.sqlite").exists()
    assert list((tmp_path / "files").rglob("*.parquet"))
    ended = "select flow.name, flow_run.state_type from flow_run join flow on flow.id = flow_run.flow_id order by 1"
    assert postgres.ask(ended, database="prefect") == ["daily_batch|COMPLETED", "nearline|COMPLETED"]


def tasks_done(address):
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
