"""What needs a person, judged from a status: the worst first, each with the one command to run next.

It looks at nothing itself, and knows nothing of how it is shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.domain.online import Problem
from tasks.status import FailedCheck, PlatformStatus

LATE_BATCH = timedelta(days=2)
"""Where a server runs the schedule, the nightly batch needs a look when it has not ended well for longer."""
LOOK = 'nearline sql "select reason, count(*) from quarantine group by all order by 2 desc"'
LOG = "tail -n 40 {home}/prefect/{name}.log"


@dataclass(frozen=True)
class Need:
    """One thing that a person should do something about: what it is, why or what to think of, and what to run."""

    name: str
    text: str
    advice: str
    command: str


@dataclass(frozen=True)
class Around:
    """What is known beside the warehouse: whether a server runs the schedules, what the watchdog found, which flows
    crashed last, for how long an event may wait for a refresh, and where the index is if it is a server."""

    home: str
    server_runs: bool
    findings: Sequence[Problem]
    crashed: Sequence[str]
    stalled_after_seconds: float
    index_url: str | None = None


def judge_needs(status: PlatformStatus, around: Around, *, now: datetime) -> tuple[Need, ...]:
    """Everything that needs somebody, the worst first; nothing if all is well."""
    found = (
        *_missing_rows(status),
        *_index(status, around),
        *_serving(status),
        *_stopped_gates(status),
        *_failed_flows(status),
        *_crashed_flows(around),
        *_loop(status, around),
        *_late_batch(status, around, now),
    )
    return tuple(found)


def verdict(status: PlatformStatus, needs: Sequence[Need]) -> str:
    """One line: that all is well, or what is the worst."""
    if not needs:
        return f"All well. {status.serving_version} serves."
    more = f" (and {len(needs) - 1} more)" if len(needs) > 1 else ""
    return f"Needs you: {needs[0].text}{more}"


def _missing_rows(status: PlatformStatus) -> Iterator[Need]:
    for kind in ("items", "events"):
        if not status.rows[f"raw_{kind}"]:
            advice = "Bring yours; nearline demo gives a first look with data of its own."
            yield Need(f"no_{kind}", f"There are no {kind} yet.", advice, f"nearline import {kind} PATH")
            return


def _index(status: PlatformStatus, around: Around) -> Iterator[Need]:
    if not status.index_answers:
        advice = f"The service answers from memory meanwhile; nothing is lost. The index {status.index}"
        log = LOG.format(home=around.home, name="resident")
        command = (
            f"curl {around.index_url}/healthz" if around.index_url else log if around.server_runs else "nearline up"
        )
        yield Need("index_away", "The vector index does not answer.", advice, command)


def _serving(status: PlatformStatus) -> Iterator[Need]:
    if status.serving_version is not None or not status.index_answers or not status.rows["raw_events"]:
        return
    if status.published_at is not None:
        advice = "The warehouse has a published version; the index is made again from it."
        yield Need("index_empty", "Nothing serves: the vector index is empty.", advice, "nearline rebuild-index")
    elif status.rows["raw_items"]:
        advice = "The first batch learns from what there is, and publishes it."
        yield Need("nothing_published", "Nothing is published yet.", advice, "nearline run daily_batch")


def _stopped_gates(status: PlatformStatus) -> Iterator[Need]:
    stops = [check for check in status.failed_checks if _still_stops(check, status.published_at)]
    for gate in dict.fromkeys(check.gate for check in stops):
        checks = [check for check in stops if check.gate == gate]
        first, others = checks[0], f" and {len(checks) - 1} more" if len(checks) > 1 else ""
        text = f"The gate {gate} stopped a run ({first.table}: {first.expectation}{others})."
        advice = f"{first.advice} What served before still serves." if status.published_at else first.advice
        commands = {"ingest": LOOK, "nearline": "nearline run nearline", "tune": "nearline run tune_factors"}
        yield Need("gate_stopped", text, advice, commands.get(gate, "nearline run daily_batch"))


def _still_stops(check: FailedCheck, published_at: datetime | None) -> bool:
    return check.severity == "stop" and (published_at is None or check.checked_at > published_at)


def _failed_flows(status: PlatformStatus) -> Iterator[Need]:
    for run in status.flows:
        if not run.succeeded and run.error != "GateError":
            since = f"{run.finished_at:%Y-%m-%d %H:%M} UTC"
            text = f"The last run of {run.flow} failed ({run.error}, {since})."
            advice = "Run it here to see why; it goes on where it stopped, and what served before still serves."
            yield Need("flow_failed", text, advice, f"nearline run {run.flow}")


def _crashed_flows(around: Around) -> Iterator[Need]:
    for flow in around.crashed:
        text = f"The last run of {flow} was cut off: its process was killed, or nearline up was stopped."
        yield Need("flow_crashed", text, "Nothing is lost: it goes on where it stopped.", f"nearline trigger {flow}")


def _loop(status: PlatformStatus, around: Around) -> Iterator[Need]:
    commands = {
        "schedule_stalled": "nearline trigger nearline" if around.server_runs else "nearline up",
        "slot_held": "nearline status",
        "refresh_failing": "nearline run nearline",
        "worker_gone": LOG.format(home=around.home, name="resident"),
    }
    for problem in around.findings:
        yield Need(problem.name, problem.text, problem.advice, commands.get(problem.name, "nearline status"))
    oldest = status.oldest_waiting_seconds
    late = status.n_waiting_events and (oldest is None or oldest > around.stalled_after_seconds)
    if late and not any(problem.name == "schedule_stalled" for problem in around.findings):
        text = f"{status.n_waiting_events:,} events are in no profile yet."
        if around.server_runs:
            yield Need("events_wait", text, "Refreshes do not keep up, or do not run.", "nearline trigger nearline")
        else:
            yield Need("events_wait", text, "nearline up would refresh every 15 seconds.", "nearline run nearline")


def _late_batch(status: PlatformStatus, around: Around, now: datetime) -> Iterator[Need]:
    if not around.server_runs or status.published_at is None:
        return
    ended = [run.succeeded_at for run in status.flows if run.flow == "daily_batch" and run.succeeded_at]
    last = max([*ended, status.published_at])
    if now - last > LATE_BATCH:
        text = f"The nightly batch has not ended well for {(now - last).days} days."
        advice = "Is its schedule switched on in the Prefect UI, and a worker running?"
        yield Need("batch_late", text, advice, "nearline trigger daily_batch --wait")
