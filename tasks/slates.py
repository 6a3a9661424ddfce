"""Writes the slate of every user of a model version, with reasons, for those who read tables.

It knows nothing of the index: scores are exact products of the warehouse's own vectors, by the same formula.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.domain.explanations import name_reasons, reasons_to_json, split_by_reason
from tasks.domain.fusion import fuse_items, fuse_queries, split_scores
from tasks.domain.histories import select_users
from tasks.domain.ports import Resources, Transaction, Warehouse
from tasks.domain.profiles import Histories, ItemSpace, Profiles
from tasks.domain.ranking import TopItems, check_slate_length, only_attributes, popular_where_empty, top_items
from tasks.domain.records import Receipt
from tasks.model_state import (
    ModelVersion,
    encode_histories,
    load_history_rows,
    load_item_space,
    load_profiles,
    load_text_embeddings,
    load_version,
)
from tasks.quality import check_gate_in_parts
from tasks.refresh import read_watermark
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
TABLE = "mart_recommendations"
NAMED_REASONS = 3
"""Reasons that each row names one by one; the others are added up."""
CHUNK_USERS = 4096
"""Users whose profiles and slates are in memory at one time."""
CHUNK_SCORES = 16_000_000
"""Scores in memory at one time: users times items."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Catalog:
    """The items of one version: ``vectors`` (n, width) are fused, ``is_shown`` (n,) are those that are available."""

    model: ModelVersion
    items: ItemSpace
    vectors: Floats
    is_shown: npt.NDArray[np.bool_]
    titles: dict[str, str]


def write_slates(
    resources: Resources, version: str, *, now: datetime, k: int = 10, run_id: str | None = None
) -> Receipt:
    """The ``k`` best available items that each user has not met, with parts and reasons, into the mart.

    Scores are those of the stored profiles, reasons those of the histories at the version's watermark; equal scores
    are ordered by item id. All chunks pass the ``slates`` gate; then all rows of the version are replaced in one
    commit. Raises InputError for ``k`` outside 1 to 500, NotFoundError for an unknown version, and GateError.
    """
    check_slate_length(k)
    started = time.perf_counter()
    run_id = run_id or f"slates-{version}"
    folder = resources.home / "staging" / TABLE / version
    shutil.rmtree(folder, ignore_errors=True)
    with resources.warehouse() as warehouse:
        catalog = _load_catalog(warehouse, version)
        user_ids = warehouse.read(query_sql("user_ids_of_version"), {"version": version})["user_id"].to_pylist()
        folder.mkdir(parents=True)
        written = _written(folder, _slates(warehouse, catalog, user_ids, k, now))
        check_gate_in_parts(resources, "slates", written, run_id=run_id, now=now, version=version)
        paths = sorted(folder.glob("*.parquet"))
        n_rows = warehouse.commit(lambda transaction: _replace(transaction, version, paths))
    shutil.rmtree(folder)
    seconds = time.perf_counter() - started
    logger.info("write_slates version=%s users=%d rows=%d seconds=%.2f", version, len(user_ids), n_rows, seconds)
    return Receipt("slates", len(user_ids), n_rows, TABLE, seconds, version)


def has_slates(resources: Resources, version: str) -> bool:
    """Whether the slates of a version were written."""
    with resources.warehouse(read_only=True) as warehouse:
        return bool(warehouse.read(query_sql("has_slates"), {"version": version})["has_slates"][0].as_py())


def _load_catalog(warehouse: Warehouse, version: str) -> _Catalog:
    model, items = load_version(warehouse, version), load_item_space(warehouse, version)
    states = {row["item_id"]: row for row in warehouse.read(query_sql("item_states")).to_pylist()}
    return _Catalog(
        model=model,
        items=items,
        vectors=fuse_items(items.text, items.factors, items.prior, model.recipe.fusion),
        is_shown=np.array([item_id in states and states[item_id]["available"] for item_id in items.item_ids], bool),
        titles={item_id: row["title"] for item_id, row in states.items()},
    )


def _slates(
    warehouse: Warehouse, catalog: _Catalog, user_ids: Sequence[str], k: int, now: datetime
) -> Iterator[pa.Table]:
    """Rows of the mart, chunk by chunk of users. The histories are read once: each chunk would read all events."""
    everybody = _load_histories(warehouse, catalog, user_ids)
    for start in range(0, len(user_ids), CHUNK_USERS):
        chosen = user_ids[start : start + CHUNK_USERS]
        profiles = load_profiles(warehouse, catalog.model.version, chosen)
        histories = select_users(everybody, np.arange(start, start + len(chosen)))
        yield _rows(catalog, profiles, histories, k, now)


