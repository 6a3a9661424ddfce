"""Each route: what the online side is asked, and what comes back."""

import json

import pytest
from pydantic import TypeAdapter

from serving import models
from tasks.domain.online import Boost, SlateRequest

EVENT = {
    "event_id": "e1",
    "user_id": "42",
    "item_id": "i03",
    "event_type": "like",
    "occurred_at": "2026-03-01T12:00:00Z",
}


def is_described(model, answer):
    """The answer is what the description says, with no member more or less."""
    described = TypeAdapter(model).validate_python(answer.json(), strict=False)
    assert described.model_dump(mode="json").keys() == answer.json().keys()
    return answer.json()


def test_a_user_gets_a_slate_with_parts_source_and_staleness(client, online):
    answer = client.get("/v1/users/42/recommendations", params={"k": 3, "explain": True})
    assert answer.status_code == 200
    slate = is_described(models.SlateAnswer, answer)
    assert [item["rank"] for item in slate["items"]] == [1, 2, 3]
    for item in slate["items"]:
        assert sum(item["parts"].values()) == pytest.approx(item["score"], abs=1e-5)
        assert item["because"][0] == {
            "kind": "item", "label": "Film 3", "item_id": "i03", "contribution": 0.4, "share": 0.8
        }  # fmt: skip
    about = {name: slate[name] for name in ("source", "version", "as_of_snapshot", "pending_events", "stale_seconds")}
    assert about == {
        "source": "profile", "version": "v1", "as_of_snapshot": 17, "pending_events": 1, "stale_seconds": 0.0
    }  # fmt: skip
    assert online.asked == [("recommend", SlateRequest(user_id="42", k=3, explain=True))]


def test_every_parameter_of_a_slate_arrives(client, online):
    path = "/v1/users/42/recommendations?k=7&category=Drama&category=War&attribute=lang=en&attribute=lang=fr"
    client.get(f"{path}&attribute=a=b=c&exclude_seen=false&available=false&diversity=0.25&method=neighbours")
    assert online.asked[0][1] == SlateRequest(
        user_id="42",
        k=7,
        categories=("Drama", "War"),
        attributes={"lang": ("en", "fr"), "a": ("b=c",)},
        only_available=False,
        exclude_seen=False,
        diversity=0.25,
        method="neighbours",
    )


