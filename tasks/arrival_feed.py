"""What came since items and texts were last brought to a model version, and what waits.

Commits are counted, never clocks. It knows nothing of language models, or of what becomes of an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from tasks.change_feed import read_watermark
from tasks.domain.arrivals import ArrivedItem
from tasks.domain.ports import Warehouse
from tasks.model_state import ModelVersion, event_type_rows
from warehouse.catalog import model_sql, query_sql


@dataclass(frozen=True)
class ArrivalFeed:
    """What came, and where it was read from.

    ``item_ids`` are items to be looked at, of which ``n_received`` came since the last call; the others waited, and
    ``n_more`` still do beside them. ``spoken`` are the new rows of ``raw_events`` with a text. ``seen_items`` is the
    watermark of the items as it stood, ``began_at`` the snapshot that it stands for.
    """

    seen_items: int | None
    began_at: int
    to_snapshot: int
    item_ids: tuple[str, ...]
    n_received: int
    n_more: int
    spoken: pa.Table

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be looked at."""
        return not self.item_ids and not self.spoken.num_rows


class CatalogPart(NamedTuple):
    """Some items as the catalog has them now: their rows of ``stg_items`` and ``int_item_texts``, and beside what a
    version holds of them."""

    items: list[ArrivedItem]
    stg_items: pa.Table
    int_item_texts: pa.Table


def read_arrivals(warehouse: Warehouse, version: str, most_waiting: int) -> ArrivalFeed:
    """Read what the commits since the version's watermarks brought, and up to ``most_waiting`` items that waited.

    Raises NotFoundError if the version has no watermark.
    """
    marks = warehouse.read(query_sql("arrival_watermarks"), {"version": version}).to_pylist()
    if not marks:
        read_watermark(warehouse, version)  # raises, and says what to do
    mark = marks[0]
    to = warehouse.latest_snapshot()
    received = warehouse.read(query_sql("fed_items"), {"after": mark["items_snapshot"], "to": to})
    waiting = warehouse.read(query_sql("waiting_items"), {"version": version, "most": most_waiting})
    n_waiting = waiting["n_waiting"][0].as_py() if waiting.num_rows else 0
    return ArrivalFeed(
        seen_items=mark["seen_items"],
        began_at=mark["items_snapshot"],
        to_snapshot=to,
        item_ids=tuple(sorted({*received["item_id"].to_pylist(), *waiting["item_id"].to_pylist()})),
        n_received=received.num_rows,
        n_more=n_waiting - waiting.num_rows,
        spoken=warehouse.read(query_sql("fed_user_texts"), {"after": mark["texts_snapshot"], "to": to}),
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


def load_unembedded(warehouse: Warehouse, model: ModelVersion, spoken: pa.Table) -> pa.Table:
    """Texts of these rows of ``raw_events``, as the models of the batch make them, that have no embedding: columns
    content_hash, text and used_by; each content once."""
    if spoken.num_rows == 0:
        return pa.table({name: pa.array([], pa.string()) for name in ("content_hash", "text", "used_by")})
    shadows = {"raw_events": spoken, "event_types": event_type_rows(model.recipe.event_types)}
    for table in ("stg_events", "int_user_texts"):
        shadows[table] = warehouse.read(model_sql(table), shadows=shadows)
    return warehouse.read(query_sql("unembedded_texts"), {"encoder_id": model.encoder_id}, shadows)
