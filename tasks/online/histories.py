"""Raw rows of users, read from the warehouse once and kept up to date by what is committed later.

It knows nothing of versions, of profiles or of who is asked for.
"""

import threading
from collections import ChainMap, OrderedDict, deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.ports import Warehouse
from warehouse.catalog import contract, query_sql

RawTable = Literal["raw_events", "raw_users"]
_COLUMNS: dict[RawTable, tuple[str, ...]] = {
    "raw_events": (
        "event_id", "user_id", "item_id", "event_type", "occurred_at", "value", "text", "batch_id", "source_row",
        "ingested_at",
    ),
    "raw_users": ("user_id", "attributes", "batch_id", "source_row", "ingested_at"),
}  # fmt: skip
_QUERIES: dict[RawTable, str] = {"raw_events": "received_events_of_users", "raw_users": "raw_users_of_users"}
_TYPES = {"VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BIGINT": pa.int64()}
_SCHEMAS: dict[RawTable, pa.Schema] = {
    table: pa.schema(
        [
            (column.name, _TYPES.get(column.type, pa.timestamp("us", tz="UTC")))
            for column in contract(table).columns
            if column.name in names
        ]
    )
    for table, names in _COLUMNS.items()
}
_MANY_PARTS = 16
_READERS = 2
"""Reads at a time: one of many users, such as a fold needs, holds up no request."""
_MEGABYTE = 1_000_000


class RawRows(NamedTuple):
    """Rows of ``raw_events`` and ``raw_users`` of some users; a row may be there twice, which the models remove."""

    events: pa.Table
    users: pa.Table


@dataclass(eq=False)
class _Kept:
    """What is kept of one user: everything up to ``snapshot``, None before it is read, and the rows that were added
    since. ``is_void`` says that it must be read anew."""

    snapshot: int | None = None
    parts: dict[RawTable, list[pa.RecordBatch]] = field(
        default_factory=lambda: {"raw_events": [], "raw_users": []},
    )
    n_bytes: int = 0
    late: list[tuple[RawTable, pa.RecordBatch, int]] = field(default_factory=list)
    is_void: bool = False

    def take(self, table: RawTable, rows: pa.RecordBatch, snapshot: int) -> int:
        """Add rows that were committed up to ``snapshot``, unless the read has brought them: the bytes that came."""
        if self.snapshot is None:
            self.late.append((table, rows, snapshot))
            return 0
        return self._add(table, rows) if snapshot > self.snapshot else 0

    def fill(self, snapshot: int, rows: Mapping[RawTable, pa.RecordBatch]) -> None:
        """What was read, then what was added meanwhile."""
        self.snapshot = snapshot
        for table, part in rows.items():
            self._add(table, part)
        for table, part, at in self.late:
            self.take(table, part, at)
        self.late.clear()

    def _add(self, table: RawTable, rows: pa.RecordBatch) -> int:
        parts = self.parts[table]
        parts.append(rows)
        self.n_bytes += rows.nbytes
        if len(parts) > _MANY_PARTS:
            parts[:] = pa.Table.from_batches(parts).combine_chunks().to_batches()
        return int(rows.nbytes)