def test_every_member_of_the_body_arrives(client, online):
    body = {
        "user_id": "42", "text": "the sea", "liked": ["i01"], "disliked": ["i02"], "k": 500, "categories": ["Drama"],
        "attributes": {"lang": ["en"]}, "available": False, "exclude_seen": False, "exclude_items": ["i09"],
        "diversity": 1, "boosts": [{"kind": "attribute", "value": "lang=en", "weight": -1}], "explain": True,
        "method": "neighbours",
    }  # fmt: skip
    answer = client.post("/v1/recommendations", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 500
    assert online.asked[0][1] == SlateRequest(
        "42", "the sea", ("i01",), ("i02",), 500, ("Drama",), {"lang": ("en",)}, False, False, ("i09",), 1.0,
        (Boost("attribute", "lang=en", -1.0),), True, "neighbours",
    )  # fmt: skip
    assert body.keys() == models.SlateBody.model_fields.keys()


def test_an_empty_body_asks_for_what_is_popular(client, online):
    assert client.post("/v1/recommendations", json={}).status_code == 200
    assert online.asked == [("recommend", SlateRequest())]


def test_a_fallback_is_named(client):
    assert client.get("/v1/users/nobody/recommendations").json()["fallbacks"] == ["unknown_user"]


@pytest.mark.parametrize(
    "name",
    ["a/b", "/", "a//b/", "ünï☃", "100%", "a b+c", "x/recommendations", "a/profile", "?q=1#f", "'; drop", "\t"],
)
def test_an_id_may_be_any_text(client, online, name):
    from urllib.parse import quote

    path = quote(name, safe="")
    assert client.get(f"/v1/users/{path}/recommendations").json()["user_id"] == name
    assert client.get(f"/v1/users/{path}/profile").json()["user_id"] == name
    assert client.get(f"/v1/items/{path}/similar").status_code == 200
    assert client.delete(f"/v1/users/{path}").status_code == 200
    told = [call[1].user_id if call[0] == "recommend" else call[1] for call in online.asked]
    assert told == [name] * 4


def test_similar_items_by_what_was_asked(client, online):
    assert client.get("/v1/items/i03/similar?k=2&by=text").status_code == 200
    assert online.asked == [("similar", "i03", 2, "text")]


@pytest.mark.parametrize("name", ["popular", "latest"])
def test_lists_for_everybody(client, online, name):
    answer = client.get(f"/v1/{name}?k=2&category=Drama&attribute=lang=en&available=false")
    assert len(is_described(models.SlateAnswer, answer)["items"]) == 2
    asked = SlateRequest(k=2, categories=("Drama",), attributes={"lang": ("en",)}, only_available=False)
    assert online.asked == [(name, asked)]


def test_a_profile_says_what_is_believed_and_from_what(client):
    found = is_described(models.ProfileAnswer, client.get("/v1/users/42/profile"))
    assert found["categories"] == [{"category": "Drama", "share": 0.75}, {"category": "Comedy", "share": 0.25}]
    assert found["evidence"][0]["at"] == "2026-03-01T12:00:00+00:00"
    assert found["pending_events"] == 1


def test_erasing_gives_a_receipt(client):
    found = is_described(models.ErasureAnswer, client.delete("/v1/users/42"))
    assert found["removed"] == [{"place": "raw_events", "removed": 3, "left": 0}]


@pytest.mark.parametrize("kind", ["events", "items", "users"])
def test_rows_are_taken_one_or_many(client, online, kind):
    for body, n in ((EVENT, 1), ([EVENT, {**EVENT, "event_id": "e2"}], 2)):
        answer = client.post(f"/v1/{kind}", json=body)
        assert answer.status_code == 200
        assert len(online.asked[-1][2]) == n
    call, asked_kind, rows, source = online.asked[-1]
    assert (call, asked_kind, rows[0]) == ("accept", kind, EVENT)
    assert source.startswith("http:")


def test_the_receipt_counts_and_names_bad_rows(client):
    client.post("/v1/events", json=EVENT)
    answer = client.post("/v1/events", json=[EVENT, {"user_id": "1"}, {**EVENT, "event_id": "e2"}])
    assert answer.status_code == 200
    assert is_described(models.ReceiptAnswer, answer) == {
        "receipt_id": "batch-1", "accepted": 1, "duplicates": 1, "snapshot": 17,
        "rejected": [{"index": 1, "reason": "event_type is missing"}],
    }  # fmt: skip


def test_only_bad_rows_are_an_error_that_is_a_receipt_too(client):
    answer = client.post("/v1/events", json=[{"user_id": "1"}])
    assert answer.status_code == 422
    found = is_described(models.RefusedAnswer, answer)
    assert (found["accepted"], found["rejected"][0]["index"], found["error"]["type"]) == (0, 0, "rejected")


def test_a_sending_again_of_all_is_no_error(client):
    assert client.post("/v1/events", json=EVENT).json()["accepted"] == 1
    again = client.post("/v1/events", json=EVENT)
    assert (again.status_code, again.json()["duplicates"]) == (200, 1)


def test_half_a_surrogate_pair_becomes_the_replacement_character(client, online):
    body = json.dumps([{**EVENT, "text": "cut \ud83d", "item_id": "\U0001f3ac"}]).encode()
    assert client.post("/v1/events", content=body).status_code == 200
    (row,) = online.asked[0][2]
    assert (row["text"], row["item_id"]) == ("cut \ufffd", "\U0001f3ac")


@pytest.mark.parametrize(("state", "status"), [("ready", 200), ("degraded", 200), ("unavailable", 503)])
def test_health_needs_no_key_and_names_its_problems(make_client, online, state, status):
    online.state = state
    answer = make_client().get("/v1/health")
    assert answer.status_code == status
    found = is_described(models.HealthAnswer, answer)
    assert found["state"] == state
    assert [problem["name"] for problem in found["problems"]] == ([] if state == "ready" else ["stalled"])


def test_metrics_count_requests_by_template_and_rows_by_outcome(client):
    client.get("/v1/users/secret-user/recommendations")
    client.get("/nowhere/secret-path")
    client.post("/v1/events", json=[EVENT, {"user_id": "1"}])
    text = client.get("/metrics").text
    route = 'method="GET",route="/v1/users/{user_id}/recommendations",status="200"'
    assert f"nearline_http_requests_total{{{route}}} 1.0" in text
    assert f"nearline_http_request_seconds_count{{{route}}} 1.0" in text
    assert 'nearline_http_requests_total{method="GET",route="unknown",status="404"} 1.0' in text
    assert 'nearline_intake_rows_total{kind="events",outcome="accepted"} 1.0' in text
    assert 'nearline_intake_rows_total{kind="events",outcome="rejected"} 1.0' in text
    assert "nearline_pending_users 2.0" in text
    assert "process_resident_memory_bytes" in text
    assert "secret" not in text
    assert "broken" not in text
