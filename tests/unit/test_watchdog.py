"""The watchdog's judgement: each finding by the facts that make it, and nothing where the loop turns."""

from dataclasses import replace

import pytest

from tasks.domain.watchdog import FINDINGS, LoopFacts, LoopRun, UnfinishedRun, abandoned_runs, judge_loop

DONE = LoopRun(5.0, "COMPLETED")
FAILED = LoopRun(5.0, "FAILED", "the gate stopped\nand more")
WELL = LoopFacts(
    watched_seconds=1000.0,
    interval_seconds=15.0,
    stalled_after_seconds=60.0,
    n_waiting_events=12,
    oldest_waiting_seconds=10.0,
    runs=(DONE, LoopRun(20.0, "COMPLETED")),
    worker_silent_seconds=1.0,
)


def names(**changes):
    return [problem.name for problem in judge_loop(replace(WELL, **changes))]


def test_a_loop_that_turns_has_no_findings():
    assert names() == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"oldest_waiting_seconds": 61.0}, "schedule_stalled"),
        ({"runs": (LoopRun(61.0, "COMPLETED"),)}, "schedule_stalled"),
        ({"runs": ()}, "schedule_stalled"),
        ({"worker_silent_seconds": 31.0}, "worker_gone"),
        ({"runs": (FAILED, LoopRun(20.0, "CRASHED"), FAILED, DONE)}, "refresh_failing"),
        ({"idle_slots": ("nearline",)}, "slot_held"),
        ({"unfinished": (UnfinishedRun("r", "daily_batch", 21.0, has_process=False),)}, "slot_held"),
    ],
)
def test_each_finding_has_its_facts_a_sentence_and_advice(changes, finding):
    (problem,) = judge_loop(replace(WELL, **changes))
    assert problem.name == finding
    assert finding in FINDINGS
    assert problem.text.endswith((".", "stopped"))
    assert problem.advice


@pytest.mark.parametrize(
    "changes",
    [
        {"n_waiting_events": 0, "oldest_waiting_seconds": 1e6},
        {"runs": (), "watched_seconds": 59.0},
        {"runs": (LoopRun(1e6, "COMPLETED"),), "interval_seconds": None},
        {"runs": (LoopRun(59.0, "RUNNING"),)},
        {"worker_silent_seconds": None},
        {"runs": (FAILED, FAILED)},
        {"runs": (FAILED, DONE, FAILED, FAILED)},
        {"unfinished": (UnfinishedRun("r", "daily_batch", 21.0, has_process=None),)},
        {"unfinished": (UnfinishedRun("r", "daily_batch", 1e6, has_process=True),)},
        {"unfinished": (UnfinishedRun("r", "daily_batch", 1.0, has_process=False),)},
    ],
)
def test_what_may_be_fine_is_no_finding(changes):
    assert names(**changes) == []


def test_several_findings_stand_beside_each_other():
    assert names(worker_silent_seconds=99.0, runs=(LoopRun(99.0, "COMPLETED"),)) == ["worker_gone", "schedule_stalled"]


def test_abandoned_runs_are_those_that_nobody_has_worked_on_for_a_while():
    lost = UnfinishedRun("a", "nearline", 30.0, has_process=False)
    fresh = UnfinishedRun("b", "nearline", 3.0, has_process=False)
    foreign = UnfinishedRun("c", "nearline", 300.0, has_process=None)
    assert abandoned_runs(replace(WELL, unfinished=(lost, fresh, foreign))) == (lost,)
