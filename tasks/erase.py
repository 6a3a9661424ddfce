"""Removes a person: from every table that names them, from the index, and from the files and snapshots behind both.

It knows nothing of HTTP or the command line. What an erasure cannot reach at once it says.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime

import pyarrow as pa

from tasks.domain.errors import InputError, NotFoundError
from tasks.domain.online import ErasureReceipt, RemovedRows
from tasks.domain.ports import Resources, Transaction, VectorIndex, Warehouse
from tasks.refresh import read_feed, refreshing
from warehouse.catalog import contracts, query_sql

RAW_EVENTS, QUARANTINE, TEXTS = "raw_events", "quarantine", "text_embeddings"
INDEX = "vector index"
REMAINS = (
    "Item factors were learned from everybody's events; this person's part in them goes with the next training.",
    "Prefect keeps the parameters of its runs: a backfill that named this user shows their id until that run goes.",
    "Copies and backups that were made of this home are not reached.",
)

logger = logging.getLogger(__name__)


def erase_user(resources: Resources, user_id: str, *, now: datetime) -> ErasureReceipt:
    """Remove every row and point of one user, and the snapshots and files that still hold them.

    Snapshots before this one expire, so that nothing can be read as it was before; events of other users that no
    refresh had covered yet are named to the next one. Safe to kill and to repeat: a second time removes what is left.
    Raises InputError for an empty id, WarehouseBusyError and IndexUnavailableError; then the erasure is to be repeated.
    """
    _check(user_id)
    erasure_id, pseudonym = uuid.uuid4().hex, resources.pseudonym(user_id)
    with resources.index() as index, resources.warehouse() as warehouse:
        versions = index.versions()
        with ExitStack() as held:
            for version in versions:
                held.enter_context(refreshing(resources, version))  # or one under way would write them back
            held.enter_context(warehouse.exclusive())
            waiting = [name for name in _uncovered_users(warehouse, versions) if name != user_id]
            removed = warehouse.commit(lambda transaction: _remove_rows(transaction, user_id))
            done = warehouse.purge(lambda transaction, snapshot: _name_waiting(transaction, waiting, snapshot, now))
            n_points = index.delete_users([user_id])
            left = _count_left(warehouse, index, user_id)
            counts = {**removed, INDEX: n_points}
            row = {"erasure_id": erasure_id, "user_pseudonym": pseudonym, "removed": json.dumps(counts)}
            rows = pa.Table.from_pylist([{**row, "erased_at": now}])
            warehouse.commit(lambda transaction: transaction.append("erasures", rows))
    logger.info("erase user=%s rows=%d points=%d", pseudonym, sum(removed.values()), n_points)
    return ErasureReceipt(
        erasure_id=erasure_id,
        user=pseudonym,
        erased_at=now,
        removed=_places(counts, left),
        n_expired_snapshots=done["expired_snapshots"],
        n_deleted_files=done["deleted_files"],
        remains=REMAINS,
        is_complete=not any(left.values()) and bool(done["catalog_compacted"]),
    )


def verify_erasure(resources: Resources, user_id: str) -> tuple[RemovedRows, ...]:
    """Look for a user in every place that an erasure clears, in the newest state and in every snapshot that can still
    be read. ``n_removed`` is what erasures of this user have removed there so far. Raises InputError for an empty id.
    """
    _check(user_id)
    pseudonym = resources.pseudonym(user_id)
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        left = _count_left(warehouse, index, user_id)
        left["earlier snapshots"] = _count_in_history(warehouse, user_id)
        past = warehouse.read(query_sql("erasures_of_pseudonym"), {"user_pseudonym": pseudonym})["removed"].to_pylist()
    removed: dict[str, int] = {}
    for document in past:
        for place, count in json.loads(document).items():
            removed[place] = removed.get(place, 0) + count
    return _places(removed, left)


def tables_of_users() -> list[str]:
    """Tables whose rows name a user, by their contracts."""
    return [name for name, contract in contracts().items() if any(c.name == "user_id" for c in contract.columns)]


def _check(user_id: str) -> None:
    if not user_id.strip():
        raise InputError("A user was to be erased, and the id is empty. Name one user by the id that your events have.")


def _uncovered_users(warehouse: Warehouse, versions: Sequence[str]) -> list[str]:
    """Users with events after the watermark of a version: once the feed has expired, nothing would name them."""
    users: set[str] = set()
    for version in versions:
        try:
            feed = read_feed(warehouse, version)
        except NotFoundError:
            continue  # never trained to the end: it has no watermark, and nothing to bring up to date
        users.update(feed.user_ids if feed else ())
    return sorted(users)


def _remove_rows(transaction: Transaction, user_id: str) -> dict[str, int]:
    """Delete in one transaction; returns the rows removed by table."""
    who = {"user_id": user_id}
    removed: dict[str, int] = {}
    for table, found, delete, key in (
        (RAW_EVENTS, "events_of_person", "erase_events", ["event_id", "batch_id", "source_row"]),
        (QUARANTINE, "refused_rows_of_person", "erase_quarantine", ["batch_id", "source_row", "reason"]),
    ):
        rows = transaction.read(query_sql(found), who).select(key)
        if rows.num_rows:
            transaction.execute(query_sql(delete), shadows={"erased_rows": rows})
        removed[table] = rows.num_rows
    removed[TEXTS] = _delete_texts(transaction, who)
    for table in tables_of_users():
        if table != RAW_EVENTS:
            removed[table] = _count(transaction, table, user_id)
            if removed[table]:
                transaction.replace(table, pa.table({}), who)
    return removed


def _delete_texts(transaction: Transaction, who: Mapping[str, object]) -> int:
    """Once the events are gone, so that a text of one that had moved from somebody else goes too."""
    rows = transaction.read(query_sql("embeddings_of_person"), who)
    if rows.num_rows:
        transaction.replace(TEXTS, pa.table({}), {"content_hash": rows["content_hash"].unique().to_pylist()})
    return int(rows.num_rows)


def _name_waiting(transaction: Transaction, waiting: Sequence[str], snapshot: int, now: datetime) -> None:
    """Name those who wait for a refresh to the next one, and let every version read the feed from ``snapshot`` on."""
    stamp = pa.array([now] * len(waiting), pa.timestamp("us", tz="UTC"))
    rows = pa.table({"user_id": waiting, "reason": ["erasure"] * len(waiting), "requested_at": stamp})
    if waiting:
        transaction.append("refresh_requests", rows)
    transaction.execute(query_sql("move_watermarks"), {"snapshot": snapshot, "updated_at": now})


def _places(removed: Mapping[str, int], left: Mapping[str, int]) -> tuple[RemovedRows, ...]:
    return tuple(RemovedRows(place, removed.get(place, 0), left.get(place, 0)) for place in {**left, **removed})


def _count_left(warehouse: Warehouse, index: VectorIndex, user_id: str) -> dict[str, int]:
    """Rows and points that an erasure would remove, by place."""
    who = {"user_id": user_id}
    left = {table: _count(warehouse, table, user_id) for table in tables_of_users()}
    left[QUARANTINE] = warehouse.read(query_sql("refused_rows_of_person"), who).num_rows
    left[TEXTS] = warehouse.read(query_sql("embeddings_of_person"), who).num_rows
    left[INDEX] = sum(len(index.users(version, [user_id])) for version in index.versions())
    return left


def _count_in_history(warehouse: Warehouse, user_id: str) -> int:
    """Rows in any snapshot that can still be read."""
    snapshots = warehouse.read(query_sql("readable_snapshots"))["snapshot_id"].to_pylist()
    n_rows = 0
    for snapshot in snapshots:
        with warehouse.at(snapshot) as past, suppress(NotFoundError):  # the first snapshots are from before the tables
            n_rows += sum(_count(past, table, user_id) for table in (RAW_EVENTS, "raw_users"))
    return n_rows


def _count(source: Warehouse | Transaction, table: str, user_id: str) -> int:
    sql = f'select count(*) as n_rows from "{table}" where user_id = $user_id'  # noqa: S608 - contract's name
    return int(source.read(sql, {"user_id": user_id})["n_rows"][0].as_py())
