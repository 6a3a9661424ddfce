"""What came since items and texts were last brought to a model version: rows of the change feed, and what waits.

It knows nothing of language models, or of what becomes of an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.arrivals import ArrivedItem
from tasks.domain.errors import NotFoundError
from tasks.domain.ports import Warehouse
from tasks.model_state import ModelVersion, event_type_rows
from tasks.refresh import read_watermark
from warehouse.catalog import model_sql, query_sql

FAR_COMMITS = 100_000
"""Commits without an item after which the watermark of the items moves all the same, so that the feed stays short."""


@dataclass(frozen=True)
class ArrivalFeed:
    """What came, and where it was read from.

    ``item_ids`` are items to be looked at, of which ``n_received`` came since the last call; the others waited, and
    ``n_more`` still do beside them. ``texts`` are texts of users without an embedding: content_hash, text, used_by.
    ``seen_items`` is the watermark of the items as it stood, ``began_at`` the snapshot that it stands for.
    """

    seen_items: int | None
    began_at: int
    to_snapshot: int
    item_ids: tuple[str, ...]
    n_received: int
    n_more: int
    texts: pa.Table
    has_events: bool
    note: str = ""

    @property
    def is_far(self) -> bool:
        """Whether the watermark of the items lies far behind."""
        return self.to_snapshot - self.began_at > FAR_COMMITS


class CatalogPart(NamedTuple):
    """Some items as the catalog has them now: their rows of ``stg_items`` and ``int_item_texts``, and beside what a
    version holds of them."""

    items: list[ArrivedItem]
    stg_items: pa.Table
    int_item_texts: pa.Table


def read_arrivals(warehouse: Warehouse, model: ModelVersion, most_waiting: int) -> ArrivalFeed:
    """Read the feed of ``raw_items`` and ``raw_events`` since the version's watermarks, and up to ``most_waiting``
    items that waited.

    Where the feed has expired, all items are named and the note says so; texts of users are left to the batch then.
    Raises NotFoundError if the version has no watermark.
    """
    read_watermark(warehouse, model.version)
    mark = warehouse.read(query_sql("arrival_watermarks"), {"version": model.version}).to_pylist()[0]
    after, to, note = mark["items_snapshot"], warehouse.latest_snapshot(), ""
    try:
        received = set(warehouse.insertions("raw_items", after, to)["item_id"].to_pylist())
    except NotFoundError:
        received = set(warehouse.read(query_sql("received_item_ids"))["item_id"].to_pylist())
        note = f"the change feed after snapshot {after} has expired: the whole catalog was compared"
    asked = {"version": model.version, "most": most_waiting}
    waiting = warehouse.read(query_sql("waiting_items"), asked)
    n_waiting = waiting["n_waiting"][0].as_py() if waiting.num_rows else 0
    events = _events(warehouse, mark["texts_snapshot"], to)
    return ArrivalFeed(
        seen_items=mark["seen_items"],
        began_at=after,
        to_snapshot=to,
        item_ids=tuple(sorted(received.union(waiting["item_id"].to_pylist()))),
        n_received=len(received),
        n_more=n_waiting - waiting.num_rows,
        texts=_unembedded(warehouse, model, events),
        has_events=events.num_rows > 0,
        note=note,
    )


def load_catalog_part(warehouse: Warehouse, version: str, item_ids: Sequence[str]) -> CatalogPart:
    """The items as the SQL models of the batch make them, from everything that was ever received of them; by id."""
    wanted = pa.table({"item_id": pa.array(item_ids, pa.string())})
    shadows = {"raw_items": warehouse.read(query_sql("raw_items_of_items"), shadows={"wanted_items": wanted})}
    for table in ("stg_items", "int_item_texts"):
        shadows[table] = warehouse.read(model_sql(table), shadows=shadows)
    found = warehouse.read(query_sql("arrived_items"), {"version": version}, shadows)
    items = [ArrivedItem(**row) for row in found.to_pylist()]
    return CatalogPart(items, shadows["stg_items"], shadows["int_item_texts"])


def _events(warehouse: Warehouse, after: int, to: int) -> pa.Table:
    try:
        return warehouse.insertions("raw_events", after, to)
    except NotFoundError:
        return warehouse.insertions("raw_events", to, to)


def _unembedded(warehouse: Warehouse, model: ModelVersion, events: pa.Table) -> pa.Table:
    """Texts of these rows, as the models of the batch make them, that have no embedding; each content once."""
    spoken = events.filter(pc.is_valid(events["text"]))
    if spoken.num_rows == 0:
        return pa.table({name: pa.array([], pa.string()) for name in ("content_hash", "text", "used_by")})
    shadows = {"raw_events": spoken, "event_types": event_type_rows(model.recipe.event_types)}
    for table in ("stg_events", "int_user_texts"):
        shadows[table] = warehouse.read(model_sql(table), shadows=shadows)
    return warehouse.read(query_sql("unembedded_texts"), {"encoder_id": model.encoder_id}, shadows)
