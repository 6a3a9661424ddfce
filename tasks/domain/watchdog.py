"""Judges whether the nearline loop turns, from facts that somebody else gathered. It knows nothing of Prefect.

schedule_stalled   no refresh begins any more, or events wait for too long
slot_held          a run that no process works on keeps others from beginning
refresh_failing    the last refreshes all failed
worker_gone        the process that runs the refreshes is silent
"""

from dataclasses import dataclass

from tasks.domain.online import Problem

MISSED_INTERVALS = 4
"""A schedule counts as stalled after so many intervals without a run."""
SILENT_SECONDS = 30.0
"""A worker counts as gone when it has said nothing for longer."""
ORPHAN_SECONDS = 20.0
"""A run counts as abandoned when nobody has worked on it for longer: handing one over takes a moment."""
FAILED_RUNS = 3
"""Refreshes in a row that must fail before it is called a failing."""
FINDINGS = ("schedule_stalled", "slot_held", "refresh_failing", "worker_gone")
"""Names of what can be found."""


@dataclass(frozen=True)
class LoopRun:
    """A run of the loop: when it began, in seconds before now, and its state's type (``COMPLETED``, ``FAILED``, ...)
    and message."""

    began_seconds_ago: float
    state_type: str
    message: str = ""


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that began and has not ended. ``has_process``: whether somebody works on it; None if that cannot be seen
    from here."""

    run_id: str
    flow: str
    since_seconds: float
    has_process: bool | None


@dataclass(frozen=True)
class LoopFacts:
    """One look at the loop.

    ``watched_seconds`` is how long the loop has been up. ``interval_seconds`` is None where the schedule is switched
    off. ``runs`` are the last ones, the newest first. ``idle_slots`` are deployments of which a slot is taken while no
    run of theirs is unfinished. ``worker_silent_seconds`` is None where nobody watches a worker.
    """

    watched_seconds: float
    interval_seconds: float | None
    stalled_after_seconds: float
    n_waiting_events: int
    oldest_waiting_seconds: float
    runs: tuple[LoopRun, ...] = ()
    unfinished: tuple[UnfinishedRun, ...] = ()
    idle_slots: tuple[str, ...] = ()
    worker_silent_seconds: float | None = None


def judge_loop(facts: LoopFacts) -> tuple[Problem, ...]:
    """What is wrong with the loop, each thing once; nothing if it turns."""
    found = (_worker_gone(facts), _slot_held(facts), _refresh_failing(facts), _schedule_stalled(facts))
    return tuple(problem for problem in found if problem is not None)


def abandoned_runs(facts: LoopFacts) -> tuple[UnfinishedRun, ...]:
    """Runs that no process works on any more."""
    return tuple(run for run in facts.unfinished if run.has_process is False and run.since_seconds > ORPHAN_SECONDS)


def _worker_gone(facts: LoopFacts) -> Problem | None:
    silent = facts.worker_silent_seconds
    if silent is None or silent <= SILENT_SECONDS:
        return None
    return Problem(
        "worker_gone",
        f"The worker of the refresh has been silent for {silent:.0f} s.",
        "nearline up starts it again; its log NEARLINE_HOME/prefect/resident.log says why it ended.",
    )


def _slot_held(facts: LoopFacts) -> Problem | None:
    runs = abandoned_runs(facts)
    if not runs and not facts.idle_slots:
        return None
    held = sorted({*(run.flow for run in runs), *facts.idle_slots})
    return Problem(
        "slot_held",
        f"A concurrency slot of {', '.join(held)} is taken, and no process works on the run.",
        "nearline up frees it. Elsewhere: set the run to Crashed in the Prefect UI.",
    )


def _refresh_failing(facts: LoopFacts) -> Problem | None:
    ended = [run for run in facts.runs if run.state_type in ("COMPLETED", "FAILED", "CRASHED")][:FAILED_RUNS]
    if len(ended) < FAILED_RUNS or any(run.state_type == "COMPLETED" for run in ended):
        return None
    why = ended[0].message.split("\n", 1)[0][:300]
    return Problem(
        "refresh_failing",
        f"The last {FAILED_RUNS} refreshes failed, the newest with: {why or 'no message'}",
        "Profiles stay as they are until this is mended; no event is lost. nearline run nearline shows it here.",
    )


def _schedule_stalled(facts: LoopFacts) -> Problem | None:
    if facts.n_waiting_events and facts.oldest_waiting_seconds > facts.stalled_after_seconds:
        return Problem(
            "schedule_stalled",
            f"{facts.n_waiting_events:,} events wait for a refresh, the oldest for "
            f"{facts.oldest_waiting_seconds:.0f} s (allowed: {facts.stalled_after_seconds:g} s).",
            "If runs succeed, it is catching up. If there are none: is nearline up running, and the schedule of the "
            "deployment nearline switched on?",
        )
    if facts.interval_seconds is None:
        return None
    last = min([facts.watched_seconds, *(run.began_seconds_ago for run in facts.runs[:1])])
    allowed = max(MISSED_INTERVALS * facts.interval_seconds, facts.stalled_after_seconds)
    if last <= allowed:
        return None
    return Problem(
        "schedule_stalled",
        f"No refresh has begun for {last:.0f} s; one is due every {facts.interval_seconds:g} s.",
        "Is the deployment nearline paused in the Prefect UI? nearline trigger nearline asks for a run.",
    )
