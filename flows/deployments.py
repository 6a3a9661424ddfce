"""The deployments of ``prefect.yaml`` on a Prefect server: register them, trigger one, clear up after a crash.

It knows nothing of who started the server. Prefect's environment must be prepared before this module is imported.
"""

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from tasks.domain.errors import InputError, NotFoundError, TerminalError, TransientError

WORK_POOL, RESIDENT_POOL = "nearline", "nearline-resident"
RESIDENT_TYPE = "nearline-resident"
WAITING_STATES = ["Scheduled", "Late", "AwaitingConcurrencySlot", "Cancelled"]
UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]
_PAGE = 200


@dataclass(frozen=True)
class TriggeredRun:
    """A run that was asked for: its name, where to look at it, and its state when last seen."""

    id: str
    name: str
    url: str
    state: str
    message: str
    is_final: bool
    succeeded: bool


@dataclass(frozen=True)
class RecentRun:
    """The last run of a flow that began."""

    flow: str
    began_at: datetime | None
    state: str
    message: str
    succeeded: bool


def deployments_file() -> Path:
    """``prefect.yaml``: beside the packages in a checkout, inside ``flows`` in an installed wheel."""
    inside = Path(__file__).with_name("prefect.yaml")
    return inside if inside.exists() else Path(__file__).parents[1] / "prefect.yaml"


def make_work_pools() -> None:
    """Make the work pools where they are missing; one that is there keeps what was set in the UI."""
    with _connected() as client:
        for pool in _work_pools():
            try:
                client.read_work_pool(pool.name)
            except ObjectNotFound:
                client.create_work_pool(pool)


def _work_pools() -> tuple[WorkPoolCreate, ...]:
    template = ProcessWorker.get_default_base_job_template()
    return (
        WorkPoolCreate(
            name=WORK_POOL,
            type="process",
            description="Runs the flows of Nearline as processes of the machine where its worker lives.",
            base_job_template=template,
        ),
        WorkPoolCreate(
            name=RESIDENT_POOL,
            type=RESIDENT_TYPE,
            description="Runs the nearline loop inside one process that stays: the resident worker of nearline up.",
            base_job_template=template,
        ),
    )


