"""The nearline loop: brings the profiles of the users whom the change feed names up to date.

It knows nothing of schedules, and nothing of language models: texts are embedded before (``tasks/embed.py``), and one
that has no embedding yet is counted, left out, and brings its user back into the feed once it is embedded.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.change_feed import Feed, load_rows, without_settled
from tasks.change_feed import read_feed as read_feed
from tasks.change_feed import read_watermark as read_watermark
from tasks.domain.errors import NotFoundError, WarehouseBusyError
from tasks.domain.ports import Resources, Transaction, VectorIndex, Warehouse
from tasks.domain.profile_gate import check_profiles
from tasks.domain.profiles import Histories, ItemSpace, Profiles, compute_profiles
from tasks.domain.records import CheckResult, NearlineRun
from tasks.model_state import (
    ModelVersion,
    build_history_rows,
    encode_histories,
    load_item_space,
    load_text_embeddings,
    load_version,
)
from tasks.profile_rows import profile_rows, user_points
from tasks.progress import progress_of
from warehouse.catalog import query_sql

CHUNK_USERS = 4096
"""Users whose histories and profiles are in memory at one time."""
GATE = "nearline"
LOCK_SECONDS = 600.0
"""How long a refresh waits for another one of the same version."""

logger = logging.getLogger(__name__)
_KEPT_ITEMS: dict[str, tuple[object, ModelVersion, ItemSpace]] = {}
_QUIET: dict[str, int] = {}
"""The last snapshot at which nothing was new, by home and version: nobody has to look twice."""


def refresh(
    resources: Resources, *, now: datetime, version: str | None = None, chunk_users: int = CHUNK_USERS
) -> NearlineRun | None:
    """Bring the users with new events up to date in ``version`` (None: the serving one); None if nothing is new.

    Query vectors are upserted first, then profiles, run row and watermark are committed together: a kill between
    them repeats harmlessly. More than ``chunk_users`` users are done in several steps, each with a commit of its
    own; the watermark moves with the last one, and what an interrupted refresh has committed is not done again. Another
    refresh of the version is waited for. Raises NotFoundError if nothing is published or the version has no watermark,
    GateError if a profile is not sound, and WarehouseBusyError if another refresh does not end.
    """
    watch = _Stopwatch()
    with resources.index() as index:
        version = version or serving_version(index)
        with refreshing(resources, version), resources.warehouse() as warehouse:
            watch.lap("open")
            feed = _read_news(resources, warehouse, version)
            watch.lap("feed")
            if feed is None:
                logger.info("refresh version=%s nothing new", version)
                return None
            if len(feed.user_ids) > chunk_users:
                feed = without_settled(warehouse, version, feed)
            step = _step(resources, warehouse, index, version, feed, now, watch)
            return _refresh_all(step, feed, chunk_users)


def refresh_users(
    resources: Resources,
    user_ids: Sequence[str],
    *,
    now: datetime,
    version: str | None = None,
    chunk_users: int = CHUNK_USERS,
) -> NearlineRun:
    """Solve the profiles of these users again, whether or not the change feed names them.

    They come out true for the snapshot of the watermark, like everybody's, and the watermark stays where it is. Raises
    as ``refresh`` does.
    """
    watch = _Stopwatch()
    with resources.index() as index:
        version = version or serving_version(index)
        with refreshing(resources, version), resources.warehouse() as warehouse:
            mark = read_watermark(warehouse, version)
            feed = Feed(mark, mark, tuple(user_ids), note=f"{len(user_ids)} users were named")
            step = _step(resources, warehouse, index, version, feed, now, watch)
            return _refresh_all(step, feed, chunk_users)


@contextmanager
def refreshing(resources: Resources, version: str) -> Iterator[None]:
    """Keep every other refresh of ``version`` away; waits for one that runs.

    Raises WarehouseBusyError if that does not end within ``LOCK_SECONDS``. The lock of a process that dies is free.
    """
    try:
        held = resources.lock(f"refresh-{version}", LOCK_SECONDS)
    except TimeoutError:
        raise WarehouseBusyError(
            f"Version {version} was to be refreshed, and another refresh of it has run for {LOCK_SECONDS:g} s. "
            "Let it finish, or end its process: what it has committed stays, and the next refresh does the rest."
        ) from None
    with held:
        yield


def serving_version(index: VectorIndex) -> str:
    """The version that readers see. Raises NotFoundError before the first publication."""
    version = index.serving_version()
    if version is None:
        raise NotFoundError(
            "The serving version was asked for, and the index has none. Before the first publication: run "
            "`nearline run daily_batch`. If the index was lost: `nearline rebuild-index`."
        )
    return version


class _Stopwatch:
    """Seconds by stage, and since the start."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to ``stage``."""
        moment = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + moment - self._last, 4)
        self._last = moment

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._started


