"""The index in memory and Qdrant answer alike, whatever is asked; and readers beside writers see whole entries."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from infra.memory_index import MemoryIndex
from infra.qdrant_index import QdrantIndex
from tasks.domain.errors import InputError, NotFoundError
from tasks.domain.records import IndexFilter, ItemPayload, UserPayload

WIDTH, N_ITEMS = 5, 40
CATEGORIES, TERMS = ("a", "b", "c"), ("x=1", "x=2", "y=true", "y=false")
ITEM_IDS = [f"i{row}" for row in range(N_ITEMS)]

some_categories = st.lists(st.sampled_from((*CATEGORIES, "none")), max_size=3, unique=True).map(tuple)
some_terms = st.lists(st.sampled_from((*TERMS, "z=9")), max_size=3, unique=True).map(tuple)
some_items = st.frozensets(st.sampled_from((*ITEM_IDS, "stranger")), max_size=25)
restrictions = st.builds(
    IndexFilter, some_categories, st.lists(some_terms, max_size=2).map(tuple), some_items, st.booleans(), some_items
)
payloads = st.builds(ItemPayload, st.sampled_from(ITEM_IDS), st.just("t"), some_categories, st.booleans(), some_terms)


def _random_items(rng: np.random.Generator) -> list[ItemPayload]:
    def some(names):
        return tuple(name for name in names if rng.random() < 0.4)

    return [ItemPayload(item_id, "t", some(CATEGORIES), rng.random() < 0.8, some(TERMS)) for item_id in ITEM_IDS]


@pytest.fixture(scope="module")
def qdrant():
    opened = QdrantIndex(QdrantClient(":memory:"), "memory")
    yield opened
    opened.close()


@given(
    seed=st.integers(0, 5),
    k=st.integers(1, N_ITEMS + 5),
    restrict=restrictions,
    changes=st.lists(st.lists(payloads, min_size=1, max_size=5), max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_the_same_items_with_the_same_scores(qdrant, seed, k, restrict, changes):
    rng = np.random.default_rng(seed)
    items, memory = _random_items(rng), MemoryIndex()
    vectors, query = rng.normal(size=(N_ITEMS, WIDTH)).astype(np.float32), rng.normal(size=WIDTH).astype(np.float32)
    for index in (qdrant, memory):
        index.create_version("v", WIDTH)
        index.upsert_items("v", vectors, items)
    for changed in changes:
        moved = rng.normal(size=(len(changed), WIDTH)).astype(np.float32)
        for index in (qdrant, memory):
            index.upsert_items("v", moved, changed)

    expected, found = (index.search("v", query, k, restrict, with_vectors=True) for index in (qdrant, memory))

    assert [hit.item_id for hit in found] == [hit.item_id for hit in expected]
    assert [hit.payload for hit in found] == [hit.payload for hit in expected]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.vector, theirs.vector)


def test_items_that_tie_come_by_id():
    index = MemoryIndex()
    index.create_version("v", 2)
    ids = [f"i{row:02}" for row in np.random.default_rng(1).permutation(30)]
    vectors = np.array([[2, 0] if item_id < "i05" else [1, 0] for item_id in ids], np.float32)
    index.upsert_items("v", vectors, [ItemPayload(item_id, "") for item_id in ids])

    hits = index.search("v", np.array([1, 0], np.float32), 12, IndexFilter())

    assert [hit.item_id for hit in hits] == [f"i{row:02}" for row in range(12)]


@pytest.mark.parametrize("query", [np.ones(WIDTH + 1), np.ones((1, WIDTH)), np.full(WIDTH, np.nan)])
def test_a_query_that_does_not_fit_is_refused(query):
    index = MemoryIndex()
    index.create_version("v", WIDTH)
    with pytest.raises(InputError, match=str(WIDTH)):
        index.search("v", query.astype(np.float32), 3, IndexFilter())


def test_vectors_that_cannot_be_written_to_are_taken_without_a_copy_and_never_changed():
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, WIDTH)).astype(np.float32)
    given, items = vectors.copy(), _random_items(np.random.default_rng(0))
    given.setflags(write=False)
    index = MemoryIndex()
    index.create_version("v", WIDTH)
    index.upsert_items("v", given, items)
    assert np.shares_memory(index._versions["v"].items.vectors, given)

    index.upsert_items("v", -vectors[:1], items[:1])
    index.upsert_items("v", vectors[:2], [ItemPayload("new", ""), ItemPayload("newer", "")])

    np.testing.assert_array_equal(given, vectors)
    np.testing.assert_array_equal(index.items("v", ["i0"])["i0"][1], -vectors[0])
    np.testing.assert_array_equal(index.items("v", ["newer"])["newer"][1], vectors[1])


def test_readers_beside_a_writer_see_each_entry_whole():
    """Every vector holds one number, which its payload names; an item's turn shows in its attributes too."""
    index = MemoryIndex()
    index.create_version("v", 64)
    stop, mixed, n_reads = threading.Event(), [], [0]

    def write(turn):
        items = [ItemPayload(f"i{row}", str(turn), (), True, (f"turn={turn}",)) for row in range(20 + turn % 7)]
        index.upsert_items("v", np.full((len(items), 64), turn, np.float32), items)
        users = [UserPayload(f"u{row}", turn, 0.5, 0.5, turn, (str(turn),)) for row in range(50)]
        index.upsert_users("v", np.full((50, 64), turn, np.float32), users)
        index.delete_users(["u1"])

    def read():
        while not stop.is_set():
            for payload, vector in index.users("v", ["u0", "u1", "u49"]).values():
                if not (vector == payload.n_history).all() or payload.seen != (str(payload.n_history),):
                    mixed.append(payload)
            for hit in index.search("v", np.ones(64, np.float32), 50, IndexFilter(), with_vectors=True):
                turn = int(hit.payload.title)
                if hit.score != 64 * turn or not (hit.vector == turn).all():
                    mixed.append(hit)
            n_reads[0] += 1

    write(1)
    readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    until = time.monotonic() + 1
    for turn in range(2, 100_000):
        write(turn)
        if time.monotonic() > until and n_reads[0] > 50:
            break
    stop.set()
    for reader in readers:
        reader.join(10)

    assert mixed == []
    assert n_reads[0] > 50


def test_a_version_that_is_dropped_leaves_the_others():
    index = MemoryIndex()
    for version in ("v1", "v2"):
        index.create_version(version, WIDTH)
    index.drop_version("v1")

    with pytest.raises(NotFoundError, match=r"'v1'.*v2"):
        index.count("v1")
