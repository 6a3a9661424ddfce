"""What ``nearline status`` says: the verdict, what needs somebody with the command to run, and the facts."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from flows.status_page import status_page
from infra.loop_files import Beat, read_beat, read_findings, write_beat, write_findings
from tasks.domain.online import Problem
from tasks.figures import FlowFigures
from tasks.needs import Around, judge_needs, verdict
from tasks.status import FailedCheck, PlatformStatus, RecentRefreshes, Refresh

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STATUS = PlatformStatus(
    serving_version="v1",
    published_at=NOW,
    age_seconds=60.0,
    rows={"raw_items": 1, "raw_users": 0, "raw_events": 1000, "quarantine": 0},
    watermark=7,
    n_waiting_events=1200,
    oldest_waiting_seconds=12.4,
    last_refresh=Refresh(NOW, 1400, 120, 5.0, 12.3, 14.0),
    last_hour=RecentRefreshes(40, 52000, 4100, 8.0, 15.5, 17.0),
    failed_checks=(),
    index="answers",
)
EMPTY = replace(STATUS, serving_version=None, published_at=None, watermark=None, n_waiting_events=None)
UP = Around("home", True, (), (), stalled_after_seconds=60.0)
DOWN = replace(UP, server_runs=False)
STALLED = Problem("schedule_stalled", "No refresh has begun for 99 s.", "Is the deployment paused?")
CHECK = FailedCheck(NOW + timedelta(hours=1), "publish", "item_factors", "coverage", "stop", "3", "Give items a text.")


def page(status, around=UP, now=NOW):
    console = Console(width=200, record=True)
    needs = judge_needs(status, around, now=now)
    console.print(status_page(status, Path("home"), None, [], needs))
    return console.export_text()


def first_lines(status, around=UP, n=3, now=NOW):
    return [line.rstrip() for line in page(status, around, now).splitlines()[:n]]


def failed(flow, error):
    return FlowFigures(flow, False, 3.0, NOW, None, error)


def test_a_healthy_platform_says_so_first():
    assert first_lines(STATUS, n=2) == ["All well. v1 serves.", ""]
    assert "Next" not in page(STATUS)


def test_a_home_that_never_ran_is_told_how_to_begin():
    never = replace(EMPTY, rows=dict.fromkeys(STATUS.rows, 0))
    assert first_lines(never, DOWN) == [
        "Needs you: There are no items yet.",
        "  Bring yours; nearline demo gives a first look with data of its own.",
        "  Next: nearline import items PATH",
    ]


def test_a_home_with_rows_and_no_version_is_told_to_run_the_batch():
    assert first_lines(EMPTY, DOWN)[0] == "Needs you: Nothing is published yet."
    assert first_lines(EMPTY, DOWN)[2] == "  Next: nearline run daily_batch"


def test_a_gate_that_stopped_comes_first_with_what_to_do():
    assert first_lines(replace(STATUS, failed_checks=(CHECK, CHECK))) == [
        "Needs you: The gate publish stopped a run (item_factors: coverage and 1 more).",
        "  Give items a text. What served before still serves.",
        "  Next: nearline run daily_batch",
    ]


@pytest.mark.parametrize("change", [{"severity": "warn"}, {"checked_at": NOW - timedelta(hours=1)}])
def test_a_warning_or_a_gate_that_was_passed_since_needs_nobody(change):
    text = page(replace(STATUS, failed_checks=(replace(CHECK, **change),)))
    assert text.startswith("All well.")
    assert "item_factors: coverage" in text


def test_refused_rows_are_looked_at_first():
    assert "from quarantine" in first_lines(replace(STATUS, failed_checks=(replace(CHECK, gate="ingest"),)))[2]


def test_a_stalled_schedule_comes_with_its_advice():
    around = replace(UP, findings=(STALLED,))
    assert first_lines(STATUS, around) == [
        "Needs you: No refresh has begun for 99 s.",
        "  Is the deployment paused?",
        "  Next: nearline trigger nearline",
    ]


def test_an_index_that_is_away_is_no_reason_to_rebuild_it():
    away = replace(
        STATUS, serving_version=None, n_waiting_events=None, index="does not answer: held", index_answers=False
    )
    lines = first_lines(away, DOWN)
    assert lines[0] == "Needs you: The vector index does not answer."
    assert "does not answer: held" in lines[1]
    assert lines[2] == "  Next: nearline up"
    assert "rebuild-index" not in page(away, DOWN)
    assert "resident.log" in first_lines(away, UP)[2]
    assert (
        first_lines(away, replace(UP, index_url="http://qdrant:6333"))[2] == "  Next: curl http://qdrant:6333/healthz"
    )


def test_an_index_that_lost_everything_is_rebuilt():
    assert first_lines(replace(STATUS, serving_version=None))[2] == "  Next: nearline rebuild-index"


def test_a_failed_flow_is_run_again_and_a_gate_is_not_told_twice():
    status = replace(STATUS, flows=(failed("maintenance", "StorageError"), failed("daily_batch", "GateError")))
    assert (
        first_lines(status)[0] == "Needs you: The last run of maintenance failed (StorageError, 2026-03-01 12:00 UTC)."
    )
    assert first_lines(status)[2] == "  Next: nearline run maintenance"
    assert len(judge_needs(status, UP, now=NOW)) == 1


def test_a_run_that_was_killed_is_asked_for_again():
    assert first_lines(STATUS, replace(UP, crashed=("daily_batch",)))[2] == "  Next: nearline trigger daily_batch"


@pytest.mark.parametrize(("around", "command"), [(UP, "nearline trigger nearline"), (DOWN, "nearline run nearline")])
def test_events_that_wait_for_too_long_need_somebody(around, command):
    late = replace(STATUS, oldest_waiting_seconds=61.0)
    assert first_lines(late, around)[::2] == ["Needs you: 1,200 events are in no profile yet.", f"  Next: {command}"]


def test_a_nightly_batch_that_stays_away_is_told_where_a_schedule_runs():
    later = NOW + timedelta(days=3)
    assert first_lines(STATUS, UP, now=later)[0] == "Needs you: The nightly batch has not ended well for 3 days."
    assert first_lines(STATUS, DOWN, now=later)[0] == "All well. v1 serves."
    unchanged = FlowFigures("daily_batch", True, 3.0, later, later - timedelta(hours=9), None)
    assert first_lines(replace(STATUS, flows=(unchanged,)), UP, now=later)[0] == "All well. v1 serves."


def test_the_worst_comes_first_and_the_others_after_it():
    bad = replace(STATUS, failed_checks=(CHECK,), flows=(failed("maintenance", "StorageError"),))
    needs = judge_needs(bad, replace(UP, findings=(STALLED,)), now=NOW)
    assert [need.name for need in needs] == ["gate_stopped", "flow_failed", "schedule_stalled"]
    assert verdict(bad, needs).endswith("(and 2 more)")
    assert page(bad, replace(UP, findings=(STALLED,))).count("Also: ") == 2


def test_waiting_events_their_age_and_lags_are_shown():
    text = page(STATUS)
    assert "1,200 events wait, the oldest for 12 seconds" in text
    assert "120 users from 1,400 events; lag p50 5.0 s, p95 12.3 s, p99 14.0 s" in text
    assert "40 refreshes: 4,100 users from 52,000 events; lag p50 at most 8.0 s, p95 15.5 s, p99 17.0 s" in text


def test_a_quiet_platform_has_no_lags():
    quiet = replace(STATUS, n_waiting_events=0, oldest_waiting_seconds=None, last_refresh=None)
    assert "no events wait" in page(quiet)
    assert "lag" not in page(quiet)


def test_findings_are_told_for_a_minute(tmp_path):
    write_findings(tmp_path, (STALLED,), NOW)
    assert read_findings(tmp_path, NOW + timedelta(seconds=59)) == (STALLED,)
    assert read_findings(tmp_path, NOW + timedelta(seconds=61)) == ()


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"pid": 1}), json.dumps({"at": NOW.timestamp()})])
def test_a_file_that_is_cut_or_foreign_says_nothing(tmp_path, text):
    (tmp_path / "prefect").mkdir()
    for name in ("resident.json", "watchdog.json"):
        (tmp_path / "prefect" / name).write_text(text)
    assert read_beat(tmp_path) is None
    assert read_findings(tmp_path, NOW) == ()


def test_a_beat_comes_back_as_it_was(tmp_path):
    beat = Beat(pid=2**22 + 1, at=5.0, polled_at=4.0, run_id="r", run_began_at=3.0, n_waiting_events=2)
    write_beat(tmp_path, beat)
    assert read_beat(tmp_path) == beat
    assert not beat.is_alive
