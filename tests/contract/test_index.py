"""One suite for everything that stands behind the VectorIndex port."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import QdrantClient

from infra.index_owner import open_index, serve_index
from infra.memory_index import MemoryIndex
from infra.qdrant_index import QdrantIndex
from infra.settings import IndexSettings
from tasks.domain.errors import InputError, NotFoundError, TerminalError
from tasks.domain.ports import VectorIndex
from tasks.domain.records import IndexFilter, ItemPayload, UserPayload

WIDTH = 6
ODD_IDS = ["1", "a/b", 'it\'s "quoted"', "two words", "电影 42", "\u00e9", "e\u0301"]  # the last two look alike


@pytest.fixture(params=["memory", "qdrant", "folder", "shared", "http", "graph", "server"])
def index(request: pytest.FixtureRequest, tmp_path) -> Iterator[VectorIndex]:
    if request.param == "memory":
        yield MemoryIndex()
    elif request.param == "qdrant":
        opened = QdrantIndex(QdrantClient(":memory:"), "memory")
        yield opened
        opened.close()
    elif request.param == "folder":
        with open_index(tmp_path / "index", IndexSettings()) as opened:
            yield opened
    elif request.param == "shared":
        yield from _asked_over_loopback(tmp_path / "index")
    elif request.param == "http":
        yield request.getfixturevalue("index_over_http")
    elif request.param == "graph":
        yield request.getfixturevalue("make_index")(vector_type="float32", hnsw_m=16)
    else:
        yield from _on_a_server()


def _asked_over_loopback(folder) -> Iterator[VectorIndex]:
    from infra.index_owner import _call, _read_owner
    from infra.shared_index import SharedIndex

    with serve_index(folder, IndexSettings()):
        owner = _read_owner(folder)
        asked = SharedIndex(_call(owner, 5), owner.pid, 5)
        yield asked
        asked.close()


def _on_a_server() -> Iterator[VectorIndex]:
    url = os.environ.get("NEARLINE_QDRANT_URL")
    if not url:
        pytest.skip("NEARLINE_QDRANT_URL names no Qdrant server that these tests may write to")
    with open_index(None, IndexSettings(url=url, vector_type="float32")) as opened:
        before = set(opened.versions())
        yield opened
        for version in set(opened.versions()) - before - {opened.serving_version()}:
            opened.drop_version(version)


def _vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


def _items(n: int) -> list[ItemPayload]:
    return [
        ItemPayload(
            f"item-{i}",
            f"Title {i}",
            ("even",) if i % 2 == 0 else ("odd", "third"),
            available=i % 5 != 0,
            attributes=(f"digit={i % 10}", f"size={'big' if i > 9 else 'small'}"),
        )
        for i in range(n)
    ]


def _user(user_id: str, as_of: int, n_history: int = 3) -> UserPayload:
    return UserPayload(user_id, n_history, 0.25, 0.5, as_of, seen=(f"of-{user_id}", "item-1"))


def _fill(index: VectorIndex, version: str, n: int = 20, seed: int = 0) -> np.ndarray:
    vectors = _vectors(n, seed)
    index.create_version(version, WIDTH)
    index.upsert_items(version, vectors, _items(n))
    return vectors


def test_an_empty_index_serves_nothing(index):
    assert index.serving_version() is None or os.environ.get("NEARLINE_QDRANT_URL")


def test_what_was_written_is_read_back_as_it_was(index):
    payloads = [ItemPayload(item_id, f"<b>{item_id}</b>", ("a", "b"), True, (f"id={item_id}",)) for item_id in ODD_IDS]
    vectors = _vectors(len(ODD_IDS))
    index.create_version("v1", WIDTH)
    index.upsert_items("v1", vectors, payloads)
    users = [_user(user_id, 7) for user_id in ODD_IDS]
    index.upsert_users("v1", vectors, users)

    stored_items, stored_users = index.items("v1", [*ODD_IDS, "unknown"]), index.users("v1", [*ODD_IDS, "unknown"])

    assert {i: p for i, (p, _) in stored_items.items()} == dict(zip(ODD_IDS, payloads, strict=True))
    assert {u: p for u, (p, _) in stored_users.items()} == dict(zip(ODD_IDS, users, strict=True))
    for row, outside in enumerate(ODD_IDS):
        np.testing.assert_array_equal(stored_items[outside][1], vectors[row])
        np.testing.assert_array_equal(stored_users[outside][1], vectors[row])
    assert index.count("v1") == (len(ODD_IDS), len(ODD_IDS))


def test_search_is_the_highest_dot_products_best_first(index):
    vectors = _fill(index, "v1", 50)
    query = _vectors(1, seed=9)[0]
    scores = vectors @ query

    hits = index.search("v1", query, 7, IndexFilter(only_available=False))

    best = np.argsort(-scores)[:7]
    assert [hit.item_id for hit in hits] == [f"item-{row}" for row in best]
    np.testing.assert_allclose([hit.score for hit in hits], scores[best], rtol=1e-5)
    assert hits[0].payload == _items(50)[best[0]]


def test_search_restricts(index):
    vectors = _fill(index, "v1", 40)
    query = vectors[3]
    allowed = [i for i in range(40) if i % 5 != 0 and i % 2 == 1 and i not in (3, 7)]

    hits = index.search(
        "v1", query, 40, IndexFilter(categories=("third", "none"), exclude_items=frozenset({"item-3", "item-7"}))
    )

    assert sorted(hit.item_id for hit in hits) == sorted(f"item-{i}" for i in allowed)


RESTRICTIONS = {
    "an attribute": IndexFilter(attributes=(("digit=3",),), only_available=False),
    "any term of a group": IndexFilter(attributes=(("digit=3", "digit=4", "digit=99"),)),
    "a term of each group": IndexFilter(attributes=(("digit=3", "digit=4"), ("size=small",))),
    "a group that nothing has": IndexFilter(attributes=(("digit=99",), ("size=small",))),
    "a group of nothing": IndexFilter(attributes=((),)),
    "these items": IndexFilter(only_items=frozenset({"item-1", "item-5", "item-22", "unknown"})),
    "these items but one": IndexFilter(only_items=frozenset({"item-1", "item-2"}), exclude_items=frozenset({"item-2"})),
    "items that are not there": IndexFilter(only_items=frozenset({"unknown"}), exclude_items=frozenset({"nobody"})),
    "everything at once": IndexFilter(
        ("even",), (("digit=2", "digit=4"),), frozenset({"item-2"}), True, frozenset({f"item-{i}" for i in range(30)})
    ),
}


@pytest.mark.parametrize("named", RESTRICTIONS)
def test_search_restricts_by_attributes_and_to_items(index, named):
    vectors, restrict = _fill(index, "v1", 40), RESTRICTIONS[named]

    hits = index.search("v1", vectors[3], 40, restrict)

    assert {hit.item_id for hit in hits} == {item.item_id for item in _items(40) if _fits(item, restrict)}


def _fits(item: ItemPayload, restrict: IndexFilter) -> bool:
    return (
        (item.available or not restrict.only_available)
        and (not restrict.categories or bool(set(restrict.categories) & set(item.categories)))
        and all(set(terms) & set(item.attributes) for terms in restrict.attributes)
        and item.item_id not in restrict.exclude_items
        and (not restrict.only_items or item.item_id in restrict.only_items)
    )


def test_hits_have_their_vectors_if_these_are_asked_for(index):
    vectors = _fill(index, "v1", 20)

    hits = index.search("v1", vectors[3], 5, IndexFilter(), with_vectors=True)

    for hit in hits:
        np.testing.assert_array_equal(hit.vector, vectors[int(hit.item_id.removeprefix("item-"))])
    assert {hit.vector is None for hit in index.search("v1", vectors[3], 5, IndexFilter())} == {True}


def test_items_are_added_and_changed_in_a_version_that_serves(index):
    vectors = _fill(index, "v1", 10)
    index.switch("v1")
    changed = [
        ItemPayload("item-1", "Sold out", ("even",), False, ("digit=1",)),
        ItemPayload("item-5", "Back again", ("odd",), True, ("digit=7",)),
        ItemPayload("fresh", "Fresh", ("new",), True, ("digit=7",)),
    ]
    moved = np.stack([vectors[1], -vectors[5], vectors[2] * 2])
    index.upsert_items("v1", moved, changed)

    def found(restrict):
        return {hit.item_id for hit in index.search("v1", vectors[2], 99, restrict)}

    assert index.count("v1") == (11, 0)
    assert index.search("v1", vectors[2], 1, IndexFilter())[0].payload == changed[2]
    assert found(IndexFilter(attributes=(("digit=7",),))) == {"item-7", "item-5", "fresh"}
    assert found(IndexFilter(attributes=(("digit=5", "digit=1"),))) == set()
    assert found(IndexFilter(categories=("new",))) == {"fresh"}
    assert found(IndexFilter(categories=("odd",))) == {"item-3", "item-5", "item-7", "item-9"}
    stored = index.items("v1", ["item-1", "item-5", "item-7"])
    assert stored["item-1"][0] == changed[0]
    np.testing.assert_array_equal(stored["item-5"][1], -vectors[5])
    np.testing.assert_array_equal(stored["item-7"][1], vectors[7])


def test_deleted_users_are_gone_from_every_version(index):
    for version in ("v1", "v2"):
        index.create_version(version, WIDTH)
        index.upsert_users(version, _vectors(3), [_user(user, 5) for user in ("a", "b", "c")])
    index.switch("v2")
    index.upsert_users("v2", _vectors(1), [_user("only here", 5)])

    assert index.delete_users(["b", "only here", "unknown"]) == 3

    assert set(index.users("v1", ["a", "b", "c"])) == set(index.users("v2", ["a", "b", "c", "only here"])) == {"a", "c"}
    assert (index.count("v1"), index.count("v2")) == ((0, 2), (0, 2))
    assert index.delete_users(["b", "only here"]) == 0
    assert index.delete_users([]) == 0


def test_a_deleted_user_can_come_back(index):
    index.create_version("v1", WIDTH)
    index.upsert_users("v1", _vectors(1), [_user("u", 9)])
    index.delete_users(["u"])
    index.upsert_users("v1", _vectors(1, seed=4), [_user("u", 5)])

    payload, vector = index.users("v1", ["u"])["u"]
    assert payload == _user("u", 5)
    np.testing.assert_array_equal(vector, _vectors(1, seed=4)[0])


def test_search_with_more_asked_than_there_is_and_with_nothing_asked(index):
    _fill(index, "v1", 10)
    query = _vectors(1)[0]

    assert len(index.search("v1", query, 100, IndexFilter(only_available=False))) == 10
    assert index.search("v1", query, 0, IndexFilter()) == []


def test_an_older_profile_never_replaces_a_newer_one(index):
    index.create_version("v1", WIDTH)
    newer, older, same, fresh = _vectors(4)
    index.upsert_users("v1", newer[None], [_user("u", 10, n_history=5)])

    index.upsert_users("v1", np.stack([older, fresh]), [_user("u", 9), _user("new", 9)])
    stored = index.users("v1", ["u", "new"])
    assert stored["u"][0].as_of_snapshot == 10 and stored["u"][0].n_history == 5
    np.testing.assert_array_equal(stored["u"][1], newer)
    np.testing.assert_array_equal(stored["new"][1], fresh)

    index.upsert_users("v1", same[None], [_user("u", 10, n_history=6)])
    assert index.users("v1", ["u"])["u"][0].n_history == 6


def test_one_request_may_hold_profiles_of_several_snapshots(index):
    index.create_version("v1", WIDTH)
    index.upsert_users("v1", _vectors(3, seed=1), [_user("a", 5), _user("b", 5), _user("c", 5)])

    index.upsert_users("v1", _vectors(3, seed=2), [_user("a", 4, 9), _user("b", 6, 9), _user("c", 5, 9)])

    stored = {user: payload for user, (payload, _) in index.users("v1", ["a", "b", "c"]).items()}
    assert {user: payload.n_history for user, payload in stored.items()} == {"a": 3, "b": 9, "c": 9}


def test_of_two_profiles_of_one_user_in_a_request_the_newer_one_stays(index):
    index.create_version("v1", WIDTH)
    index.upsert_users("v1", _vectors(3), [_user("u", 5, 1), _user("u", 7, 2), _user("u", 6, 3)])

    assert index.users("v1", ["u"])["u"][0].n_history == 2


def test_writing_twice_changes_nothing(index):
    vectors = _fill(index, "v1")
    index.upsert_items("v1", vectors, _items(20))

    assert index.count("v1") == (20, 0)


def test_more_points_than_a_batch_holds(index):
    n = 600
    vectors = _vectors(n)
    index.create_version("v1", WIDTH)
    index.upsert_items("v1", vectors, _items(n))
    index.upsert_users("v1", vectors, [_user(f"u{i}", 1) for i in range(n)])

    assert index.count("v1") == (n, n)
    np.testing.assert_array_equal(index.users("v1", [f"u{n - 1}"])[f"u{n - 1}"][1], vectors[-1])


def test_nothing_to_write(index):
    index.create_version("v1", WIDTH)
    index.upsert_items("v1", np.zeros((0, WIDTH), np.float32), [])
    index.upsert_users("v1", np.zeros((0, WIDTH), np.float32), [])

    assert index.count("v1") == (0, 0)


def test_creating_again_starts_from_nothing(index):
    _fill(index, "v1")
    index.create_version("v1", WIDTH + 1)

    assert index.count("v1") == (0, 0)


def test_a_switch_moves_readers_from_one_whole_version_to_another(index):
    _fill(index, "v1", 10)
    _fill(index, "v2", 20)
    index.switch("v1")
    assert index.serving_version() == "v1"

    index.switch("v2")

    assert index.serving_version() == "v2"
    assert {"v1", "v2"} <= set(index.versions())
    index.switch("v2")
    assert index.serving_version() == "v2"


def test_the_serving_version_is_neither_dropped_nor_written_anew(index):
    _fill(index, "v1", 10)
    _fill(index, "v2", 10)
    index.switch("v1")

    with pytest.raises(TerminalError, match="serving"):
        index.drop_version("v1")
    with pytest.raises(TerminalError, match="serving"):
        index.create_version("v1", WIDTH)
    index.drop_version("v2")
    index.drop_version("v2")

    assert "v2" not in index.versions()
    assert index.count("v1") == (10, 0)


def test_an_unknown_version_is_named_with_those_there_are(index):
    _fill(index, "v1")
    for ask in (
        lambda: index.count("v9"),
        lambda: index.items("v9", ["item-1"]),
        lambda: index.users("v9", ["u"]),
        lambda: index.search("v9", _vectors(1)[0], 3, IndexFilter()),
        lambda: index.switch("v9"),
        lambda: index.upsert_items("v9", _vectors(1), _items(1)),
    ):
        with pytest.raises(NotFoundError, match=r"v9.*v1"):
            ask()


def test_vectors_that_do_not_fit_are_refused(index):
    index.create_version("v1", WIDTH)
    with pytest.raises(TerminalError):
        index.upsert_items("v1", np.ones((2, WIDTH + 1), np.float32), _items(2))
    with pytest.raises(InputError):
        index.upsert_items("v1", _vectors(3), _items(2))
    spoiled = _vectors(2)
    spoiled[1, 2] = np.nan
    with pytest.raises(InputError):
        index.upsert_items("v1", spoiled, _items(2))
    assert index.count("v1") == (0, 0)
