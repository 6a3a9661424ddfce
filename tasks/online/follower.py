"""Keeps what serves in memory true: follows publications, refreshes, new items and events from elsewhere.

It knows nothing of requests. Whoever asks takes ``live`` once and gets one version, whole.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.errors import NearlineError, NotFoundError, WarehouseBusyError
from tasks.domain.online import CommittedRows
from tasks.domain.ports import Resources, VectorIndex, Warehouse
from tasks.online.feed import (
    Progress,
    load_catalog_ids,
    load_last_published,
    load_marks,
    load_progress,
    load_user_points,
    marks_of,
)
from tasks.online.folding import Folder
from tasks.online.histories import RawTable
from tasks.online.pending import PendingUsers
from tasks.online.serving_version import ServingVersionWatch
from tasks.online.state import ServingState, load_state

FIRST_ANSWER_SECONDS = 2.0
CATCH_UP_SECONDS = 10.0
"""How long a new version may fold its pending users before it serves; the others follow."""
RETIRED_SECONDS = 60.0
"""How long a version that serves no more is kept for requests that have begun with it."""
RECOUNT_SECONDS, MAX_RECOUNTED = 10.0, 50_000
"""Events that wait for longer are counted anew in the warehouse, unless there are too many."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Live:
    """One version as it serves: its state, its pending users, and how far its stored profiles are true."""

    state: ServingState
    pending: PendingUsers
    catalog: Collection[str]
    progress: Progress
    loaded_at: datetime
    counts_users: bool
    resources: ExitStack = field(repr=False)

    @property
    def version(self) -> str:
        """The name of the version."""
        return self.state.model.version

    @property
    def n_users(self) -> int:
        """Stored users: those of the index in memory; 0 where a server has them."""
        return self.state.index.count(self.version)[1] if self.counts_users else 0


