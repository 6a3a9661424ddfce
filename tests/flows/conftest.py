"""One real Prefect server for all flow tests, and a catalog of two tastes for a home of the test's own.

Prefect's environment is set while this file is read, before any test imports Prefect.
"""

import atexit
import csv
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from infra.prefect_server import prefect_api, prepare_prefect, wait_for_api
from infra.settings import load_settings
from tests.conftest import copy_home
from tests.fakes.hashing import HashingEncoder, HashingResources

SERVER_HOME = Path(tempfile.mkdtemp(prefix="nearline-flows-"))
atexit.register(shutil.rmtree, SERVER_HOME, ignore_errors=True)
prepare_prefect(load_settings(home=SERVER_HOME), quiet=True)

TASTES = ("space robot alien star ship", "love kiss paris heart wedding")
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def prefect_server():
    """The address of the server's API."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with prefect_api(load_settings(home=SERVER_HOME)):
            wait_for_api()
            yield os.environ["PREFECT_API_URL"]


class _Patient(httpx.Client):
    """Repeats what the server refused because its SQLite file was locked, as Prefect's own clients do."""

    def send(self, request, **options):
        for _ in range(20):
            answer = super().send(request, **options)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.2)
        return answer


@dataclass(frozen=True)
class Api:
    """The server's REST API, as another program sees it."""

    client: httpx.Client

    def get(self, path):
        answer = self.client.get(path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path, document):
        answer = self.client.post(path, json=document)
        answer.raise_for_status()
        return answer.json()

    def artifact(self, key, run_id):
        """What a run left under a key."""
        wanted = {"artifacts": {"key": {"any_": [key]}, "flow_run_id": {"any_": [run_id]}}}
        (found,) = self.post("artifacts/filter", wanted)
        return found["data"]

    def last_run(self, flow):
        """The newest run of a flow that began."""
        began = {"state": {"type": {"not_any_": ["SCHEDULED"]}}}
        wanted = {"flows": {"name": {"any_": [flow]}}, "flow_runs": began, "sort": "EXPECTED_START_TIME_DESC"}
        return self.post("flow_runs/filter", wanted)[0]

    def run_of(self, flow, message):
        """The run of a flow that ended with this message."""
        found = self.post("flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
        return next(run for run in found if run["state"]["message"] == message)

    def events(self, name, seconds=20, of_run=""):
        """Events of that name, newest first, of one run or of all; they arrive a moment after the run has ended."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.post("events/filter", {"filter": {"event": {"name": [name]}}})["events"]
            found = [event for event in found if of_run in str(event["related"])]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)


@pytest.fixture
def api(prefect_server):
    with _Patient(base_url=f"{prefect_server}/", timeout=30) as client:
        yield Api(client)


@pytest.fixture
def run_on(prefect_server, monkeypatch):
    """``run_on(resources)``: the flows of this process open these."""
    return lambda resources: open_instead(resources, monkeypatch)


def open_instead(resources, monkeypatch):
    """What the flows open from now on."""
    import flows.run_context

    monkeypatch.setenv("NEARLINE_HOME", str(resources.home))
    monkeypatch.setattr(flows.run_context, "load_settings", lambda: resources.settings)
    monkeypatch.setattr(flows.run_context, "build_resources", lambda _settings: resources)
    return resources


@pytest.fixture
def home(tmp_path, run_on):
    """An empty home."""
    return run_on(hashing_resources(tmp_path / "var"))


def hashing_resources(home, **settings):
    """The real adapters with one Dask worker, and an encoder that hashes words and keeps a log of them."""
    few = {"compute": {"n_workers": 1}, "factors": {"n_factors": 8}}
    return HashingResources(load_settings(home=home, **few, **settings), HashingEncoder(log=home / "encoded.log"))


@dataclass(frozen=True)
class Batched:
    """What the first ``daily_batch`` over two tastes left, and what it told while it ran."""

    resources: HashingResources
    files: dict
    summary: object
    told: list


@pytest.fixture(scope="session")
def first_batch(prefect_server, tmp_path_factory):
    """Run once; tests work on copies."""
    from flows.daily_batch import daily_batch
    from tasks.progress import watch_stages

    folder = tmp_path_factory.mktemp("batch")
    (folder / "var").mkdir()
    files, told = write_two_tastes(folder), []
    with pytest.MonkeyPatch.context() as patch, watch_stages(told.append):
        resources = open_instead(hashing_resources(folder / "var"), patch)
        return Batched(resources, files, daily_batch(**files, slate_length=5), told)


@pytest.fixture
def batched(first_batch, tmp_path, run_on):
    """A copy of the home that the first batch left, which the flows open."""
    copy_home(first_batch.resources.home, tmp_path / "var")
    return replace(first_batch, resources=run_on(hashing_resources(tmp_path / "var")))


def write_two_tastes(folder):
    """Sixty items of two tastes, and eighty users who like one of them: paths by kind, as flows take them."""
    rng = np.random.default_rng(3)
    words = [taste.split() for taste in TASTES]
    items = [(f"i{n:02}", " ".join(rng.choice(words[n % 2], 3)) + f" {n}") for n in range(60)]
    events = []
    for user in range(80):
        liked = rng.choice(30, 12, replace=False) * 2 + user % 2
        for order, item in enumerate(liked):
            at = START + timedelta(days=order * 5, minutes=user)
            events.append((f"u{user:02}", f"i{item:02}", "like", at.isoformat()))
    header = ("user_id", "item_id", "event_type", "occurred_at")
    return {
        "items": (write(folder / "items.csv", ("item_id", "title"), items),),
        "events": (write(folder / "events.csv", header, events),),
    }


def write(path, header, rows):
    """A CSV file; returns its name."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)
