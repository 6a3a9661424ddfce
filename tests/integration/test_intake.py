"""Rows of many callers at once: durable when answered, there once, refused one by one; after kills and failures too."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.domain.errors import InputError, OverloadedError, TerminalError, WarehouseBusyError
from tasks.ingest import import_files
from tasks.intake import Intake
from tasks.model_state import event_type_rows
from warehouse.catalog import model_sql

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WAIT = 30.0


def event(event_id="e1", item="i1", **more):
    return {
        "event_id": event_id, "user_id": "u1", "item_id": item, "event_type": "click",
        "occurred_at": "2026-02-01T00:00:00Z", **more,
    }  # fmt: skip


@contextmanager
def opened(resources, *, clock=lambda: NOW, commit_seconds=0.0, max_waiting_rows=1000, on_commit=None):
    intake = Intake(
        resources, clock=clock, commit_seconds=commit_seconds, max_waiting_rows=max_waiting_rows, on_commit=on_commit
    )
    with intake:
        yield lambda kind, *rows, seconds=WAIT: intake.accept(kind, rows, source="test", timeout_seconds=seconds)


def read(resources, sql):
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql).to_pylist()


def staged(resources):
    """Events as staging gives them: id and item."""
    with resources.warehouse(read_only=True) as warehouse:
        types = event_type_rows(resources.event_types.values())
        rows = warehouse.read(model_sql("stg_events"), None, {"event_types": types}).to_pylist()
    return sorted((row["event_id"], row["item_id"]) for row in rows)


class Blocked:
    """Resources whose commits wait for ``gate``, then raise ``error`` if there is one."""

    def __init__(self, resources):
        self._resources = resources
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.error = None
        self.poison = None

    def __getattr__(self, name):
        return getattr(self._resources, name)

    @contextmanager
    def warehouse(self):
        with self._resources.warehouse() as warehouse:
            yield _BlockedWarehouse(warehouse, self)


class _BlockedWarehouse:
    def __init__(self, warehouse, blocked):
        self._warehouse, self._blocked = warehouse, blocked

    def __getattr__(self, name):
        return getattr(self._warehouse, name)

    def commit(self, work):
        self._blocked.entered.set()
        assert self._blocked.gate.wait(WAIT)
        if self._blocked.error is not None:
            raise self._blocked.error
        return self._warehouse.commit(lambda transaction: work(_Poisoned(transaction, self._blocked.poison)))


class _Poisoned:
    def __init__(self, transaction, poison):
        self._transaction, self._poison = transaction, poison

    def append(self, table, rows):
        if self._poison is not None and "item_id" in rows.column_names and self._poison in rows["item_id"].to_pylist():
            raise TerminalError("That row cannot be written.")
        return self._transaction.append(table, rows)


@pytest.fixture
def blocked(local_resources):
    return Blocked(local_resources)


def in_threads(*calls):
    """Results, or errors, of calls that are made at once."""
    results = [None] * len(calls)

    def run(number, call):
        try:
            results[number] = call()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    return threads, results


def joined(threads):
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def wait_until(condition):
    deadline = threading.Event()
    for _ in range(int(WAIT / 0.01)):
        if condition():
            return
        deadline.wait(0.01)
    raise AssertionError("it did not come")


def test_good_rows_are_taken_and_bad_ones_named(local_resources):
    with opened(local_resources) as accept:
        soon = event("b", occurred_at="soon")
        receipt = accept("events", event("a"), {"user_id": ["u"]}, soon, 3, event("c", value=4))
    assert (receipt.n_accepted, receipt.n_duplicates) == (2, 0)
    assert [(row.index, row.reason.split(" ")[0]) for row in receipt.rejected] == [
        (1, "user_id"), (2, "occurred_at"), (3, "the"),
    ]  # fmt: skip
    rows = read(local_resources, "select * from raw_events order by source_row")
    assert [(r["event_id"], r["value"], r["source_row"], r["batch_id"]) for r in rows] == [
        ("a", None, 1, receipt.receipt_id), ("c", 4.0, 5, receipt.receipt_id),
    ]  # fmt: skip
    assert {(r["source"], r["ingested_at"]) for r in rows} == {("test", NOW)}
    refused = read(local_resources, "select * from quarantine order by source_row")
    assert [(r["source_row"], r["table_name"], r["batch_id"]) for r in refused] == [
        (n, "raw_events", receipt.receipt_id) for n in (2, 3, 4)
    ]
    assert [json.loads(r["row_json"]) for r in refused] == [
        {"user_id": ["u"]}, soon, {"unreadable": 3},
    ]  # fmt: skip
    with local_resources.warehouse(read_only=True) as warehouse, warehouse.at(receipt.snapshot) as then:
        assert then.read("select count(*) as n from raw_events")["n"].to_pylist() == [2]


def test_items_and_users_keep_the_meaning_of_their_values(local_resources):
    item = {"item_id": 7, "title": "T", "categories": ["a", "b|c"], "attributes": {"n": 1}, "available": False}
    with opened(local_resources) as accept:
        accept("items", item, {"item_id": "8", "title": None})
        accept("users", {"user_id": "u", "attributes": {"age": 31}})
    rows = read(local_resources, "select * from raw_items order by item_id")
    wanted = ("item_id", "title", "categories", "attributes", "available", "updated_at")
    assert [tuple(row[name] for name in wanted) for row in rows] == [
        ("7", "T", ["a", "b|c"], '{"n": 1}', False, None), ("8", None, [], None, True, None),
    ]  # fmt: skip
    assert read(local_resources, "select attributes from raw_users") == [{"attributes": '{"age": 31}'}]


def test_text_that_would_break_a_store_is_refused_or_kept_as_it_is(local_resources):
    odd = ["a,b] [", "ü\U0001f600", "'\"\\ ", "\u2028\x01\x7f\r\n", "NULL", "{a}", " lead"]
    with opened(local_resources) as accept:
        receipt = accept("items", *({"item_id": str(n), "title": t, "categories": [t]} for n, t in enumerate(odd)))
        nul = accept(
            "items", {"item_id": "9", "title": "t", "categories": ["a\x00b"]}, {"item_id": "\x00", "title": ""}
        )
        event_nul = accept("events", event(item="\x00"), event(user_id="\ud800"), event(event_type="x\x00"))
    assert receipt.n_accepted == len(odd)
    assert [row["title"] for row in read(local_resources, "select title from raw_items order by item_id")] == odd
    assert [len(r.rejected) for r in (nul, event_nul)] == [2, 3]
    assert len(read(local_resources, "from quarantine")) == 5


def test_what_is_no_list_is_an_error_and_an_empty_one_is_not(local_resources):
    intake = Intake(local_resources, clock=lambda: NOW, commit_seconds=0.0, max_waiting_rows=10)
    with intake:
        for rows in ({"user_id": "u"}, "text", 3, None):
            with pytest.raises(InputError, match="Give a list"):
                intake.accept("events", rows, source="test", timeout_seconds=WAIT)
        assert intake.accept("events", [], source="test", timeout_seconds=WAIT).n_accepted == 0


def test_requests_that_wait_together_go_into_one_commit_and_keep_apart(blocked, local_resources):
    commits = []
    with opened(blocked, on_commit=commits.append) as accept:
        blocked.gate.clear()
        first, _ = in_threads(lambda: accept("events", event("first")))
        assert blocked.entered.wait(WAIT)
        calls = [lambda n=n: accept("events", event(f"e{n}"), {"bad": n}, event(f"f{n}")) for n in range(5)]
        threads, receipts = in_threads(*calls, lambda: accept("items", {"item_id": "i", "title": "t"}))
        wait_until(lambda: all(t.is_alive() for t in threads) and _waiting(accept) == 1 + 15 + 1)
        blocked.gate.set()
        joined([*first, *threads])
    assert [len(c.rows) for c in commits if c.kind == "events"] == [1, 10]
    assert len({r.snapshot for r in receipts}) == 1
    assert len({r.receipt_id for r in receipts}) == 6
    assert all([row.index for row in r.rejected] == [1] for r in receipts[:5])
    rows = read(local_resources, "from raw_events order by batch_id, source_row")
    for receipt, n in zip(receipts[:5], range(5), strict=True):
        own = [row for row in rows if row["batch_id"] == receipt.receipt_id]
        assert [(row["event_id"], row["source_row"]) for row in own] == [(f"e{n}", 1), (f"f{n}", 3)]


def _waiting(accept):
    return accept.__closure__[0].cell_contents.n_waiting_rows


def test_rows_are_told_as_they_stand_before_the_answer(local_resources):
    told = []
    with opened(local_resources, on_commit=told.append) as accept:
        receipt = accept("events", event("a"), event("a"), event("b", text="t"))
        assert [c.kind for c in told] == ["events"]  # before the answer
    assert receipt.n_duplicates == 1
    assert told[0].snapshot == receipt.snapshot
    assert told[0].rows.to_pylist() == read(local_resources, "from raw_events order by source_row")


def test_what_follows_a_commit_may_fail_without_losing_the_answer(local_resources):
    def fail(_):
        raise RuntimeError("no profile today")

    with opened(local_resources, on_commit=fail) as accept:
        assert accept("events", event()).n_accepted == 1
        assert accept("events", event("e2")).n_accepted == 1


def test_a_retry_changes_nothing_that_anyone_can_see(local_resources):
    with opened(local_resources) as accept:
        rows = (event("a"), {"bad": 1}, event("b"))
        first, again = accept("events", *rows), accept("events", *rows)
        corrected = accept("events", event("a", item="i2"))
        late = accept("events", *rows)
    assert (first.n_accepted, first.n_duplicates) == (2, 0)
    assert (again.n_accepted, again.n_duplicates, again.rejected) == (0, 2, first.rejected)
    assert again.snapshot >= first.snapshot
    assert (corrected.n_accepted, late.n_accepted, late.n_duplicates) == (1, 0, 2)
    assert staged(local_resources) == [("a", "i2"), ("b", "i1")]
    assert len(read(local_resources, "from quarantine")) == 1
    assert len(read(local_resources, "from raw_events")) == 3


def test_a_retry_after_a_restart_does_not_undo_a_correction(local_resources):
    with opened(local_resources) as accept:
        accept("events", event("a", value=1.5, text="t"), event("gone"))
        accept("events", event("a", item="i2"), {"bad": 1})
        accept("events", {**event("gone"), "event_type": "retraction", "item_id": None})
    with opened(local_resources, clock=lambda: NOW + timedelta(minutes=30)) as accept:
        late = accept("events", event("a", value=1.5, text="t"), event("gone"), {"bad": 1})
    assert (late.n_accepted, late.n_duplicates) == (0, 2)
    assert staged(local_resources) == [("a", "i2")]
    assert len(read(local_resources, "from quarantine")) == 1


def test_a_correction_in_the_same_group_stays_and_a_retraction_takes_back(local_resources):
    with opened(local_resources) as accept:
        receipt = accept("events", event("a"), event("a", item="i2"), event("a"), event("b"))
        assert (receipt.n_accepted, receipt.n_duplicates) == (3, 1)
        accept("events", {**event("b"), "event_type": "retraction"})
    assert staged(local_resources) == [("a", "i2")]


def test_an_item_may_come_and_go(local_resources):
    on, off = ({"item_id": "i", "title": "t", "available": available} for available in (True, False))
    with opened(local_resources) as accept:
        counts = [accept("items", item).n_accepted for item in (on, on, off, off, on)]
        together = accept("items", off, on, on)
    assert counts == [1, 0, 1, 0, 1]
    assert (together.n_accepted, together.n_duplicates) == (2, 1)
    with local_resources.warehouse(read_only=True) as warehouse:
        assert warehouse.read(model_sql("stg_items"))["available"].to_pylist() == [True]


def test_the_last_accepted_row_wins_though_the_clock_goes_back(local_resources):
    times = itertools.chain([NOW, NOW, NOW - timedelta(hours=2)], itertools.repeat(NOW - timedelta(hours=3)))
    with opened(local_resources, clock=lambda: next(times)) as accept:
        for n in range(4):
            accept("events", event("a", item=f"i{n}"))
    stamps = [
        row["ingested_at"] for row in read(local_resources, "select ingested_at from raw_events order by item_id")
    ]
    assert stamps == sorted(set(stamps))
    assert staged(local_resources) == [("a", "i3")]


def test_an_error_is_told_to_exactly_those_who_waited_and_the_next_are_taken(blocked, local_resources):
    with opened(blocked) as accept:
        blocked.error = WarehouseBusyError("locked")
        with pytest.raises(WarehouseBusyError, match="locked"):
            accept("events", event("a"))
        blocked.error = None
        assert accept("events", event("a")).n_accepted == 1
    assert staged(local_resources) == [("a", "i1")]


def test_a_row_that_cannot_be_written_fails_its_own_request_alone(blocked, local_resources):
    with opened(blocked) as accept:
        blocked.gate.clear()
        first, _ = in_threads(lambda: accept("events", event("first")))
        assert blocked.entered.wait(WAIT)
        blocked.poison = "poison"
        threads, results = in_threads(
            lambda: accept("events", event("a")), lambda: accept("events", event("b", item="poison"))
        )
        wait_until(lambda: _waiting(accept) == 3)
        blocked.gate.set()
        joined([*first, *threads])
    assert results[0].n_accepted == 1
    assert isinstance(results[1], TerminalError)
    assert staged(local_resources) == [("a", "i1"), ("first", "i1")]


def test_too_much_is_refused_with_a_time_and_nothing_is_dropped(blocked, local_resources):
    with opened(blocked, max_waiting_rows=3) as accept:
        blocked.gate.clear()
        threads, receipts = in_threads(lambda: accept("events", event("a"), event("b")))
        assert blocked.entered.wait(WAIT)
        with pytest.raises(OverloadedError, match="2 rows wait") as error:
            accept("events", event("c"), event("d"))
        assert 0 < error.value.retry_after_seconds <= 60
        blocked.gate.set()
        joined(threads)
        assert receipts[0].n_accepted == 2
        assert accept("events", *(event(f"more{n}") for n in range(9))).n_accepted == 9  # more than may wait, alone
    assert len(staged(local_resources)) == 11


def test_who_gave_up_before_its_turn_is_not_written_and_who_gave_up_later_may_be(blocked, local_resources):
    with opened(blocked) as accept:
        accept("events", event("first"))
        blocked.gate.clear()
        blocked.entered.clear()
        threads, results = in_threads(lambda: accept("events", event("a"), seconds=2.0))
        assert blocked.entered.wait(WAIT)
        with pytest.raises(OverloadedError, match="were not written"):
            accept("events", event("b"), seconds=0.05)
        assert _waiting(accept) == 1
        joined(threads)
        assert isinstance(results[0], WarehouseBusyError)
        blocked.gate.set()
        retried = accept("events", event("a"))
        assert (retried.n_accepted, retried.n_duplicates) == (0, 1)
    assert staged(local_resources) == [("a", "i1"), ("first", "i1")]


def test_closing_answers_those_who_wait_and_takes_no_more(blocked, local_resources):
    with opened(blocked, commit_seconds=60.0) as accept:
        accept("events", event("first"))
        threads, receipts = in_threads(lambda: accept("events", event("a")))
        wait_until(lambda: _waiting(accept) == 1)
    joined(threads)
    assert receipts[0].n_accepted == 1
    with pytest.raises(OverloadedError, match="closing"):
        accept("events", event("b"))
    assert len(staged(local_resources)) == 2


def test_many_callers_at_once_are_all_there_once(local_resources):
    def send(accept, caller):
        for n in range(5):
            accept("events", *(event(f"{caller}-{n}-{row}") for row in range(10)))

    with opened(local_resources, commit_seconds=0.02) as accept:
        threads, results = in_threads(*(lambda caller=caller: send(accept, caller) for caller in range(8)))
        joined(threads)
    assert results == [None] * 8
    counts = read(local_resources, "select count(*) as n, count(distinct event_id) as n_ids from raw_events")
    assert counts == [{"n": 400, "n_ids": 400}]


def test_what_lies_in_the_catalog_goes_to_files_and_nothing_else_changes(local_resources, monkeypatch):
    monkeypatch.setattr("tasks.intake.FLUSHED_ROWS", 5)
    receipts = []
    with opened(local_resources) as accept:
        for n in range(6):
            receipts.append(accept("events", event(f"a{n}"), event(f"b{n}")))
        accept("items", {"item_id": "i", "title": "t"})
    with local_resources.warehouse(read_only=True) as warehouse:
        files = warehouse.read("from ducklake_list_files('lake', 'raw_events')")
        fed = warehouse.insertions("raw_events", receipts[1].snapshot, receipts[4].snapshot)
        with warehouse.at(receipts[0].snapshot) as then:
            assert then.read("from raw_events").num_rows == 2
        assert warehouse.read("from raw_events").num_rows == 12
    assert files.num_rows == 1
    assert sorted(fed["event_id"].to_pylist()) == sorted(f"{letter}{n}" for n in (2, 3, 4) for letter in "ab")


PROGRAM = """
import sys, threading
from datetime import UTC, datetime
from pathlib import Path
from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.intake import Intake

