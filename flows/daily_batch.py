"""The nightly pipeline, from files to published recommendations: read it as a table of contents.

It knows nothing of how a stage does its work: every line is a task of ``tasks/prefect_tasks.py`` over a plain function.
"""

from typing import Annotated, get_args

from prefect import flow
from pydantic import Field

from flows.clock import utc_now
from flows.run_context import absolute_paths, open_resources, run_id
from flows.run_report import RunReport, RunSummary, report_run
from infra.settings import Settings
from tasks.domain.mappings import SourceKind
from tasks.domain.ports import Resources
from tasks.domain.publication_gate import PublicationLimits
from tasks.evaluate import quality_checks
from tasks.prefect_tasks import (
    build_models,
    check_gate,
    embed_items,
    embed_texts,
    evaluate_version,
    import_files,
    learn_version,
    plan_version,
    publish_version,
    reconcile,
    record_checks,
    refit_version,
    write_slates,
)
from tasks.progress import progress_of
from tasks.train import VersionPlan


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
    slate_length: Annotated[int, Field(ge=1, le=500)] = 10,
) -> RunSummary:
    """Run the whole batch once.

    Args:
        items: Files or folders with items to import first (absolute paths; CSV, JSON lines or Parquet). Empty: none.
        users: Files or folders with users to import first.
        events: Files or folders with events to import first.
        force_retrain: Train and publish a new version even if nothing has changed since the serving one.
        slate_length: Recommendations that are written for each user.
    """
    resources, settings = open_resources()
    with report_run("daily_batch", resources) as report:
        reconcile(resources, now=utc_now())
        _ingest(resources, settings, items=items, users=users, events=events)
        _prepare(resources)
        plan = plan_version(resources, now=utc_now())
        if plan.unchanged and not force_retrain:
            return report.close("Unchanged", f"Nothing has changed since {plan.unchanged}, which still serves.")
        _train(resources, settings, plan, report)
        message = _publish(resources, settings, plan, report)
        _recommend(resources, plan, slate_length)
        return report.close("Published", message)


def _ingest(resources: Resources, settings: Settings, **paths: tuple[str, ...]) -> None:
    share = settings.gates.max_quarantined_share
    for kind in get_args(SourceKind):
        if paths[kind]:
            files = absolute_paths(paths[kind])
            import_files(resources, kind, files, now=utc_now(), max_quarantined_share=share, run_id=run_id())


def _prepare(resources: Resources) -> None:
    build_models(resources, now=utc_now())
    check_gate(resources, "transform", run_id=run_id(), now=utc_now())
    embed_items(resources, now=utc_now(), on_progress=progress_of("embed_items"))
    embed_texts(resources, now=utc_now())
    check_gate(resources, "embed", run_id=run_id(), now=utc_now())


def _train(resources: Resources, settings: Settings, plan: VersionPlan, report: RunReport) -> None:
    """Learn on the past, test on what came after it, stop if it got worse, then fit on everything."""
    learn_version(resources, plan, now=utc_now())
    evaluation = evaluate_version(resources, plan, now=utc_now())
    report.evaluated(plan.version)
    checks = quality_checks(evaluation, settings.gates.max_quality_drop)
    record_checks(resources, "quality", checks, run_id=run_id(), now=utc_now(), version=plan.version)
    refit_version(resources, plan, now=utc_now())
    check_gate(resources, "train", run_id=run_id(), now=utc_now(), version=plan.version)


def _publish(resources: Resources, settings: Settings, plan: VersionPlan, report: RunReport) -> str:
    """Write the new version beside the serving one, verify it, and switch; returns what to say of it."""
    limits = PublicationLimits(settings.gates.min_text_coverage, settings.gates.max_catalog_drop)
    publish_version(resources, plan.version, now=utc_now(), run_id=run_id(), limits=limits)
    return report.published(plan.version)


def _recommend(resources: Resources, plan: VersionPlan, slate_length: int) -> None:
    """Store everybody's slate for those who read tables."""
    write_slates(resources, plan.version, now=utc_now(), k=slate_length)
    check_gate(resources, "slates", run_id=run_id(), now=utc_now(), version=plan.version)
