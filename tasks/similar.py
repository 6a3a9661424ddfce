"""What is like an item, and who is like a user, in the serving version. It knows nothing of the command line."""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from tasks.domain.errors import NotFoundError
from tasks.domain.ports import Resources, Warehouse
from tasks.domain.ranking import check_slate_length
from tasks.domain.records import Likeness, SharedItem, SimilarUser, SimilarUsers, Slate
from tasks.model_state import ModelVersion, load_history_rows, load_profiles, load_version
from tasks.online.answers import similar
from tasks.recommend import open_state
from tasks.refresh import serving_version
from warehouse.catalog import query_sql

NAMED_ITEMS = 3
"""Shared items that each similar user names."""


def similar_items(resources: Resources, item_id: str, *, k: int = 10, by: Likeness = "factors") -> Slate:
    """``k`` available items that are most like one item; ``tasks.online.answers.similar`` says how."""
    check_slate_length(k)
    with open_state(resources) as (state, _):
        return similar(state, item_id, k=k, by=by)


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