@dataclass(frozen=True)
class _Step:
    """What every chunk of one refresh shares; ``view`` is the warehouse at the snapshot that the refresh goes up to."""

    resources: Resources
    warehouse: Warehouse
    index: VectorIndex
    model: ModelVersion
    items: ItemSpace
    to_snapshot: int
    now: datetime
    watch: _Stopwatch
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class _Chunk(NamedTuple):
    profiles: Profiles
    n_missing_texts: int
    checks: list[CheckResult]


def _step(
    resources: Resources,
    warehouse: Warehouse,
    index: VectorIndex,
    version: str,
    feed: Feed,
    now: datetime,
    watch: _Stopwatch,
) -> _Step:
    model, items = _load_items(resources, warehouse, version)
    watch.lap("items")
    return _Step(resources, warehouse, index, model, items, feed.to_snapshot, now, watch)


def _read_news(resources: Resources, warehouse: Warehouse, version: str) -> Feed | None:
    key, latest = f"{resources.home}/{version}", warehouse.latest_snapshot()
    if _QUIET.get(key) == latest:
        return None
    feed = read_feed(warehouse, version, with_moved=False)
    if feed is None:
        _QUIET[key] = latest
    return feed


def _load_items(resources: Resources, warehouse: Warehouse, version: str) -> tuple[ModelVersion, ItemSpace]:
    """The version with its items; those of the last refresh in this process are kept while they are true."""
    key = f"{resources.home}/{version}"
    state = warehouse.read(query_sql("state_of_version"), {"version": version}).to_pylist()
    kept = _KEPT_ITEMS.get(key)
    if kept is None or kept[0] != state:
        kept = state, load_version(warehouse, version), load_item_space(warehouse, version)
        _KEPT_ITEMS.clear()
        _KEPT_ITEMS[key] = kept
    return kept[1], kept[2]


def _refresh_all(step: _Step, feed: Feed, chunk_users: int) -> NearlineRun:
    n_missing, done = 0, set[str]()
    told = progress_of("refresh")
    starts = range(0, max(len(feed.user_ids), 1), chunk_users)
    for start in starts:
        user_ids = [u for u in feed.user_ids[start : start + chunk_users] if u not in done]
        chunk = _serve_users(step, feed, user_ids)
        done.update(chunk.profiles.user_ids)
        n_missing += chunk.n_missing_texts
        run = _run_record(step, feed, len(done), n_missing) if start == starts[-1] else None
        step.warehouse.commit(_writer(step, chunk, run))
        step.watch.lap("commit")
        told(len(done), len(feed.user_ids))
    assert run is not None
    logger.info(
        "refresh version=%s snapshots=%d-%d events=%d users=%d missing_texts=%d seconds=%.2f",
        run.version, run.from_snapshot, run.to_snapshot, run.n_events, run.n_users, n_missing, step.watch.elapsed,
    )  # fmt: skip
    return replace(run, stage_seconds=dict(step.watch.seconds))


