"""Takes events, items and users of many callers at once; each is answered once its rows are durable.

It knows nothing of HTTP, of files, or of what is learned from the rows.
"""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from tasks.domain.errors import InputError, OverloadedError, TransientError, WarehouseBusyError
from tasks.domain.json_rows import rows_as_columns
from tasks.domain.online import CommittedRows, IntakeKind, IntakeReceipt
from tasks.domain.ports import Resources, Warehouse
from tasks.intake_rows import JudgedRows, RowIntake, Submission, receipts, write_rows

FULL_GROUP_ROWS = 1000
"""So many waiting rows are written at once, without waiting for more."""
MAX_GROUP_ROWS = 5000
"""One commit takes no more (but one request whole): a longer one would hold up its callers and other writers."""
FLUSHED_ROWS = 50_000
"""After so many rows, what small commits left in the catalog goes to a file, and small files become one: else reading
them would take longer and longer, and maintenance comes only once a week. It takes about 0.2 s, after the answers."""
RECALLED = timedelta(hours=1)
"""Rows received within this time before a start are known to it."""
_KINDS: tuple[IntakeKind, ...] = ("events", "items", "users")
_MOMENT = timedelta(microseconds=1)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    """A request on its way, and where its answer goes."""

    submission: Submission
    answer: "Future[IntakeReceipt]" = field(default_factory=Future)

    @property
    def n_rows(self) -> int:
        return len(self.submission.rows)


