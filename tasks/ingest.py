"""Takes files into the raw tables; what cannot be taken goes to ``quarantine``, whole.

It knows nothing of what is learned from the rows, nor of how files are written.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.mappings import SourceKind, propose_mapping, resolve_mapping, unused_columns
from tasks.domain.ports import Resources, SourceRows, Transaction, Warehouse
from tasks.domain.records import CheckResult, Receipt
from tasks.domain.source_text import (
    canonical_rows,
    check_id_types,
    json_text,
    rows_as_text,
    type_faults,
    without,
)
from tasks.quality import record_checks, write_checks
from tasks.row_checks import check_rows, raw_columns
from warehouse.catalog import query_sql

__all__ = ["import_files", "propose_mapping"]

logger = logging.getLogger(__name__)


def import_files(
    resources: Resources,
    kind: SourceKind,
    paths: Sequence[Path],
    *,
    now: datetime,
    mapping: Mapping[str, str] | None = None,
    max_quarantined_share: float = 0.1,
    run_id: str | None = None,
) -> list[Receipt]:
    """Take in files, or the files of folders: one commit and one receipt for each, in their order.

    ``mapping`` is that of ``tasks.domain.mappings``. A file whose content was taken before, with the same mapping, is
    left out (``reused``). Bad rows go to ``quarantine`` and the good ones are appended; ``run_id`` names their gate
    results (without it, the batch does). Raises InputError for a file that cannot be read as a whole and GateError if
    more than ``max_quarantined_share`` of its rows are bad; then nothing of that file is appended, and the files before
    it stay. Rows count as received later than all before them of their kind, though the clock may have gone back.
    """
    files = resources.source_files()
    receipts = []
    with resources.warehouse() as warehouse:
        first = _moment(warehouse, kind, now)
        for number, path in enumerate(files.find(paths)):
            # a microsecond for each file keeps the order in which corrections came
            moment = first + timedelta(microseconds=number)
            job = _Import(resources, warehouse, kind, moment, max_quarantined_share, run_id)
            batch_id = job.batch_id(files.content_hash(path), mapping)
            receipt = job.taken_before(batch_id)
            if receipt is None:
                source = files.read(path)
                resolved = resolve_mapping(kind, source.rows.column_names, mapping, str(path))
                receipt = job.take(source, batch_id, resolved)
            receipts.append(receipt)
    return receipts


def _moment(warehouse: Warehouse, kind: SourceKind, now: datetime) -> datetime:
    newest = warehouse.read(query_sql("newest_received"), {"table_name": f"raw_{kind}"})["ingested_at"][0].as_py()
    return now if newest is None else max(now, newest + timedelta(microseconds=1))


class _Judged(NamedTuple):
    """Rows after the checks: what is appended, what is refused, and how many only repeat others."""

    good: pa.Table
    refused: pa.Table
    n_rows: int
    n_duplicates: int


@dataclass(frozen=True)
class _Import:
    """One batch on its way into the raw table of its kind."""

    resources: Resources
    warehouse: Warehouse
    kind: SourceKind
    now: datetime
    max_quarantined_share: float
    run_id: str | None = None

    @property
    def table(self) -> str:
        return f"raw_{self.kind}"

    def batch_id(self, content_hash: str, mapping: Mapping[str, str] | None) -> str:
        """Hash of the content and of what decides how it is read. For events that includes the event types, so that
        a file can be imported again once a type was added to the settings."""
        types = sorted((t.name, t.effect) for t in self.resources.event_types.values()) if self.kind == "events" else []
        document = json.dumps([content_hash, self.kind, dict(mapping or {}), types], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()

    def taken_before(self, batch_id: str) -> Receipt | None:
        rows = self.warehouse.read(query_sql("import_batch"), {"batch_id": batch_id, "table_name": self.table})
        return self._repeated(rows) if rows.num_rows else None

    def take(self, source: SourceRows, batch_id: str, mapping: Mapping[str, str]) -> Receipt:
        started = time.perf_counter()
        check_id_types(source.rows, mapping, source.source)
        judged = self._judge(source, batch_id, mapping)
        n_refused = judged.refused.num_rows
        passed = n_refused <= self.max_quarantined_share * judged.n_rows
        checks = [self._share_check(source, judged, passed)] if n_refused else []
        run_id = self.run_id or f"import-{batch_id[:16]}"

        def write(transaction: Transaction) -> Receipt | None:
            repeated = self._write(transaction, batch_id, source, judged, passed)
            if repeated is None and checks:
                write_checks(transaction, "ingest", checks, run_id=run_id, now=self.now)
            return repeated

        repeated = self.warehouse.commit(write)
        if repeated is not None:
            return repeated
        seconds = time.perf_counter() - started
        logger.info(
            "import table=%s source=%s rows=%d accepted=%d quarantined=%d seconds=%.2f",
            *(self.table, source.source, judged.n_rows, judged.good.num_rows if passed else 0, n_refused, seconds),
        )
        if not passed:
            record_checks(self.resources, "ingest", checks, run_id=run_id, now=self.now)
        note = _note(judged, unused_columns(source.rows.column_names, mapping))
        return Receipt("import", judged.n_rows, judged.good.num_rows, self.table, seconds, note=note)

    def _judge(self, source: SourceRows, batch_id: str, mapping: Mapping[str, str]) -> _Judged:
        text = rows_as_text(source.rows)
        faults = type_faults(source.kinds, text.num_rows, mapping)
        rows = without(canonical_rows(self.kind, text, source.positions, mapping), faults)
        event_types = self.resources.event_types.values()
        checked = check_rows(self.warehouse, self.kind, rows, event_types, now=self.now, mapping=mapping)
        reasons = pc.coalesce(faults, checked["reason"])
        is_good = pc.is_null(reasons)
        is_kept = pc.and_(is_good, pc.invert(checked["is_duplicate"]))
        good = checked.filter(is_kept).select(["source_row", *raw_columns(checked, self.kind)])
        good = self._stamped(good, batch_id, source.source, "ingested_at")
        refused = pa.table({"source_row": checked["source_row"], "reason": reasons}).filter(pc.invert(is_good))
        lines = text.filter(pc.is_in(source.positions, value_set=refused["source_row"].combine_chunks())).to_pylist()
        refused = refused.append_column("row_json", pa.array([json_text(line) for line in lines], pa.string()))
        refused = pa.concat_tables([refused, _unreadable(source)])
        refused = self._stamped(refused, batch_id, source.source, "quarantined_at")
        refused = refused.append_column("table_name", pa.array([self.table] * refused.num_rows, pa.string()))
        n_rows = source.rows.num_rows + len(source.unreadable)
        n_duplicates = pc.sum(pc.and_(is_good, checked["is_duplicate"])).as_py() or 0
        return _Judged(good, refused, n_rows, n_duplicates)

    def _stamped(self, rows: pa.Table, batch_id: str, source: str, time_column: str) -> pa.Table:
        n = rows.num_rows
        rows = rows.append_column("batch_id", pa.array([batch_id] * n, pa.string()))
        rows = rows.append_column("source", pa.array([source] * n, pa.string()))
        return rows.append_column(time_column, pa.array([self.now] * n, pa.timestamp("us", "UTC")))

    def _write(
        self, transaction: Transaction, batch_id: str, source: SourceRows, judged: _Judged, passed: bool
    ) -> Receipt | None:
        """Append rows, quarantine and batch together; a receipt if another process took the batch meanwhile."""
        known = transaction.read(query_sql("import_batch"), {"batch_id": batch_id, "table_name": self.table})
        if known.num_rows:
            return self._repeated(known)
        transaction.replace("quarantine", judged.refused, {"batch_id": batch_id, "table_name": self.table})
        if passed:
            transaction.append(self.table, judged.good)
            row = {
                "batch_id": batch_id,
                "table_name": self.table,
                "source": source.source,
                "n_rows": judged.n_rows,
                "n_accepted": judged.good.num_rows,
                "n_quarantined": judged.refused.num_rows,
                "n_duplicates": judged.n_duplicates,
                "imported_at": self.now,
            }
            transaction.append("import_batches", pa.Table.from_pylist([row]))
        return None

    def _repeated(self, rows: pa.Table) -> Receipt:
        batch = rows.to_pylist()[0]
        note = f"the same content was taken before, as {batch['source']}, at {batch['imported_at']:%Y-%m-%d %H:%M} UTC"
        return Receipt("import", batch["n_rows"], batch["n_accepted"], self.table, 0.0, reused=True, note=note)

    def _share_check(self, source: SourceRows, judged: _Judged, passed: bool) -> CheckResult:
        counts = judged.refused["reason"].value_counts().to_pylist()
        worst = "; ".join(f"{c['values']} ({c['counts']})" for c in sorted(counts, key=lambda c: -c["counts"])[:3])
        n_refused = judged.refused.num_rows
        return CheckResult(
            table=self.table,
            expectation=f"share_of_refused_rows of {source.source}",  # a run may take in several files
            column=None,
            severity="stop",
            passed=passed,
            observed=f"{n_refused} of {judged.n_rows} rows of {source.source}: {worst}",
            allowed=f"at most {self.max_quarantined_share:.0%} of the rows",
            n_failed=n_refused,
            advice=(
                "Nothing of this file was taken in. Look at the refused rows: "
                'nearline sql "select reason, count(*) from quarantine group by all". Correct the file or its mapping '
                "(docs/import.md) and import it again, or allow more: NEARLINE_GATES__MAX_QUARANTINED_SHARE."
                if not passed
                else 'Look at the refused rows: nearline sql "select reason, count(*) from quarantine group by all".'
            ),
        )


def _unreadable(source: SourceRows) -> pa.Table:
    """Rows that could not even be split into columns, in the shape of the other refused ones."""
    return pa.table(
        {
            "source_row": pa.array([position for position, _, _ in source.unreadable], pa.int64()),
            "reason": pa.array([why for _, _, why in source.unreadable], pa.string()),
            "row_json": pa.array([json_text({"unreadable": line}) for _, line, _ in source.unreadable], pa.string()),
        }
    )


def _note(judged: _Judged, unused: Sequence[str]) -> str:
    parts = [] if judged.n_rows else ["the file has columns and no rows"]
    if judged.refused.num_rows:
        look = 'nearline sql "select reason, count(*) from quarantine group by all"'
        parts.append(f"{judged.refused.num_rows} rows went to quarantine: {look}")
    if judged.n_duplicates:
        parts.append(f"{judged.n_duplicates} rows repeat others of the same file and were left out")
    if unused:
        parts.append(f"columns that were not read: {', '.join(unused)}")
    return "; ".join(parts)
