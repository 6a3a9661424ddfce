"""How runs ended and what their stages took, as rows of the warehouse. It knows nothing of Prefect.

A run that failed keeps the type of its error and not the message, which may hold what was received.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from tasks.domain.ports import Resources, Transaction
from tasks.progress import StageEvent
from warehouse.catalog import query_sql

FAILED, SKIPPED = "Failed", "Skipped"

_WELL: set[tuple[Path, str]] = set()
"""By home and flow: its last recorded run did not fail, as far as this process knows."""


@dataclass(frozen=True)
class FlowRun:
    """A run that has ended; ``outcome`` is the word that its state begins with, or ``Failed``."""

    run_id: str
    flow: str
    outcome: str
    error: str | None
    version: str | None
    started_at: datetime
    finished_at: datetime


def record_run(resources: Resources, run: FlowRun, stages: Sequence[StageEvent]) -> None:
    """Write a run with its stages, in place of an earlier record of the same run.

    A run that had nothing to do is only written after one that failed, which it says is over.
    """
    flow = resources.home, run.flow
    if run.outcome == SKIPPED and (flow in _WELL or not _failed_last(resources, run.flow)):
        _WELL.add(flow)
        return
    runs = pa.Table.from_pylist([vars(run)])
    rows = [_stage_row(run, position, stage) for position, stage in enumerate(stages, start=1)]

    def write(transaction: Transaction) -> None:
        transaction.replace("flow_runs", runs, {"run_id": run.run_id})
        if rows:
            transaction.replace("flow_stages", pa.Table.from_pylist(rows), {"run_id": run.run_id})

    with resources.warehouse() as warehouse:
        warehouse.commit(write)
    (_WELL.discard if run.outcome == FAILED else _WELL.add)(flow)


def _failed_last(resources: Resources, flow: str) -> bool:
    with resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read(query_sql("last_flow_runs")).to_pylist()
    return any(row["flow"] == flow and row["outcome"] == FAILED for row in rows)


def _stage_row(run: FlowRun, position: int, stage: StageEvent) -> dict[str, object]:
    receipts = stage.receipts
    reused = bool(receipts) and all(receipt.reused for receipt in receipts)
    return {
        "run_id": run.run_id,
        "position": position,
        "flow": run.flow,
        "stage": stage.stage,
        "result": "failed" if stage.kind == "failed" else "reused" if reused else "done",
        "n_in": sum(receipt.n_in for receipt in receipts),
        "n_out": sum(receipt.n_out for receipt in receipts),
        "seconds": stage.seconds,
        "finished_at": run.finished_at,
    }
