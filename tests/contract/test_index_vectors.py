"""How a server is told to keep and search vectors, and that what it keeps smaller passes the gate."""

from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import QdrantClient

from infra.qdrant_index import QdrantIndex
from infra.qdrant_vectors import OVERSAMPLING, level
from infra.settings import IndexSettings
from tasks.domain.projections import Projection, as_kept
from tasks.domain.records import IndexFilter, ItemPayload, UserPayload
from tasks.projection import verify_projection, write_projection

WIDTH = 12


def _projection(n_items=60, n_users=15) -> Projection:
    rng = np.random.default_rng(3)
    items = (rng.normal(size=(n_items, WIDTH)) * rng.uniform(0.2, 4, size=(n_items, 1))).astype(np.float32)
    users = rng.normal(size=(n_users, WIDTH)).astype(np.float32)
    return Projection(
        version="v1",
        text_width=4,
        items=items,
        item_payloads=tuple(ItemPayload(f"i{row}", "") for row in range(n_items)),
        users=users,
        user_payloads=tuple(UserPayload(f"u{row}", 1, 0.5, 0.5, 3) for row in range(n_users)),
        user_text=users[:, :4],
    )


def _bodies(server, method, ending):
    return [body for verb, path, body in server.requests if verb == method and path.endswith(ending)]


def _created(server, collection):
    (body,) = _bodies(server, "PUT", f"/collections/{collection}")
    ((name, about),) = body["vectors"].items()
    return name, {key: value for key, value in about.items() if value is not None}


def _search(index):
    index.create_version("v1", WIDTH)
    index.upsert_items("v1", np.eye(WIDTH, dtype=np.float32), [ItemPayload(f"i{row}", "") for row in range(WIDTH)])
    return index.search("v1", np.ones(WIDTH, np.float32), 3, IndexFilter())


def test_without_a_choice_vectors_are_halves_that_are_scanned(make_index, qdrant_over_http):
    _search(make_index())

    (body,) = _bodies(qdrant_over_http, "POST", "/points/query")
    plain = {"size": WIDTH, "distance": "Dot", "datatype": "float16", "hnsw_config": {"m": 0}}
    for collection, name in (("items__v1", "fused"), ("users__v1", "query")):
        found, about = _created(qdrant_over_http, collection)
        about["hnsw_config"] = {key: value for key, value in about["hnsw_config"].items() if value is not None}
        assert (found, about) == (name, plain)
    assert not body.get("params")


@pytest.mark.parametrize(
    ("quantization", "config"),
    [
        ("scalar", {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}),
        ("binary", {"binary": {"always_ram": True}}),
        ("turbo", {"turbo": {"bits": "bits4", "always_ram": True}}),
    ],
)
def test_quantized_items_are_in_memory_and_scored_again_from_disk(make_index, qdrant_over_http, quantization, config):
    _search(make_index(quantization=quantization))

    _, items = _created(qdrant_over_http, "items__v1")
    _, users = _created(qdrant_over_http, "users__v1")
    (body,) = _bodies(qdrant_over_http, "POST", "/points/query")
    ((kind, told),) = items["quantization_config"].items()
    assert {kind: {key: value for key, value in told.items() if value is not None}} == config
    assert items["on_disk"] is True
    assert "quantization_config" not in users
    again = body["params"]["quantization"]
    assert (again["rescore"], again["oversampling"]) == (True, OVERSAMPLING[quantization])


def test_a_graph_is_made_over_levelled_vectors(make_index, qdrant_over_http):
    hits = _search(make_index(hnsw_m=32, hnsw_ef=77))

    name, about = _created(qdrant_over_http, "items__v1")
    (body,) = _bodies(qdrant_over_http, "POST", "/points/query")
    assert (name, about["size"], about["hnsw_config"]["m"]) == ("level", WIDTH + 1, 32)
    assert (body["using"], len(body["query"]["nearest"]), body["query"]["nearest"][-1]) == ("level", WIDTH + 1, 0)
    assert body["params"]["hnsw_ef"] == 77
    assert [hit.score for hit in hits] == pytest.approx([1, 1, 1])


