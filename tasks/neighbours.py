"""Writes the item neighbours of a model version, and reads those of one history.

The table ``item_neighbours`` is for analysts, and for slates by neighbours. It knows nothing of how they are found.
"""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import sparse

from tasks.domain.errors import NotFoundError
from tasks.domain.neighbours import Neighbours, fit_neighbours
from tasks.domain.ports import Resources, Warehouse
from tasks.domain.profiles import ItemSpace
from tasks.domain.records import Receipt
from tasks.model_state import encode_rows, load_history_rows, load_version
from tasks.training_inputs import fixed_threads
from warehouse.catalog import query_sql

TABLE = "item_neighbours"

logger = logging.getLogger(__name__)


def write_neighbours(resources: Resources, version: str) -> Receipt:
    """Find the neighbours of every item of a version, from what it was trained on, and replace its rows in one commit.

    Running it again gives the same rows. Raises NotFoundError for an unknown version, or one whose training snapshot
    has expired.
    """
    started = time.perf_counter()
    with resources.warehouse() as warehouse, fixed_threads() as n_threads:
        item_ids = warehouse.read(query_sql("item_ids_of_version"), {"version": version})["item_id"].to_pylist()
        liked = _load_likes(warehouse, version, item_ids)
        rows = _rows(version, item_ids, fit_neighbours(liked, n_threads=n_threads))
        warehouse.commit(lambda transaction: transaction.replace(TABLE, rows, {"version": version}))
    seconds, n_items, n_rows = time.perf_counter() - started, len(item_ids), rows.num_rows
    logger.info("write_neighbours version=%s items=%d rows=%d seconds=%.2f", version, n_items, n_rows, seconds)
    return Receipt("neighbours", n_items, n_rows, TABLE, seconds, version)


class HistoryNeighbours(NamedTuple):
    """The neighbours of what one user liked: ``strengths`` (n_items, n_items) CSR has a row for each of these items and
    columns for the available items that they speak for; ``titles`` are those of the latter, by id."""

    strengths: sparse.csr_matrix
    titles: dict[str, str]


def load_neighbours(warehouse: Warehouse, version: str, items: ItemSpace, liked: Sequence[str]) -> HistoryNeighbours:
    """What the liked items speak for in a version. Raises NotFoundError if it was trained without neighbours."""
    if not warehouse.read(query_sql("has_neighbours"), {"version": version})["has_neighbours"][0].as_py():
        raise NotFoundError(
            f"Recommendations by neighbours were asked for, and the serving version {version} has none: no item of it"
            " was liked together with another one, or it was trained before neighbours were written. Ask without"
            " `--method neighbours`, or train again: nearline run daily_batch --param force_retrain=true"
        )
    wanted = pa.table({"item_id": pa.array(sorted(set(liked)), pa.string())})
    rows = warehouse.read(query_sql("neighbours_of_history"), {"version": version}, {"wanted_items": wanted})
    places = [[items.index[item_id] for item_id in rows[name].to_pylist()] for name in ("neighbour_id", "item_id")]
    strength = rows["strength"].to_numpy().astype(np.float32)
    strengths = sparse.csr_matrix((strength, places), shape=(len(items.item_ids),) * 2)
    titles = dict(zip(rows["item_id"].to_pylist(), rows["title"].to_pylist(), strict=True))
    return HistoryNeighbours(strengths, titles)


def _load_likes(warehouse: Warehouse, version: str, item_ids: Sequence[str]) -> sparse.csr_matrix:
    """(n_users, n_items) CSR of everybody's signed weights, at the snapshot that the version was trained at."""
    model = load_version(warehouse, version)
    recipe = model.recipe
    half_life = recipe.interaction_half_life_days
    rows = load_history_rows(warehouse, recipe.event_types, half_life, model.training_snapshot)
    rows = rows._replace(texts=rows.texts.slice(0, 0))
    user_ids = sorted(rows.interactions["user_id"].unique().to_pylist())
    log, _, _ = encode_rows(rows, item_ids, user_ids, {}, model.text_width)
    return log.matrix()


def _rows(version: str, item_ids: Sequence[str], found: Neighbours) -> pa.Table:
    """Item by item, the strongest neighbour first; equal ones by item."""
    cells = found.strengths.tocoo()
    order = np.lexsort((cells.row, -cells.data, cells.col))
    item, neighbour = cells.col[order], cells.row[order]
    ids = pa.array(item_ids, pa.string())
    return pa.table(
        {
            "version": pa.array([version] * len(item), pa.string()),
            "item_id": ids.take(pa.array(item, pa.int64())),
            "rank": pa.array(np.arange(len(item)) - np.searchsorted(item, item) + 1, pa.int32()),
            "neighbour_id": ids.take(pa.array(neighbour, pa.int64())),
            "strength": pa.array(cells.data[order], pa.float64()),
            "n_shared": pa.array(found.n_shared.data[order], pa.int64()),
        }
    )
