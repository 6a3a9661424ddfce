"""Measures a version on both splits, beside simpler policies and the serving version's recipe, and judges it.

It knows nothing of how gates end a flow.
"""

import json
import logging
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from tasks.domain.evaluation import (
    HEADLINE,
    EvaluationReport,
    MetricValue,
    Policy,
    SplitResult,
    evaluate_split,
    summarize_split,
)
from tasks.domain.half_steps import RowSolver
from tasks.domain.learning import learn_recipe
from tasks.domain.ports import Resources, Transaction, Warehouse
from tasks.domain.records import CheckResult, Severity
from tasks.domain.splits import SPLITS, SplitName
from tasks.model_state import ModelVersion, load_version
from tasks.train import VersionPlan
from tasks.training_inputs import TrainingInputs, fixed_threads, load_inputs
from warehouse.catalog import query_sql

MIN_JUDGED_USERS = 30
"""A difference over fewer users stops nothing."""

SIMPLER_POLICIES: tuple[Policy, ...] = ("popularity", "factors", "text", "neighbours")
"""What a version is expected to be no worse than."""

logger = logging.getLogger(__name__)


def evaluate_version(resources: Resources, plan: VersionPlan, *, now: datetime) -> EvaluationReport:
    """Measure a learned version and write ``eval_metrics`` and its headline metrics; running it again replaces them.

    On ``user_tail`` the weights are the version's own, learned before that split's cut. On ``global_time`` the same
    procedure learns weights before that cut. The champion is the serving version's recipe, with its weights, fitted
    again on the same training part. What cannot be measured is in the report's notes. Raises NotFoundError if the
    version was not learned.
    """
    with resources.warehouse() as warehouse, fixed_threads() as n_threads, resources.factor_solver(n_threads) as solver:
        model = load_version(warehouse, plan.version)
        inputs = load_inputs(warehouse, model.recipe, plan.snapshot, model.encoder_id, model.text_width)
        champion = _load_champion(warehouse, plan, model, inputs)
        report = _measure(inputs, model, champion, solver, n_threads)
        rows, headline = _metric_rows(report, now), json.dumps(_headline(report), sort_keys=True)

        def write(transaction: Transaction) -> None:
            transaction.replace("eval_metrics", rows, {"version": plan.version})
            parameters = {"version": plan.version, "metrics": headline}
            transaction.execute(query_sql("write_version_metrics"), parameters)

        warehouse.commit(write)
    n_metrics = len(report.metrics)
    logger.info("evaluate_version version=%s metrics=%d champion=%s", plan.version, n_metrics, report.champion)
    return report


def quality_checks(report: EvaluationReport, max_quality_drop: float) -> list[CheckResult]:
    """Judge a report: a version must not rank worse than the serving recipe, by NDCG@10.

    Worse means that the whole 95 % interval of the paired difference lies below minus ``max_quality_drop``, a share of
    the champion's value. Falling behind popularity, text, factors or neighbours alone is a warning, and so is what was
    measured on fewer than 30 users, or not at all.
    """
    checks = [_unmeasured(report, note) for note in report.notes]
    for name in SPLITS:
        if report.find(name, "fused") is None:
            continue
        checks += [_compare(report, name, policy, "warn", 0.0) for policy in SIMPLER_POLICIES]
        if report.find(name, "champion") is not None:
            checks.append(_compare(report, name, "champion", "stop", max_quality_drop))
    return checks


class _Champion(NamedTuple):
    model: ModelVersion
    inputs: TrainingInputs


def _load_champion(
    warehouse: Warehouse, plan: VersionPlan, model: ModelVersion, inputs: TrainingInputs
) -> _Champion | None:
    """The serving version with its own texts' vectors; it is measured on the log of the candidate."""
    rows = warehouse.read(query_sql("serving_model")).to_pylist()
    if not rows or rows[0]["version"] == plan.version:
        return None
    serving = load_version(warehouse, rows[0]["version"])
    if serving.encoder_id == model.encoder_id:
        return _Champion(serving, inputs)
    own = load_inputs(warehouse, model.recipe, plan.snapshot, serving.encoder_id, serving.text_width)
    return _Champion(serving, own)


