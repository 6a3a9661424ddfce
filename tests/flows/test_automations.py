"""Whoever is to be told is told when a gate stops a run, and nothing that a row holds goes out."""

import http.server
import json
import subprocess
import sys
import threading
import time

import pytest
import yaml

import flows.cli
from flows.automations import apply_automations, automations_text
from flows.daily_batch import daily_batch
from tasks.domain.errors import GateError, InputError, NotFoundError
from tests.flows.conftest import write

pytestmark = pytest.mark.server


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


def test_the_file_is_one_that_prefect_takes(
    block, prefect_server, api, without_automations, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sys.argv", ["nearline", "automations", "--notify", block, "--print"])
    with pytest.raises(SystemExit) as ended:
        flows.cli.main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert printed == automations_text(block)
    file = tmp_path / "automations.yaml"
    file.write_text(printed)
    command = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert named(api) == sorted(a["name"] for a in yaml.safe_load(printed)["automations"])
