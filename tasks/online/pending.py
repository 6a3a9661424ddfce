"""Users with events that the stored profiles of one version do not hold yet, and their vectors with those in.

It knows nothing of where events come from, nor of what an answer is.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import pyarrow as pa

from tasks.domain.errors import NearlineError
from tasks.domain.ports import Warehouse
from tasks.online.folding import FoldedUser, Folder
from tasks.online.state import ServingState
from warehouse.catalog import query_sql

FOLD_USERS = 128
"""Users of one fold: about as many as are done while a request still waits."""
LOAD_USERS = 1024
"""Users whose histories are read at once: a read of ten million rows takes as long for one of them."""
LOOKUP_SHARE, MAX_LOOKUP_PAUSE = 10, 5.0
"""Looking up whether events have moved between users may take one part in so many of the time, and is never put off for
longer than this, in seconds."""
AHEAD_SHARE, MAX_AHEAD_PAUSE = 4, 1.0
"""Folding users whom nobody asks about may take one part in so many of the time, since intake and answers need the
rest, and is never put off for longer than this, in seconds."""
RETRY_SECONDS = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingView:
    """What is known of one pending user. ``folded`` is None as long as they were not folded once.

    ``n_events`` of the events after the watermark are in ``folded``; the oldest event that is not there arrived at
    ``oldest_missing`` (seconds since 1970), None where all are.
    """

    folded: FoldedUser | None
    n_events: int
    oldest_missing: float | None


@dataclass(frozen=True)
class _Mark:
    """Rows of one commit that name a user; ``turn`` orders commits and folds."""

    snapshot: int
    n_rows: int
    oldest: float
    turn: int


@dataclass
class _Pending:
    marks: list[_Mark] = field(default_factory=list)
    done: int = 0
    folded: FoldedUser | None = None

    @property
    def is_done(self) -> bool:
        return all(mark.turn <= self.done for mark in self.marks)


@dataclass
class FoldCounts:
    """What folding has done so far; ``problem`` is why the last one failed."""

    n_folds: int = 0
    n_users: int = 0
    seconds: float = 0.0
    problem: NearlineError | None = None


class PendingUsers:
    """The pending users of one version, folded by a thread of its own between ``start`` and ``close``.

    Rows are tables with ``user_id``, ``event_id`` (null for what users told) and ``ingested_at``. Whoever marks rows
    has given them to the folder's histories before. ``catalog`` are the ids of ``stg_items``. Threads may share it; no
    call waits for a fold but ``look``.
    """

    def __init__(
        self,
        folder: Folder,
        warehouse: Warehouse,
        state: ServingState,
        catalog: Collection[str],
        clock: Callable[[], datetime],
    ) -> None:
        self.counts = FoldCounts()
        self._folder = folder
        self._warehouse = warehouse
        self._content = (state, catalog)
        self._clock = clock
        self._users: dict[str, _Pending] = {}
        self._waiting: dict[int, tuple[int, float]] = {}
        self._dirty: dict[str, None] = {}
        self._asked: dict[str, None] = {}
        self._unchecked: set[str] = set()
        self._moved: dict[str, set[str]] = {}
        self._next_lookup = self._next_ahead = 0.0
        self._n_hurried = 0
        self._turn = 0
        self._is_busy = self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="online-fold", daemon=True)

    def start(self) -> "PendingUsers":
        """Begin to fold."""
        self._thread.start()
        return self

    def close(self) -> None:
        """End the thread; who waits for a fold goes on without it."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    def mark(self, rows: pa.Table, snapshot: int) -> None:
        """Rows that were committed, with a snapshot that holds them: who they name is folded again."""
        if rows.num_rows == 0:
            return
        named = _by_user(rows)
        with self._changed:
            self._count(snapshot, rows.num_rows, min(oldest for _, oldest in named.values()))
            self._mark(named, snapshot)
            self._unchecked.update(filter(None, rows["event_id"].to_pylist()))
            self._changed.notify_all()

    def reset(self, rows: pa.Table, to_snapshot: int) -> None:
        """``rows`` are all that was committed after the watermark, up to ``to_snapshot``: who is not named there or by
        a later ``mark`` is not pending any more."""
        named = _by_user(rows)
        events = set(rows["event_id"].to_pylist())
        with self._changed:
            self._moved = {event_id: users for event_id, users in self._moved.items() if event_id in events}
            for user_id in set[str]().union(*self._moved.values()):
                named.setdefault(user_id, (1, self._clock().timestamp()))
            later = {s: counted for s, counted in self._waiting.items() if s > to_snapshot}
            self._waiting = later
            if rows.num_rows:
                self._count(to_snapshot, rows.num_rows, min(oldest for _, oldest in named.values()))
            for user_id in [user_id for user_id in self._users if user_id not in named]:
                self._keep_later(user_id, to_snapshot)
            known = {user_id: found for user_id, found in named.items() if user_id in self._users}
            for user_id, (n_rows, oldest) in known.items():
                user = self._users[user_id]
                turn = max((mark.turn for mark in user.marks if mark.snapshot <= to_snapshot), default=0)
                later_marks = [mark for mark in user.marks if mark.snapshot > to_snapshot]
                user.marks = [_Mark(to_snapshot, n_rows, oldest, turn), *later_marks]
            new = {user_id: found for user_id, found in named.items() if user_id not in known}
            self._mark(new, to_snapshot)
            self._unchecked.update(_events_of(rows, new))
            self._changed.notify_all()

    def set_state(self, state: ServingState, catalog: Collection[str]) -> None:
        """The items have changed: everybody is folded again."""
        with self._changed:
            self._content = (state, catalog)
            self._again(self._users)

    def fold_missing_texts(self) -> None:
        """Texts were embedded: fold who waits for one again."""
        self._folder.forget_missing_texts()
        with self._changed:
            users = self._users.items()
            self._again([name for name, user in users if user.folded and user.folded.missing_since is not None])

    def forget(self, user_id: str) -> None:
        """This user is erased."""
        with self._changed:
            self._users.pop(user_id, None)
            self._dirty.pop(user_id, None)
            self._changed.notify_all()

    def look(self, user_id: str, wait_seconds: float) -> PendingView | None:
        """What is known of a user, once everything that was marked before this call is folded, or after so long.

        None for a user who is not pending.
        """
        with self._changed:
            user = self._users.get(user_id)
            if user is None:
                return None
            wanted = max((mark.turn for mark in user.marks), default=0)
            if user_id in self._dirty:
                self._asked[user_id] = None
                self._changed.notify_all()
            if user.done < wanted:
                self._changed.wait_for(lambda: user.done >= wanted or self._is_closed, wait_seconds)
            missing = [mark.oldest for mark in user.marks if mark.turn > user.done]
            if user.folded is not None and user.folded.missing_since is not None:
                missing.append(user.folded.missing_since)
            n_events = sum(mark.n_rows for mark in user.marks if mark.turn <= user.done)
            return PendingView(user.folded, n_events if user.folded else 0, min(missing, default=None))

    def wait_until_folded(self, seconds: float) -> bool:
        """Whether everything that was marked is folded, and looked up, within so long."""
        with self._changed:
            self._n_hurried += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(self._is_settled, seconds)
            finally:
                self._n_hurried -= 1

    @property
    def knows_attributes(self) -> bool:
        """Whether what users tell of themselves is in their profiles."""
        return self._content[0].model.user_map is not None

    @property
    def has_missing_texts(self) -> bool:
        """Whether a pending user wrote something that has no embedding yet."""
        with self._changed:
            return any(user.folded and user.folded.missing_since is not None for user in self._users.values())

    def sizes(self) -> tuple[int, int, float | None]:
        """Pending users, events that no stored profile holds, and when the oldest of these arrived (since 1970)."""
        with self._changed:
            counted = list(self._waiting.values())
            return len(self._users), sum(n for n, _ in counted), min((at for _, at in counted), default=None)

    def _count(self, snapshot: int, n_rows: int, oldest: float) -> None:
        n_before, at = self._waiting.get(snapshot, (0, oldest))
        self._waiting[snapshot] = (n_before + n_rows, min(at, oldest))

    def _mark(self, named: Mapping[str, tuple[int, float]], snapshot: int) -> None:
        self._turn += 1
        for user_id, (n_rows, oldest) in named.items():
            user = self._users.setdefault(user_id, _Pending())
            user.marks.append(_Mark(snapshot, n_rows, oldest, self._turn))
            self._dirty[user_id] = None

    def _again(self, user_ids: Iterable[str]) -> None:
        self._dirty.update(dict.fromkeys(user_ids))
        self._changed.notify_all()

    def _keep_later(self, user_id: str, snapshot: int) -> None:
        user = self._users[user_id]
        user.marks = [mark for mark in user.marks if mark.snapshot > snapshot]
        if not user.marks:
            del self._users[user_id]
            self._dirty.pop(user_id, None)

    def _is_settled(self) -> bool:
        return self._is_closed or not (self._dirty or self._unchecked or self._is_busy)

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._work()
                self.counts.problem = None
            except Exception as error:
                known = error if isinstance(error, NearlineError) else None
                self.counts.problem = known or NearlineError(f"Folding failed: {type(error).__name__}.")
                logger.warning("fold failed: error=%s", type(error).__name__, exc_info=known is None)
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, RETRY_SECONDS)

    def _work(self) -> None:
        with self._changed:
            self._is_busy = False
            self._changed.notify_all()
            self._changed.wait_for(self._has_work, 0.1 if self._unchecked or self._dirty else None)
            self._is_busy = True
            user_ids, turn = self._take(), self._turn
            due = time.monotonic() >= self._next_lookup
            event_ids = self._unchecked if due else set()
            if event_ids:
                self._unchecked = set()
        try:
            if user_ids:
                self._fold(user_ids, turn)
        finally:
            if event_ids:
                self._look_up(event_ids)

    def _has_work(self) -> bool:
        lookup_is_due = bool(self._unchecked) and time.monotonic() >= self._next_lookup
        return self._is_closed or bool(self._asked) or self._may_fold_ahead() or lookup_is_due

    def _may_fold_ahead(self) -> bool:
        return bool(self._dirty) and (self._n_hurried > 0 or time.monotonic() >= self._next_ahead)

    def _take(self) -> list[str]:
        """Those whom a request waits for first."""
        asked = [user_id for user_id in self._asked if user_id in self._dirty][:FOLD_USERS]
        self._asked.clear()
        user_ids = asked
        if not asked and self._may_fold_ahead():
            user_ids = list(islice(self._dirty, LOAD_USERS))
        for user_id in user_ids:
            del self._dirty[user_id]
        return user_ids

    def _fold(self, user_ids: Sequence[str], turn: int) -> None:
        started = time.perf_counter()
        left = list(user_ids)
        try:
            self._folder.histories.prepare(left)
            while left:
                state, catalog = self._content
                with self._changed:
                    part = {user_id: self._users.get(user_id) for user_id in left[:FOLD_USERS]}
                folded = self._folder.fold(state, catalog, list(part))
                with self._changed:
                    for user_id, user in part.items():
                        if user is not None and self._users.get(user_id) is user:  # not erased meanwhile
                            user.folded, user.done = folded.get(user_id, user.folded), max(user.done, turn)
                    self._changed.notify_all()
                left = left[FOLD_USERS:]
                if self._asked:
                    return  # somebody waits: the others are folded later
        finally:
            with self._changed:
                self._again([user_id for user_id in left if user_id in self._users])
            seconds = time.perf_counter() - started
            self._next_ahead = time.monotonic() + min((AHEAD_SHARE - 1) * seconds, MAX_AHEAD_PAUSE)
            self.counts.n_folds += 1
            self.counts.n_users += len(user_ids) - len(left)
            self.counts.seconds += seconds

    def _look_up(self, event_ids: set[str]) -> None:
        """Find users whom earlier rows of these events name: a correction may have moved an event."""
        started = time.monotonic()
        fed = pa.table({"event_id": pa.array(sorted(event_ids), pa.string())})
        try:
            snapshot = self._warehouse.latest_snapshot()
            pairs = self._warehouse.read(query_sql("events_of_several_users"), shadows={"fed_events": fed})
        except BaseException:
            with self._changed:
                self._unchecked |= event_ids
            raise
        finally:
            pause = LOOKUP_SHARE * (time.monotonic() - started)
            self._next_lookup = time.monotonic() + min(pause, MAX_LOOKUP_PAUSE)
        user_ids = sorted(set(pairs["user_id"].to_pylist()))
        if not user_ids:
            return
        self._folder.histories.forget(user_ids)
        with self._changed:
            for event_id, user_id in zip(*(pairs[name].to_pylist() for name in ("event_id", "user_id")), strict=True):
                self._moved.setdefault(event_id, set()).add(user_id)
            self._mark({u: (1, self._clock().timestamp()) for u in user_ids if u not in self._users}, snapshot)
            self._again(user_ids)


def _by_user(rows: pa.Table) -> dict[str, tuple[int, float]]:
    """Rows of each user, and when the oldest arrived, in seconds since 1970."""
    found: dict[str, tuple[int, float]] = {}
    arrived = rows["ingested_at"].cast(pa.int64()).to_pylist()
    for user_id, at in zip(rows["user_id"].to_pylist(), arrived, strict=True):
        n_rows, oldest = found.get(user_id, (0, at / 1e6))
        found[user_id] = (n_rows + 1, min(oldest, at / 1e6))
    return found


def _events_of(rows: pa.Table, user_ids: Mapping[str, object]) -> set[str]:
    pairs = zip(rows["user_id"].to_pylist(), rows["event_id"].to_pylist(), strict=True)
    return {event_id for user_id, event_id in pairs if event_id is not None and user_id in user_ids}
