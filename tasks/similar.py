"""What is like an item, and who is like a user, in the serving version. It knows nothing of the command line."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.errors import InputError, NotFoundError
from tasks.domain.ports import Resources, VectorIndex, Warehouse
from tasks.domain.ranking import check_slate_length, mean_block_cosine
from tasks.domain.records import IndexFilter, ItemPayload, Likeness, SharedItem, SimilarUser, SimilarUsers, Slate
from tasks.model_state import ModelVersion, load_history_rows, load_profiles, load_version
from tasks.recommend import check_known, rank_payloads
from tasks.refresh import serving_version
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
MIN_CANDIDATES = 100
CANDIDATES_PER_ITEM = 4
NAMED_ITEMS = 3
"""Shared items that each similar user names."""


def similar_items(resources: Resources, item_id: str, *, k: int = 10, by: Likeness = "factors") -> Slate:
    """``k`` available items that are most like one item, by the cosine of their factors, of their texts, or the mean of
    ``both``.

    Factors say who likes an item and lean on its text, and they predict best what somebody likes next
    (``docs/decisions``); an item without them is compared by its text, and one without text by its factors, whatever
    was asked for, and the note says so. Candidates are the best by dot product, four times ``k`` and at least 100 for
    each block. The parts of a score are the shares of the two blocks, ``alpha`` is the weight of the text. Raises
    InputError for ``k`` outside 1 to 500, NotFoundError for an item that the serving version does not know.
    """
    check_slate_length(k)
    with resources.index() as index:
        version = serving_version(index)
        stored = index.items(version, [item_id])
        check_known([item_id], stored, version)
        with resources.warehouse(read_only=True) as warehouse:
            width = load_version(warehouse, version).text_width
        vector, note = _asked_blocks(stored[item_id][1], width, by)
        candidates = _candidates(index, version, item_id, vector, width, k)
    alpha = 0.5 * (1 + bool(vector[:width].any()) - bool(vector[width:-1].any()))
    matrix = np.array([found for _, found in candidates], np.float32).reshape(len(candidates), len(vector))
    text, factors = mean_block_cosine(vector, matrix, width)
    slate = rank_payloads([payload for payload, _ in candidates], text, factors, np.zeros_like(text))[:k]
    return Slate(version, "similar_item", alpha, 0.0, slate, note=note)


def similar_users(resources: Resources, user_id: str, *, k: int = 10) -> SimilarUsers:
    """The ``k`` users of the serving version who are most like one user, and what both liked.

    The cosine of their factors, as their profiles were last refreshed; equal ones go by id. A user without factors is
    compared by their text (``by``), one without either with nobody, and the note says so. Shared items are up to date.
    Raises InputError for ``k`` outside 1 to 500, NotFoundError for a user without a profile.
    """
    check_slate_length(k)
    with resources.index() as index:
        version = serving_version(index)
    with resources.warehouse(read_only=True) as warehouse:
        model = load_version(warehouse, version)
        by, note = _comparable_by(warehouse, version, user_id)
        if by == "nothing":
            return SimilarUsers(version, user_id, by, (), note)
        parameters = {"version": version, "user_id": user_id, "by": by, "k": k}
        rows = warehouse.read(query_sql("similar_users"), parameters).to_pylist()
        shared = _shared_items(warehouse, model, user_id, [row["user_id"] for row in rows])
    users = tuple(
        SimilarUser(
            user_id=row["user_id"],
            rank=rank,
            similarity=row["similarity"],
            n_shared=len(shared[row["user_id"]]),
            shared=shared[row["user_id"]][:NAMED_ITEMS],
        )
        for rank, row in enumerate(rows, start=1)
    )
    return SimilarUsers(version, user_id, by, users, note)


def _asked_blocks(vector: Floats, text_width: int, by: Likeness) -> tuple[Floats, str]:
    """The stored vector without a block that was not asked for, unless that is all there is; and what to say of it."""
    blocks = {"text": slice(0, text_width), "factors": slice(text_width, len(vector) - 1)}
    if by not in (*blocks, "both"):
        raise InputError(
            f"Similar items were asked for by {by!r}. Allowed are both, factors and text: name one of them."
        )
    known = [name for name, block in blocks.items() if vector[block].any()]
    used = [name for name in known if by in (name, "both")] or known
    asked = np.zeros_like(vector)
    for name in used:
        asked[blocks[name]] = vector[blocks[name]]
    if not known:
        return asked, "the item has neither text nor factors to be compared by"
    missing = sorted({"both": {"factors", "text"}}.get(by, {by}) - set(used))
    return asked, f"the item has no {missing[0]}: it is compared by its {used[0]}" if missing else ""


def _candidates(
    index: VectorIndex, version: str, item_id: str, vector: Floats, text_width: int, k: int
) -> list[tuple[ItemPayload, Floats]]:
    """The best by each block that the vector has, without the item itself."""
    found: dict[str, None] = {}
    restrict = IndexFilter(exclude_items=frozenset([item_id]))
    for block in (slice(0, text_width), slice(text_width, len(vector) - 1)):
        query = np.zeros_like(vector)
        query[block] = vector[block]
        if query.any():
            hits = index.search(version, query, max(MIN_CANDIDATES, CANDIDATES_PER_ITEM * k), restrict)
            found.update(dict.fromkeys(hit.item_id for hit in hits))
    return list(index.items(version, list(found)).values())


def _comparable_by(
    warehouse: Warehouse, version: str, user_id: str
) -> tuple[Literal["factors", "text", "nothing"], str]:
    profile = load_profiles(warehouse, version, [user_id])
    if not profile.user_ids:
        raise NotFoundError(
            f"Users like {user_id!r} were asked for, and the serving version {version} has no profile of that id."
            " Look it up in stg_users; a user who is new gets a profile with the next refresh: nearline run nearline"
        )
    if profile.factors.any():
        return "factors", ""
    if profile.text.any():
        return "text", "nothing that this user did tells of others: they are compared by their text"
    return "nothing", "nothing is known of this user yet: there is nobody to compare them with"


def _shared_items(
    warehouse: Warehouse, model: ModelVersion, user_id: str, others: Sequence[str]
) -> dict[str, tuple[SharedItem, ...]]:
    """What each of the others and the user both like, the least popular first: it tells the most."""
    recipe, latest = model.recipe, warehouse.latest_snapshot()
    half_life = recipe.interaction_half_life_days
    rows = load_history_rows(warehouse, recipe.event_types, half_life, latest, [user_id, *others]).interactions
    liked: dict[str, set[str]] = {name: set() for name in (user_id, *others)}
    for row in rows.select(["user_id", "item_id", "weight"]).to_pylist():
        if row["weight"] > 0:
            liked[row["user_id"]].add(row["item_id"])
    wanted = pa.table({"item_id": pa.array(sorted(liked[user_id]), pa.string())})
    known = warehouse.read(query_sql("items_by_popularity"), {"version": model.version}, {"wanted_items": wanted})
    items = [SharedItem(row["item_id"], row["title"] or row["item_id"]) for row in known.to_pylist()]
    return {other: tuple(item for item in items if item.item_id in liked[other]) for other in others}
