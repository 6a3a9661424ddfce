"""One refresh: the events since the last one, the users they touch, their new profiles in the serving version.

It knows nothing of how often it runs: that is ``prefect.yaml``.
"""

from prefect import flow

from flows.clock import utc_now
from flows.run_context import open_resources
from flows.run_report import RunSummary, report_run
from tasks.prefect_tasks import load_serving_version, refresh


@flow(
    name="nearline",
    description="Read the change feed and bring the profiles of the users with new events up to date in the serving "
    "version. Does nothing, and says so, when there is nothing new.",
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
        run = refresh(resources, now=utc_now(), version=version)
        if run is None:
            return report.close("Skipped", "No new events.")
        report.refreshed(run)
        return report.close("Refreshed", f"{run.n_users} users from {run.n_events} events in {version}.")
