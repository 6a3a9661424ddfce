"""What the platform is doing: what serves, how fresh it is, what failed last. It changes nothing.

It knows nothing of how this is shown, nor of Prefect's runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tasks.domain.errors import IndexUnavailableError
from tasks.domain.ports import Resources, Warehouse
from tasks.figures import FlowFigures, load_flow_figures
from warehouse.catalog import query_sql


@dataclass(frozen=True)
class Refresh:
    """The last refresh that found something; its lag is null in rows from before it was known."""

    finished_at: datetime
    n_events: int
    n_users: int
    lag_p50_seconds: float | None
    lag_p95_seconds: float | None
    lag_p99_seconds: float | None


@dataclass(frozen=True)
class RecentRefreshes:
    """The refreshes of the last hour that found events. The lags are the worst of any of them, so those of all their
    events taken together are no longer."""

    n_refreshes: int
    n_events: int
    n_users: int
    lag_p50_seconds: float | None
    lag_p95_seconds: float | None
    lag_p99_seconds: float | None


@dataclass(frozen=True)
class Waiting:
    """Events that came after the watermark of a version; ``oldest_at`` is when the first of them arrived."""

    watermark: int
    n_events: int
    oldest_at: datetime | None


@dataclass(frozen=True)
class FailedCheck:
    """A check that did not pass in the last day that had checks."""

    checked_at: datetime
    gate: str
    table: str
    expectation: str
    severity: str
    observed: str
    advice: str


@dataclass(frozen=True)
class PlatformStatus:
    """One look at the platform.

    ``n_waiting_events`` are events that came after the watermark of the serving version and are in no profile yet, and
    ``oldest_waiting_seconds`` is the age of the first of them; None if nothing serves, or nothing waits. ``index`` says
    in words whether the vector index answers and what it holds. ``flows`` are the last runs that did something.
    """

    serving_version: str | None
    published_at: datetime | None
    age_seconds: float | None
    rows: Mapping[str, int]
    watermark: int | None
    n_waiting_events: int | None
    oldest_waiting_seconds: float | None
    last_refresh: Refresh | None
    last_hour: RecentRefreshes
    failed_checks: tuple[FailedCheck, ...]
    index: str
    index_answers: bool = True
    flows: tuple[FlowFigures, ...] = ()


def load_status(resources: Resources, *, now: datetime) -> PlatformStatus:
    """Read the status; a part that cannot be read is named in its place."""
    serving, index, answers = _look_at_index(resources)
    with resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read(query_sql("table_sizes")).to_pylist()
        published = warehouse.read(query_sql("last_publication")).to_pylist()
        waiting = load_waiting(warehouse, serving)
        sizes = {row["table_name"]: int(row["n_rows"]) for row in rows}
        refresh, last_hour = _last_refresh(warehouse), _last_hour(warehouse, now)
        failed, flows = _failed_checks(warehouse), load_flow_figures(warehouse)
    published_at = published[0]["published_at"] if published else None
    return PlatformStatus(
        serving_version=serving,
        published_at=published_at,
        age_seconds=(now - published_at).total_seconds() if published_at else None,
        rows=sizes,
        watermark=waiting.watermark if waiting else None,
        n_waiting_events=waiting.n_events if waiting else None,
        oldest_waiting_seconds=(now - waiting.oldest_at).total_seconds() if waiting and waiting.oldest_at else None,
        last_refresh=refresh,
        last_hour=last_hour,
        failed_checks=failed,
        index=index,
        index_answers=answers,
        flows=flows,
    )


def load_serving_version(resources: Resources) -> str | None:
    """The version that readers see, or None before the first publication. Raises IndexUnavailableError."""
    with resources.index() as index:
        return index.serving_version()


def load_waiting(warehouse: Warehouse, version: str | None) -> Waiting | None:
    """What waits for the next refresh of ``version``; None if it has no watermark."""
    marks = warehouse.read(query_sql("watermark"), {"version": version})["snapshot"].to_pylist()
    if not marks:
        return None
    row = warehouse.read(query_sql("waiting_events"), {"after": marks[0]}).to_pylist()[0]
    return Waiting(marks[0], row["n_events"], row["oldest_at"])


def _look_at_index(resources: Resources) -> tuple[str | None, str, bool]:
    try:
        with resources.index() as index:
            serving = index.serving_version()
            if serving is None:
                return None, "answers; nothing serves", True
            n_items, n_users = index.count(serving)
            return serving, f"answers; {n_items:,} items, {n_users:,} users, {len(index.versions())} versions", True
    except IndexUnavailableError as error:
        return None, f"does not answer: {error}", False


def _last_hour(warehouse: Warehouse, now: datetime) -> RecentRefreshes:
    rows = warehouse.read(query_sql("refreshes_since"), {"since": now - timedelta(hours=1)}).to_pylist()
    return RecentRefreshes(**rows[0])


def _last_refresh(warehouse: Warehouse) -> Refresh | None:
    rows = warehouse.read(query_sql("last_refresh")).to_pylist()
    return Refresh(**rows[0]) if rows else None


def _failed_checks(warehouse: Warehouse) -> tuple[FailedCheck, ...]:
    rows: list[dict[str, Any]] = warehouse.read(query_sql("recent_failed_checks")).to_pylist()
    return tuple(FailedCheck(**row) for row in rows)
