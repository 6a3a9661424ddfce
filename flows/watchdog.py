"""The eyes and hands of the watchdog: gathers facts from the server and the resident worker, frees what is held.

What the facts mean is judged in ``tasks/domain/watchdog.py``. Prefect's environment must be prepared before this module
is imported.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Crashed

from flows.deployments import RESIDENT_POOL, UNFINISHED
from infra.loop_files import Beat, process_lives, read_beat, write_findings
from infra.prefect_events import emit
from infra.settings import Settings
from tasks.domain.online import Problem
from tasks.domain.watchdog import (
    LoopFacts,
    LoopRun,
    UnfinishedRun,
    abandoned_runs,
    judge_loop,
)

LOOP = "nearline"
LONGEST_RUN_SECONDS = 1800.0
"""A run of the loop that takes longer hangs: its process is started anew, and the next run goes on from there."""
WATCHDOG_EVENT, WATCHDOG_RESOURCE = "nearline.watchdog", "nearline.loop"

logger = logging.getLogger(__name__)


class Watchdog:
    """Looks at the loop when it is asked to. ``restart_worker`` is called when that helps.

    ``owns_server``: every process that works for the server is one of this machine, so that it can be seen whether it
    lives.
    """

    def __init__(self, settings: Settings, *, owns_server: bool, restart_worker: Callable[[str], None]) -> None:
        self._home = settings.home
        self._stalled_after = settings.nearline.stalled_after_seconds
        self._owns_server = owns_server
        self._restart_worker = restart_worker
        self._since = time.time()
        self._known: frozenset[str] = frozenset()
        self._idle_before: frozenset[str] = frozenset()

    def look(self, now: datetime) -> tuple[Problem, ...]:
        """Judge the loop, tell what is new, and mend what can be mended; nothing if the server does not answer."""
        beat = read_beat(self._home)
        try:
            with get_client(sync_client=True) as client:
                facts = self._facts(client, beat, now)
                problems = judge_loop(facts)
                self._free(client, facts)
        except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound) as error:
            logger.warning("watchdog_blind reason=%s", type(error).__name__)
            return ()
        with suppress(OSError):
            write_findings(self._home, problems, now)
        self._tell(problems)
        if any(problem.name == "worker_gone" for problem in problems) and beat is not None and beat.is_alive:
            self._restart_worker("it is silent")
        return problems

    def _facts(self, client: SyncPrefectClient, beat: Beat | None, now: datetime) -> LoopFacts:
        deployments = client.read_deployments()
        loop = next((d for d in deployments if d.name == LOOP), None)
        unfinished = client.read_flow_runs(flow_run_filter=_filter({"state": {"type": {"any_": UNFINISHED}}}))
        oldest = beat.oldest_waiting_at if beat else None
        idle = self._idle_slots(deployments, unfinished)
        facts = LoopFacts(
            watched_seconds=now.timestamp() - self._since,
            interval_seconds=_interval(loop),
            stalled_after_seconds=self._stalled_after,
            n_waiting_events=beat.n_waiting_events if beat else 0,
            oldest_waiting_seconds=now.timestamp() - oldest if oldest else 0.0,
            runs=_last_runs(client, loop, now) if loop else (),
            unfinished=tuple(self._unfinished(run, deployments, beat, now) for run in unfinished if run.deployment_id),
            idle_slots=tuple(sorted(idle & self._idle_before)),  # for a moment, any slot may look idle
            worker_silent_seconds=self._silence(beat, now),
        )
        self._idle_before = idle
        return facts

    def _silence(self, beat: Beat | None, now: datetime) -> float:
        last = self._since if beat is None else max(beat.at, self._since)
        if beat is not None and beat.is_alive and beat.at > self._since:
            busy = beat.run_began_at is not None and now.timestamp() - beat.run_began_at < LONGEST_RUN_SECONDS
            last = beat.at if busy else max(beat.polled_at, self._since)
        return max(now.timestamp() - last, 0.0)

    def _unfinished(
        self, run: FlowRun, deployments: list[DeploymentResponse], beat: Beat | None, now: datetime
    ) -> UnfinishedRun:
        deployment = next((d for d in deployments if d.id == run.deployment_id), None)
        has_process: bool | None = None
        if self._owns_server and run.work_pool_name == RESIDENT_POOL:
            has_process = beat is not None and beat.is_alive and beat.run_id == str(run.id)
        elif self._owns_server and run.infrastructure_pid and run.infrastructure_pid.isdigit():
            has_process = process_lives(int(run.infrastructure_pid))
        since = run.state.timestamp if run.state and run.state.timestamp else now
        name = deployment.name if deployment else "a deployment that is gone"
        return UnfinishedRun(str(run.id), name, (now - since).total_seconds(), has_process)

    def _idle_slots(self, deployments: list[DeploymentResponse], unfinished: list[FlowRun]) -> frozenset[str]:
        """Deployments whose limit counts a run that there is not."""
        busy = {run.deployment_id for run in unfinished}
        taken = [d for d in deployments if d.global_concurrency_limit and d.global_concurrency_limit.active_slots > 0]
        return frozenset(d.name for d in taken if d.id not in busy) if self._owns_server else frozenset()

    def _free(self, client: SyncPrefectClient, facts: LoopFacts) -> None:
        for run in abandoned_runs(facts):
            message = "No process works on this run any more. Nothing is lost: run it again."
            client.set_flow_run_state(run.run_id, Crashed(message=message), force=True)
            logger.warning("run_freed flow=%s", run.flow)
        for deployment in client.read_deployments() if facts.idle_slots else ():
            limit = deployment.global_concurrency_limit
            if deployment.name in facts.idle_slots and limit is not None and limit.active_slots:
                client.release_concurrency_slots([limit.name], limit.active_slots, occupancy_seconds=1.0)
                logger.warning("slot_freed flow=%s", deployment.name)

    def _tell(self, problems: tuple[Problem, ...]) -> None:
        """An event for each finding that was not there at the last look."""
        for problem in problems:
            if problem.name not in self._known:
                payload = {"text": problem.text, "advice": problem.advice}
                emit(f"{WATCHDOG_EVENT}.{problem.name}", WATCHDOG_RESOURCE, payload, home=self._home)
        self._known = frozenset(problem.name for problem in problems)


def _last_runs(client: SyncPrefectClient, loop: DeploymentResponse, now: datetime) -> tuple[LoopRun, ...]:
    began = {"type": {"any_": ["RUNNING", "COMPLETED", "FAILED", "CRASHED"]}}
    runs = client.read_flow_runs(
        flow_run_filter=_filter({"deployment_id": {"any_": [loop.id]}, "state": began}),
        sort=FlowRunSort.START_TIME_DESC,
        limit=5,
    )
    return tuple(
        LoopRun((now - run.start_time).total_seconds(), run.state.type.value, run.state.message or "")
        for run in runs
        if run.start_time is not None and run.state is not None
    )


def _interval(loop: DeploymentResponse | None) -> float | None:
    """Seconds between two runs, by the shortest schedule that is switched on."""
    if loop is None or loop.paused:
        return None
    schedules = [entry.schedule for entry in loop.schedules if entry.active]
    found = [schedule.interval.total_seconds() for schedule in schedules if isinstance(schedule, IntervalSchedule)]
    return min(found, default=None)


def _filter(wanted: dict[str, object]) -> FlowRunFilter:
    return FlowRunFilter.model_validate(wanted)