def _measure(
    inputs: TrainingInputs, model: ModelVersion, champion: _Champion | None, solver: RowSolver, n_threads: int
) -> EvaluationReport:
    metrics: list[MetricValue] = []
    notes: list[str] = []
    for name in SPLITS:
        result = _evaluate(name, inputs, model, solver, n_threads)
        if result is None:
            notes.append(f"Nothing was measured on {name}: nobody likes anything new in its test part.")
            continue
        if champion is not None:
            split = SPLITS[name](champion.inputs.log, champion.inputs.texts)
            policies: tuple[Policy, ...] = ("champion",)
            catalog, recipe = champion.inputs.catalog, champion.model.recipe
            other = evaluate_split(split, catalog, recipe, policies, solver=solver, n_threads=n_threads)
            result = result._replace(rankings={**result.rankings, **(other.rankings if other else {})})
        metrics += summarize_split(name, result)
    serving = champion.model.version if champion else None
    return EvaluationReport(model.version, tuple(metrics), tuple(notes), serving)


def _evaluate(
    name: SplitName, inputs: TrainingInputs, model: ModelVersion, solver: RowSolver, n_threads: int
) -> SplitResult | None:
    split = SPLITS[name](inputs.log, inputs.texts)
    recipe = model.recipe
    if name != "user_tail":
        known = split.train, split.texts, inputs.catalog
        recipe = learn_recipe(*known, recipe, solver=solver, n_threads=n_threads).recipe
    return evaluate_split(split, inputs.catalog, recipe, solver=solver, n_threads=n_threads)


def _metric_rows(report: EvaluationReport, now: datetime) -> pa.Table:
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("version", "split", "policy", "segment", "metric")),
            *((name, pa.float64()) for name in ("value", "ci_low", "ci_high")),
            ("n_users", pa.int64()),
            ("evaluated_at", pa.timestamp("us", tz="UTC")),
        ]
    )
    rows = [{**vars(metric), "version": report.version, "evaluated_at": now} for metric in report.metrics]
    return pa.Table.from_pylist(rows, schema=schema)


def _headline(report: EvaluationReport) -> dict[str, dict[str, float]]:
    """NDCG@10 by split and policy."""
    chosen = [m for m in report.metrics if m.metric == HEADLINE and m.segment == "all"]
    return {name: {m.policy: round(m.value, 6) for m in chosen if m.split == name} for name in SPLITS}


def _compare(
    report: EvaluationReport, name: SplitName, policy: Policy, severity: Severity, max_drop: float
) -> CheckResult:
    difference = report.find(name, "fused", f"{HEADLINE}_minus_{policy}")
    other, fused = report.find(name, policy), report.find(name, "fused")
    if difference is None or other is None or fused is None:
        return _unmeasured(report, f"NDCG@10 on {name} was not compared with {policy}.")
    limit = -max_drop * other.value
    return CheckResult(
        table="eval_metrics",
        expectation=f"NDCG@10 on {name} is not below that of {policy}",
        column=HEADLINE,
        severity=severity if difference.n_users >= MIN_JUDGED_USERS else "warn",
        passed=difference.ci_high >= limit,
        observed=f"{fused.value:.4f} against {other.value:.4f}: difference {difference.value:+.4f} "
        f"(95 % from {difference.ci_low:+.4f} to {difference.ci_high:+.4f}, {difference.n_users} users)",
        allowed=f"the interval may not lie below {limit:+.4f}",
        advice=_ADVICE[policy],
    )


def _unmeasured(report: EvaluationReport, note: str) -> CheckResult:
    return CheckResult(
        table="eval_metrics",
        expectation="ranking quality was measured",
        column=None,
        severity="warn",
        passed=False,
        observed=note,
        allowed="at least one user with something new and liked in the test part",
        advice="Import more events; until then a version is published without a measured quality.",
    )


_ADVICE: dict[Policy, str] = {
    "popularity": "Look at the event types and their weights in the settings, and at the newest imports: the events "
    "may not say what people like.",
    "factors": "The learned weights did not hold on the test part. Look at eval_metrics by segment of history length.",
    "text": "The learned weights did not hold on the test part. Look at eval_metrics by segment of history length.",
    "neighbours": "The neighbours of what users liked rank better than the fused score here. Look at eval_metrics by "
    "segment of history length, run tune_factors, or ask for slates with `--method neighbours`.",
    "champion": "Look at what changed since the serving version: settings, encoder, newest imports. To accept the "
    "drop, raise gates.max_quality_drop (NEARLINE_GATES__MAX_QUALITY_DROP) and run again.",
}
