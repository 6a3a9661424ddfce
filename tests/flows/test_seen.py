"""What is seen from outside of a day of work: no id and no text in any log, and figures of every run."""

import io
import json
import logging
import re
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from flows.backfill import backfill
from flows.daily_batch import daily_batch
from flows.nearline import nearline
from infra.key_store import KeyStore
from infra.logs import PACKAGES, console_handler
from infra.settings import ServiceSettings
from serving.app import create_app
from tasks.domain.errors import NearlineError
from tasks.figures import load_figures
from tasks.online.service import OnlineOptions, OnlineService
from tests.conftest import NOW
from tests.flows.conftest import hashing_resources, write

pytestmark = pytest.mark.server

MARK = "zq4711"
"""Every id and every text of these tests has it."""
HEADER = ("user_id", "item_id", "event_type", "occurred_at", "text")


@pytest.fixture
def lines():
    """What the console of this process would get as JSON: a function that returns the objects."""
    handler, stream = console_handler("json"), io.StringIO()
    handler.setStream(stream)
    loggers = [logging.getLogger(name) for name in PACKAGES]
    levels = [logger.level for logger in loggers]
    logging.root.addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.root.removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def marked_files(folder):
    """Twenty items, events of ten users and their texts; some rows are refused, one title is far too long."""
    items = [(f"item-{MARK}-{n}", f"robot {MARK} {n} " + "x" * (400 if n == 3 else 0)) for n in range(20)]
    at = datetime(2026, 2, 1, tzinfo=UTC)
    events = [
        (f"user-{MARK}-{u}", f"item-{MARK}-{n}", "like", (at + timedelta(hours=n)).isoformat(), "")
        for u in range(10)
        for n in range(u % 2, 20, 2)
    ]
    events += [(f"user-{MARK}-{u}", "", "search", at.isoformat(), f"love and {MARK}") for u in range(10)]
    events += [(f"user-{MARK}-x", f"gone-{MARK}", "like", at.isoformat(), "")] * 3
    events += [(f"user-{MARK}-1", f"item-{MARK}-1", "like", f"never {MARK}", "")]
    return {
        "items": (write(folder / "items.csv", ("item_id", "title"), items),),
        "events": (write(folder / "events.csv", HEADER, events),),
    }


def ask(service, home):
    """Requests that are answered and requests that are refused, all with marked ids and texts."""
    keys = KeyStore(home)
    _, key = keys.create("test", ["read", "write", "admin"], now=NOW)
    app = create_app(service, settings=ServiceSettings(), keys=keys)
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False) as client:
        user, item = f"user-{MARK}-1", f"item-{MARK}-2"
        event = {"user_id": user, "item_id": item, "event_type": "like", "event_id": f"event-{MARK}"}
        statuses = [
            client.get(f"/v1/users/{user}/recommendations?k=3&explain=true"),
            client.post("/v1/recommendations", json={"text": f"a robot {MARK}", "k": 3}),
            client.post("/v1/recommendations", json={"text": [MARK]}),
            client.get(f"/v1/items/{item}/similar"),
            client.get(f"/v1/items/gone-{MARK}/similar"),
            client.get(f"/v1/users/{user}/profile?{MARK}={MARK}"),
            client.get(f"/nowhere/{MARK}?q={MARK}"),
            client.post("/v1/events", json=[event, {"user_id": user, "event_type": MARK}]),
            client.post("/v1/items", json=[{"item_id": item, "title": 3, MARK: 1}]),
            client.post("/v1/events", content=f"[{MARK}"),
            client.delete(f"/v1/users/user-{MARK}-9"),
        ]
    return [answer.status_code for answer in statuses]


def test_no_log_has_an_id_or_a_text_of_anybody(batched, run_on, api, tmp_path, lines, monkeypatch):
    resources = batched.resources
    daily_batch(**marked_files(tmp_path), slate_length=3)
    with pytest.raises(NearlineError, match=MARK):
        backfill(users=(f"user-{MARK}-nobody",))
    broken = run_on(hashing_resources(resources.home, gates={"max_quarantined_share": 0.0}))
    rows = [(f"user-{MARK}-1", f"item-{MARK}-1", MARK, MARK, "")] * 5
    with pytest.raises(NearlineError):
        daily_batch(events=(write(tmp_path / "wrong.csv", HEADER, rows),))
    run_on(resources)
    del broken

    options = OnlineOptions(follow_seconds=0.05, commit_seconds=0.0, wait_seconds=5.0)
    with OnlineService(resources, options, lambda: datetime.now(UTC)) as service:
        statuses = ask(service, resources.home)
    assert {200, 404, 422} <= set(statuses)
    nearline()

    found = lines()
    loggers = {line["logger"].split(".")[0] for line in found}
    assert {"prefect", "tasks", "serving"} <= loggers
    assert {line["route"] for line in found if "route" in line} >= {"/v1/users/{user_id}/recommendations", "unknown"}
    told = [line for line in found if MARK in json.dumps(line)]
    assert told == []
    stage = next(line for line in found if line["message"].startswith("stage_finished stage=refit"))
    assert stage["model_version_id"].startswith("v")
    assert re.fullmatch(r"[0-9a-f-]{36}", stage["flow_run_id"])
    assert (stage["flow"], stage["stage"]) == ("daily_batch", "refit_version")
    assert stage["duration_seconds"] >= 0

    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=20)
    runs = [api.last_run(flow)["id"] for flow in ("daily_batch", "backfill", "nearline")]
    sent = api.post("logs/filter", {"logs": {"flow_run_id": {"any_": runs}}, "limit": 200})
    assert {log["flow_run_id"] for log in sent} == set(runs)
    assert [log["message"] for log in sent if MARK in log["message"]] == []


def test_figures_come_from_what_the_runs_left(batched, api, tmp_path):
    resources, now = batched.resources, datetime.now(UTC)
    figures = load_figures(resources, now=now)
    (batch,) = figures.flows
    assert (batch.flow, batch.succeeded, batch.error) == ("daily_batch", True, None)
    assert batch.finished_at == batch.succeeded_at
    assert 0 < batch.seconds < 600
    stages = {stage.stage: stage for stage in figures.stages}
    assert (stages["write_slates"].n_in, stages["write_slates"].n_out) == (80, 400)
    assert all(re.fullmatch(r"[a-z_]+( [a-z_]+)?", stage) for stage in stages)
    gates = {gate.gate: gate for gate in figures.gates}
    assert {"transform", "embed", "quality", "train", "publish", "slates"} <= set(gates)
    assert not any(gate.n_failed for gate in gates.values())
    assert figures.published_at is not None

    rows = [("u01", "i01", "like", "yesterday")] * 9
    with pytest.raises(NearlineError):
        daily_batch(events=(write(tmp_path / "wrong.csv", HEADER[:4], rows),))
    figures = load_figures(resources, now=now)
    (failed,) = figures.flows
    assert (failed.succeeded, failed.error, failed.succeeded_at) == (False, "GateError", batch.succeeded_at)
    assert next(gate.n_failed for gate in figures.gates if gate.gate == "ingest") == 1
    assert figures.n_quarantined == 9
    assert nearline().outcome == "Skipped"
    assert len(load_figures(resources, now=now).flows) == 1  # a run with nothing to do leaves nothing