resources = LocalResources(load_settings(home=Path(sys.argv[1])))
round_ = sys.argv[2]
with Intake(resources, clock=lambda: datetime.now(UTC), commit_seconds=0.01, max_waiting_rows=10_000) as intake:
    def send(caller):
        for n in range(10_000):
            names = [f"{round_}-{caller}-{n}-{row}" for row in range(3)]
            rows = [
                {"event_id": e, "user_id": "u", "item_id": "i", "event_type": "click", "occurred_at": 1767225600}
                for e in names
            ]
            intake.accept("events", rows, source="child", timeout_seconds=30.0)
            sys.stdout.write(" ".join(names) + "\\n")
            sys.stdout.flush()
    threads = [threading.Thread(target=send, args=(caller,), daemon=True) for caller in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def killed_in_the_midst(home: Path, number: int, n_lines: int) -> list[str]:
    """Let a process accept in a loop, kill it after some receipts, and give the ids it has acknowledged."""
    command = [sys.executable, "-c", PROGRAM, str(home), str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        lines = [process.stdout.readline() for _ in range(n_lines)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    process.wait()
    assert all(lines[:n_lines]), "it ended before it could be killed"
    return [name for line in lines if line.endswith("\n") for name in line.split()]


def test_a_kill_loses_nothing_that_was_acknowledged(local_resources):
    acknowledged = [
        name
        for number, n_lines in enumerate((1, 30))
        for name in killed_in_the_midst(local_resources.home, number, n_lines)
    ]
    stored = [row["event_id"] for row in read(local_resources, "select event_id from raw_events")]
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)
    assert len(acknowledged) >= 3 * 31
    with opened(local_resources, clock=lambda: datetime.now(UTC)) as accept:  # what the killed one left is no obstacle
        rows = [
            {"event_id": e, "user_id": "u", "item_id": "i", "event_type": "click", "occurred_at": 1767225600}
            for e in acknowledged
        ]
        assert accept("events", *rows).n_duplicates == len(acknowledged)


def test_events_of_files_and_of_requests_are_judged_alike(local_resources, tmp_path):
    rows = [event("a"), event("b", value="x"), event("c", occurred_at="soon"), event("d", event_type="nothing")]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    import_files(local_resources, "events", [file], now=NOW, max_quarantined_share=1.0)
    other = LocalResources(load_settings(home=tmp_path / "other"))
    with opened(other) as accept:
        accept("events", *rows)
    for sql in (
        "select * exclude (batch_id, source) from raw_events order by source_row",
        "select * exclude (batch_id, source, row_json) from quarantine order by source_row",
    ):
        assert read(local_resources, sql) == read(other, sql) != []


def test_a_repeat_in_a_file_of_items_is_of_the_row_before(local_resources, tmp_path):
    file = tmp_path / "items.csv"
    file.write_text("item_id,title,available\ni,t,true\ni,t,true\ni,t,false\ni,t,true\n")
    import_files(local_resources, "items", [file], now=NOW)
    rows = read(local_resources, "select available from raw_items order by source_row")
    assert [row["available"] for row in rows] == [True, False, True]
