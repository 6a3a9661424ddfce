"""Our records as Qdrant's points, payloads and filters, and back. It knows nothing of a connection."""

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from tasks.domain.errors import InputError
from tasks.domain.records import IndexFilter, ItemPayload, UserPayload

Floats = npt.NDArray[np.float32]

ITEMS, USERS = "items", "users"
ID_NAMESPACE = uuid.UUID("6f1c3f0e-7a55-5d0c-9d53-0f8f6a3f2b11")


def collection_name(kind: str, version: str) -> str:
    """The collection of one kind (``items`` or ``users``) in one version."""
    return f"{kind}__{version}"


def version_of(collection: str) -> str:
    """The inverse of ``collection_name``."""
    return collection.partition("__")[2]


def point_id(outside_id: str) -> str:
    """Qdrant's id of an item or user: its ids are integers or UUIDs."""
    return str(uuid.uuid5(ID_NAMESPACE, outside_id))


def search_filter(restrict: IndexFilter) -> models.Filter:
    """The conditions of a search."""
    must: list[models.Condition] = []
    if restrict.only_available:
        must.append(models.FieldCondition(key="available", match=models.MatchValue(value=True)))
    if restrict.categories:
        must.append(models.FieldCondition(key="categories", match=models.MatchAny(any=list(restrict.categories))))
    excluded: list[models.ExtendedPointId] = [point_id(item_id) for item_id in sorted(restrict.exclude_items)]
    return models.Filter(must=must, must_not=[models.HasIdCondition(has_id=excluded)] if excluded else None)


def not_newer(as_of_snapshot: int) -> models.Filter:
    """The condition under which a user's point may be replaced by one of ``as_of_snapshot``."""
    return models.Filter(must=[models.FieldCondition(key="as_of_snapshot", range=models.Range(lte=as_of_snapshot))])


def item_fields(item: ItemPayload) -> dict[str, Any]:
    """What is stored beside an item's vector."""
    return {
        "item_id": item.item_id,
        "title": item.title,
        "categories": list(item.categories),
        "available": bool(item.available),
    }


def item_payload(fields: Mapping[str, Any]) -> ItemPayload:
    """The inverse of ``item_fields``."""
    return ItemPayload(fields["item_id"], fields["title"], tuple(fields["categories"]), fields["available"])


def user_fields(user: UserPayload) -> dict[str, Any]:
    """What is stored beside a user's query vector."""
    return {
        "user_id": user.user_id,
        "n_history": int(user.n_history),
        "alpha": float(user.alpha),
        "beta": float(user.beta),
        "as_of_snapshot": int(user.as_of_snapshot),
    }


def user_payload(fields: Mapping[str, Any]) -> UserPayload:
    """The inverse of ``user_fields``."""
    names = ("user_id", "n_history", "alpha", "beta", "as_of_snapshot")
    return UserPayload(*(fields[name] for name in names))


def check_vectors(vectors: Floats, n_payloads: int) -> None:
    """Raises InputError unless there is one row of finite values for each payload."""
    if vectors.ndim != 2 or len(vectors) != n_payloads:
        raise InputError(
            f"Vectors of shape {vectors.shape} came with {n_payloads} payloads; the index takes a table of vectors "
            "with one payload for each row."
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{int((~finite).sum())} of {len(vectors)} vectors have values that are not finite; the index takes only "
            "finite ones. Look at the gate of the stage that made them."
        )