def _written(folder: Path, chunks: Iterable[pa.Table]) -> Iterator[dict[str, pa.Table]]:
    """Each chunk as the gate takes it, once it stands in a file."""
    for number, rows in enumerate(chunks):
        pq.write_table(rows, folder / f"{number:06}.parquet")
        yield {TABLE: rows}


def _load_histories(warehouse: Warehouse, catalog: _Catalog, user_ids: Sequence[str]) -> Histories:
    """In the order of ``user_ids``, at the version's watermark."""
    model, recipe = catalog.model, catalog.model.recipe
    snapshot = read_watermark(warehouse, model.version)
    rows = load_history_rows(warehouse, recipe.event_types, recipe.interaction_half_life_days, snapshot)
    embeddings = load_text_embeddings(warehouse, rows.texts["content_hash"], model.encoder_id, model.text_width)
    return encode_histories(rows, model, catalog.items, user_ids, embeddings)[0]


def _rows(catalog: _Catalog, profiles: Profiles, histories: Histories, k: int, now: datetime) -> pa.Table:
    """Slates of some users; ``histories`` has the users of ``profiles``, in their order."""
    fusion, width = catalog.model.recipe.fusion, catalog.model.text_width
    queries = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, fusion)
    queries, is_popular = popular_where_empty(queries, fusion)
    sources = np.where(only_attributes(queries, profiles.n_history, width), "attributes", "profile")
    sources = np.where(is_popular, "popular", sources)
    top = _best(catalog, queries, histories, k)
    user, rank = np.nonzero(top.rows >= 0)
    item = top.rows[user, rank]
    targets = [rows[rows >= 0] for rows in top.rows]
    parts = _parts(queries, catalog.vectors, targets, width)
    scores = parts.sum(axis=0)
    n = len(user)
    return pa.table(
        {
            "version": pa.array([catalog.model.version] * n, pa.string()),
            "user_id": pa.array([profiles.user_ids[row] for row in user], pa.string()),
            "rank": pa.array(rank + 1, pa.int32()),
            "item_id": pa.array([catalog.items.item_ids[row] for row in item], pa.string()),
            "score": pa.array(scores, pa.float64()),
            "text_part": pa.array(parts[0], pa.float64()),
            "factors_part": pa.array(parts[1], pa.float64()),
            "prior_part": pa.array(parts[2], pa.float64()),
            "reason": pa.array(_reasons(catalog, profiles, histories, targets, scores), pa.string()),
            "source": pa.array(sources[user], pa.string()),
            "created_at": pa.array([now] * n, pa.timestamp("us", tz="UTC")),
        }
    )


def _best(catalog: _Catalog, queries: Floats, histories: Histories, k: int) -> TopItems:
    """The best items of each user, a block of users at a time; what they have met is left out, whatever its weight."""
    rows, scores = [np.zeros((0, k), np.int64)], [np.zeros((0, k), np.float32)]
    step = max(1, CHUNK_SCORES // max(1, len(catalog.vectors)))
    for start in range(0, len(queries), step):
        met = histories.interactions[start : start + step]
        blocked = np.tile(~catalog.is_shown, (met.shape[0], 1))
        blocked[np.repeat(np.arange(met.shape[0]), np.diff(met.indptr)), met.indices] = True
        top = top_items(queries[start : start + step] @ catalog.vectors.T, k, blocked)
        rows.append(top.rows)
        scores.append(top.scores)
    return TopItems(np.concatenate(rows), np.concatenate(scores))


def _parts(queries: Floats, vectors: Floats, targets: Sequence[Rows], text_width: int) -> npt.NDArray[np.float64]:
    """Text, factors and prior part of each user's targets, one user after the other: (3, number of targets)."""
    by_user = [split_scores(queries[[user]], vectors[rows], text_width) for user, rows in enumerate(targets)]
    return np.stack([np.concatenate([np.zeros(0), *(parts[which][0] for parts in by_user)]) for which in range(3)])


def _reasons(
    catalog: _Catalog,
    profiles: Profiles,
    histories: Histories,
    targets: Sequence[Rows],
    scores: npt.NDArray[np.float64],
) -> list[str]:
    """One JSON text for each row, user by user and rank by rank."""
    items, recipe = catalog.items, catalog.model.recipe
    left = iter(scores.tolist())
    return [
        reasons_to_json(name_reasons(split, target, next(left), items.item_ids, catalog.titles, NAMED_REASONS))
        for split in split_by_reason(histories, profiles, items, recipe, targets)
        for target in range(split.values.shape[1])
    ]


def _replace(transaction: Transaction, version: str, paths: Sequence[Path]) -> int:
    transaction.replace(TABLE, pa.table({"version": pa.array([], pa.string())}), {"version": version})
    return transaction.register_parquet(TABLE, paths)
