"""Housekeeping: merges files, expires what nobody needs, drops old collections. It knows nothing of the model."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.clock import utc_now
from flows.run_context import open_resources
from flows.run_report import RunSummary, report_run
from tasks.prefect_tasks import run_maintenance


@flow(
    name="maintenance",
    description="Merge small files, expire old snapshots and versions, drop their collections. Keeps every snapshot "
    "that nearline or a kept version still needs.",
    persist_result=False,
)
def maintenance(keep_days: Annotated[int, Field(ge=1)] = 7) -> RunSummary:
    """Tidy up once.

    Args:
        keep_days: Days for which the warehouse can be read as it was, and events be replayed.
    """
    resources, _ = open_resources()
    with report_run("maintenance", resources) as report:
        receipts = run_maintenance(resources, now=utc_now(), keep_days=keep_days)
        n_done = sum(not receipt.reused for receipt in receipts)
        return report.close("Tidied", f"{n_done} of {len(receipts)} steps had something to do.")