class Intake:
    """Context in which rows are taken; a thread of its own commits them in groups.

    Commits begin at least ``commit_seconds`` apart, except when ``FULL_GROUP_ROWS`` wait; the first after a pause
    begins at once. ``on_commit`` is called in that thread after a commit and before its requests are answered.
    ``clock`` gives the time that rows are stamped with; it may stand still or go back, the stamps do not.
    """

    def __init__(
        self,
        resources: Resources,
        *,
        clock: Callable[[], datetime],
        commit_seconds: float,
        max_waiting_rows: int,
        on_commit: Callable[[CommittedRows], None] | None = None,
    ) -> None:
        self._resources = resources
        self._clock = clock
        self._commit_seconds = commit_seconds
        self._max_waiting_rows = max_waiting_rows
        self._on_commit = on_commit
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._n_waiting = 0
        self._is_closed = True
        self._recent_commits: deque[tuple[int, float]] = deque([(FULL_GROUP_ROWS, 1.0)], maxlen=20)
        self._last_moment: datetime | None = None
        self._n_unflushed = dict.fromkeys(_KINDS, 0)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._warehouse: Warehouse = stack.enter_context(self._resources.warehouse())
            self._rows = RowIntake(self._warehouse, self._resources.event_types)
            self._is_closed = False
            self._thread = threading.Thread(target=self._work, name="intake", daemon=True)
            self._thread.start()
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more, and wait until what was taken is answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._opened.close()

    @property
    def n_waiting_rows(self) -> int:
        """Rows that were taken and not answered yet."""
        return self._n_waiting

    def accept(self, kind: IntakeKind, rows: Sequence[object], *, source: str, timeout_seconds: float) -> IntakeReceipt:
        """Take the rows of one request, JSON objects, and wait until they are durable.

        Rows are judged one by one, by the rules of an imported file: a bad one, of whatever type, is named in the
        receipt and goes to ``quarantine``, and the good ones are taken, however many are bad. Rows that repeat recent
        ones count as duplicates and change nothing. ``source`` is stored with the rows.

        Raises OverloadedError when too many rows wait already, or these have waited for ``timeout_seconds``: then
        nothing of them is written. Any other TransientError leaves open whether they were; sending the same again is
        safe in every case. Raises InputError for something that is no list.
        """
        if kind not in _KINDS or isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Sequence):
            raise InputError(
                f"{type(rows).__name__} of {kind} cannot be taken in. Give a list of objects, and one of the kinds "
                f"{', '.join(_KINDS)}. docs/intake.md shows them."
            )
        waiting = _Waiting(Submission(kind, rows, rows_as_columns(kind, rows), source))
        self._enqueue(waiting)
        try:
            return waiting.answer.result(timeout_seconds)
        except TimeoutError:
            error = self._give_up(waiting, timeout_seconds)
            if waiting.answer.done() and not waiting.answer.cancelled():  # it came just now
                return waiting.answer.result()
            raise error from None

    def _enqueue(self, waiting: _Waiting) -> None:
        with self._changed:
            if self._is_closed:
                raise OverloadedError("The intake is closing and takes no more rows. Send them again in a moment.")
            if self._n_waiting and self._n_waiting + waiting.n_rows > self._max_waiting_rows:
                seconds = self._seconds_for(self._n_waiting)
                raise OverloadedError(
                    f"{self._n_waiting} rows wait to be written, and no more than {self._max_waiting_rows} may. Send "
                    f"the same {waiting.n_rows} rows again in {seconds:.1f} s. (NEARLINE_SERVICE__MAX_WAITING_ROWS)",
                    seconds,
                )
            self._queue.append(waiting)
            self._n_waiting += waiting.n_rows
            self._changed.notify_all()

    def _give_up(self, waiting: _Waiting, seconds: float) -> TransientError:
        with self._changed:
            if waiting.answer.cancel():
                self._queue.remove(waiting)
                self._n_waiting -= waiting.n_rows
                return OverloadedError(
                    f"{waiting.n_rows} rows waited {seconds:g} s for their turn and were not written. Send them again.",
                    self._seconds_for(self._n_waiting),
                )
        return WarehouseBusyError(
            f"Writing {waiting.n_rows} rows took longer than {seconds:g} s; they may be written yet. Send them again: "
            "rows that were written are known and count once."
        )

    def _seconds_for(self, n_rows: int) -> float:
        """How long so many rows take to be written, by the last commits."""
        written = sum(rows for rows, _ in self._recent_commits)
        seconds = sum(seconds for _, seconds in self._recent_commits)
        return min(max(n_rows * seconds / max(written, 1), 0.1), 60.0)

    def _work(self) -> None:
        self._recall()
        started = -self._commit_seconds
        while group := self._next_group(started + self._commit_seconds):
            started = time.monotonic()
            self._take(group)
            n_rows = sum(waiting.n_rows for waiting in group)
            with self._changed:
                self._n_waiting -= n_rows
                self._recent_commits.append((n_rows, time.monotonic() - started))
            self._flush()

    def _recall(self) -> None:
        """Fill the window; without it rows are taken all the same, and staging removes what is double."""
        try:
            self._last_moment = self._rows.recall(self._clock() - RECALLED)
        except Exception:
            logger.exception("intake begins without its window")

    def _next_group(self, not_before: float) -> list[_Waiting]:
        """Requests that go into the next commit; none when the intake is closed and all are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            self._changed.wait_for(
                lambda: self._is_closed or self._n_waiting >= FULL_GROUP_ROWS,
                timeout=max(not_before - time.monotonic(), 0.0),
            )
            group: list[_Waiting] = []
            n_rows = 0
            while self._queue and (not group or n_rows + self._queue[0].n_rows <= MAX_GROUP_ROWS):
                group.append(self._queue.popleft())
                n_rows += group[-1].n_rows
                group[-1].answer.set_running_or_notify_cancel()
            return group

    def _take(self, group: Sequence[_Waiting]) -> None:
        """Commit and answer; an error is told to exactly these requests."""
        try:
            answers = self._commit({f"{number:05}": waiting.submission for number, waiting in enumerate(group)})
        except Exception as error:
            if len(group) > 1 and not isinstance(error, TransientError):
                for waiting in group:  # one of them may be the reason, and the others are not
                    self._take([waiting])
                return
            logger.warning("intake failed requests=%d error=%s", len(group), type(error).__name__)
            for waiting in group:
                waiting.answer.set_exception(error)
            return
        for waiting, answer in zip(group, answers, strict=True):
            waiting.answer.set_result(answer)

    def _commit(self, numbered: Mapping[str, Submission]) -> list[IntakeReceipt]:
        now, group_id = self._moment(), uuid.uuid4().hex
        group = {f"{group_id}-{number}": submission for number, submission in numbered.items()}
        judged = self._rows.judge(group, now)
        if any(rows.good.num_rows or rows.refused.num_rows for rows in judged):
            self._warehouse.commit(lambda transaction: write_rows(transaction, judged))
            self._rows.remember(judged)
            for rows in judged:
                self._n_unflushed[rows.kind] += rows.good.num_rows
        snapshot = self._warehouse.latest_snapshot()
        self._tell(judged, snapshot)
        return list(receipts(group, judged, snapshot))

    def _flush(self) -> None:
        for kind in [kind for kind, n_rows in self._n_unflushed.items() if n_rows >= FLUSHED_ROWS]:
            self._n_unflushed[kind] = 0
            try:
                self._warehouse.flush(f"raw_{kind}")
            except Exception:  # the rows are safe where they are
                logger.exception("intake could not flush kind=%s", kind)

    def _moment(self) -> datetime:
        """When the rows at hand are received: later than all before, whatever the clock does."""
        now = self._clock()
        self._last_moment = now if self._last_moment is None else max(now, self._last_moment + _MOMENT)
        return self._last_moment

    def _tell(self, judged: Sequence[JudgedRows], snapshot: int) -> None:
        for rows in judged:
            if self._on_commit is not None and rows.good.num_rows:
                try:
                    self._on_commit(rows.committed(snapshot))
                except Exception:  # the rows are durable; nobody must send them again for this
                    logger.exception("what follows a commit failed rows=%d", rows.good.num_rows)
