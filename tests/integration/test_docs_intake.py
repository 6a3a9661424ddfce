"""The programs on the page about the intake run."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import httpx

PAGE = (Path(__file__).parents[2] / "docs" / "intake.md").read_text()
FORWARD, DIRECT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_consumer_of_a_broker_commits_after_each_receipt():
    statuses, steps, inside = iter([429, 503, 200, 422]), [], {}

    def answer(request):
        status = next(statuses)
        steps.append((status, [row["event_id"] for row in json.loads(request.content)]))
        return httpx.Response(status, headers={"Retry-After": "0"}, json={})

    def message(event_id):
        return SimpleNamespace(value=json.dumps({"event_id": event_id}))

    batches = iter([[message("a"), message("b")], [message("c")], []])
    consumer = SimpleNamespace(poll=lambda max_records: next(batches), commit=lambda: steps.append("commit"))
    exec(FORWARD, inside)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://nearline") as http:
        inside["forward"](consumer, http)
    assert steps == [(429, ["a", "b"]), (503, ["a", "b"]), (200, ["a", "b"]), "commit", (422, ["c"]), "commit"]


def test_a_program_takes_events_in(local_resources, monkeypatch, capsys):
    monkeypatch.setenv("NEARLINE_HOME", str(local_resources.home))
    exec(DIRECT, {})
    assert capsys.readouterr().out == "1 ()\n"
