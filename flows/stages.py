"""Stages that several flows share, in groups: what goes before a training, the training itself, and its publication.

It knows nothing of when a flow runs them, or of what a stage does: every line is a task of ``tasks/prefect_tasks.py``.
"""

from flows.clock import utc_now
from flows.run_context import run_id
from flows.run_report import RunReport
from infra.settings import Settings
from tasks.domain.ports import Resources
from tasks.domain.publication_gate import PublicationLimits
from tasks.evaluate import quality_checks
from tasks.prefect_tasks import (
    build_models,
    check_gate,
    embed_items,
    embed_texts,
    evaluate_version,
    learn_version,
    publish_version,
    record_checks,
    refit_version,
    write_neighbours,
    write_slates,
)
from tasks.progress import progress_of
from tasks.slates import has_slates
from tasks.train import VersionPlan


def prepare(resources: Resources) -> None:
    """Bring tables and embeddings up to date with what was received."""
    build_models(resources, now=utc_now())
    check_gate(resources, "transform", run_id=run_id(), now=utc_now())
    embed_items(resources, now=utc_now(), on_progress=progress_of("embed_items"))
    embed_texts(resources, now=utc_now())
    check_gate(resources, "embed", run_id=run_id(), now=utc_now())


def train(resources: Resources, settings: Settings, plan: VersionPlan, report: RunReport) -> None:
    """Learn on the past, test on what came after it, stop if it got worse, then fit factors and neighbours on all."""
    learn_version(resources, plan, now=utc_now())
    evaluation = evaluate_version(resources, plan, now=utc_now())
    report.evaluated(plan.version)
    checks = quality_checks(evaluation, settings.gates.max_quality_drop)
    record_checks(resources, "quality", checks, run_id=run_id(), now=utc_now(), version=plan.version)
    refit_version(resources, plan, now=utc_now())
    write_neighbours(resources, plan.version)
    check_gate(resources, "train", run_id=run_id(), now=utc_now(), version=plan.version)


def publish(resources: Resources, settings: Settings, plan: VersionPlan, report: RunReport) -> str:
    """Write the new version beside the serving one, verify it, and switch; returns what to say of it."""
    limits = PublicationLimits(settings.gates.min_text_coverage, settings.gates.max_catalog_drop)
    publish_version(resources, plan.version, now=utc_now(), run_id=run_id(), limits=limits)
    return report.published(plan.version)


def recommend(resources: Resources, version: str, slate_length: int) -> None:
    """Store everybody's slate for those who read tables."""
    write_slates(resources, version, now=utc_now(), k=slate_length)
    check_gate(resources, "slates", run_id=run_id(), now=utc_now(), version=version)


def finish(resources: Resources, version: str, slate_length: int) -> str:
    """Store the slates of a version that serves without them, because a run ended before; returns what to say of it."""
    if has_slates(resources, version):
        return ""
    recommend(resources, version, slate_length)
    return " Its slates were missing, because a run ended before it wrote them; they are written now."
