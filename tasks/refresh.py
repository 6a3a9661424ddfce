"""The nearline loop: reads the change feed and brings the profiles of the users it touches up to date.

It knows nothing of schedules, and nothing of language models: texts are embedded before (``tasks/embed.py``), and one
that has no embedding yet is counted, left out, and brings its user back into the feed once it is embedded.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.errors import NotFoundError
from tasks.domain.fusion import fuse_queries
from tasks.domain.ports import Resources, Transaction, VectorIndex, Warehouse
from tasks.domain.profile_gate import check_profiles
from tasks.domain.profiles import ItemSpace, Profiles, compute_profiles
from tasks.domain.records import NearlineRun, UserPayload
from tasks.domain.vectors import lists_from_matrix
from tasks.model_state import ModelVersion, load_histories, load_item_space, load_version
from warehouse.catalog import query_sql

CHUNK_USERS = 4096
"""Users whose histories and profiles are in memory at one time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feed:
    """What the change feed says: whose profiles are no longer true, and when their events arrived.

    ``arrived_at`` (n_events,) are seconds since 1970. ``note`` says why it is not the feed's own answer.
    """

    from_snapshot: int
    to_snapshot: int
    user_ids: tuple[str, ...]
    arrived_at: npt.NDArray[np.float64]
    note: str = ""


def refresh(
    resources: Resources, *, now: datetime, version: str | None = None, chunk_users: int = CHUNK_USERS
) -> NearlineRun | None:
    """Bring the users with new events up to date in ``version`` (None: the serving one); None if nothing is new.

    Query vectors are upserted first, then profiles, run row and watermark are committed together: a kill between
    them repeats harmlessly. More than ``chunk_users`` users are done in several steps, and the watermark moves with the
    last one. Raises NotFoundError if nothing is published or the version has no watermark, and GateError if
    a profile is not sound.
    """
    watch = _Stopwatch()
    with resources.index() as index, resources.warehouse() as warehouse:
        version = version or serving_version(index)
        feed = read_feed(warehouse, version)
        watch.lap("feed")
        if feed is None:
            logger.info("refresh version=%s nothing new", version)
            return None
        step = _Step(resources, warehouse, index, load_version(warehouse, version), feed.to_snapshot, now, watch)
        items = load_item_space(warehouse, version)
        watch.lap("items")
        return _refresh_all(step, items, feed, chunk_users)


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
    with resources.index() as index, resources.warehouse() as warehouse:
        version = version or serving_version(index)
        mark = read_watermark(warehouse, version)
        feed = Feed(mark, mark, tuple(user_ids), np.zeros(0), f"{len(user_ids)} users were named")
        step = _Step(resources, warehouse, index, load_version(warehouse, version), mark, now, watch)
        items = load_item_space(warehouse, version)
        watch.lap("items")
        return _refresh_all(step, items, feed, chunk_users)


def serving_version(index: VectorIndex) -> str:
    """The version that readers see. Raises NotFoundError before the first publication."""
    version = index.serving_version()
    if version is None:
        raise NotFoundError(
            "The serving version was asked for, and the index has none. Before the first publication: run "
            "`nearline run daily_batch`. If the index was lost: `nearline rebuild-index`."
        )
    return version


def read_feed(warehouse: Warehouse, version: str) -> Feed | None:
    """Whose profiles of ``version`` the events since its watermark concern; None if there is nobody.

    Who wrote a text that was embedded since then is named too: their profile could not hold it before. So is who told
    something of themselves, if the version knows attributes, and whom ``refresh_requests`` names. If the watermark's
    snapshot has expired, everybody is named and the note says so. Raises NotFoundError if the version has no watermark.
    """
    after, to = read_watermark(warehouse, version), warehouse.latest_snapshot()
    try:
        events = warehouse.insertions("raw_events", after, to)
        texts = warehouse.insertions("text_embeddings", after, to)
        told = warehouse.insertions("raw_users", after, to)["user_id"].to_pylist()
        user_ids = set(warehouse.insertions("refresh_requests", after, to)["user_id"].to_pylist())
    except NotFoundError:
        users = warehouse.read(query_sql("all_users_of_version"), {"version": version})
        note = f"the change feed after snapshot {after} has expired: every user was refreshed"
        logger.warning("refresh version=%s %s", version, note)
        return Feed(after, to, tuple(users["user_id"].to_pylist()), np.zeros(0), note)
    if events.num_rows:
        user_ids.update(
            warehouse.read(query_sql("touched_users"), shadows={"fed_events": events})["user_id"].to_pylist()
        )
    if texts.num_rows:
        shadows = {"embedded_texts": texts.select(["content_hash"])}
        user_ids.update(warehouse.read(query_sql("writers_of_texts"), shadows=shadows)["user_id"].to_pylist())
    if told and load_version(warehouse, version).user_map is not None:
        user_ids.update(told)
    arrived_at = events["ingested_at"].cast(pa.int64()).to_numpy() / 1e6
    return Feed(after, to, tuple(sorted(user_ids)), arrived_at) if user_ids else None


def read_watermark(warehouse: Warehouse, version: str) -> int:
    """The snapshot up to which events are in the profiles of ``version``. Raises NotFoundError if it has none."""
    rows = warehouse.read(query_sql("watermark"), {"version": version})
    if rows.num_rows == 0:
        raise NotFoundError(
            f"Version {version!r} was to be refreshed, but it has no watermark: its training has not finished."
            " Name a version that was published, or run `nearline run daily_batch`."
        )
    return int(rows["snapshot"][0].as_py())


