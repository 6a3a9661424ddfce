"""What goes wrong: one shape for all of it, and nothing of this machine, of users or of texts in answers and logs."""

import asyncio
import json
import logging
import threading

import pytest

from infra.settings import ServiceSettings
from serving.app import create_app
from tasks.domain.errors import (
    GateError,
    IndexUnavailableError,
    InputError,
    ModelMissingError,
    NotFoundError,
    OverloadedError,
    StorageError,
    TransientError,
    WarehouseBusyError,
)
from tests.serving.conftest import open_asgi

EVENT = {"user_id": "42", "item_id": "i03", "event_type": "like", "occurred_at": "2026-03-01T12:00:00Z"}


def error_of(answer, status, kind):
    """The answer is an error of this status and type, in the shape of all errors."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() <= {"type", "message", "advice", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["type"] == kind
    assert error["message"]
    return error


def service_log(caplog):
    """What was logged, without the lines of the client that the test asks with."""
    return "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (OverloadedError("Too much waits.", 2.2), 429, "overloaded"),
        (InputError("k is 0."), 422, "input"),
        (NotFoundError("No such thing."), 404, "not_found"),
        (WarehouseBusyError("/secret/path is locked"), 503, "warehouse_busy"),
        (StorageError("/secret/path is full"), 503, "storage"),
        (IndexUnavailableError("/secret/path is held"), 503, "index_unavailable"),
        (ModelMissingError("/secret/path is missing"), 503, "model_missing"),
        (TransientError("/secret/path"), 503, "unavailable"),
        (GateError("/secret/path"), 500, "internal"),
        (KeyError("secret-user"), 500, "internal"),
        (RecursionError("secret"), 500, "internal"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/users/secret-user/recommendations"), ("POST", "/v1/events")])
def test_every_error_has_a_status_and_a_name(client, online, caplog, raised, status, kind, method, path):
    online.fails_with = raised
    with caplog.at_level(logging.DEBUG):
        answer = client.request(method, path, json=EVENT if method == "POST" else None)
    error = error_of(answer, status, kind)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert "secret" not in service_log(caplog)
    if status >= 500:
        (line,) = [record.getMessage() for record in caplog.records if "request_failed" in record.getMessage()]
        assert error["request_id"] in line
        assert type(raised).__name__ in line
        assert "conftest.py" in line


def test_retry_after_is_what_the_intake_says(client, online):
    online.fails_with = OverloadedError("Too much waits.", 2.2)
    assert client.post("/v1/events", json=EVENT).headers["retry-after"] == "3"


def test_before_the_first_publication_it_says_so(client, online):
    online.fails_with, online.version = NotFoundError("Nothing serves."), None
    error = error_of(client.get("/v1/users/42/recommendations"), 503, "nothing_published")
    assert "daily_batch" in error["advice"]


def test_an_answer_that_is_no_json_is_an_error(client, online, monkeypatch):
    slate = online._slate(1)
    monkeypatch.setattr(type(slate), "stale_seconds", float("nan"), raising=False)
    monkeypatch.setattr(online, "recommend", lambda _: _with(slate, stale_seconds=float("nan")))
    error_of(client.get("/v1/users/42/recommendations"), 500, "internal")


def _with(slate, **changes):
    from dataclasses import replace

    return replace(slate, **changes)


@pytest.mark.parametrize(
    "query",
    [
        "k=0", "k=501", "k=x", "k=1e3", "diversity=2", "diversity=nan", "method=magic", "explain=perhaps", "unknown=1",
        "attribute=novalue", "attribute==x", "category=", "excludeSeen=true",
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(client, online, query):
    error = error_of(client.get(f"/v1/users/42/recommendations?{query}"), 422, "input")
    assert query.split("=")[0] in error["message"]
    assert online.asked == []


@pytest.mark.parametrize(
    "body",
    [
        {"k": 0}, {"k": "10"}, {"k": True}, {"unknown": 1}, {"text": ""}, {"liked": "i01"}, {"liked": [1]}, [], "x",
        {"boosts": [{"kind": "user", "value": "1", "weight": 0}]}, {"attributes": {"a": "b"}}, {"user_id": ""},
        {"boosts": [{"kind": "item", "value": "1", "weight": 2}]}, {"liked": ["x"] * 1001}, {"text": "x" * 10_001},
    ],
)  # fmt: skip
def test_bodies_out_of_range_are_refused(client, online, body):
    error_of(client.post("/v1/recommendations", json=body), 422, "input")
    assert online.asked == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"a": 1}}', b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"[" * 25 + b"]" * 25, b"'"],
)
@pytest.mark.parametrize("path", ["/v1/events", "/v1/recommendations"])
def test_what_is_no_json_is_refused(client, online, path, body):
    error_of(client.post(path, content=body), 400, "json")
    assert online.asked == []


@pytest.mark.parametrize("body", ["[]", "[1]", "null", '"x"', "[[]]", "3.5", "[{}, null]"])
def test_what_is_no_row_is_refused(client, online, body):
    error_of(client.post("/v1/events", content=body), 422, "input")
    assert online.asked == []


def test_numbers_that_json_has_not_reach_the_row_check(client, online):
    assert client.post("/v1/events", content=b'[{"event_type": "like", "value": NaN}]').status_code == 200
    assert online.asked[0][2][0]["value"] != online.asked[0][2][0]["value"]


def test_too_many_rows_and_too_large_bodies(make_client, online):
    client = make_client("write", max_batch_rows=3, max_body_bytes=1024)
    error_of(client.post("/v1/events", json=[EVENT] * 4), 413, "too_many_rows")
    error_of(client.post("/v1/events", content=b"[" + b" " * 2000 + b"]"), 413, "too_large")
    error_of(client.post("/v1/events", content=iter([b" " * 600] * 3)), 413, "too_large")
    assert client.post("/v1/events", json=[EVENT] * 3).status_code == 200
    error_of(client.post("/v1/events", content=b"x", headers={"Content-Encoding": "gzip"}), 415, "encoding")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/", 404, "no_such_path"),
        ("GET", "/v2/events", 404, "no_such_path"),
        ("GET", "/v1/popular/", 404, "no_such_path"),
        ("GET", "/v1/events", 405, "method"),
        ("PUT", "/v1/users/42", 405, "method"),
        ("GET", "/v1/users//recommendations", 422, "input"),
        ("DELETE", "/v1/users/", 422, "input"),
        ("BREW", "/v1/popular", 405, "method"),
    ],
)
def test_paths_and_methods_that_there_are_not(client, method, path, status, kind):
    answer = client.request(method, path)
    error_of(answer, status, kind)
    assert ("allow" in answer.headers) == (status == 405)


def test_logs_have_the_template_the_status_and_the_key_and_no_id(client, key_store, caplog):
    with caplog.at_level(logging.DEBUG):
        client.get("/v1/users/secret-user/recommendations?category=secret-label")
        client.post("/v1/recommendations", json={"text": "secret text"})
        client.post("/v1/events", json=[{**EVENT, "user_id": "secret-user"}, {"user_id": "secret-user"}])
        client.get("/secret/path?secret=1")
        client.get("/v1/popular?secret=1")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("serving")]
    assert len(lines) == 5
    assert lines[0].startswith("request method=GET route=/v1/users/{user_id}/recommendations status=200 ms=")
    assert f"key={key_store.list()[0].key_id} " in lines[0]
    assert "secret" not in service_log(caplog)


def test_requests_run_side_by_side(client, online):
    online.blocks = threading.Event()
    threads = [threading.Thread(target=client.post, args=("/v1/events",), kwargs={"json": EVENT}) for _ in range(20)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        if online.n_most_at_once == 20:
            break
        threading.Event().wait(0.01)
    online.blocks.set()
    for thread in threads:
        thread.join()
    assert online.n_most_at_once == 20


def test_what_takes_too_long_is_answered_and_its_place_is_kept_until_it_ends(make_client, online, wait_until):
    client = make_client("read", request_timeout_seconds=0.1)
    online.blocks = threading.Event()
    error_of(client.get("/v1/popular"), 503, "timeout")
    lane = client.app.state.desk.lanes["reads"]
    assert lane.n_inside == 1
    online.blocks.set()
    wait_until(lambda: lane.n_inside == 0)


def test_more_than_can_be_done_is_refused_at_once_and_health_still_answers(online, key_store):
    from datetime import UTC, datetime

    _, text = key_store.create("load", ["read"], now=datetime(2026, 1, 1, tzinfo=UTC))
    app = create_app(online, settings=ServiceSettings(requests_per_second=10_000), keys=key_store)
    online.blocks = threading.Event()

    async def flood():
        async with open_asgi(app, headers={"X-API-Key": text}) as client:
            asked = [asyncio.create_task(client.get("/v1/popular")) for _ in range(200)]
            while sum(task.done() for task in asked) < 128:
                await asyncio.sleep(0.01)
            refused = [task.result() for task in asked if task.done()]
            healthy = await client.get("/v1/health")
            online.blocks.set()
            return refused, healthy, await asyncio.gather(*asked)

    refused, healthy, answers = asyncio.run(flood())
    assert {answer.status_code for answer in refused} == {429}
    assert refused[0].headers["retry-after"] == "1"
    assert healthy.status_code == 200
    assert [answer.status_code for answer in answers].count(200) == 72
    assert app.state.desk.lanes["reads"].n_inside == 0


def test_the_description_is_whole(client):
    document = client.get("/openapi.json").json()
    assert json.dumps(document).count("HTTPValidationError") == 0
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            assert "200" in operation["responses"]
    assert document["components"]["securitySchemes"].keys() == {"bearer", "key"}
    assert document["paths"]["/v1/health"]["get"]["security"] == []
