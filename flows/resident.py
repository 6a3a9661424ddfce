"""The resident worker: runs the flows of the work pool ``nearline-resident`` in its own process, one at a time.

What a run needs is imported and opened once, so that a refresh costs no start. To Prefect its runs are like any other:
scheduled, triggered or asked for by hand. ``nearline up`` starts it (``python -m flows.resident``), and again when it
ends. It knows nothing of what the flows do, beyond that empty runs of the loop need not be kept.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import Abort, ObjectNotFound, Pause, PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Cancelled, Crashed, Pending

from flows.clock import utc_now
from flows.deployments import RESIDENT_POOL
from flows.run_context import share_resources
from flows.stopping import stop_on_signals
from infra.kept_open import KeptOpenResources
from infra.loop_files import Beat, process_began_at, read_beat, write_beat
from infra.math_threads import limit_math_threads
from infra.prefect_events import emit
from infra.settings import Settings, load_settings
from tasks.domain.errors import NearlineError
from tasks.domain.fold_in import load_kernels
from tasks.run_records import SKIPPED
from tasks.status import Waiting, load_serving_version, load_waiting

POLL_SECONDS = 1.0
"""How often work is asked for. What is due before the next time is known beforehand, and begins when it is due."""
SOON_SECONDS = 0.02
BEAT_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
AWAY_SECONDS = 2.0
"""How long to wait before asking a server again that did not answer."""
ASK_AGAIN_SECONDS = 10.0
"""How long an event that asked for a refresh is given to bring one."""
KEEP_EMPTY = timedelta(hours=6)
EXPIRE_EVERY_SECONDS = 600.0
EXPIRE_AT_MOST = 500
_BULK = 50
MOST_GROWTH_BYTES = 1 << 30
"""The process ends itself between two runs, to be started anew, when it has grown by more since its first run."""
WAITING_EVENT, WAITING_RESOURCE = "nearline.events.waiting", "nearline.events"

logger = logging.getLogger(__name__)


def main() -> int:
    """Work until SIGTERM; the exit code is 0."""
    settings = load_settings()
    logger.setLevel(settings.log_level)
    limit_math_threads()
    resources = KeptOpenResources(settings)
    load_kernels()
    with stop_on_signals(signal.SIGTERM), share_resources(resources):
        ResidentWorker(settings, resources).work()
    resources.close()
    return 0


def merge_backlog(runs: Sequence[FlowRun]) -> tuple[list[FlowRun], list[FlowRun]]:
    """Runs that are due, as (to do, to drop): of those that a schedule made, only the newest of each deployment is
    done, since it does the work of the others; those that somebody asked for are all done, the oldest first."""
    newest: dict[UUID | None, FlowRun] = {}
    for run in sorted(runs, key=_due_at):
        if run.auto_scheduled:
            newest[run.deployment_id] = run
    kept = {run.id for run in newest.values()}
    todo = [run for run in runs if not run.auto_scheduled or run.id in kept]
    drop = [run for run in runs if run.auto_scheduled and run.id not in kept]
    return sorted(todo, key=_due_at), drop


@dataclass
class _Doing:
    """What the worker does at this moment; read by the thread that writes the beats."""

    polled_at: float = field(default_factory=time.time)
    run_id: str | None = None
    run_began_at: float | None = None
    waiting: Waiting | None = None


class ResidentWorker:
    """Asks for work and does it, in the thread that calls ``work``; a thread of its own tells that it lives."""

    def __init__(self, settings: Settings, resources: KeptOpenResources) -> None:
        self._home = settings.home
        self._trigger_events = settings.nearline.trigger_events
        self._resources = resources
        self._flows: dict[UUID, Flow[..., Any]] = {}
        self._doing = _Doing()
        self._snapshot = -1
        self._asked_at = float("-inf")
        self._expired_at = time.monotonic()
        self._first_size: int | None = None

    def work(self) -> None:
        """Do what is due, for ever; returns when the process should be started anew."""
        previous = read_beat(self._home)
        with get_client(sync_client=True) as client, _beating(self._home, self._doing):
            if previous is not None:
                _settle_previous(client, previous)
            while not self._has_grown():
                try:
                    wait = self._do_next(client)
                    if wait:
                        self._use_pause(client)
                        time.sleep(wait)
                except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound) as error:
                    logger.warning("server_away reason=%s", type(error).__name__)
                    time.sleep(AWAY_SECONDS)

    def _do_next(self, client: SyncPrefectClient) -> float:
        """Do the run that has been due for longest. Returns 0, or if none is due the seconds until one may be."""
        until = utc_now() + timedelta(seconds=POLL_SECONDS)
        found = client.get_scheduled_flow_runs_for_work_pool(RESIDENT_POOL, scheduled_before=until)
        now = self._doing.polled_at = time.time()
        runs = [entry.flow_run for entry in found]
        todo, drop = merge_backlog([run for run in runs if _due_at(run) <= now + SOON_SECONDS])
        for run in drop:
            with suppress(ObjectNotFound):
                client.delete_flow_run(run.id)
        if todo and self._do(client, todo[0]):
            return 0.0
        later = [_due_at(run) - now for run in runs if _due_at(run) > now + SOON_SECONDS]
        return min([POLL_SECONDS, *later])

    def _do(self, client: SyncPrefectClient, run: FlowRun) -> bool:
        flow = self._flow_of(client, run)
        if client.set_flow_run_state(run.id, Pending()).status != SetStateStatus.ACCEPT:
            return False  # cancelled meanwhile, or its slot is taken: the server says when to ask again
        self._doing.run_id, self._doing.run_began_at = str(run.id), time.time()
        try:
            run_flow(flow, flow_run=_without_observer(client.read_flow_run(run.id)), return_type="state")
        except (Abort, Pause):
            pass
        except Exception as error:  # whatever a run does, the next one gets its turn
            logger.error("run_lost reason=%s", type(error).__name__)
            self._resources.close()
        finally:
            self._doing.run_id = self._doing.run_began_at = None
        self._settle(client, run.id)
        self._asked_at = float("-inf")
        self._snapshot = -1
        return True

    def _settle(self, client: SyncPrefectClient, run_id: UUID) -> None:
        """A run that has returned has ended, whatever happened to its last words; one that failed may have left the
        warehouse it used in disorder, which is opened anew."""
        state = client.read_flow_run(run_id).state
        if state is None or state.type != StateType.COMPLETED:
            self._resources.close()
        if state is None or state.is_final():
            return
        last: State[Any]
        if state.type == StateType.CANCELLING:
            last = Cancelled(message="The run had ended when the wish to cancel it was seen.")
        else:
            last = Crashed(message="The run ended without a word. Nothing is lost: the next one does its work.")
        client.set_flow_run_state(run_id, last, force=True)

    def _flow_of(self, client: SyncPrefectClient, run: FlowRun) -> Flow[..., Any]:
        assert run.deployment_id is not None  # the pool's runs come from deployments
        if run.deployment_id not in self._flows:
            entrypoint = client.read_deployment(run.deployment_id).entrypoint
            self._flows[run.deployment_id] = load_flow_from_entrypoint(str(entrypoint), use_placeholder_flow=False)
        return self._flows[run.deployment_id]

    def _use_pause(self, client: SyncPrefectClient) -> None:
        """Between two runs: see whether enough events wait, and let go of old empty runs."""
        self._look_for_events()
        if time.monotonic() - self._expired_at > EXPIRE_EVERY_SECONDS:
            self._expired_at = time.monotonic()
            n_gone = expire_empty_runs(client, list(self._flows), utc_now() - KEEP_EMPTY)
            logger.info("empty_runs_expired rows=%d", n_gone)

    def _look_for_events(self) -> None:
        """Count what waits when the warehouse has changed, and ask for a refresh by an event when it is enough."""
        try:
            with self._resources.warehouse(read_only=True) as warehouse:
                snapshot = warehouse.latest_snapshot()
                if snapshot != self._snapshot:
                    waiting = load_waiting(warehouse, load_serving_version(self._resources))
                    self._snapshot, self._doing.waiting = snapshot, waiting
        except NearlineError as error:
            logger.warning("events_not_counted reason=%s", type(error).__name__)
            self._resources.close()
            return
        waiting = self._doing.waiting
        is_enough = waiting is not None and waiting.n_events >= self._trigger_events
        if waiting is not None and is_enough and time.monotonic() - self._asked_at > ASK_AGAIN_SECONDS:
            self._asked_at = time.monotonic()
            payload = {"events": waiting.n_events, "trigger_events": self._trigger_events, "snapshot": snapshot}
            emit(WAITING_EVENT, WAITING_RESOURCE, payload)

    def _has_grown(self) -> bool:
        size = _resident_bytes()
        if self._first_size is None and self._flows:
            self._first_size = size
        grown = size - (self._first_size or size)
        if grown > MOST_GROWTH_BYTES:
            logger.warning("worker_has_grown megabytes=%d", grown >> 20)
        return grown > MOST_GROWTH_BYTES


def expire_empty_runs(client: SyncPrefectClient, deployments: Sequence[UUID], before: datetime) -> int:
    """Delete runs of these deployments that had nothing to do and ended before a time, the oldest some hundreds at
    most. Returns their number."""
    if not deployments:
        return 0
    wanted: Mapping[str, object] = {
        "deployment_id": {"any_": [str(deployment) for deployment in deployments]},
        "state": {"name": {"any_": [SKIPPED]}},
        "end_time": {"before_": before.isoformat()},
    }
    path: Any = "/flow_runs/bulk_delete"  # not among the paths that the client's types know
    n_gone = 0
    while n_gone < EXPIRE_AT_MOST:
        answer = client.request("POST", path, json={"flow_runs": wanted, "limit": _BULK})
        deleted = len(answer.json()["deleted"])
        n_gone += deleted
        if deleted < _BULK:
            break
    return n_gone


def _settle_previous(client: SyncPrefectClient, previous: Beat) -> None:
    """The run that a worker before this one was at when it died: it is over, and its slot is free."""
    if previous.run_id is None or previous.is_alive:
        return
    with suppress(ObjectNotFound):
        state = client.read_flow_run(UUID(previous.run_id)).state
        if state is not None and not state.is_final():
            message = "The resident worker ended while this ran. Nothing is lost: the next run does its work."
            client.set_flow_run_state(UUID(previous.run_id), Crashed(message=message), force=True)


@contextmanager
def _beating(home: Path, doing: _Doing) -> Iterator[None]:
    """Tell every second, in a thread, what the worker does, and every few seconds the server that it lives."""
    stop = threading.Event()
    write_beat(home, _beat_of(doing))

    def beat() -> None:
        told = float("-inf")
        with get_client(sync_client=True) as client:
            while not stop.is_set():
                with suppress(OSError):
                    write_beat(home, _beat_of(doing))
                if time.monotonic() - told > HEARTBEAT_SECONDS:
                    with suppress(httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound):
                        client.send_worker_heartbeat(RESIDENT_POOL, f"resident-{os.getpid()}", HEARTBEAT_SECONDS)
                    told = time.monotonic()
                stop.wait(BEAT_SECONDS)

    thread = threading.Thread(target=beat, name="resident-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2)


def _beat_of(doing: _Doing) -> Beat:
    waiting = doing.waiting
    return Beat(
        pid=os.getpid(),
        pid_began_at=process_began_at(os.getpid()),
        at=time.time(),
        polled_at=doing.polled_at,
        run_id=doing.run_id,
        run_began_at=doing.run_began_at,
        n_waiting_events=waiting.n_events if waiting else 0,
        oldest_waiting_at=waiting.oldest_at.timestamp() if waiting and waiting.oldest_at else None,
    )


def _without_observer(run: FlowRun) -> FlowRun:
    """The run as the engine is given it. For a run of a deployment it would open a connection of its own to see whether
    somebody suspends it; that takes longer than an empty run, and leaves 8 MB behind for each hundred."""
    return run.model_copy(update={"deployment_id": None})


def _due_at(run: FlowRun) -> float:
    due = run.next_scheduled_start_time or run.expected_start_time
    return due.timestamp() if due else 0.0


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


if __name__ == "__main__":
    sys.exit(main())
