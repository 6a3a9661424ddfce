"""Tuning, from a search over the parameters of the factor model to a version that is trained with what it found.

It knows nothing of how parameters are proposed or measured: that is ``tasks/tune.py``.
"""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.clock import utc_now
from flows.run_context import open_resources, run_id
from flows.run_report import RunSummary, report_run
from flows.stages import prepare, publish, recommend, train
from flows.tuning_report import say_trial
from tasks.prefect_tasks import check_gate, plan_version, reconcile, run_study


@flow(
    name="tune_factors",
    description="Search for better parameters of the factor model, in a number of minutes, and train a version with "
    "what is clearly better. That version goes through the gates of every night; if one stops it, or nothing better "
    "was found, the serving version stays. Started again on the same data, a search goes on where it was.",
    persist_result=False,
)
def tune_factors(
    minutes: Annotated[float, Field(gt=0, le=10_000)] = 30.0,
    max_trials: Annotated[int, Field(ge=1, le=10_000)] = 200,
    max_factors: Annotated[int, Field(ge=1, le=1024)] = 128,
    seed: Annotated[int, Field(ge=0)] = 0,
    slate_length: Annotated[int, Field(ge=1, le=500)] = 10,
) -> RunSummary:
    """Tune once.

    Args:
        minutes: For how long new trials are begun; those under way are finished.
        max_trials: The search also ends when the study has this many trials, those of earlier runs included.
        max_factors: Most factors that are tried. More may rank better; they make every vector and every night longer.
        seed: Seed of the proposals and of the sample of users that measure them. Another seed is another study.
        slate_length: Recommendations that are written for each user if a new version is published.
    """
    resources, settings = open_resources()
    with report_run("tune_factors", resources) as report:
        reconcile(resources, now=utc_now())
        prepare(resources)
        outcome = run_study(
            resources,
            now=utc_now(),
            clock=utc_now,
            minutes=minutes,
            max_trials=max_trials,
            seed=seed,
            max_factors=max_factors,
            on_trial=say_trial,
        )
        report.tuned(outcome)
        check_gate(resources, "tune", run_id=run_id(), now=utc_now())
        if outcome.choice is None:
            return report.close("Kept", f"The parameters stay as they are: {outcome.message}")
        plan = plan_version(resources, now=utc_now(), choice=outcome.choice)
        train(resources, settings, plan, report)
        message = publish(resources, settings, plan, report)
        recommend(resources, plan.version, slate_length)
        return report.close("Published", f"{message} Its parameters were tuned: {outcome.message}")
