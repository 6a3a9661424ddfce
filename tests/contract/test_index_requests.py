"""What the adapter says to a server, and what it makes of the server's refusals."""

import os

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient

from infra.qdrant_index import QdrantIndex, _check_server
from infra.qdrant_points import item_payload, point_id, user_payload
from tasks.domain.errors import IndexUnavailableError, NotFoundError, TerminalError
from tasks.domain.records import IndexFilter, ItemPayload, UserPayload

ADDRESS = "http://qdrant.test:6333"


def _index(handler) -> QdrantIndex:
    return QdrantIndex(
        QdrantClient(url=ADDRESS, transport=httpx.MockTransport(handler), check_compatibility=False), ADDRESS
    )


def _answering(status: int, error: str = "no"):
    return lambda request: httpx.Response(status, json={"status": {"error": error}, "time": 0.0})


def _bodies(server, method: str, ending: str) -> list:
    return [body for verb, path, body in server.requests if verb == method and path.endswith(ending)]


def test_both_aliases_move_in_one_request(index_over_http, qdrant_over_http):
    for version in ("v1", "v2"):
        index_over_http.create_version(version, 4)
        index_over_http.switch(version)

    first, second = _bodies(qdrant_over_http, "POST", "/collections/aliases")

    assert [next(iter(action)) for action in first["actions"]] == ["create_alias", "create_alias"]
    assert [next(iter(action)) for action in second["actions"]] == ["delete_alias"] * 2 + ["create_alias"] * 2
    assert {action["create_alias"]["collection_name"] for action in second["actions"][2:]} == {"items__v2", "users__v2"}


def test_users_are_fenced_by_their_snapshot_and_items_are_not(index_over_http, qdrant_over_http):
    index_over_http.create_version("v1", 4)
    vectors = np.ones((3, 4), np.float32)
    index_over_http.upsert_items("v1", vectors[:1], [ItemPayload("i", "I")])
    users = [UserPayload("a", 1, 0.5, 0.5, 7), UserPayload("b", 1, 0.5, 0.5, 9), UserPayload("c", 1, 0.5, 0.5, 7)]
    index_over_http.upsert_users("v1", vectors, users)

    items, *users = _bodies(qdrant_over_http, "PUT", "/points")

    assert "update_filter" not in items or items["update_filter"] is None
    assert [(len(body["points"]), body["update_filter"]["must"][0]["range"]["lte"]) for body in users] == [
        (2, 7),
        (1, 9),
    ]


def test_payload_fields_that_filters_use_are_indexed_on_a_server(index_over_http, qdrant_over_http):
    index_over_http.create_version("v1", 4)

    fields = {(body["field_name"], body["field_schema"]) for body in _bodies(qdrant_over_http, "PUT", "/index")}

    assert fields == {
        ("available", "bool"),
        ("categories", "keyword"),
        ("attributes", "keyword"),
        ("as_of_snapshot", "integer"),
    }


def test_a_search_says_its_conditions(index_over_http, qdrant_over_http):
    index_over_http.create_version("v1", 4)
    restrict = IndexFilter(
        categories=("drama",),
        attributes=(("language=en", "language=fr"), ("year=1995",)),
        exclude_items=frozenset({"b"}),
        only_items=frozenset({"a", "b"}),
    )
    index_over_http.search("v1", np.ones(4, np.float32), 3, restrict, with_vectors=True)

    (body,) = _bodies(qdrant_over_http, "POST", "/points/query")

    assert body["filter"]["must"] == [
        {"key": "available", "match": {"value": True}},
        {"key": "categories", "match": {"any": ["drama"]}},
        {"key": "attributes", "match": {"any": ["language=en", "language=fr"]}},
        {"key": "attributes", "match": {"any": ["year=1995"]}},
        {"has_id": [point_id("a"), point_id("b")]},
    ]
    assert body["filter"]["must_not"] == [{"has_id": [point_id("b")]}]
    assert (body["limit"], body["with_vector"]) == (3, ["fused"])


def test_users_are_deleted_by_id_from_every_version(index_over_http, qdrant_over_http):
    for version in ("v1", "v2"):
        index_over_http.create_version(version, 4)
    index_over_http.upsert_users("v2", np.ones((1, 4), np.float32), [UserPayload("a", 1, 0.5, 0.5, 7)])

    assert index_over_http.delete_users(["a", "b"]) == 1

    deleted = [(path, body) for _, path, body in qdrant_over_http.requests if path.endswith("/points/delete")]
    ids = {"points": [point_id("a"), point_id("b")]}
    assert deleted == [(f"/collections/users__{version}/points/delete", ids) for version in ("v1", "v2")]


def test_a_point_from_before_there_were_attributes_has_none():
    old_item = {"item_id": "i", "title": "I", "categories": [], "available": True}
    old_user = {"user_id": "u", "n_history": 1, "alpha": 0.5, "beta": 0.5, "as_of_snapshot": 3}

    assert item_payload(old_item) == ItemPayload("i", "I")
    assert user_payload(old_user) == UserPayload("u", 1, 0.5, 0.5, 3)


def test_the_description_of_qdrant_refuses_a_field_it_does_not_know(qdrant_over_http):
    if not os.environ.get("NEARLINE_QDRANT_OPENAPI"):
        pytest.skip("NEARLINE_QDRANT_OPENAPI names no file with Qdrant's OpenAPI description")
    import jsonschema

    client = httpx.Client(transport=httpx.MockTransport(qdrant_over_http), base_url=ADDRESS)
    with pytest.raises(jsonschema.ValidationError):
        client.put("/collections/users__v1/points", json={"points": [], "update_fence": {"must": []}})


def test_a_server_that_is_away_is_worth_another_try():
    def refuse(request):
        raise httpx.ConnectError("connection refused")

    with pytest.raises(IndexUnavailableError, match="NEARLINE_INDEX__URL"):
        _index(refuse).serving_version()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_worth_another_try(status):
    with pytest.raises(IndexUnavailableError, match=str(status)):
        _index(_answering(status)).versions()


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_says_which_setting_to_correct(status):
    with pytest.raises(TerminalError, match="NEARLINE_INDEX__API_KEY"):
        _index(_answering(status)).versions()


def test_a_refused_request_says_why():
    with pytest.raises(TerminalError, match="width is odd"):
        _index(_answering(400, "width is odd")).versions()


def test_a_version_that_went_away_meanwhile_is_not_found(index_over_http):
    with pytest.raises(NotFoundError, match=r"'v1'.*none"):
        index_over_http.search("v1", np.ones(4, np.float32), 3, IndexFilter())


@pytest.mark.parametrize(
    ("version", "is_taken"), [("1.15.4", False), ("1.16.0", True), ("1.20.0-dev", True), ("x", False)]
)
def test_a_server_too_old_to_fence_is_refused(qdrant_over_http, index_over_http, version, is_taken):
    qdrant_over_http._version = version
    if is_taken:
        _check_server(index_over_http, index_over_http._client)
    else:
        with pytest.raises(TerminalError, match="Update the server"):
            _check_server(index_over_http, index_over_http._client)


def test_the_key_stays_out_of_messages(qdrant_over_http):
    qdrant_over_http._key = "right"
    key = SecretStr("wrong-but-secret")
    with pytest.warns(UserWarning, match="insecure"):
        client = QdrantClient(
            url=ADDRESS,
            api_key=key.get_secret_value(),
            transport=httpx.MockTransport(qdrant_over_http),
            check_compatibility=False,
        )
    with pytest.raises(TerminalError) as caught:
        QdrantIndex(client, ADDRESS).versions()
    assert "wrong-but-secret" not in str(caught.value)
