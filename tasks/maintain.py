"""Housekeeping: drops what no kept version needs, and keeps the warehouse's files few and small.

It deletes only what can be made again or is past its time, and nothing that serves. It knows nothing of schedules.
"""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from tasks.domain.errors import InputError
from tasks.domain.ports import Resources, Transaction, Warehouse
from tasks.domain.publications import Publication, kept_versions, stopped_serving_at
from tasks.domain.records import Receipt
from tasks.publish import load_history, reconcile
from warehouse.catalog import query_sql

logger = logging.getLogger(__name__)

VERSION_TABLES = (
    "item_factors",
    "item_neighbours",
    "user_factors",
    "user_profiles",
    "mart_recommendations",
    "watermarks",
)
FILE_REST = timedelta(hours=1)
"""How long a file stays after nothing refers to it: longer than the longest read."""


def run_maintenance(
    resources: Resources, *, now: datetime, keep_days: int = 7, grace_hours: float = 6.0
) -> list[Receipt]:
    """Drop versions that are not kept, advance watermarks, tidy the warehouse, clear the staging folder.

    ``keep_days`` (at least 1) is for how long the warehouse can be read as it was. A version that stopped serving, or
    was trained, within the last ``grace_hours`` is left alone: a request may still read it, a run may still publish
    it. Raises InputError for a bad argument and WarehouseBusyError or IndexUnavailableError.
    """
    if keep_days < 1 or grace_hours < 0:
        raise InputError(
            f"Maintenance was asked to keep {keep_days} days, with a grace of {grace_hours} hours. "
            "Allowed are at least 1 day and 0 hours."
        )
    reconcile(resources, now=now)
    older_than = now - timedelta(days=keep_days)
    return [
        _drop_versions(resources, now - timedelta(hours=grace_hours)),
        _advance_watermarks(resources, older_than, now),
        _tidy_warehouse(resources, older_than, now - FILE_REST),
        _clear_staging(resources.home / "staging", older_than),
    ]


def _drop_versions(resources: Resources, before: datetime) -> Receipt:
    """Collections first, then rows: a kill between them leaves rows that the next run deletes."""
    began = time.perf_counter()
    with resources.index() as index:
        serving = index.serving_version()
        in_index = index.versions()
        with resources.warehouse() as warehouse:
            in_warehouse = warehouse.read(query_sql("stored_versions"))["version"].to_pylist()
            kept = _versions_to_keep(warehouse, serving, resources.keep_versions, before)
            known = sorted({*in_index, *in_warehouse})
            dropped = [version for version in known if version not in kept]
            for version in dropped:
                if version in in_index:
                    index.drop_version(version)
            gone = [version for version in dropped if version in in_warehouse]
            if gone:
                warehouse.commit(_deletion(gone))
    note = f"dropped {', '.join(dropped)}" if dropped else "no version is past its time"
    note += f"; kept {', '.join(version for version in known if version in kept) or 'none'}"
    return _receipt("drop_versions", len(known), len(known) - len(dropped), "index", began, not dropped, note)


def _versions_to_keep(warehouse: Warehouse, serving: str | None, n_kept: int, before: datetime) -> set[str]:
    """The serving version and those to roll back to, and every version with a life since ``before``.

    Without a serving version (a lost index) the last recorded one counts as serving.
    """
    history = load_history(warehouse)
    current = serving or (history[-1].version if history else None)
    kept = set(kept_versions(history, current, n_kept)) if current is not None else set()
    for row in warehouse.read(query_sql("model_version_states")).to_pylist():
        if _last_use(history, row["version"], row["created_at"]) >= before:
            kept.add(row["version"])
    return kept


def _last_use(history: Sequence[Publication], version: str, created_at: datetime) -> datetime:
    return max(created_at, stopped_serving_at(history, version) or created_at)


def _deletion(versions: Sequence[str]) -> Callable[[Transaction], None]:
    def work(transaction: Transaction) -> None:
        for table in VERSION_TABLES:
            transaction.replace(table, pa.table({}), {"version": list(versions)})

    return work


def _advance_watermarks(resources: Resources, older_than: datetime, now: datetime) -> Receipt:
    """Bring versions up to date whose watermark has stood since ``older_than``: it holds old snapshots back.

    Where no event has come since, the watermark moves alone: the profiles are true for the later snapshot too.
    """
    from tasks.refresh import refresh

    began = time.perf_counter()
    with resources.index() as index, resources.warehouse() as warehouse:
        present = index.versions()
        stale = warehouse.read(query_sql("stale_watermarks"), {"before": older_than}).to_pylist()
        moved = []
        for row in stale:
            version = row["version"]
            is_refreshed = version in present and refresh(resources, now=now, version=version) is not None
            if is_refreshed or _move_watermark(warehouse, version, now):
                moved.append(version)
    note = f"brought {', '.join(moved)} up to date" if moved else "no watermark holds old snapshots back"
    return _receipt("advance_watermarks", len(stale), len(moved), "watermarks", began, not moved, note)


def _move_watermark(warehouse: Warehouse, version: str, now: datetime) -> bool:
    """Move it to the newest snapshot if nothing has come since that a profile depends on."""
    from tasks.change_feed import read_feed

    latest = warehouse.latest_snapshot()
    if read_feed(warehouse, version) is not None:
        return False
    row = {"version": version, "snapshot": latest, "updated_at": now}
    warehouse.commit(lambda transaction: transaction.execute(query_sql("move_watermark"), row))
    return True


def _tidy_warehouse(resources: Resources, older_than: datetime, unused_since: datetime) -> Receipt:
    began = time.perf_counter()
    with resources.warehouse() as warehouse:
        needed = warehouse.read(query_sql("needed_snapshots")).to_pylist()
        done = warehouse.maintain(
            keep_from=min((row["watermark"] for row in needed), default=None),
            keep={row["training_snapshot"] for row in needed},
            older_than=older_than,
            unused_since=unused_since,
        )
    note = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in done.items())
    n_done = sum(done.values())
    return _receipt("tidy_warehouse", n_done, n_done, "warehouse", began, n_done == 0, note)


def _clear_staging(folder: Path, older_than: datetime) -> Receipt:
    """Delete what killed workers left behind long ago. A newer file is picked up by the next run of its stage."""
    began = time.perf_counter()
    files = [path for path in folder.rglob("*") if path.is_file()]
    old = [path for path in files if datetime.fromtimestamp(path.stat().st_mtime, UTC) < older_than]
    for path in old:
        path.unlink(missing_ok=True)
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    note = f"deleted {len(old)} of {len(files)} files that workers had left"
    return _receipt("clear_staging", len(files), len(files) - len(old), str(folder), began, not old, note)


def _receipt(stage: str, n_in: int, n_out: int, location: str, began: float, reused: bool, note: str) -> Receipt:
    logger.info("maintenance stage=%s note=%s", stage, note)
    return Receipt(stage, n_in, n_out, location, time.perf_counter() - began, reused=reused, note=note)
