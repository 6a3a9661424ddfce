"""The plain functions of ``tasks/`` as Prefect tasks. It knows nothing of what they do.

This is the only module under ``tasks/`` that imports Prefect, so that the command line and the HTTP service, which call
the plain functions, answer without importing it.

One policy for all of them:

- a retry on a ``TransientError`` alone (by type), three times, after 2, 10 and 30 seconds: the others would fail again;
- no Prefect cache and no persisted result: a stage finds out by content whether there is something to do, so that a run
  that is started again re-uses what is done, and the results are small receipts that the flow needs only once.

The ``Resources`` argument is handed over as the same object: with ``NO_CACHE`` it is neither hashed nor serialised, and
Prefect's search for futures in it costs 0.4 ms.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import task_run

from tasks import (
    arrivals,
    backfill,
    embed,
    evaluate,
    ingest,
    maintain,
    neighbours,
    publish,
    quality,
    slates,
    status,
    train,
    transform,
    tune,
)
from tasks import refresh as nearline
from tasks.domain.errors import NearlineError, TransientError
from tasks.domain.records import NearlineRun, Receipt
from tasks.progress import StageEvent, tell

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS_SECONDS = [2.0, 10.0, 30.0]


def is_transient(_task: "Task[..., Any]", _task_run: TaskRun, state: "State[Any]") -> bool:
    """Whether a retry may help: the type of the error decides."""
    return isinstance(state.data, TransientError)


def as_task(function: Callable[P, R], *, run_name: str | None = None) -> "Task[P, R]":
    """A plain function as a task that logs its receipts and tells whoever watches when it starts and ends."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        started = time.perf_counter()
        stage = task_run.name or function.__name__
        tell(StageEvent(stage, "started"))
        try:
            result = function(*args, **kwargs)
        except NearlineError as error:
            tell(StageEvent(stage, "failed", seconds=time.perf_counter() - started, note=str(error)))
            raise
        receipts = _receipts(result)
        for receipt in receipts:
            get_run_logger().info(_line(receipt))
        tell(StageEvent(stage, "finished", seconds=time.perf_counter() - started, receipts=receipts))
        return result

    decorate = task(
        name=function.__name__,
        description=(function.__doc__ or "").split("\n", 1)[0],
        task_run_name=run_name or function.__name__,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_condition_fn=is_transient,
    )
    return decorate(run)


def _receipts(result: object) -> tuple[Receipt, ...]:
    if isinstance(result, NearlineRun):
        return (_refresh_receipt(result),)
    found = result if isinstance(result, list | tuple) else (result,)
    return tuple(part for part in found if isinstance(part, Receipt))


def _refresh_receipt(run: NearlineRun) -> Receipt:
    """A refresh in the form that all stages share: events in, profiles out."""
    where = f"user_profiles, users__{run.version}"
    note = run.note or f"snapshots {run.from_snapshot} to {run.to_snapshot}"
    seconds = (run.finished_at - run.started_at).total_seconds()
    return Receipt("refresh", run.n_events, run.n_users, where, seconds, version=run.version, note=note)


def _line(receipt: Receipt) -> str:
    fields = [
        f"stage={receipt.stage}",
        f"rows_in={receipt.n_in}",
        f"rows_out={receipt.n_out}",
        f"seconds={receipt.seconds:.2f}",
        f"reused={str(receipt.reused).lower()}",
        f"location={receipt.location!r}",
    ]
    if receipt.version:
        fields.append(f"version={receipt.version}")
    if receipt.note:
        fields.append(f"note={receipt.note!r}")
    return "stage_finished " + " ".join(fields)


reconcile = as_task(publish.reconcile)
import_files = as_task(ingest.import_files, run_name="import_files {kind}")
build_models = as_task(transform.build_models)
embed_items = as_task(embed.embed_items)
embed_texts = as_task(embed.embed_texts)
check_gate = as_task(quality.check_gate, run_name="check_gate {gate}")
record_checks = as_task(quality.record_checks, run_name="record_checks {gate}")
plan_version = as_task(train.plan_version)
run_study = as_task(tune.run_study)
learn_version = as_task(train.learn_version)
evaluate_version = as_task(evaluate.evaluate_version)
refit_version = as_task(train.refit_version)
write_neighbours = as_task(neighbours.write_neighbours)
publish_version = as_task(publish.publish_version)
write_slates = as_task(slates.write_slates)
bring_items = as_task(arrivals.bring_items)
refresh = as_task(nearline.refresh)
recompute_profiles = as_task(backfill.recompute_profiles)
load_serving_version = as_task(status.load_serving_version)
run_maintenance = as_task(maintain.run_maintenance)