def profile_rows(profiles: Profiles, version: str, as_of_snapshot: int, now: datetime) -> pa.Table:
    """Rows of ``user_profiles``."""
    n = len(profiles.user_ids)
    return pa.table(
        {
            "version": pa.array([version] * n, pa.string()),
            "user_id": pa.array(profiles.user_ids, pa.string()),
            "text_embedding": lists_from_matrix(profiles.text),
            "factors": lists_from_matrix(profiles.factors),
            "n_history": pa.array(profiles.n_history, pa.int64()),
            "alpha": pa.array(profiles.alpha, pa.float64()),
            "beta": pa.array(profiles.beta, pa.float64()),
            "drift": pa.array(profiles.drift, pa.float64()),
            "as_of_snapshot": pa.array([as_of_snapshot] * n, pa.int64()),
            "refreshed_at": pa.array([now] * n, pa.timestamp("us", tz="UTC")),
        }
    )


def user_points(
    profiles: Profiles, model: ModelVersion, as_of_snapshot: int
) -> tuple[npt.NDArray[np.float32], list[UserPayload]]:
    """Query vectors (n, width) and their payloads, as ``VectorIndex.upsert_users`` takes them."""
    vectors = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, model.recipe.fusion)
    columns = zip(profiles.user_ids, profiles.n_history, profiles.alpha, profiles.beta, strict=True)
    return vectors, [UserPayload(u, int(n), float(a), float(b), as_of_snapshot) for u, n, a, b in columns]


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
    """What every chunk of one refresh shares."""

    resources: Resources
    warehouse: Warehouse
    index: VectorIndex
    model: ModelVersion
    to_snapshot: int
    now: datetime
    watch: _Stopwatch


def _refresh_all(step: _Step, items: ItemSpace, feed: Feed, chunk_users: int) -> NearlineRun:
    run_id, n_missing = uuid.uuid4().hex, 0
    starts = range(0, max(len(feed.user_ids), 1), chunk_users)
    run: NearlineRun | None = None
    for start in starts:
        user_ids = feed.user_ids[start : start + chunk_users]
        profiles, missing = _serve_users(step, items, user_ids, run_id)
        n_missing += missing
        if start == starts[-1]:
            run = _run_record(step, feed, n_missing)
        step.warehouse.commit(_writer(step, profiles, run_id, run))
        step.watch.lap("commit")
    assert run is not None
    logger.info(
        "refresh version=%s snapshots=%d-%d events=%d users=%d missing_texts=%d seconds=%.2f",
        run.version, run.from_snapshot, run.to_snapshot, run.n_events, run.n_users, n_missing, step.watch.elapsed,
    )  # fmt: skip
    return run


def _serve_users(step: _Step, items: ItemSpace, user_ids: Sequence[str], run_id: str) -> tuple[Profiles, int]:
    """Compute, check and upsert; returns the profiles and the number of texts that have no embedding yet."""
    from tasks.quality import record_checks

    version = step.model.version
    histories, n_missing = load_histories(step.warehouse, step.model, items, step.to_snapshot, user_ids)
    step.watch.lap("histories")
    profiles = compute_profiles(histories, items, step.model.recipe)
    step.watch.lap("profiles")
    checks = check_profiles(profiles, step.model.text_width, step.model.n_factors)
    record_checks(step.resources, "nearline", checks, run_id=run_id, now=step.now, version=version)
    step.watch.lap("gate")
    step.index.upsert_users(version, *user_points(profiles, step.model, step.to_snapshot))
    step.watch.lap("upsert")
    return profiles, n_missing


def _run_record(step: _Step, feed: Feed, n_missing_texts: int) -> NearlineRun:
    finished_at = step.now + timedelta(seconds=step.watch.elapsed)
    lags = np.maximum(finished_at.timestamp() - feed.arrived_at, 0)
    p50, p95 = np.percentile(lags, [50, 95]).tolist() if len(lags) else (None, None)
    return NearlineRun(
        version=step.model.version,
        from_snapshot=feed.from_snapshot,
        to_snapshot=feed.to_snapshot,
        n_events=len(feed.arrived_at),
        n_users=len(feed.user_ids),
        n_missing_texts=n_missing_texts,
        started_at=step.now,
        finished_at=finished_at,
        lag_p50_seconds=p50,
        lag_p95_seconds=p95,
        stage_seconds=dict(step.watch.seconds),
        note=feed.note,
    )


def _writer(step: _Step, profiles: Profiles, run_id: str, run: NearlineRun | None) -> Callable[[Transaction], None]:
    """One commit: profiles, fenced as the index is, and with the last chunk the run and the watermark.

    Another refresh may have gone further in the meantime (the catch-up of a publication, say): newer profiles stay,
    and the watermark never moves back.
    """
    version, snapshot = step.model.version, step.to_snapshot
    rows = profile_rows(profiles, version, snapshot, step.now)

    def write(transaction: Transaction) -> None:
        fence = {"version": version, "snapshot": snapshot, "user_ids": list(profiles.user_ids)}
        newer = transaction.read(query_sql("newer_profiles"), fence)["user_id"]
        kept = rows.filter(pc.invert(pc.is_in(rows["user_id"], value_set=newer.combine_chunks())))
        user_ids = kept["user_id"].to_pylist()
        transaction.replace("user_profiles", kept, {"version": version, "user_id": user_ids})
        if run is not None:
            transaction.append("nearline_runs", _run_rows(run, run_id))
            known = transaction.read(query_sql("watermark"), {"version": version})["snapshot"].to_pylist()
            row = {"version": [version], "snapshot": [max([snapshot, *known])], "updated_at": [run.finished_at]}
            transaction.replace("watermarks", pa.table(row), {"version": version})

    return write


def _run_rows(run: NearlineRun, run_id: str) -> pa.Table:
    row = {**asdict(run), "run_id": run_id, "stage_seconds": json.dumps(dict(run.stage_seconds))}
    return pa.Table.from_pylist([row])
