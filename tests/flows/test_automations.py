"""Whoever is to be told is told when a gate stops a run, and nothing that a row holds goes out."""

import http.server
import json
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

import flows.cli
from flows.automations import apply_automations
from flows.daily_batch import daily_batch
from flows.run_report import EVENTS
from tasks.domain.errors import GateError, InputError, NotFoundError
from tests.flows.conftest import write

pytestmark = pytest.mark.server

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture
def receiver():
    """What a webhook on loopback was sent, and its address."""
    told = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told, f"http://127.0.0.1:{server.server_port}/told"
    server.shutdown()
    server.server_close()


@pytest.fixture
def block(prefect_server, receiver):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    document = {"subject": "{{subject}}", "text": "{{body}}"}
    made = CustomWebhookNotificationBlock(name="told", url=receiver[1], json_data=document)
    made.save("operators", overwrite=True)
    return "custom-webhook/operators"


@pytest.fixture
def without_automations(api):
    """None is left to tell a webhook that is gone."""
    yield
    for automation in api.post("automations/filter", {}):
        if automation["name"].startswith("nearline-"):
            api.client.delete(f"automations/{automation['id']}").raise_for_status()


def named(api):
    return sorted(a["name"] for a in api.post("automations/filter", {}) if a["name"].startswith("nearline-"))


def test_a_gate_that_stops_a_run_is_told_once_without_values(
    batched, api, block, receiver, without_automations, tmp_path
):
    told, _ = receiver
    names = apply_automations(block)
    assert apply_automations(block) == names
    assert named(api) == sorted(names)

    header = ("user_id", "item_id", "event_type", "occurred_at")
    rows = [("very-secret-user", "i01", "like", "yesterday, I think")] * 9
    deadline = time.monotonic() + 60
    time.sleep(2)  # the server's triggers look for new automations now and then
    with pytest.raises(GateError):
        daily_batch(events=(write(tmp_path / "wrong.csv", header, rows),))
    while not told and time.monotonic() < deadline:
        time.sleep(0.2)
    (message,) = told
    assert message["subject"] == "Nearline: the gate ingest stopped daily_batch"
    assert "raw_events: " in message["text"]
    assert "What to do: " in message["text"]
    assert "very-secret-user" not in str(message)
    (event,) = [e for e in api.events("nearline.gate.stopped") if "ingest" in str(e["resource"])][:1]
    assert "very-secret-user" not in str(event)


def test_a_block_that_is_not_there_is_named_with_those_that_are(block):
    with pytest.raises(
        NotFoundError, match=r"no block 'slack-webhook/operators'\. It has these: .*custom-webhook/operators"
    ):
        apply_automations("slack-webhook/operators")
    with pytest.raises(InputError, match="its type and its name"):
        apply_automations("operators")


def test_the_printed_file_is_what_prefect_reads(block, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nearline", "automations", "--notify", block, "--print"])
    with pytest.raises(SystemExit) as ended:
        flows.cli.main()
    assert not ended.value.code
    printed = yaml.safe_load(capsys.readouterr().out)["automations"]
    assert [AutomationCore.model_validate(one).name for one in printed] == [one["name"] for one in printed]
    assert all(str(action["block_document_id"]).count("-") == 4 for one in printed for action in one["actions"])


def test_every_event_that_is_emitted_is_documented():
    page = DOCS.read_text()
    assert [event for event in EVENTS if f"`{event}`" not in page] == []
