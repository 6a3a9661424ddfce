"""One turn of the loop: new items, then the events since the last turn and the new profiles of their users.

It knows nothing of how often it runs: that is ``prefect.yaml``.
"""

import time
from pathlib import Path

from prefect import flow

from flows.clock import utc_now
from flows.run_context import open_resources
from flows.run_report import RunSummary, report_run
from tasks.domain.ports import Resources
from tasks.domain.records import NearlineRun, Receipt
from tasks.prefect_tasks import bring_items, refresh
from tasks.status import load_serving_version

LOOK_AGAIN_SECONDS = 600.0
"""After this time the stages look again, although the warehouse is as they left it: something else may have changed."""

_quiet: dict[tuple[Path, str], tuple[int, float]] = {}
"""By home and version: the snapshot at which this process found nothing to do, and when."""


@flow(
    name="nearline",
    description="Read the change feed, bring new items into the serving version and the profiles of the users with new "
    "events up to date. Does nothing, and says so, when there is nothing new.",
    persist_result=False,
)
def nearline(version: str | None = None) -> RunSummary:
    """Refresh once.

    Args:
        version: Model version to refresh. Empty: the one that serves.
    """
    resources, _ = open_resources()
    with report_run("nearline", resources) as report:
        version = version or load_serving_version(resources)
        if version is None:
            return report.close("Skipped", "Nothing is published yet: run daily_batch first.")
        snapshot = _latest_snapshot(resources)
        if _is_quiet(resources, version, snapshot):
            return report.close("Skipped", "No new events.")
        brought = bring_items(resources, now=utc_now(), version=version)
        run = refresh(resources, now=utc_now(), version=version)
        if run is None and brought is None:
            _quiet[resources.home, version] = snapshot, time.monotonic()
            return report.close("Skipped", "No new events.")
        if run is not None:
            report.refreshed(run)
        report.tag(f"version:{version}")
        return report.close("Refreshed", _what_happened(run, brought))


def _latest_snapshot(resources: Resources) -> int:
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.latest_snapshot()


def _is_quiet(resources: Resources, version: str, snapshot: int) -> bool:
    """Whether the warehouse is as it was when this process last found nothing to do: a run that need not even look."""
    found = _quiet.get((resources.home, version))
    return found is not None and found[0] == snapshot and time.monotonic() - found[1] < LOOK_AGAIN_SECONDS


def _what_happened(run: NearlineRun | None, brought: Receipt | None) -> str:
    parts = []
    if brought is not None:
        parts.append(f"{brought.n_out:,} new or changed items and texts")
    if run is not None:
        lag = "" if run.lag_p95_seconds is None else f", lag p95 {run.lag_p95_seconds:.1f} s"
        parts.append(f"{run.n_users:,} users from {run.n_events:,} events{lag}")
    return "; ".join(parts) + "."
