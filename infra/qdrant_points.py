"""Our records as Qdrant's points, payloads and filters, and back. It knows nothing of a connection."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from qdrant_client import models

from tasks.domain.records import IndexFilter, ItemPayload, UserPayload

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
    for terms in restrict.attributes:
        must.append(models.FieldCondition(key="attributes", match=models.MatchAny(any=list(terms))))
    if restrict.only_items:
        must.append(_one_of(restrict.only_items))
    return models.Filter(must=must, must_not=[_one_of(restrict.exclude_items)] if restrict.exclude_items else None)


def not_newer(as_of_snapshot: int) -> models.Filter:
    """The condition under which a user's point may be replaced by one of ``as_of_snapshot``."""
    return models.Filter(must=[models.FieldCondition(key="as_of_snapshot", range=models.Range(lte=as_of_snapshot))])


def with_ids(outside_ids: Iterable[str]) -> models.Filter:
    """The condition of being one of these users or items."""
    return models.Filter(must=[_one_of(outside_ids)])


def item_fields(item: ItemPayload) -> dict[str, Any]:
    """What is stored beside an item's vector."""
    return {
        "item_id": item.item_id,
        "title": item.title,
        "categories": list(item.categories),
        "available": bool(item.available),
        "attributes": list(item.attributes),
    }


def item_payload(fields: Mapping[str, Any]) -> ItemPayload:
    """The inverse of ``item_fields``. A point from before there were attributes has none."""
    categories, attributes = tuple(fields["categories"]), tuple(fields.get("attributes", ()))
    return ItemPayload(fields["item_id"], fields["title"], categories, fields["available"], attributes)


def user_fields(user: UserPayload) -> dict[str, Any]:
    """What is stored beside a user's query vector."""
    return {
        "user_id": user.user_id,
        "n_history": int(user.n_history),
        "alpha": float(user.alpha),
        "beta": float(user.beta),
        "as_of_snapshot": int(user.as_of_snapshot),
        "seen": list(user.seen),
    }


def user_payload(fields: Mapping[str, Any]) -> UserPayload:
    """The inverse of ``user_fields``. A point from before it was known has seen nothing."""
    names = ("user_id", "n_history", "alpha", "beta", "as_of_snapshot")
    return UserPayload(**{name: fields[name] for name in names}, seen=tuple(fields.get("seen", ())))


def _one_of(outside_ids: Iterable[str]) -> models.HasIdCondition:
    return models.HasIdCondition(has_id=[point_id(outside) for outside in sorted(outside_ids)])
