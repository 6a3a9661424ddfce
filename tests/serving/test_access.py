"""Keys: who is let in, with what, how often, and how fast a change is seen."""

import json
import stat
from datetime import UTC, datetime, timedelta
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.key_store import KeyStore, load_salt
from tasks.domain.access import SCOPES, make_key, opens, pseudonym, split_key
from tasks.domain.errors import InputError, NotFoundError, TerminalError

NOW = datetime.now(UTC)
NEEDS = {
    ("POST", "/v1/events"): "write",
    ("POST", "/v1/items"): "write",
    ("POST", "/v1/users"): "write",
    ("POST", "/v1/recommendations"): "read",
    ("GET", "/v1/users/42/recommendations"): "read",
    ("GET", "/v1/items/i03/similar"): "read",
    ("GET", "/v1/users/42/profile"): "read",
    ("GET", "/v1/popular"): "read",
    ("GET", "/v1/latest"): "read",
    ("GET", "/metrics"): "read",
    ("DELETE", "/v1/users/42"): "admin",
}


@pytest.mark.parametrize(("method", "path"), NEEDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_route_needs_its_scope_and_no_other_will_do(make_client, online, method, path, scope):
    answer = make_client(scope).request(method, path, json={} if method == "POST" else None)
    if NEEDS[method, path] == scope:
        assert answer.status_code in (200, 422)
    else:
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "scope"
        assert online.asked == []


@pytest.mark.parametrize(("method", "path"), NEEDS)
def test_without_a_key_nothing_is_answered_and_no_body_is_read(make_client, online, method, path):
    answer = make_client(max_body_bytes=1024).request(method, path + "?k=wrong", content=b"x" * 5000)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"].keys() == {"type", "message", "advice", "request_id"}
    assert online.asked == []


def test_the_routes_of_this_test_are_all_there_are(client):
    paths = client.get("/openapi.json").json()["paths"]
    described = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    tested = {(method, path.replace("42", "{user_id}").replace("i03", "{item_id}")) for method, path in NEEDS}
    assert described - tested == {("GET", "/v1/health")}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer nope"},
        {"Authorization": "Basic bmw6"},
        {"X-API-Key": "nl_00000000_" + "0" * 64},
        {"X-API-Key": ""},
        {"Authorization": "Bearer"},
    ],
)
def test_a_wrong_key_is_refused(make_client, headers):
    assert make_client().get("/v1/popular", headers=headers).status_code == 401


def test_either_header_will_do(make_client, key_store):
    _, text = key_store.create("either", ["read"], now=NOW)
    client = make_client()
    assert client.get("/v1/popular", headers={"X-API-Key": text}).status_code == 200
    assert client.get("/v1/popular", headers={"Authorization": f"bearer {text}"}).status_code == 200


def test_keys_rotate_while_the_service_runs(make_client, key_store, wait_until):
    old, old_text = key_store.create("shop", ["read"], now=NOW)
    client = make_client()

    def status(text):
        return client.get("/v1/popular", headers={"X-API-Key": text}).status_code

    assert status(old_text) == 200
    _, new_text = KeyStore(key_store._file.parents[1]).create("shop", ["read"], now=NOW)
    wait_until(lambda: status(new_text) == 200)
    assert status(old_text) == 200
    KeyStore(key_store._file.parents[1]).revoke(old.key_id)
    wait_until(lambda: status(old_text) == 401)
    assert status(new_text) == 200


def test_a_key_ends_at_its_time(tmp_path):
    store = KeyStore(tmp_path)
    _, text = store.create("trial", ["read"], now=NOW, expires_at=NOW + timedelta(days=1))
    assert store.find(text, NOW + timedelta(hours=23)).name == "trial"
    assert store.find(text, NOW + timedelta(days=1)) is None


def test_secrets_are_not_stored_and_the_files_are_private(tmp_path):
    store = KeyStore(tmp_path / "home")
    key, text = store.create("shop", ["write", "read"], now=NOW)
    file = tmp_path / "home" / "serving" / "keys.json"
    secret = text.split("_")[2]
    assert secret not in file.read_text()
    assert secret not in repr(key)
    assert key.secret_hash not in repr(key)
    load_salt(tmp_path / "home")
    for path in (file, file.with_name("salt")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["keys"][0]["scopes"] == ["read", "write"]


def test_keys_made_at_once_are_all_there(tmp_path):
    threads = [
        Thread(target=KeyStore(tmp_path).create, args=(f"k{n}", ["read"]), kwargs={"now": NOW}) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in KeyStore(tmp_path).list()) == [f"k{n}" for n in range(8)]


def test_what_cannot_be_a_key(tmp_path):
    store = KeyStore(tmp_path)
    for name, scopes in (("", ["read"]), ("a\nb", ["read"]), ("x" * 101, ["read"]), ("a", []), ("a", ["all"])):
        with pytest.raises(InputError):
            store.create(name, scopes, now=NOW)
    with pytest.raises(InputError):
        store.create("late", ["read"], now=NOW, expires_at=NOW)
    with pytest.raises(NotFoundError):
        store.revoke("00000000")
    assert store.list() == []


def test_a_damaged_file_is_named(tmp_path):
    store = KeyStore(tmp_path)
    store.create("shop", ["read"], now=NOW)
    store._file.write_text("{")
    with pytest.raises(TerminalError, match=r"keys\.json"):
        KeyStore(tmp_path).list()


def test_a_key_opens_with_its_own_secret_only():
    (key, text), (_, other) = make_key("a", ["read"], NOW), make_key("b", ["read"], NOW)
    key_id, secret = split_key(text)
    assert key_id == key.key_id
    assert opens(key, secret)
    assert not opens(key, split_key(other)[1])


@given(st.text())
def test_no_text_breaks_the_reading_of_keys_or_pseudonyms(text):
    assert split_key(text) is None or text.startswith("nl_")
    assert len(pseudonym(b"salt", text)) == 16


def test_a_pseudonym_stays_and_depends_on_the_salt(tmp_path):
    salt = load_salt(tmp_path)
    assert load_salt(tmp_path) == salt
    assert load_salt(tmp_path / "other") != salt
    assert pseudonym(salt, "42") == pseudonym(salt, "42")
    assert len({pseudonym(salt, "42"), pseudonym(b"other", "42"), pseudonym(salt, "43")}) == 3


def test_a_key_that_asks_too_often_is_told_when_to_come_again(make_client):
    client = make_client("read", requests_per_second=5)
    answers = [client.get("/v1/popular") for _ in range(15)]
    assert [answer.status_code for answer in answers].count(200) in (10, 11)
    assert answers[-1].status_code == 429
    assert answers[-1].headers["retry-after"] == "1"
    assert answers[-1].json()["error"]["type"] == "rate_limit"


def test_keys_have_limits_of_their_own(make_client, key_store):
    _, other = key_store.create("other", ["read"], now=NOW)
    client = make_client("read", requests_per_second=1)
    while client.get("/v1/popular").status_code == 200:
        pass
    assert make_client(app=client.app).get("/v1/popular", headers={"X-API-Key": other}).status_code == 200


def test_failures_are_limited_and_a_right_key_is_let_in_all_the_same(make_client, key_store):
    client = make_client()
    statuses = [client.get("/v1/popular", headers={"X-API-Key": "nl_wrong"}).status_code for _ in range(30)]
    assert statuses[:20] == [401] * 20
    assert statuses[-1] == 429
    _, text = key_store.create("right", ["read"], now=NOW)
    assert client.get("/v1/popular", headers={"X-API-Key": text}).status_code == 200
