"""Pending users and their raw rows, without a warehouse behind them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pyarrow as pa
import pytest

from tasks.domain.errors import WarehouseBusyError
from tasks.online.folding import FoldedUser
from tasks.online.histories import HistoryCache
from tasks.online.pending import PendingUsers

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")


def raw_events(*rows):
    """Rows of ``raw_events``: (event_id, user_id)."""
    n = len(rows)
    texts = pa.array([None] * n, pa.string())
    return pa.table({
        "event_id": pa.array([event_id for event_id, _ in rows], pa.string()),
        "user_id": pa.array([user_id for _, user_id in rows], pa.string()),
        "item_id": texts, "event_type": texts, "occurred_at": pa.array([NOW] * n, TIME),
        "value": pa.array([None] * n, pa.float64()), "text": texts, "batch_id": texts,
        "source_row": pa.array(range(n), pa.int64()), "ingested_at": pa.array([NOW] * n, TIME),
    })  # fmt: skip


class FakeWarehouse:
    """Gives ``raw_events`` of wanted users, and counts the reads."""

    def __init__(self, *rows):
        self.rows, self.snapshot, self.n_reads, self.wanted = list(rows), 5, 0, []

    def latest_snapshot(self):
        return self.snapshot

    def read_together(self, sqls, shadows=None):
        return self.snapshot, [self.read(sql, None, shadows) for sql in sqls]

    def read(self, sql, parameters=None, shadows=None):
        if "fed_events" in shadows:
            return pa.table({"event_id": pa.array([], pa.string()), "user_id": pa.array([], pa.string())})
        wanted = shadows["wanted_users"]["user_id"].to_pylist()
        if "attributes" in sql or "raw_users" in sql:
            return pa.table({
                "user_id": pa.array([], pa.string()), "attributes": pa.array([], pa.string()),
                "batch_id": pa.array([], pa.string()), "source_row": pa.array([], pa.int64()),
                "ingested_at": pa.array([], TIME),
            })  # fmt: skip
        self.n_reads += 1
        self.wanted.append(wanted)
        named = {event_id for event_id, user_id in self.rows if user_id in wanted}
        return raw_events(*(row for row in self.rows if row[0] in named))


def events_of(cache, *user_ids):
    return sorted(cache.load(user_ids).events["event_id"].to_pylist())


def test_users_are_read_once_and_later_rows_are_added():
    warehouse = FakeWarehouse(("e1", "a"), ("e2", "b"))
    cache = HistoryCache(warehouse, megabytes=1)
    assert events_of(cache, "a", "nobody") == ["e1"]
    cache.add("raw_events", raw_events(("e3", "a"), ("e4", "c")), snapshot=6)
    cache.add("raw_events", raw_events(("e1", "a")), snapshot=5)  # the read has brought it
    assert events_of(cache, "a", "nobody") == ["e1", "e3"]
    assert warehouse.n_reads == 1
    assert events_of(cache, "a", "b") == ["e1", "e2", "e3"]
    assert warehouse.wanted == [["a", "nobody"], ["b"]]


def test_an_event_that_two_users_had_comes_with_either():
    cache = HistoryCache(FakeWarehouse(("e1", "a"), ("e1", "b"), ("e2", "b")), megabytes=1)
    cache.prepare(["a", "b"])
    assert events_of(cache, "a") == ["e1", "e1"]
    assert events_of(cache, "b") == ["e1", "e1", "e2"]


def test_memory_is_bounded_and_the_longest_unused_go_first():
    rows = [(f"e{n}", user_id) for user_id in ("a", "b", "c") for n in range(50)]
    warehouse = FakeWarehouse(*((f"{user_id}{event_id}", user_id) for event_id, user_id in rows))
    cache = HistoryCache(warehouse, megabytes=1)
    cache.load(["a"])
    size = cache.n_bytes
    cache = HistoryCache(warehouse, megabytes=2.5 * size / 1e6)
    for user_id in ("a", "b", "a", "c"):
        assert len(events_of(cache, user_id)) == 50
    assert size < cache.n_bytes <= 2.5 * size
    n_reads = warehouse.n_reads
    cache.load(["a", "c"])
    assert warehouse.n_reads == n_reads
    cache.load(["b"])
    assert warehouse.n_reads == n_reads + 1
    cache.forget(["a", "b", "c"])
    assert cache.n_bytes == 0


class SlowWarehouse(FakeWarehouse):
    """Looks at its rows, says so, and answers when it is let to; ``at_most`` counts the reads under way at once."""

    def __init__(self, *rows):
        super().__init__(*rows)
        self.looked, self.gate, self.errors = threading.Semaphore(0), threading.Semaphore(0), []
        self.n_under_way = self.at_most = 0

    def read_together(self, sqls, shadows=None):
        found = super().read_together(sqls, shadows)
        self.n_under_way += 1
        self.at_most = max(self.at_most, self.n_under_way)
        self.looked.release()
        assert self.gate.acquire(timeout=5)
        self.n_under_way -= 1
        if self.errors:
            raise self.errors.pop()
        return found


@pytest.fixture
def slow():
    """A warehouse that waits, a cache on it, and loads in threads of their own."""
    warehouse = SlowWarehouse(("e1", "a"), ("e2", "b"), ("e3", "c"), ("e4", "d"))
    cache = HistoryCache(warehouse, megabytes=1)
    with ThreadPoolExecutor(8) as threads:
        yield SimpleNamespace(
            warehouse=warehouse, cache=cache, load=lambda *users: threads.submit(events_of, cache, *users)
        )
        warehouse.gate.release(50)


def wait_for_look(slow):
    assert slow.warehouse.looked.acquire(timeout=5)


def nobody_looks(slow):
    return not slow.warehouse.looked.acquire(timeout=0.1)


def test_a_user_who_is_being_read_is_not_read_again(slow):
    first = slow.load("a")
    wait_for_look(slow)
    second = slow.load("a")
    assert nobody_looks(slow)
    slow.warehouse.gate.release()
    assert first.result(5) == second.result(5) == ["e1"]
    assert slow.warehouse.n_reads == 1


def test_a_read_holds_up_neither_another_nor_those_who_are_kept(slow):
    kept = slow.load("a")
    wait_for_look(slow)
    slow.warehouse.gate.release()
    assert kept.result(5) == ["e1"]
    others = [slow.load("b"), slow.load("c")]
    wait_for_look(slow)
    wait_for_look(slow)
    assert slow.load("a").result(5) == ["e1"]
    slow.warehouse.gate.release(2)
    assert [found.result(5) for found in others] == [["e2"], ["e3"]]


def test_who_waits_for_a_reader_is_read_together(slow):
    busy = [slow.load("a")]
    wait_for_look(slow)
    busy.append(slow.load("b"))
    wait_for_look(slow)
    waiting = [slow.load("c"), slow.load("d"), slow.load("nobody")]
    assert nobody_looks(slow)
    slow.warehouse.gate.release(3)
    assert [found.result(5) for found in (*busy, *waiting)] == [["e1"], ["e2"], ["e3"], ["e4"], []]
    assert sorted(map(len, slow.warehouse.wanted)) == [1, 1, 3]
    assert slow.warehouse.at_most == 2


def test_rows_that_are_committed_during_a_read_are_there_once(slow):
    load = slow.load("a")
    wait_for_look(slow)
    slow.cache.add("raw_events", raw_events(("e5", "a"), ("e6", "b")), snapshot=6)
    slow.cache.add("raw_events", raw_events(("e1", "a")), snapshot=5)  # the read has it
    slow.warehouse.gate.release()
    assert load.result(5) == ["e1", "e5"]
    assert events_of(slow.cache, "a") == ["e1", "e5"]
    assert slow.warehouse.n_reads == 1


def test_rows_that_are_committed_before_a_user_is_read_at_last_are_there_once(slow):
    for user_id in ("a", "b"):
        slow.load(user_id)
        wait_for_look(slow)
    waiting = slow.load("c")
    assert nobody_looks(slow)
    slow.warehouse.rows.append(("e7", "c"))
    slow.warehouse.snapshot = 6
    slow.cache.add("raw_events", raw_events(("e7", "c")), snapshot=6)
    slow.cache.forget([])  # takes in what was added
    slow.warehouse.gate.release(3)
    assert waiting.result(5) == ["e3", "e7"]


either_erasure = pytest.mark.parametrize("erase", [lambda cache: cache.forget(["a"]), lambda cache: cache.clear()])


@either_erasure
def test_what_was_read_of_a_user_who_is_erased_meanwhile_is_thrown_away(slow, erase):
    load = slow.load("a")
    wait_for_look(slow)
    slow.cache.add("raw_events", raw_events(("e5", "a")), snapshot=6)
    slow.warehouse.rows.clear()
    slow.warehouse.snapshot = 7
    erase(slow.cache)
    slow.warehouse.gate.release()
    wait_for_look(slow)  # the same load reads again
    slow.cache.add("raw_events", raw_events(("e6", "a")), snapshot=8)
    slow.warehouse.gate.release()
    assert load.result(5) == ["e6"]
    assert events_of(slow.cache, "a") == ["e6"]
    slow.cache.forget(["a"])
    assert slow.cache.n_bytes == 0


@either_erasure
def test_who_comes_after_an_erasure_does_not_wait_for_the_read_before_it(slow, erase):
    before = slow.load("a")
    wait_for_look(slow)
    slow.warehouse.rows.clear()
    slow.warehouse.snapshot = 7
    erase(slow.cache)
    after = slow.load("a")
    wait_for_look(slow)
    slow.warehouse.gate.release(2)
    assert before.result(5) == after.result(5) == []
    assert slow.warehouse.n_reads == 2


def test_a_user_who_is_erased_while_another_is_read_is_read_anew(slow):
    slow.warehouse.gate.release()
    assert slow.load("a").result(5) == ["e1"]
    wait_for_look(slow)
    both = slow.load("a", "b")
    wait_for_look(slow)
    slow.warehouse.rows.remove(("e1", "a"))
    slow.cache.forget(["a"])
    slow.warehouse.gate.release(2)
    assert both.result(5) == ["e2"]


def test_a_read_that_fails_is_tried_again_by_those_who_waited_for_it(slow):
    slow.warehouse.errors.append(WarehouseBusyError("locked"))
    first = slow.load("a")
    wait_for_look(slow)
    second = slow.load("a")
    assert nobody_looks(slow)
    slow.warehouse.gate.release(2)
    assert isinstance(first.exception(5), WarehouseBusyError)
    assert second.result(5) == ["e1"]
    assert events_of(slow.cache, "a") == ["e1"]


class FakeFolder:
    """Folds when it is let to; the number of folds is the query."""

    def __init__(self):
        self.histories = SimpleNamespace(prepare=lambda user_ids: None, forget=lambda user_ids: None)
        self.gate, self.n_folds, self.error, self.fails_later = threading.Event(), 0, None, False
        self.gate.set()
        self.began = threading.Event()

    def fold(self, state, catalog, user_ids):
        self.began.set()
        self.gate.wait(5)
        if self.error:
            raise self.error
        if self.fails_later:
            self.error = WarehouseBusyError("locked")
        self.n_folds += 1
        return {name: FoldedUser(self.n_folds, 0.0, 0.0, 1, frozenset(), None) for name in user_ids}


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def marks(*user_ids, at=NOW):
    return pa.table({
        "user_id": pa.array(user_ids, pa.string()), "event_id": pa.array([None] * len(user_ids), pa.string()),
        "ingested_at": pa.array([at] * len(user_ids), TIME),
    })  # fmt: skip


@pytest.fixture
def folder():
    return FakeFolder()


@pytest.fixture
def pending(folder):
    users = PendingUsers(folder, FakeWarehouse(), None, frozenset(), lambda: NOW).start()
    yield users
    folder.gate.set()
    users.close()


def test_a_request_waits_for_what_was_marked_before_it(pending, folder):
    assert pending.look("a", 0.1) is None
    folder.gate.clear()
    pending.mark(marks("a", "a"), 7)
    late = pending.look("a", 0.05)
    assert (late.folded, late.n_events, late.oldest_missing) == (None, 0, NOW.timestamp())
    threading.Timer(0.05, folder.gate.set).start()
    done = pending.look("a", 5)
    assert (done.folded.query, done.n_events, done.oldest_missing) == (1, 2, None)


def test_who_is_covered_is_forgotten_and_who_is_not_stays(pending):
    pending.mark(marks("a", "b"), 7)
    pending.mark(marks("b", "c"), 9)
    assert pending.wait_until_folded(5)
    pending.reset(marks("b"), 8)  # the feed up to 8 still has one row of b; c came later
    assert pending.look("a", 0) is None
    assert [pending.look(name, 1).n_events for name in ("b", "c")] == [2, 1]
    assert pending.sizes() == (2, 3, NOW.timestamp())
    pending.reset(marks(), 9)
    assert pending.sizes() == (0, 0, None)


def test_a_fold_that_fails_is_named_and_tried_again(pending, folder, monkeypatch):
    monkeypatch.setattr("tasks.online.pending.RETRY_SECONDS", 0.01)
    folder.error = WarehouseBusyError("locked")
    pending.mark(marks("a"), 7)
    assert pending.look("a", 0.1).folded is None
    assert isinstance(pending.counts.problem, WarehouseBusyError)
    folder.error = None
    assert pending.look("a", 5).folded is not None
    wait_for(lambda: pending.counts.problem is None)


def test_an_erased_user_is_not_pending_any_more(pending, folder):
    folder.gate.clear()
    pending.mark(marks("a", "b"), 7)
    pending.forget("a")
    folder.gate.set()
    assert pending.wait_until_folded(5)
    assert pending.look("a", 0) is None
    assert pending.look("b", 0).folded is not None


def test_a_fold_from_before_an_erasure_is_nothing_of_who_comes_back(pending, folder):
    folder.gate.clear()
    folder.fails_later = True
    pending.mark(marks("a"), 7)
    assert folder.began.wait(5)
    pending.forget("a")
    pending.mark(marks("a"), 9)
    folder.gate.set()
    wait_for(lambda: pending.counts.problem is not None)  # the second fold has failed: the first one is over
    assert folder.n_folds == 1
    assert pending.look("a", 0).folded is None


def test_closing_lets_who_waits_go_on(folder):
    pending = PendingUsers(folder, FakeWarehouse(), None, frozenset(), lambda: NOW)
    pending.mark(marks("a"), 7)
    threading.Timer(0.05, pending.close).start()
    started = time.monotonic()
    assert pending.look("a", 10).folded is None
    assert time.monotonic() - started < 5
