"""A model version between the warehouse and the index: loads it, writes it, and compares the two.

It knows nothing of which version serves.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.attribute_terms import attribute_terms
from tasks.domain.fusion import fuse_items, fuse_queries
from tasks.domain.ports import VectorIndex, Warehouse
from tasks.domain.profiles import Profiles
from tasks.domain.projections import (
    TOP_K,
    Projection,
    as_kept,
    canary_recall,
    checksum,
    exact_scores,
    in_half_precision,
    sample_rows,
)
from tasks.domain.publication_gate import check_canaries, check_counts, check_sample, check_shapes
from tasks.domain.records import CheckResult, IndexFilter, ItemPayload, UserPayload
from tasks.model_state import load_item_space, load_profiles, load_version
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
Stored = Mapping[str, tuple[ItemPayload | UserPayload, Floats]]

N_SAMPLED = 200
N_CANARIES = 20
MIN_CANARY_RECALL = 0.95  # a server searches approximately; local mode finds all


def load_shape_checks(warehouse: Warehouse, version: str) -> list[CheckResult]:
    """Width and finiteness of the stored vectors, counted by the warehouse; nothing is loaded."""
    rows = warehouse.read(query_sql("vector_shapes_of_version"), {"version": version}).to_pylist()
    return check_shapes(
        {row["table_name"]: row["n_wrong_width"] for row in rows},
        {row["table_name"]: row["n_not_finite"] for row in rows},
    )


def load_projection(warehouse: Warehouse, version: str) -> Projection:
    """Fused vectors and payloads of a version.

    ``warehouse`` must be a view of one snapshot (``Warehouse.at``), or a profile could be read with the snapshot of
    another state of it. Raises NotFoundError for an unknown version, InputError for vectors of the wrong width.
    """
    model = load_version(warehouse, version)
    fusion = model.recipe.fusion
    space = load_item_space(warehouse, version)
    profiles = load_profiles(warehouse, version)
    items = fuse_items(space.text, space.factors, space.prior, fusion)
    items.setflags(write=False)  # an index in memory then takes them without a copy
    return Projection(
        version=version,
        text_width=model.text_width,
        items=items,
        item_payloads=load_item_payloads(warehouse, version, space.item_ids),
        users=fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, fusion),
        user_payloads=_user_payloads(warehouse, profiles, version),
        user_text=profiles.text,
    )


def write_projection(index: VectorIndex, projection: Projection) -> None:
    """Make the version's collections and write every point; what a killed attempt left is dropped first.

    A version that serves is written in place, point by point over what is there.
    """
    if index.serving_version() != projection.version:
        index.create_version(projection.version, projection.width)
    index.upsert_items(projection.version, projection.items, projection.item_payloads)
    index.upsert_users(projection.version, projection.users, projection.user_payloads)


def verify_projection(index: VectorIndex, projection: Projection) -> list[CheckResult]:
    """Compare the index with the warehouse: counts, a sample to the bit, and canary searches with exact ones.

    An index may keep vectors in half precision: its points are then those of the warehouse, rounded, and exact searches
    are over these.
    Users that a refresh has written since, by their ``as_of_snapshot``, are left out of the comparison.
    """
    expected = (len(projection.items), len(projection.users))
    expected_items, found_items = _sample_items(index, projection)
    return [
        check_counts(expected, index.count(projection.version)),
        _compare("items", projection.width, expected_items, found_items),
        _verify_users(index, projection),
        _verify_search(
            index, in_half_precision(projection) if _is_rounded(expected_items, found_items) else projection
        ),
    ]


def load_item_payloads(warehouse: Warehouse, version: str, item_ids: Sequence[str]) -> tuple[ItemPayload, ...]:
    """What is shown of the items of a version now, in the order of ``item_ids``."""
    rows = warehouse.read(query_sql("item_payloads_of_version"), {"version": version}).to_pylist()
    payloads = {row["item_id"]: item_payload(row) for row in rows}
    return tuple(payloads[item_id] for item_id in item_ids)


def item_payload(row: Mapping[str, Any]) -> ItemPayload:
    """From the columns of ``stg_items``. Few labels stand in many items: each is kept once."""
    categories = tuple(map(sys.intern, row["categories"]))
    terms = tuple(map(sys.intern, attribute_terms(row["attributes"])))
    return ItemPayload(row["item_id"], row["title"], categories, row["available"], terms)


def _user_payloads(warehouse: Warehouse, profiles: Profiles, version: str) -> tuple[UserPayload, ...]:
    rows = warehouse.read(query_sql("profile_snapshots_of_version"), {"version": version})
    as_of, seen = rows["as_of_snapshot"].to_pylist(), shared_texts(rows["seen_items"])
    stored = dict(zip(rows["user_id"].to_pylist(), zip(as_of, seen, strict=True), strict=True))
    numbers = (profiles.n_history.tolist(), profiles.alpha.tolist(), profiles.beta.tolist())
    users = zip(profiles.user_ids, *numbers, strict=True)
    return tuple(UserPayload(user_id, n, alpha, beta, *stored[user_id]) for user_id, n, alpha, beta in users)


def shared_texts(column: pa.ChunkedArray) -> list[tuple[str, ...]]:
    """A column of lists of texts; null is an empty list. Equal texts are one object, across calls too: millions of them
    are small."""
    lists = column.cast(pa.list_(pa.string())).combine_chunks()
    lists = lists if isinstance(lists, pa.ListArray) else pa.concat_arrays(lists.chunks)
    coded = lists.flatten().dictionary_encode()
    texts = np.array([*map(sys.intern, coded.dictionary.to_pylist())], object)[coded.indices.to_numpy()].tolist()
    ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy()).tolist()
    return [tuple(texts[start:end]) for start, end in pairwise([0, *ends])]


def _sample_items(index: VectorIndex, projection: Projection) -> tuple[Stored, Stored]:
    """Items as the warehouse has them, and as the index does."""
    rows = sample_rows(projection.version, "items", len(projection.items), N_SAMPLED)
    payloads = [projection.item_payloads[row] for row in rows]
    expected = {p.item_id: (p, vector) for p, vector in zip(payloads, projection.items[rows], strict=True)}
    return expected, index.items(projection.version, list(expected))


def _is_rounded(expected: Stored, found: Stored) -> bool:
    """Whether some item reads back rounded; one of few digits is its own rounding."""
    shared = [(vector, found[key][1]) for key, (_, vector) in expected.items() if key in found]
    return any(not np.array_equal(as_kept(vector, kept), vector) for vector, kept in shared)


def _verify_users(index: VectorIndex, projection: Projection) -> CheckResult:
    rows = sample_rows(projection.version, "users", len(projection.users), N_SAMPLED)
    payloads = [projection.user_payloads[row] for row in rows]
    found = index.users(projection.version, [payload.user_id for payload in payloads])
    refreshed = {
        p.user_id for p in payloads if p.user_id in found and found[p.user_id][0].as_of_snapshot > p.as_of_snapshot
    }
    expected = {
        p.user_id: (p, vector)
        for p, vector in zip(payloads, projection.users[rows], strict=True)
        if p.user_id not in refreshed
    }
    return _compare("users", projection.width, expected, found)


def _compare(kind: str, width: int, expected: Stored, found: Stored) -> CheckResult:
    missing = np.zeros(width, np.float32)
    answers = {key: found[key][1] if key in found else missing for key in expected}
    wanted = {key: as_kept(vector, answers[key]) for key, (_, vector) in expected.items()}
    n_wrong = sum(
        key not in found or found[key][0] != payload or not np.array_equal(answers[key], wanted[key])
        for key, (payload, _) in expected.items()
    )
    vectors = list(wanted.values())
    return check_sample(kind, len(expected), n_wrong, _checksum(vectors), _checksum(list(answers.values())))


def _checksum(vectors: Sequence[Floats]) -> str:
    return checksum(np.concatenate(vectors)) if vectors else checksum(np.zeros(0, np.float32))


def _verify_search(index: VectorIndex, projection: Projection) -> CheckResult:
    rows = sample_rows(projection.version, "canaries", len(projection.users), N_CANARIES)
    exact = exact_scores(projection, rows)
    recalls = [
        canary_recall(projection, scores, index.search(projection.version, projection.users[row], TOP_K, IndexFilter()))
        for row, scores in zip(rows, exact, strict=True)
    ]
    return check_canaries(recalls, MIN_CANARY_RECALL)