def test_later_items_are_levelled_to_the_norm_of_the_first(make_index, qdrant_over_http):
    index, vectors = make_index(hnsw_m=16), _projection().items
    index.create_version("v1", WIDTH)
    index.upsert_items("v1", vectors, _projection().item_payloads)
    index.upsert_items("v1", vectors[:1] / 2, [ItemPayload("late", "")])

    first, *_, late = _bodies(qdrant_over_http, "PUT", "/points")
    norms = [np.linalg.norm(point["vector"]["level"]) for point in (*first["points"], *late["points"])]
    np.testing.assert_allclose(norms, np.linalg.norm(vectors, axis=1).max(), rtol=2e-3)


def test_levelled_vectors_have_one_norm_and_a_longer_one_keeps_its_own():
    vectors = _projection().items
    np.testing.assert_allclose(np.linalg.norm(level(vectors, 30.0), axis=1), 30.0, rtol=1e-5)
    assert level(vectors, 0.1)[:, -1].tolist() == [0.0] * len(vectors)
    assert level(np.zeros((0, 3), np.float32), None).shape == (0, 4)


def test_a_version_keeps_its_vectors_when_the_settings_change(make_index):
    vectors = _projection().items
    make_index(vector_type="float32").create_version("scanned", WIDTH)
    make_index(vector_type="float32", hnsw_m=8).create_version("graph", WIDTH)
    for version, settings in (("scanned", {"hnsw_m": 8}), ("graph", {"hnsw_m": 0})):
        index = make_index(vector_type="float32", **settings)
        index.upsert_items(version, vectors, _projection().item_payloads)
        hit = index.search(version, vectors[4], 60, IndexFilter(), with_vectors=True)[0]
        np.testing.assert_array_equal(hit.vector, vectors[int(hit.item_id[1:])])
        np.testing.assert_array_equal(index.items(version, ["i7"])["i7"][1], vectors[7])


@pytest.mark.parametrize("settings", [{}, {"hnsw_m": 16}, {"quantization": "turbo"}, {"vector_type": "float32"}])
def test_what_a_server_keeps_passes_the_gate_and_a_wrong_point_does_not(make_index, settings):
    index, projection = make_index(**settings), _projection()
    write_projection(index, projection)
    assert [
        (check.expectation, check.observed) for check in verify_projection(index, projection) if not check.passed
    ] == []

    index.upsert_items("v1", projection.items[:1] * 1.01, projection.item_payloads[:1])
    index.upsert_users("v1", projection.users[:1] * 1.01, projection.user_payloads[:1])
    failed = [check.expectation for check in verify_projection(index, projection) if not check.passed]
    assert failed == [
        "a sample of items reads back as it was written",
        "a sample of users reads back as it was written",
    ]


def test_a_wrong_item_is_not_found_in_half_precision_either(make_index):
    index, projection = make_index(), _projection()
    write_projection(index, projection)
    mixed = replace(projection, items=np.roll(projection.items, 1, axis=0))
    failed = {check.expectation for check in verify_projection(index, mixed) if not check.passed}
    assert "canary queries find the exact top 10" in failed


def test_only_the_very_rounding_counts_as_kept():
    vector = np.array([0.1, 1.0, 70000.0], np.float32)
    with np.errstate(over="ignore"):
        half = vector.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(as_kept(vector[:2], half[:2]), half[:2])
    np.testing.assert_array_equal(as_kept(vector[:2], half[:2] + np.float32(1e-6)), vector[:2])
    np.testing.assert_array_equal(as_kept(vector, half), vector)  # too large: it became infinite


def test_local_mode_keeps_vectors_as_they_are_whatever_the_settings():
    index = QdrantIndex(QdrantClient(":memory:"), "memory", IndexSettings(hnsw_m=16, quantization="binary"))
    projection = _projection()
    write_projection(index, projection)
    np.testing.assert_array_equal(index.items("v1", ["i3"])["i3"][1], projection.items[3])
    assert all(check.passed for check in verify_projection(index, projection))
    index.close()
