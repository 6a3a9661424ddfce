"""What ``nearline status`` says of the loop: what waits, how late profiles were, what the watchdog found."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from flows.status_page import status_page
from infra.loop_files import Beat, read_beat, read_findings, write_beat, write_findings
from tasks.domain.online import Problem
from tasks.status import PlatformStatus, RecentRefreshes, Refresh

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
    next_step="Nothing to do.",
)
STALLED = Problem("schedule_stalled", "No refresh has begun for 99 s.", "Is the deployment paused?")


def page(status, findings=()):
    console = Console(width=200, record=True)
    console.print(status_page(status, Path("home"), None, [], findings))
    return console.export_text()


def test_waiting_events_their_age_and_lags_are_shown():
    text = page(STATUS)
    assert "1,200 events wait, the oldest for 12 seconds" in text
    assert "120 users from 1,400 events; lag p50 5.0 s, p95 12.3 s, p99 14.0 s" in text
    assert "40 refreshes: 4,100 users from 52,000 events; lag p50 at most 8.0 s, p95 15.5 s, p99 17.0 s" in text
    assert "schedule_stalled" not in text


def test_a_quiet_platform_has_no_lags():
    quiet = replace(STATUS, n_waiting_events=0, oldest_waiting_seconds=None, last_refresh=None)
    assert "no events wait" in page(quiet)
    assert "lag" not in page(quiet)


def test_findings_come_with_their_advice():
    assert "schedule_stalled: No refresh has begun for 99 s. Is the deployment paused?" in page(STATUS, [STALLED])


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