class Follower:
    """Looks every ``seconds`` between ``start`` and ``close``, in a thread of its own; ``look`` does so now.

    ``take_commit`` is told of this process's own commits as they happen, so that no look has to find them.
    """

    def __init__(
        self,
        resources: Resources,
        warehouse: Warehouse,
        folder: Folder,
        clock: Callable[[], datetime],
        seconds: float,
    ) -> None:
        self.live: Live | None = None
        self.problem: Exception | None = None
        self.watch = ServingVersionWatch(resources, seconds)
        self.snapshot = -1
        """The newest snapshot that was followed in everything."""
        self._resources = resources
        self._warehouse = warehouse
        self._folder = folder
        self._clock = clock
        self._seconds = seconds
        self._fed = -1
        self._receiving: list[PendingUsers] = []
        self._own: dict[str, int] = {}
        self._retired: list[tuple[float, Live]] = []
        self._recounted = 0.0
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="online-follower", daemon=True)

    def start(self) -> None:
        """Load what serves, if anything does, and begin to follow it."""
        self.watch.start(FIRST_ANSWER_SECONDS)
        self._try()
        self._thread.start()

    def close(self) -> None:
        """End the threads and let go of everything that was loaded."""
        self._stop.set()
        self.watch.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        for live in [*(live for _, live in self._retired), *([self.live] if self.live else [])]:
            live.resources.close()

    def take_commit(self, committed: CommittedRows) -> None:
        """Rows that this process has committed; called before whoever sent them is answered. After an error here the
        next look finds them as it finds those of others."""
        if committed.kind == "items":
            return
        table: RawTable = "raw_events" if committed.kind == "events" else "raw_users"
        with self._lock:
            if not self._receiving:
                return  # nothing serves yet: whatever will, reads the rows from the warehouse
            self._folder.histories.add(table, committed.rows, committed.snapshot)
            for pending in self._receiving:
                if table == "raw_events" or pending.knows_attributes:
                    pending.mark(marks_of(committed.rows), committed.snapshot)
            self._own.update(dict.fromkeys(pc.unique(committed.rows["batch_id"]).to_pylist(), committed.snapshot))

    def look(self) -> None:
        """Bring everything up to date. It is cheap when nothing happened; raises what the warehouse raises."""
        with self._looking:
            latest = self._warehouse.latest_snapshot()
            self._let_go()
            version = self._serving_version()
            if version is None:
                return
            if self.live is None or self.live.version != version:
                self._load(version)
            elif latest != self.snapshot:
                self._follow(self.live)
                self.snapshot = latest  # what came meanwhile is looked at the next time

    def _serving_version(self) -> str | None:
        """What the index says; while it is away, what serves already, or what was published last."""
        answer = self.watch.answer
        if answer.version is not None:
            return answer.version
        return self.live.version if self.live else load_last_published(self._warehouse)

    def _follow(self, live: Live) -> None:
        """The watermark is read first: whatever its commit says of users who are not covered is in the feed then."""
        progress = load_progress(self._warehouse, live.version)
        latest = self._warehouse.latest_snapshot()
        try:
            self._take_others(latest)
        except NotFoundError:
            logger.warning("the change feed has expired: version=%s is loaded again", live.version)
            self._forget_all()
            self._load(live.version)
            return
        if live.pending.has_missing_texts:
            texts = self._warehouse.insertions("text_embeddings", self.snapshot, latest)
            if texts.num_rows:
                live.pending.fold_missing_texts()
        if progress.items_snapshot != live.progress.items_snapshot:
            live = self._reload_items(live, progress)
        _, n_waiting, oldest = live.pending.sizes()
        is_old = oldest is not None and self._clock().timestamp() - oldest > RECOUNT_SECONDS
        is_due = is_old and n_waiting < MAX_RECOUNTED and time.monotonic() - self._recounted > RECOUNT_SECONDS
        if progress.watermark != live.progress.watermark or is_due:
            self._take_profiles(live, progress, latest)

    def _take_others(self, latest: int) -> None:
        """Rows since the last look that this process has not committed itself. Raises NotFoundError if the feed has
        expired."""
        live = self.live
        tables: list[RawTable] = ["raw_events"]
        if live is None or live.state.model.user_map is not None:
            tables.append("raw_users")
        if self._fed >= 0:
            found = [(table, self._warehouse.insertions(table, self._fed, latest)) for table in tables]
            with self._lock:
                own = pa.array(list(self._own), pa.string())
            for table, rows in found:
                rows = rows.filter(pc.invert(pc.is_in(rows["batch_id"], value_set=own)))
                self._folder.histories.add(table, rows, latest)
                if live is not None:
                    live.pending.mark(marks_of(rows), latest)
        with self._lock:
            self._own = {batch_id: snapshot for batch_id, snapshot in self._own.items() if snapshot > latest}
        self._fed = latest

    def _take_profiles(self, live: Live, progress: Progress, latest: int) -> None:
        """The watermark has moved: first the stored profiles, then who is not pending any more."""
        model = live.state.model
        if self._resources.serves_from_memory:
            vectors, payloads = load_user_points(self._warehouse, model, live.progress.watermark - 1)
            live.state.index.upsert_users(model.version, vectors, payloads)
        live.pending.reset(load_marks(self._warehouse, model, progress.watermark, latest), latest)
        self.live = replace(live, progress=progress)
        self._recounted = time.monotonic()

    def _reload_items(self, live: Live, progress: Progress) -> Live:
        with self._warehouse.at(self._warehouse.latest_snapshot()) as past:
            state = load_state(past, live.version, live.state.index)
            catalog = load_catalog_ids(past)
        items = progress.items_snapshot
        new = replace(live, state=state, catalog=catalog, progress=live.progress._replace(items_snapshot=items))
        live.pending.set_state(state, catalog)
        self.live = new
        if self._resources.serves_from_memory:
            _write_changed_items(state.index, live.state, state)
        logger.info("items followed: version=%s items=%d", live.version, len(state.payloads))
        return new

    def _load(self, version: str) -> None:
        """Build a version beside the one that serves, with its pending users, and let it take its place."""
        started = time.perf_counter()
        with ExitStack() as stack:
            index = stack.enter_context(self._resources.serving_index())
            snapshot = self._warehouse.latest_snapshot()
            with self._warehouse.at(snapshot) as past:
                progress = load_progress(past, version)
                state, catalog = load_state(past, version, index), load_catalog_ids(past)
                if self._resources.serves_from_memory:
                    _fill(past, state)
            pending = PendingUsers(self._folder, self._warehouse, state, catalog, self._clock).start()
            stack.callback(self._stop_receiving, pending)
            self._catch_up(pending, state, progress)
            live = Live(
                state, pending, catalog, progress, self._clock(), self._resources.serves_from_memory, stack.pop_all()
            )
        self._replace(live)
        self.snapshot = snapshot
        seconds = time.perf_counter() - started
        logger.info("serving: version=%s items=%d seconds=%.2f", version, len(state.payloads), seconds)

    def _catch_up(self, pending: PendingUsers, state: ServingState, progress: Progress) -> None:
        with self._lock:
            self._receiving.append(pending)
        latest = self._warehouse.latest_snapshot()
        try:
            self._take_others(latest)
        except NotFoundError:
            self._forget_all()
            self._take_others(latest)
        pending.reset(load_marks(self._warehouse, state.model, progress.watermark, latest), latest)
        if self.live is not None:
            pending.wait_until_folded(CATCH_UP_SECONDS)

    def _stop_receiving(self, pending: PendingUsers) -> None:
        with self._lock:
            self._receiving = [other for other in self._receiving if other is not pending]
        pending.close()

    def _replace(self, live: Live) -> None:
        old, self.live = self.live, live
        if old is not None:
            self._stop_receiving(old.pending)
            self._retired.append((time.monotonic(), old))

    def _let_go(self) -> None:
        bound = time.monotonic() - RETIRED_SECONDS
        for at, live in self._retired:
            if at < bound:
                live.resources.close()
        self._retired = [(at, live) for at, live in self._retired if at >= bound]

    def _forget_all(self) -> None:
        self._folder.histories.clear()
        self._folder.forget_texts()
        self._fed = -1

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._try()

    def _try(self) -> None:
        try:
            self.look()
            self.problem = None
        except WarehouseBusyError as error:
            self.problem = error
        except Exception as error:
            if self.problem is None:
                logger.warning(
                    "following failed: error=%s", type(error).__name__, exc_info=not isinstance(error, NearlineError)
                )
            self.problem = error


def _fill(warehouse: Warehouse, state: ServingState) -> None:
    version = state.model.version
    state.index.create_version(version, state.vectors.shape[1])
    state.index.upsert_items(version, state.vectors, state.payloads)
    state.index.upsert_users(version, *load_user_points(warehouse, state.model))
    state.index.switch(version)


def _write_changed_items(index: VectorIndex, old: ServingState, new: ServingState) -> None:
    places = np.array([old.items.index.get(item_id, -1) for item_id in new.items.item_ids], np.int64)
    known = np.flatnonzero(places >= 0)
    same = np.zeros(len(places), bool)
    same[known] = (new.vectors[known] == old.vectors[places[known]]).all(axis=1)
    same[known] &= [new.payloads[row] == old.payloads[places[row]] for row in known.tolist()]
    changed = np.flatnonzero(~same)
    index.upsert_items(new.model.version, new.vectors[changed], [new.payloads[row] for row in changed.tolist()])
