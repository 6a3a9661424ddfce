"""Tuning as a flow: a winner becomes a version through every gate, and nothing changes where there is none."""

import base64
import json
from contextlib import nullcontext
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

import flows.stages
import tasks.tune
from flows.daily_batch import daily_batch
from flows.tune_factors import tune_factors
from tasks.domain.errors import GateError
from tasks.domain.metrics import Interval
from tasks.domain.records import CheckResult
from tasks.domain.tuning import best_trial
from tasks.progress import watch_stages
from tasks.status import load_serving_version
from tests.fakes.hashing import HashingResources

pytestmark = pytest.mark.server


@dataclass
class Watched:
    """What the stages told."""

    events: list

    def lines(self):
        return [event.note for event in self.events if event.note.startswith("trial")]


@pytest.fixture
def watched():
    told = []
    with watch_stages(told.append):
        yield Watched(told)


@pytest.fixture
def easy_choice(monkeypatch):
    """The best proposal is chosen, whatever the difference to the defaults."""
    monkeypatch.setattr(tasks.tune, "compare_trials", lambda trial, other: Interval(0.02, 0.01, 0.03))
    searched = lambda trials: best_trial([t for t in trials if t.origin == "search"])  # noqa: E731
    monkeypatch.setattr(tasks.tune, "best_trial", searched)


class InTurn:
    """Compute in this process, without a cluster."""

    def map(self, function, partitions, *, in_flight=2):
        return map(function, partitions)


@pytest.fixture
def in_turn(monkeypatch):
    """Trials in this process."""
    monkeypatch.setattr(HashingResources, "compute", lambda self: nullcontext(InTurn()))


def read(resources, sql):
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql).to_pylist()


def test_a_winner_is_published_through_the_gates_and_the_next_night_keeps_it(batched, easy_choice, watched, api):
    resources, before = batched.resources, batched.summary.version
    summary = tune_factors(minutes=5, max_trials=3, max_factors=16, slate_length=3)
    assert summary.outcome == "Published"
    assert "Its parameters were tuned: trial" in summary.message
    assert load_serving_version(resources) == summary.version != before
    (choice,) = read(resources, "select * from factor_choices")
    versions = read(resources, "select version, state, choice from model_versions order by version")
    assert versions == [
        {"version": before, "state": "published", "choice": None},
        {"version": summary.version, "state": "published", "choice": choice["choice"]},
    ]
    recipe = read(resources, "select recipe from model_versions order by version desc limit 1")[0]["recipe"]
    found = json.loads(recipe)["factor_parameters"]
    assert found["regularization"] == json.loads(choice["parameters"])["regularization"]
    slates = "select max(rank) as k from mart_recommendations group by version order by version desc limit 1"
    assert read(resources, slates) == [{"k": 3}]

    lines = watched.lines()
    assert len(lines) == 3
    assert "(the defaults)" in next(line for line in lines if line.startswith("trial   0"))
    check_artifacts(api, api.run_of("tune_factors", f"Published: {summary.message}"), resources, choice)

    assert daily_batch().outcome == "Unchanged"
    plain = daily_batch(use_tuned=False)
    assert plain.outcome == "Published"
    assert read(resources, "select choice from model_versions order by version desc limit 1") == [{"choice": None}]


def check_artifacts(api, run, resources, choice):
    table = api.artifact("tuning", run["id"])
    assert f"Study `{choice['study']}`" in table
    assert "| defaults, in force |" in table
    assert "| **best** |" in table or "| **best**, defaults, in force |" in table
    assert "3 trials." in table
    kept = resources.home / "reports" / f"tuning-{choice['study']}.svg"
    shown = api.artifact("tuning-plot", run["id"]).removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(shown) == kept.read_bytes()
    assert ElementTree.fromstring(kept.read_text()).tag.endswith("svg")
    gates = {check["gate"] for check in json.loads(api.artifact("data-quality", run["id"]))}
    assert gates == {"transform", "embed", "tune", "quality", "train", "publish", "slates"}
    stages = [stage["stage"] for stage in json.loads(api.artifact("stages", run["id"]))]
    assert stages.index("run_study") < stages.index("plan_version") < stages.index("publish_version")


def test_without_a_winner_the_serving_version_stays_and_the_run_says_so(batched, in_turn):
    summary = tune_factors(minutes=5, max_trials=1)
    assert summary.outcome == "Kept"
    assert "none is better than those in force" in summary.message
    assert load_serving_version(batched.resources) == batched.summary.version
    assert len(read(batched.resources, "select version from model_versions")) == 1
    assert read(batched.resources, "select * from factor_choices") == []


def test_a_gate_that_stops_the_winner_leaves_everything_as_it_was(batched, easy_choice, in_turn, monkeypatch):
    resources = batched.resources
    worse = CheckResult("eval_metrics", "NDCG@10 is not below that of champion", None, "stop", False, "a", "b")
    with monkeypatch.context() as stopped:
        stopped.setattr(flows.stages, "quality_checks", lambda report, drop: [worse])
        with pytest.raises(GateError, match="gate 'quality' stopped"):
            tune_factors(minutes=5, max_trials=3, max_factors=16)
    assert load_serving_version(resources) == batched.summary.version
    states = read(resources, "select state, choice is not null as tuned from model_versions order by version")
    assert states == [{"state": "published", "tuned": False}, {"state": "rejected", "tuned": True}]
    assert daily_batch().outcome == "Unchanged", "the choice is not in force"


def test_a_study_that_was_stopped_goes_on_in_the_next_run(batched, in_turn, monkeypatch):
    def stop(news):
        if news.n_done == 2:
            raise RuntimeError("the machine went away")

    with monkeypatch.context() as stopped:
        stopped.setattr("flows.tune_factors.say_trial", stop)
        with pytest.raises(RuntimeError, match="went away"):
            tune_factors(minutes=5, max_trials=4, max_factors=16)
    assert len(read(batched.resources, "select number from factor_trials")) == 2
    monkeypatch.setattr(tasks.tune, "is_better", lambda difference: False)  # another test trains and publishes
    assert tune_factors(minutes=5, max_trials=4, max_factors=16).outcome == "Kept"
    rows = read(batched.resources, "select study, number from factor_trials order by number")
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert len({row["study"] for row in rows}) == 1