def register_deployments() -> None:
    """Make or change every deployment as ``prefect.yaml`` says. Raises TerminalError with what Prefect said."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    command += ["--prefect-file", str(deployments_file())]
    environment = {**os.environ, "PWD": str(Path.cwd())}  # prefect.yaml asks for it: runs start where this one did
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise TerminalError(
            f"Registering the deployments of {deployments_file()} failed:\n{done.stdout}{done.stderr}\n"
            "Correct the file, or see whether the server of PREFECT_API_URL can be reached."
        )


def crash_unfinished_runs(why: str, *, worker: str | None = None) -> int:
    """End the runs that no process works on any more, and free the slots of their concurrency limits.

    All of them, for the owner of the server, who knows that no worker is left; or those that a worker of that name took
    up, for its successor on a server that others use too. Returns their number.
    """
    with get_client(sync_client=True) as client:
        runs = [run for run in _runs(client, {"type": {"any_": UNFINISHED}}) if run.deployment_id is not None]
        if worker is not None:
            runs = [run for run in runs if run.labels.get("prefect.worker.name") == worker]
        for run in runs:
            client.set_flow_run_state(run.id, Crashed(message=why), force=True)
    return len(runs)


def drop_missed_runs(now: datetime) -> int:
    """Of the scheduled runs of each deployment whose time has passed, keep the newest. Returns how many went."""
    missed: defaultdict[UUID | None, list[FlowRun]] = defaultdict(list)
    with get_client(sync_client=True) as client:
        for run in _runs(client, {"type": {"any_": ["SCHEDULED"]}}):
            if run.auto_scheduled and run.expected_start_time and run.expected_start_time < now:
                missed[run.deployment_id].append(run)
        older = [
            run for runs in missed.values() for run in sorted(runs, key=lambda r: r.expected_start_time or now)[:-1]
        ]
        for run in older:
            client.delete_flow_run(run.id)
    return len(older)


def trigger_flow(flow: str, parameters: Mapping[str, Any]) -> TriggeredRun:
    """Ask the server for a run of a deployment, as its REST API does.

    Raises NotFoundError for an unknown flow, InputError for parameters that it does not take, TransientError if the
    server does not answer.
    """
    with _connected() as client:
        try:
            deployment = client.read_deployment_by_name(f"{flow}/{flow}")
        except ObjectNotFound:
            known = sorted(str(deployment.name) for deployment in client.read_deployments())
            raise NotFoundError(
                f"The server has no deployment {flow!r}. It has: {', '.join(known) or 'none'}. "
                "nearline up registers those of prefect.yaml."
            ) from None
        known = sorted((deployment.parameter_openapi_schema or {}).get("properties", {}))
        foreign = sorted(set(parameters) - set(known))
        try:
            if foreign:
                raise _refused(flow, parameters, f"it does not take {', '.join(foreign)}.", known)
            run = client.create_flow_run_from_deployment(deployment.id, parameters=dict(parameters))
        except PrefectHTTPStatusError as error:
            raise _refused(flow, parameters, _detail(error), known) from None
        return _seen(client, run)


def wait_for_run(
    run: TriggeredRun, on_change: Callable[[TriggeredRun], None], poll_seconds: float = 1.0
) -> TriggeredRun:
    """Follow a run to its end; ``on_change`` is called whenever its state is another one."""
    with _connected() as client:
        while True:
            seen = _seen(client, client.read_flow_run(UUID(run.id)))
            if (seen.state, seen.message) != (run.state, run.message):
                on_change(seen)
            if seen.is_final:
                return seen
            run = seen
            time.sleep(poll_seconds)


def load_recent_runs() -> tuple[str, list[RecentRun]]:
    """Where the UI is, and of each flow the last run that began."""
    found: list[RecentRun] = []
    with get_client(sync_client=True) as client:
        for flow in client.read_flows():
            runs = client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"id": {"any_": [flow.id]}}),
                flow_run_filter=FlowRunFilter.model_validate({"state": {"name": {"not_any_": WAITING_STATES}}}),
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=1,
            )
            for run in runs:
                seen = _seen(client, run)
                fine = seen.succeeded or not seen.is_final
                message = seen.message.split("\n", 1)[0]
                found.append(RecentRun(flow.name, run.start_time, seen.state, message, fine))
        return _ui_url(client), found


@contextmanager
def _connected() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        if client.api_healthcheck() is not None:
            raise TransientError(
                f"The Prefect server at {client.api_url} does not answer. Start one with nearline up, or set "
                "PREFECT_API_URL to the one you mean."
            )
        yield client


def _seen(client: SyncPrefectClient, run: FlowRun) -> TriggeredRun:
    state = run.state
    return TriggeredRun(
        id=str(run.id),
        name=run.name,
        url=f"{_ui_url(client)}/runs/flow-run/{run.id}",
        state=state.name if state and state.name else "Unknown",
        message=(state.message or "") if state else "",
        is_final=bool(state and state.is_final()),
        succeeded=bool(state and state.type == StateType.COMPLETED),
    )


def _ui_url(client: SyncPrefectClient) -> str:
    return str(client.api_url).rstrip("/").removesuffix("/api")


def _runs(client: SyncPrefectClient, state: dict[str, Any]) -> list[FlowRun]:
    found: list[FlowRun] = []
    wanted = FlowRunFilter.model_validate({"state": state})
    while True:
        page = client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found


def _refused(flow: str, parameters: Mapping[str, Any], why: str, known: list[str]) -> InputError:
    return InputError(
        f"Triggering {flow} with {dict(parameters)} was refused: {why} Its parameters: {', '.join(known)}. "
        "See docs/flows.md."
    )


def _detail(error: PrefectHTTPStatusError) -> str:
    try:
        return str(error.response.json().get("detail", "")).rstrip(".") + "."
    except (ValueError, httpx.HTTPError):
        return str(error)
