"""The questions and the snippets of docs/sql.md run, and each question has an answer."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.ingest import import_files
from tasks.slates import write_slates
from tests.conftest import copied_world

PAGE = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
QUESTIONS = dict(re.findall(r"### (\d+\. .+?)\n.*?```sql\n(.*?)```", PAGE, re.DOTALL))
PAST = re.findall(r"```sql\n(.*?)```", PAGE.split("## The past")[1], re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
VERSION = "v2"


@pytest.fixture(scope="module")
def answered(published_home, tmp_path_factory):
    """The published world with what its later stages leave behind: slates, metrics, refreshes, refused rows."""
    resources = copied_world(published_home, tmp_path_factory.mktemp("sql") / "var").resources
    write_slates(resources, VERSION, now=NOW)
    events = tmp_path_factory.mktemp("shop") / "events.csv"
    views = [f"u07,i01,view,{NOW - timedelta(seconds=n):%Y-%m-%dT%H:%M:%SZ}\n" for n in range(19)]
    events.write_text("user_id,item_id,event_type,occurred_at\n" + "".join(views) + f"u07,i01,poke,{NOW:%Y-%m-%d}\n")
    import_files(resources, "events", [events], now=NOW)
    metric = {
        "version": VERSION, "metric": "ndcg_at_10", "value": 0.2, "ci_low": 0.1, "ci_high": 0.3, "n_users": 9,
        "evaluated_at": NOW,
    }  # fmt: skip
    metrics = [
        {**metric, "split": split, "policy": policy, "segment": segment}
        for split in ("user_tail", "global_time")
        for policy in ("fused", "popularity")
        for segment in ("all", "1 to 4")
    ]
    run = {
        "run_id": "r", "version": VERSION, "from_snapshot": 1, "to_snapshot": 2, "n_events": 3, "n_users": 2,
        "n_missing_texts": 0, "lag_p50_seconds": 1.5, "lag_p95_seconds": 2.5, "stage_seconds": "{}",
        "started_at": NOW, "finished_at": NOW, "note": "",
    }  # fmt: skip
    with resources.warehouse() as warehouse:

        def write(transaction):
            transaction.replace("eval_metrics", pa.Table.from_pylist(metrics), {"version": VERSION})
            transaction.append("nearline_runs", pa.Table.from_pylist([run]))

        warehouse.commit(write)
    return resources


def test_there_are_ten_questions():
    assert [title.split(".")[0] for title in QUESTIONS] == [str(number) for number in range(1, 11)]
    assert len(PAST) == 2


@pytest.mark.parametrize("title", QUESTIONS)
def test_each_question_has_an_answer(answered, title):
    with answered.warehouse(read_only=True) as warehouse:
        rows = warehouse.read(QUESTIONS[title].replace("'7'", "'u07'"))
    assert rows.num_rows > 0
    assert all(column.null_count < rows.num_rows for column in rows.columns), rows


def test_the_parts_of_question_one_add_up(answered):
    sql = next(iter(QUESTIONS.values())).replace("'7'", "'u07'")
    with answered.warehouse(read_only=True) as warehouse:
        rows = warehouse.read(sql).to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, 11))
    for row in rows:
        assert row["text_part"] + row["factors_part"] + row["prior_part"] == pytest.approx(row["score"], abs=0.002)


@pytest.mark.parametrize("sql", PAST)
def test_the_past_can_be_read(answered, sql):
    with answered.warehouse(read_only=True) as warehouse:
        assert warehouse.read(sql).num_rows > 0


def test_plain_duckdb_in_python(answered):
    """Run as it stands there, in the folder that holds ``var``."""
    (script,) = PYTHON
    home = answered.home
    script = script.replace("sqlite:var/", f"sqlite:{home.name}/")
    data = f", data_path '{home}/warehouse/data/', override_data_path true)"
    run = subprocess.run(
        [sys.executable, "-c", script.replace("meta_busy_timeout 5000)", "meta_busy_timeout 5000" + data)],
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "like" in run.stdout
