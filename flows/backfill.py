"""Solves profiles of the serving version again, for a range of days or named users, and rewrites the slates.

It knows nothing of training: a new model comes from the daily batch.
"""

from datetime import date
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.clock import utc_now
from flows.run_context import open_resources
from flows.run_report import RunSummary, report_run
from tasks.prefect_tasks import load_serving_version, recompute_profiles, write_slates


@flow(
    name="backfill",
    description="Solve the profiles of some users again in the serving version, with everything that is known of them "
    "now, and write the slates anew. For a late import that must be served at once, or after a correction.",
    persist_result=False,
)
def backfill(
    from_date: date | None = None,
    to_date: date | None = None,
    users: tuple[str, ...] = (),
    slate_length: Annotated[int, Field(ge=1, le=500)] = 10,
) -> RunSummary:
    """Recompute once.

    Args:
        from_date: First day (UTC) of the events whose users are recomputed. Empty: from the beginning.
        to_date: Last day, included. Empty: until now.
        users: Ids of users to recompute, instead of a range of days.
        slate_length: Recommendations that are written for each user.
    """
    resources, _ = open_resources()
    with report_run("backfill", resources) as report:
        version = load_serving_version(resources)
        if version is None:
            return report.close("Skipped", "Nothing is published yet: run daily_batch first.")
        run = recompute_profiles(
            resources, now=utc_now(), version=version, user_ids=users, from_date=from_date, to_date=to_date
        )
        write_slates(resources, version, now=utc_now(), k=slate_length)
        report.refreshed(run, show=False)
        return report.close("Backfilled", f"{run.n_users} users in {version}.")
