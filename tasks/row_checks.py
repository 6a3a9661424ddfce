"""The checks of rows on their way into a raw table, the same for files, programs and requests.

It knows nothing of where the rows come from, and it writes nothing.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import pyarrow as pa

from tasks.domain.mappings import CANONICAL, SourceKind
from tasks.domain.ports import Warehouse
from tasks.domain.records import EventType
from tasks.model_state import event_type_rows
from warehouse.catalog import query_sql

CLOCK_TOLERANCE = timedelta(days=1)
"""How far an event may lie in the future: the clocks of two machines differ, and so do their time zones."""


def check_rows(
    warehouse: Warehouse,
    kind: SourceKind,
    rows: pa.Table,
    event_types: Iterable[EventType],
    *,
    now: datetime,
    mapping: Mapping[str, str] | None = None,
) -> pa.Table:
    """Every row typed and judged, in the order of ``source_row``.

    ``rows`` has ``source_row`` (int64, unique) and the canonical columns of the kind, all as text. The answer has
    ``source_row``, the columns of the raw table, ``reason`` (why a row is refused; null: it is good) and
    ``is_duplicate`` (an earlier row among these says the same). ``mapping`` gives the options of categories.
    """
    shadows = {"source_rows": rows}
    parameters: dict[str, object] | None = None
    if kind == "events":
        shadows["event_types"] = event_type_rows(event_types)
        parameters = {"latest_at": now + CLOCK_TOLERANCE}
    elif kind == "items":
        options = mapping or {}
        parameters = {
            "separator": options.get("categories.separator", "|"),
            "no_categories": options.get("categories.none", ""),
        }
    return warehouse.read(query_sql(f"check_{kind}"), parameters, shadows)


def raw_columns(checked: pa.Table, kind: SourceKind) -> list[str]:
    """The columns of checked rows that are stored, in their order."""
    return [name for name in CANONICAL[kind] if name in checked.column_names]