def _serve_users(step: _Step, feed: Feed, user_ids: Sequence[str]) -> _Chunk:
    """Compute, check and upsert. Raises GateError."""
    from tasks.quality import record_checks

    version = step.model.version
    histories, n_missing = _load_histories(step, feed, user_ids)
    step.watch.lap("histories")
    profiles = compute_profiles(histories, step.items, step.model.recipe)
    step.watch.lap("profiles")
    checks = check_profiles(profiles, step.model.text_width, step.model.n_factors)
    if not all(check.passed for check in checks):
        record_checks(step.resources, GATE, checks, run_id=step.run_id, now=step.now, version=version)
    step.watch.lap("gate")
    if profiles.user_ids:
        step.index.upsert_users(version, *user_points(profiles, step.model, step.to_snapshot))
    step.watch.lap("upsert")
    return _Chunk(profiles, n_missing, checks)


def _load_histories(step: _Step, feed: Feed, user_ids: Sequence[str]) -> tuple[Histories, int]:
    """Histories at the snapshot of the step, with the number of texts that have no embedding yet."""
    model, recipe = step.model, step.model.recipe
    with step.warehouse.at(step.to_snapshot) as past:
        raw, known = load_rows(past, feed, user_ids)
        step.watch.lap("rows")
        rows = build_history_rows(past, raw, recipe.event_types, recipe.interaction_half_life_days, known)
        step.watch.lap("models")
    embeddings = load_text_embeddings(step.warehouse, rows.texts["content_hash"], model.encoder_id, model.text_width)
    return encode_histories(rows, model, step.items, known, embeddings)


def _run_record(step: _Step, feed: Feed, n_users: int, n_missing_texts: int) -> NearlineRun:
    finished_at = step.now + timedelta(seconds=step.watch.elapsed)
    lags = np.maximum(finished_at.timestamp() - feed.arrived_at, 0)
    p50, p95, p99 = np.percentile(lags, [50, 95, 99]).tolist() if len(lags) else (None, None, None)
    return NearlineRun(
        version=step.model.version,
        from_snapshot=feed.from_snapshot,
        to_snapshot=feed.to_snapshot,
        n_events=len(feed.arrived_at),
        n_users=n_users,
        n_missing_texts=n_missing_texts,
        started_at=step.now,
        finished_at=finished_at,
        lag_p50_seconds=p50,
        lag_p95_seconds=p95,
        lag_p99_seconds=p99,
        stage_seconds=dict(step.watch.seconds),
        note=feed.note,
    )


def _writer(step: _Step, chunk: _Chunk, run: NearlineRun | None) -> Callable[[Transaction], None]:
    """One commit: profiles, fenced as the index is, and with the last chunk the gate, the run and the watermark.

    Another refresh may have gone further in the meantime (one that another machine runs, say): newer profiles stay,
    and the watermark never moves back.
    """
    from tasks.quality import result_rows

    version, snapshot, profiles = step.model.version, step.to_snapshot, chunk.profiles
    rows = profile_rows(profiles, version, snapshot, step.now)
    checks = result_rows(GATE, chunk.checks, step.run_id, step.now, version)

    def write(transaction: Transaction) -> None:
        fence = {"version": version, "snapshot": snapshot, "user_ids": list(profiles.user_ids)}
        newer = transaction.read(query_sql("newer_profiles"), fence)["user_id"]
        kept = rows.filter(pc.invert(pc.is_in(rows["user_id"], value_set=newer.combine_chunks())))
        user_ids = kept["user_id"].to_pylist()
        transaction.replace("user_profiles", kept, {"version": version, "user_id": user_ids})
        if run is not None:
            transaction.append("gate_results", checks)
            transaction.append("nearline_runs", _run_rows(run, step.run_id))
            row = {"version": version, "snapshot": snapshot, "updated_at": run.finished_at}
            transaction.execute(query_sql("move_watermark"), row)

    return write


def _run_rows(run: NearlineRun, run_id: str) -> pa.Table:
    row = {**asdict(run), "run_id": run_id, "stage_seconds": json.dumps(dict(run.stage_seconds))}
    return pa.Table.from_pylist([row])