class HistoryCache:
    """An LRU of users with their raw rows, bounded by megabytes. Threads may share it.

    The rows of a user are all rows of all events that ever named them, so that a correction or a retraction acts
    however it was sent. ``add`` never waits. A user who is not kept is read once, whoever waits for them: each reader
    takes all who wait at that moment, for a read of many takes hardly longer than a read of one.
    """

    def __init__(self, warehouse: Warehouse, megabytes: float) -> None:
        self._warehouse = warehouse
        self._limit = megabytes * _MEGABYTE
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._wanted: dict[str, _Kept] = {}
        self._reading: dict[str, _Kept] = {}
        self._n_readers = 0
        self._added: deque[tuple[RawTable, pa.Table, int]] = deque()
        self._changed = threading.Condition()
        self.n_bytes = 0
        """Size of the rows that are kept."""

    def add(self, table: RawTable, rows: pa.Table, snapshot: int) -> None:
        """Take rows that were committed, with a snapshot that holds them; the users they name get them at the next
        ``load``."""
        self._added.append((table, rows, snapshot))

    def load(self, user_ids: Sequence[str]) -> RawRows:
        """Everything that is known of these users, those without a row too."""
        with self._changed:
            found = self._gather(user_ids)
            tables = [_joined(table, found) for table in _COLUMNS]
            for user_id in user_ids:
                if user_id in self._kept:
                    self._kept.move_to_end(user_id)
            self._shrink()
        return RawRows(*tables)

    def prepare(self, user_ids: Sequence[str]) -> None:
        """Have these users at hand for calls of ``load`` with parts of them, as far as there is room."""
        with self._changed:
            self._gather(user_ids)
            self._shrink()

    def forget(self, user_ids: Sequence[str]) -> None:
        """Read these users anew the next time; what is being read of them now is thrown away."""
        with self._changed:
            self._take_added()
            for user_id in user_ids:
                found = self._kept.pop(user_id, None)
                self.n_bytes -= found.n_bytes if found else 0
                _void(found, self._reading.pop(user_id, None))
            self._changed.notify_all()

    def clear(self) -> None:
        """Read everybody anew the next time; what is being read now is thrown away."""
        with self._changed:
            _void(*self._kept.values(), *self._reading.values())
            self._added.clear()
            self._kept.clear()
            self._reading.clear()
            self.n_bytes = 0
            self._changed.notify_all()

    def _gather(self, user_ids: Sequence[str]) -> list[_Kept]:
        """These users, each with everything that was added before; the lock is let go while somebody reads."""
        self._take_added()
        found: dict[str, _Kept] = {}
        while True:
            for user_id in user_ids:
                if user_id not in found or found[user_id].is_void:
                    found[user_id] = self._entry(user_id)
            if all(kept.snapshot is not None for kept in found.values()):
                return [found[user_id] for user_id in user_ids]
            if self._n_readers < _READERS and any(self._wanted.get(u) is kept for u, kept in found.items()):
                self._read()
            else:
                self._changed.wait()

    def _entry(self, user_id: str) -> _Kept:
        found = self._kept.get(user_id) or self._reading.get(user_id)
        return found or self._wanted.setdefault(user_id, _Kept())

    def _take_added(self) -> None:
        """Rows that a read has brought already are left out; where that is not known for sure they come twice."""
        while self._added:
            table, rows, snapshot = self._added.popleft()
            known = ChainMap(self._kept, self._reading, self._wanted)
            for user_id, part in _split(table, rows, known):
                self.n_bytes += known[user_id].take(table, part, snapshot)

    def _read(self) -> None:
        """Read everybody who is wanted. Who else waits for them tries again if it fails."""
        taken, self._wanted = self._wanted, {}
        self._reading |= taken
        self._n_readers += 1
        self._changed.release()
        try:
            snapshot, parts = self._fetch(list(taken))
        except BaseException:
            self._changed.acquire()
            _void(*taken.values())
            raise
        else:
            self._changed.acquire()
            self._take_added()
            for user_id, kept in taken.items():
                if not kept.is_void:
                    kept.fill(snapshot, parts.get(user_id, {}))
                    self._kept[user_id] = kept
                    self.n_bytes += kept.n_bytes
        finally:
            self._reading = {u: kept for u, kept in self._reading.items() if taken.get(u) is not kept}
            self._n_readers -= 1
            self._changed.notify_all()

    def _fetch(self, user_ids: Sequence[str]) -> tuple[int, dict[str, dict[RawTable, pa.RecordBatch]]]:
        """A snapshot, and the rows of users that it holds."""
        wanted = {"wanted_users": pa.table({"user_id": pa.array(sorted(user_ids), pa.string())})}
        sqls = [query_sql(_QUERIES[table]) for table in _COLUMNS]
        snapshot, tables = self._warehouse.read_together(sqls, wanted)
        parts: dict[str, dict[RawTable, pa.RecordBatch]] = {}
        for table, rows in zip(_COLUMNS, tables, strict=True):
            for user_id, part in _split(table, rows, set(user_ids)):
                parts.setdefault(user_id, {})[table] = part
        return snapshot, parts

    def _shrink(self) -> None:
        while self.n_bytes > self._limit and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self.n_bytes -= oldest.n_bytes


def _void(*entries: _Kept | None) -> None:
    for kept in entries:
        if kept is not None:
            kept.is_void = True


def _joined(table: RawTable, kept: Sequence[_Kept]) -> pa.Table:
    batches = [batch for one in kept for batch in one.parts[table]]
    return pa.Table.from_batches(batches, _SCHEMAS[table]).combine_chunks()


def _split(table: RawTable, rows: pa.Table, user_ids: Container[str]) -> list[tuple[str, pa.RecordBatch]]:
    """The rows of each of these users, copied, so that no user holds the memory of others."""
    rows = rows.select(_SCHEMAS[table].names).cast(_SCHEMAS[table]).combine_chunks()
    if rows.num_rows == 0:
        return []
    batch = rows.to_batches()[0]
    names = batch["user_id"].dictionary_encode()
    known = names.dictionary.to_pylist()
    row, user = _owners(batch, names) if table == "raw_events" else (np.arange(len(names)), names.indices.to_numpy())
    is_wanted = np.array([name in user_ids for name in known], bool)[user]
    row, user = row[is_wanted], user[is_wanted]
    order = np.lexsort((row, user))
    row, user = row[order], user[order]
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    return [(known[user[a]], batch.take(pa.array(row[a:b]))) for a, b in pairwise([*starts.tolist(), len(row)])]


def _owners(batch: pa.RecordBatch, names: pa.DictionaryArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of a row and a user: each row with everyone whom a row of the same event names."""
    user = names.indices.to_numpy().astype(np.int64)
    event = batch["event_id"].dictionary_encode().indices.to_numpy().astype(np.int64)
    pairs = np.unique(np.stack([event, user], axis=1), axis=0)
    n_users = np.bincount(pairs[:, 0])
    row = np.arange(len(user))
    moved = n_users[event] > 1
    if not moved.any():
        return row, user
    more = [(r, u) for r in row[moved] for u in pairs[pairs[:, 0] == event[r], 1]]
    rows, users = np.array(more, np.int64).T
    return np.concatenate([row[~moved], rows]), np.concatenate([user[~moved], users])
