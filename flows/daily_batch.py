"""The nightly pipeline, from files to published recommendations: read it as a table of contents.

It knows nothing of how a stage does its work: every line is a task of ``tasks/prefect_tasks.py`` over a plain function.
"""

from typing import Annotated, get_args

from prefect import flow
from pydantic import Field

from flows.clock import utc_now
from flows.run_context import absolute_paths, open_resources, run_id
from flows.run_report import RunSummary, report_run
from flows.stages import finish, prepare, publish, recommend, train
from infra.settings import Settings
from tasks.domain.mappings import SourceKind
from tasks.domain.ports import Resources
from tasks.prefect_tasks import import_files, plan_version, reconcile


@flow(
    name="daily_batch",
    description="Ingest, check, transform, embed, learn, evaluate, refit, publish, and write everybody's slates. "
    "Stages whose inputs are unchanged are re-used; a gate that stops leaves the serving version as it is.",
    persist_result=False,
)
def daily_batch(
    items: tuple[str, ...] = (),
    users: tuple[str, ...] = (),
    events: tuple[str, ...] = (),
    force_retrain: bool = False,
    use_tuned: bool = True,
    slate_length: Annotated[int, Field(ge=1, le=500)] = 10,
) -> RunSummary:
    """Run the whole batch once.

    Args:
        items: Files or folders with items to import first (absolute paths; CSV, JSON lines or Parquet). Empty: none.
        users: Files or folders with users to import first.
        events: Files or folders with events to import first.
        force_retrain: Train and publish a new version even if nothing has changed since the serving one.
        use_tuned: Go on with the parameters that tune_factors found, where some are in force. Without it the new
            version is trained with those of the settings, and so are the ones after it.
        slate_length: Recommendations that are written for each user.
    """
    resources, settings = open_resources()
    with report_run("daily_batch", resources) as report:
        reconcile(resources, now=utc_now())
        _ingest(resources, settings, items=items, users=users, events=events)
        prepare(resources)
        plan = plan_version(resources, now=utc_now(), use_tuned=use_tuned)
        if plan.unchanged and not force_retrain:
            message = f"Nothing has changed since {plan.unchanged}, which still serves."
            return report.close("Unchanged", message + finish(resources, plan.unchanged, slate_length))
        train(resources, settings, plan, report)
        message = publish(resources, settings, plan, report)
        recommend(resources, plan.version, slate_length)
        return report.close("Published", message)


def _ingest(resources: Resources, settings: Settings, **paths: tuple[str, ...]) -> None:
    share = settings.gates.max_quarantined_share
    for kind in get_args(SourceKind):
        if paths[kind]:
            files = absolute_paths(paths[kind])
            import_files(resources, kind, files, now=utc_now(), max_quarantined_share=share, run_id=run_id())
