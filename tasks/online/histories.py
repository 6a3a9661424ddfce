"""Raw rows of users, read from the warehouse once and kept up to date by what is committed later.

It knows nothing of versions, of profiles or of who is asked for.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
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
_MEGABYTE = 1_000_000


class RawRows(NamedTuple):
    """Rows of ``raw_events`` and ``raw_users`` of some users; a row may be there twice, which the models remove."""

    events: pa.Table
    users: pa.Table


@dataclass
class _Kept:
    """What is kept of one user: everything up to ``snapshot``, and the rows that were added since."""

    snapshot: int
    parts: dict[RawTable, list[pa.RecordBatch]] = field(
        default_factory=lambda: {"raw_events": [], "raw_users": []},
    )
    n_bytes: int = 0

    def add(self, table: RawTable, rows: pa.RecordBatch) -> None:
        parts = self.parts[table]
        parts.append(rows)
        self.n_bytes += rows.nbytes
        if len(parts) > _MANY_PARTS:
            parts[:] = pa.Table.from_batches(parts).combine_chunks().to_batches()


class HistoryCache:
    """An LRU of users with their raw rows, bounded by megabytes. Threads may share it.

    The rows of a user are all rows of all events that ever named them, so that a correction or a retraction acts
    however it was sent. ``add`` never waits; a load of users that are not kept is one read of the warehouse.
    """

    def __init__(self, warehouse: Warehouse, megabytes: float) -> None:
        self._warehouse = warehouse
        self._limit = megabytes * _MEGABYTE
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._added: deque[tuple[RawTable, pa.Table, int]] = deque()
        self._lock = threading.Lock()
        self.n_bytes = 0
        """Size of the rows that are kept."""

    def add(self, table: RawTable, rows: pa.Table, snapshot: int) -> None:
        """Take rows that were committed, with a snapshot that holds them; the users they name get them at the next
        ``load``."""
        self._added.append((table, rows, snapshot))

    def load(self, user_ids: Sequence[str]) -> RawRows:
        """Everything that is known of these users, those without a row too."""
        with self._lock:
            self._prepare(user_ids)
            kept = [self._kept[user_id] for user_id in user_ids]
            for user_id in user_ids:
                self._kept.move_to_end(user_id)
            tables = [_joined(table, kept) for table in _COLUMNS]
            self._shrink()
        return RawRows(*tables)

    def prepare(self, user_ids: Sequence[str]) -> None:
        """Have these users at hand for calls of ``load`` with parts of them, as far as there is room."""
        with self._lock:
            self._prepare(user_ids)
            self._shrink()

    def forget(self, user_ids: Sequence[str]) -> None:
        """Read these users anew the next time."""
        with self._lock:
            self._take_added()
            for user_id in user_ids:
                found = self._kept.pop(user_id, None)
                self.n_bytes -= found.n_bytes if found else 0

    def clear(self) -> None:
        """Read everybody anew the next time."""
        with self._lock:
            self._added.clear()
            self._kept.clear()
            self.n_bytes = 0

    def _prepare(self, user_ids: Sequence[str]) -> None:
        self._take_added()
        missing = [user_id for user_id in user_ids if user_id not in self._kept]
        if missing:
            self._read(missing)

    def _take_added(self) -> None:
        """Rows that a read has brought already are left out; where that is not known for sure they come twice."""
        while self._added:
            table, rows, snapshot = self._added.popleft()
            for user_id, part in _split(table, rows, self._kept):
                if snapshot > self._kept[user_id].snapshot:
                    self._add(user_id, table, part)

    def _read(self, user_ids: Sequence[str]) -> None:
        snapshot = self._warehouse.latest_snapshot()
        wanted = {"wanted_users": pa.table({"user_id": pa.array(sorted(set(user_ids)), pa.string())})}
        self._kept.update({user_id: _Kept(snapshot) for user_id in user_ids})
        for table in _COLUMNS:
            rows = self._warehouse.read(query_sql(_QUERIES[table]), shadows=wanted)
            for user_id, part in _split(table, rows, wanted["wanted_users"]["user_id"].to_pylist()):
                self._add(user_id, table, part)

    def _add(self, user_id: str, table: RawTable, rows: pa.RecordBatch) -> None:
        self._kept[user_id].add(table, rows)
        self.n_bytes += rows.nbytes

    def _shrink(self) -> None:
        while self.n_bytes > self._limit and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self.n_bytes -= oldest.n_bytes


def _joined(table: RawTable, kept: Sequence[_Kept]) -> pa.Table:
    batches = [batch for one in kept for batch in one.parts[table]]
    return pa.Table.from_batches(batches, _SCHEMAS[table]).combine_chunks()


def _split(
    table: RawTable, rows: pa.Table, user_ids: "Sequence[str] | OrderedDict[str, _Kept]"
) -> list[tuple[str, pa.RecordBatch]]:
    """The rows of each of these users, copied, so that no user holds the memory of others."""
    rows = rows.select(_SCHEMAS[table].names).cast(_SCHEMAS[table]).combine_chunks()
    if rows.num_rows == 0:
        return []
    batch = rows.to_batches()[0]
    names = batch["user_id"].dictionary_encode()
    known = names.dictionary.to_pylist()
    row, user = _owners(batch, names) if table == "raw_events" else (np.arange(len(names)), names.indices.to_numpy())
    wanted = set(user_ids) if isinstance(user_ids, list) else user_ids
    is_wanted = np.array([name in wanted for name in known], bool)[user]
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
