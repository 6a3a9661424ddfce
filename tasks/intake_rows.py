"""What becomes of the rows of some requests: judged together, written in one transaction, told apart again.

It knows nothing of threads and queues; ``tasks.intake`` decides which requests go together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.json_rows import TextRows, row_json
from tasks.domain.online import CommittedRows, IntakeKind, IntakeReceipt, RejectedRow
from tasks.domain.ports import Transaction, Warehouse
from tasks.domain.recent_rows import RecentRows, RowKey, row_digest
from tasks.domain.records import EventType
from tasks.row_checks import check_rows, raw_columns
from warehouse.catalog import contract, query_sql

WINDOW_ROWS = 200_000
"""Rows of each kind, the newest ones, among which a repeated row is known (about 200 bytes each)."""
_TIME = pa.timestamp("us", "UTC")

T = TypeVar("T")


@dataclass(frozen=True)
class Submission:
    """One request: its rows as they came and as text."""

    kind: IntakeKind
    rows: Sequence[object]
    text: TextRows
    source: str


@dataclass(frozen=True)
class _Row:
    """Where a row of a group comes from: the number of its submission, and its place there from 0."""

    owner: int
    index: int


@dataclass(frozen=True)
class JudgedRows:
    """The rows of one kind in a group: what is appended to ``raw_<kind>`` and to ``quarantine``, with what they are
    known by later, and what each submission is told."""

    kind: IntakeKind
    good: pa.Table
    good_keys: Sequence[RowKey]
    refused: pa.Table
    refused_keys: Sequence[RowKey]
    rejected: Mapping[int, Sequence[RejectedRow]]
    n_accepted: Mapping[int, int]

    def committed(self, snapshot: int) -> CommittedRows:
        """The appended rows, once a snapshot holds them."""
        return CommittedRows(self.kind, self.good, snapshot)


class RowIntake:
    """Judges groups of submissions and knows the rows of the last ones. Used by one thread at a time."""

    def __init__(self, warehouse: Warehouse, event_types: Mapping[str, EventType]) -> None:
        self._warehouse = warehouse
        self._event_types = tuple(event_types.values())
        self._recent = {kind: RecentRows(WINDOW_ROWS) for kind in _KINDS}
        self._refused = RecentRows(WINDOW_ROWS)

    def recall(self, since: datetime) -> datetime:
        """Fill the window with the rows received ``since``; returns when the newest of them was, else ``since``.

        So a retry after a restart is known too, and one of an event that was corrected meanwhile does not undo that.
        """
        newest, bounds = since, {"since": since, "limit": WINDOW_ROWS}
        for kind in _KINDS:
            rows = self._warehouse.read(query_sql(f"recent_raw_{kind}"), bounds)
            self._recent[kind].remember(_row_keys(kind, rows.drop_columns("ingested_at")))
            newest = max(newest, pc.max(rows["ingested_at"]).as_py() or since)
        refused = self._warehouse.read(query_sql("recent_refused_rows"), bounds)
        columns = (refused[name].to_pylist() for name in ("table_name", "reason", "row_json"))
        self._refused.remember(RowKey(row_digest(row)) for row in zip(*columns, strict=True))
        return newest

    def judge(self, group: Mapping[str, Submission], now: datetime) -> list[JudgedRows]:
        """Judge submissions by their receipt ids, in the order of acceptance; one answer for each kind among them."""
        numbered = list(group.items())
        by_kind = {kind: [n for n, (_, s) in enumerate(numbered) if s.kind == kind] for kind in _KINDS}
        return [self._judge_kind(kind, numbered, owners, now) for kind, owners in by_kind.items() if owners]

    def remember(self, judged: Sequence[JudgedRows]) -> None:
        """Take rows that were committed into the window."""
        for rows in judged:
            self._recent[rows.kind].remember(rows.good_keys)
            self._refused.remember(rows.refused_keys)

    def _judge_kind(
        self, kind: IntakeKind, group: Sequence[tuple[str, Submission]], owners: Sequence[int], now: datetime
    ) -> JudgedRows:
        places = [_Row(owner, index) for owner in owners for index in range(len(group[owner][1].rows))]
        faults = [fault for owner in owners for fault in group[owner][1].text.faults]
        text = _joined([group[owner][1].text.columns for owner in owners], len(places))
        checked = check_rows(self._warehouse, kind, text, self._event_types, now=now)
        reasons = [fault or why for fault, why in zip(faults, checked["reason"].to_pylist(), strict=True)]

        rows = checked.select(raw_columns(checked, kind)).filter(pa.array([why is None for why in reasons], pa.bool_()))
        keys = _row_keys(kind, rows)
        is_new = [not repeats for repeats in self._recent[kind].find_repeats(keys)]
        good_places = [place for place, why in zip(places, reasons, strict=True) if why is None]
        kept = _where(good_places, is_new)
        good = _stamped(kind, rows.filter(pa.array(is_new, pa.bool_())), group, kept, now)

        bad = [(place, why) for place, why in zip(places, reasons, strict=True) if why is not None]
        refused, refused_keys = self._refused_rows(kind, group, bad, now)
        return JudgedRows(
            kind,
            good,
            _where(keys, is_new),
            refused,
            refused_keys,
            {n: [RejectedRow(place.index, why) for place, why in bad if place.owner == n] for n in owners},
            {n: sum(place.owner == n for place in kept) for n in owners},
        )

    def _refused_rows(
        self,
        kind: IntakeKind,
        group: Sequence[tuple[str, Submission]],
        bad: Sequence[tuple[_Row, str]],
        now: datetime,
    ) -> tuple[pa.Table, list[RowKey]]:
        """Refused rows for ``quarantine``, whole, without those that were refused before."""
        documents = [row_json(group[place.owner][1].rows[place.index]) for place, _ in bad]
        keys = [RowKey(row_digest((f"raw_{kind}", why, row))) for (_, why), row in zip(bad, documents, strict=True)]
        is_new = [not repeats for repeats in self._refused.find_repeats(keys)]
        kept = _where(bad, is_new)
        rows = pa.table(
            {
                "table_name": pa.array([f"raw_{kind}"] * len(kept), pa.string()),
                "reason": pa.array([why for _, why in kept], pa.string()),
                "row_json": pa.array(_where(documents, is_new), pa.string()),
                "batch_id": pa.array([group[place.owner][0] for place, _ in kept], pa.string()),
                "source": pa.array([group[place.owner][1].source for place, _ in kept], pa.string()),
                "source_row": pa.array([place.index + 1 for place, _ in kept], pa.int64()),
                "quarantined_at": pa.array([now] * len(kept), _TIME),
            }
        )
        return rows, _where(keys, is_new)


def write_rows(transaction: Transaction, judged: Sequence[JudgedRows]) -> None:
    """Append what was judged good, and what was refused, in the transaction of the group."""
    for rows in judged:
        transaction.append(f"raw_{rows.kind}", rows.good)
        transaction.append("quarantine", rows.refused)


def receipts(group: Mapping[str, Submission], judged: Sequence[JudgedRows], snapshot: int) -> Iterator[IntakeReceipt]:
    """What each submission is told, in their order, once ``snapshot`` holds their rows."""
    by_kind = {rows.kind: rows for rows in judged}
    for number, (receipt_id, submission) in enumerate(group.items()):
        rows = by_kind[submission.kind]
        rejected = tuple(rows.rejected[number])
        n_accepted = rows.n_accepted[number]
        n_duplicates = len(submission.rows) - n_accepted - len(rejected)
        yield IntakeReceipt(receipt_id, n_accepted, n_duplicates, rejected, snapshot)


_KINDS: tuple[IntakeKind, ...] = ("items", "users", "events")


def _joined(parts: Sequence[Mapping[str, Sequence[str | None]]], n_rows: int) -> pa.Table:
    """Columns of several submissions under each other, with the position of each row."""
    columns = {name: pa.array([text for part in parts for text in part[name]], pa.string()) for name in parts[0]}
    return pa.table({"source_row": pa.array(range(n_rows), pa.int64()), **columns})


def _row_keys(kind: IntakeKind, rows: pa.Table) -> list[RowKey]:
    """What rows of a raw table are known by; ``rows`` has the columns of the source alone."""
    values = zip(*(_plain_values(rows[name]) for name in rows.column_names), strict=True)
    if kind == "events":
        return [RowKey(row_digest(row)) for row in values]
    place = rows.column_names.index("updated_at") if kind == "items" else None
    return [RowKey(row_digest(row), row[0], place is not None and row[place] is not None) for row in values]


def _plain_values(column: pa.ChunkedArray) -> list[object]:
    is_time = pa.types.is_timestamp(column.type)
    values: list[object] = (column.cast(pa.timestamp("us")).cast(pa.int64()) if is_time else column).to_pylist()
    return values


def _stamped(
    kind: IntakeKind, rows: pa.Table, group: Sequence[tuple[str, Submission]], places: Sequence[_Row], now: datetime
) -> pa.Table:
    """Rows with where they came from and when, as they stand in the raw table."""
    stamps = {
        "batch_id": pa.array([group[place.owner][0] for place in places], pa.string()),
        "source": pa.array([group[place.owner][1].source for place in places], pa.string()),
        "source_row": pa.array([place.index + 1 for place in places], pa.int64()),
        "ingested_at": pa.array([now] * len(places), _TIME),
    }
    for name, values in stamps.items():
        rows = rows.append_column(name, values)
    return rows.select([column.name for column in contract(f"raw_{kind}").columns])


def _where(values: Sequence[T], mask: Sequence[bool]) -> list[T]:
    return [value for value, is_wanted in zip(values, mask, strict=True) if is_wanted]
