"""The figures of runs, stages, gates and freshness that a monitoring system asks for, read from the warehouse.

It knows nothing of how they are named or shown there.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.domain.ports import Resources, Warehouse
from tasks.run_records import FAILED
from warehouse.catalog import query_sql

NEARLINE = "nearline"
LAG_WINDOW = timedelta(hours=1)


@dataclass(frozen=True)
class FlowFigures:
    """The last run of a flow that did something, in seconds; ``succeeded_at`` is when the last good one ended."""

    flow: str
    succeeded: bool
    seconds: float
    finished_at: datetime
    succeeded_at: datetime | None
    error: str | None


@dataclass(frozen=True)
class StageFigures:
    """A stage as it was when it ran last; a part of a refresh has no rows of its own."""

    flow: str
    stage: str
    seconds: float
    n_in: int | None
    n_out: int | None


@dataclass(frozen=True)
class GateFigures:
    """How the checks of a gate ended the last time that it ran."""

    gate: str
    n_passed: int
    n_warned: int
    n_failed: int
    checked_at: datetime


@dataclass(frozen=True)
class Figures:
    """One look at the warehouse.

    ``lags`` are seconds by quantile, the worst of the refreshes of the last hour: empty if none found events.
    """

    flows: tuple[FlowFigures, ...]
    stages: tuple[StageFigures, ...]
    gates: tuple[GateFigures, ...]
    lags: dict[str, float]
    refreshed_at: datetime | None
    published_at: datetime | None
    n_quarantined: int
    read_at: datetime


def load_figures(resources: Resources, *, now: datetime) -> Figures:
    """Read them all; the work does not grow with the number of items, users or events."""
    with resources.warehouse(read_only=True) as warehouse:
        published = warehouse.read(query_sql("last_publication"))["published_at"].to_pylist()
        refresh, parts = _last_refresh(warehouse)
        return Figures(
            flows=load_flow_figures(warehouse),
            stages=(*_stages(warehouse), *parts),
            gates=tuple(GateFigures(**row) for row in warehouse.read(query_sql("last_gate_outcomes")).to_pylist()),
            lags=_lags(warehouse, now),
            refreshed_at=refresh,
            published_at=published[0] if published else None,
            n_quarantined=int(warehouse.read(query_sql("quarantine_size"))["n_rows"][0].as_py()),
            read_at=now,
        )


def load_flow_figures(warehouse: Warehouse) -> tuple[FlowFigures, ...]:
    """The last run of every flow that did something, by name."""
    rows = warehouse.read(query_sql("last_flow_runs")).to_pylist()
    return tuple(
        FlowFigures(
            flow=row["flow"],
            succeeded=row["outcome"] != FAILED,
            seconds=row["seconds"],
            finished_at=row["finished_at"],
            succeeded_at=row["succeeded_at"],
            error=row["error"] if row["outcome"] == FAILED else None,
        )
        for row in rows
    )


def _stages(warehouse: Warehouse) -> list[StageFigures]:
    return [StageFigures(**row) for row in warehouse.read(query_sql("last_flow_stages")).to_pylist()]


def _last_refresh(warehouse: Warehouse) -> tuple[datetime | None, list[StageFigures]]:
    rows = warehouse.read(query_sql("last_refresh_stages")).to_pylist()
    if not rows:
        return None, []
    (row,) = rows
    parts = json.loads(row["stage_seconds"]).items()
    return row["finished_at"], [
        StageFigures(NEARLINE, f"refresh {name}", float(seconds), None, None) for name, seconds in parts
    ]


def _lags(warehouse: Warehouse, now: datetime) -> dict[str, float]:
    (row,) = warehouse.read(query_sql("refreshes_since"), {"since": now - LAG_WINDOW}).to_pylist()
    found = {"0.5": row["lag_p50_seconds"], "0.95": row["lag_p95_seconds"], "0.99": row["lag_p99_seconds"]}
    return {quantile: seconds for quantile, seconds in found.items() if seconds is not None}
