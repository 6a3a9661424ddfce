"""What the warehouse says of one version: who has events after its watermark, and which profiles have changed.

It knows nothing of what is kept in memory.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.errors import NotFoundError
from tasks.domain.fusion import fuse_queries
from tasks.domain.ports import Warehouse
from tasks.domain.records import UserPayload
from tasks.domain.vectors import matrix_from_lists
from tasks.model_state import ModelVersion
from tasks.projection import shared_texts
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
MARK_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("event_id", pa.string()), ("ingested_at", pa.timestamp("us", tz="UTC"))]
)
"""What is remembered of a row that names a user; ``event_id`` is null where it is no event."""


class Progress(NamedTuple):
    """How far events and items are in a version. ``items_snapshot`` None: those of the training."""

    watermark: int
    items_snapshot: int | None


def load_progress(warehouse: Warehouse, version: str) -> Progress:
    """Raises NotFoundError if the version has no watermark."""
    rows = warehouse.read(query_sql("progress_of_version"), {"version": version}).to_pylist()
    if not rows:
        raise NotFoundError(
            f"Version {version!r} was to be served, but it has no watermark: its training has not finished."
            " Publish another version, or run `nearline run daily_batch`."
        )
    return Progress(rows[0]["snapshot"], rows[0]["items_snapshot"])


def load_catalog_ids(warehouse: Warehouse) -> frozenset[str]:
    """The ids of ``stg_items``."""
    return frozenset(warehouse.read(query_sql("catalog_item_ids"))["item_id"].to_pylist())


def load_last_published(warehouse: Warehouse) -> str | None:
    """The version of the last recorded switch."""
    rows = warehouse.read(query_sql("last_publication"))["version"].to_pylist()
    return rows[0] if rows else None


def load_user_points(
    warehouse: Warehouse, model: ModelVersion, after_snapshot: int = -1
) -> tuple[Floats, list[UserPayload]]:
    """Query vectors (n, width) and payloads of the profiles that are true for a later snapshot; -1: of all."""
    parameters = {"version": model.version, "snapshot": after_snapshot}
    rows = warehouse.read(query_sql("changed_profiles_of_version"), parameters)
    alpha, beta = (rows[name].to_numpy().astype(np.float32) for name in ("alpha", "beta"))
    text = matrix_from_lists(rows["text_embedding"], model.text_width)
    factors = matrix_from_lists(rows["factors"], model.n_factors)
    columns = (rows[name].to_pylist() for name in ("user_id", "n_history"))
    numbers = (alpha.tolist(), beta.tolist(), rows["as_of_snapshot"].to_pylist())
    payloads = [
        UserPayload(*values) for values in zip(*columns, *numbers, shared_texts(rows["seen_items"]), strict=True)
    ]
    return fuse_queries(text, factors, alpha, beta, model.recipe.fusion), payloads


def load_marks(warehouse: Warehouse, model: ModelVersion, after_snapshot: int, to_snapshot: int) -> pa.Table:
    """Everything committed in between that a profile of this version should hold, as rows of ``MARK_SCHEMA``."""
    parameters = {"after": after_snapshot, "to": to_snapshot, "with_attributes": model.user_map is not None}
    return warehouse.read(query_sql("waiting_rows"), parameters).cast(MARK_SCHEMA)


def marks_of(rows: pa.Table) -> pa.Table:
    """Rows of ``raw_events`` or ``raw_users`` as rows of ``MARK_SCHEMA``."""
    event_id = rows["event_id"] if "event_id" in rows.column_names else pa.nulls(rows.num_rows, pa.string())
    return pa.table([rows["user_id"], event_id, rows["ingested_at"]], names=MARK_SCHEMA.names).cast(MARK_SCHEMA)
