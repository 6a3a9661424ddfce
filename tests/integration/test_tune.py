"""A study on a small real warehouse: it begins with the defaults, keeps every trial, goes on, and ends in a choice."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import tasks.trials
import tasks.tune
from infra.settings import load_settings
from tasks.domain.errors import ComputeLostError, InputError, NotFoundError, TrainingError
from tasks.domain.learning import UNLEARNED
from tasks.domain.parameter_space import read_values
from tasks.domain.tuning import Trial, best_trial, measure_recipe, split_for_tuning
from tasks.embed import embed_items
from tasks.evaluate import evaluate_version
from tasks.model_state import load_version
from tasks.publish import publish_version, rollback
from tasks.train import learn_version, plan_version, refit_version
from tasks.training_inputs import build_draft, load_choice, load_inputs
from tasks.transform import build_models
from tasks.trial_table import load_trials, write_choice
from tasks.tune import run_study
from tests.conftest import NOW, SmallResources, SmallWorld, copy_home

ROOT = Path(__file__).parents[2]
QUICK = {"n_factors": 8, "n_sweeps": 3}


class InTurn:
    """Compute in this process: one partition after the other."""

    def map(self, function, partitions, *, in_flight=2):
        assert in_flight == 1, "a trial must begin only when a worker is free"
        return map(function, partitions)


@dataclass(frozen=True)
class SequentialResources(SmallResources):
    """The real adapters, without a cluster."""

    def compute(self):
        return nullcontext(InTurn())


@dataclass
class Clock:
    """A clock that moves when told."""

    seconds: float = 0.0

    def __call__(self):
        return NOW + timedelta(seconds=self.seconds)


@pytest.fixture(scope="session")
def tuned_home(tmp_path_factory):
    """Built once: forty users of two tastes who look at and like thirty films over time."""
    home = tmp_path_factory.mktemp("tuning") / "var"
    world = SmallWorld(SequentialResources(load_settings(home=home, factors=QUICK)))
    rng = np.random.default_rng(1)
    world.add_items(*((f"i{n:02}", f"The {'space' if n % 2 else 'love'} film {n}", True) for n in range(40)))
    rows = []
    for step, order in enumerate(np.array([rng.permutation(20)[:12] for _ in range(40)]).T):
        for user, place in enumerate(order):
            item, at = f"i{place * 2 + user % 2:02}", NOW + timedelta(days=step, minutes=user)
            kind = "view" if rng.random() < 0.6 else "like"
            rows.append(world.event(f"u{user:02}", item, kind, at=at))
            if rng.random() < 0.1:
                rows.append(world.event(f"u{user:02}", f"i{(place * 2 + user % 2 + 1) % 40:02}", "dislike", at=at))
    world.add_events(*rows)
    build_models(world.resources, now=world.tick())
    embed_items(world.resources, now=world.tick())
    return world


@pytest.fixture
def world(tuned_home, tmp_path):
    """A copy that the test may change."""
    return copied(tuned_home, tmp_path / "var")


def copied(built, home, **settings):
    copy_home(built.resources.home, home)
    resources = SequentialResources(load_settings(home=home, **{"factors": QUICK, **settings}))
    return SmallWorld(resources, built.clock, built.n_rows)


def tune(world, resources=None, **changes):
    given = {"now": NOW, "clock": Clock(), "minutes": 1.0, "max_trials": 5, "max_factors": 16, **changes}
    return run_study(resources or world.resources, **given)


def read(world, sql, **parameters):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql, parameters).to_pylist()


def trials_of(world, study):
    with world.resources.warehouse(read_only=True) as warehouse:
        return load_trials(warehouse, study)


def comparable(trials):
    return [(t.number, t.origin, t.parameters, None if t.values is None else t.values.tolist()) for t in trials]


def test_a_study_begins_with_the_defaults_and_keeps_every_trial(world):
    news = []
    outcome = tune(world, on_trial=news.append)
    rows = read(world, "select * from factor_trials order by number")
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["origin"] for row in rows] == ["defaults", *["search"] * 4]
    assert {row["study"] for row in rows} == {outcome.study}
    defaults = read_values(build_draft(world.resources, UNLEARNED))
    first = json.loads(rows[0]["parameters"])
    assert first == {name: defaults[name] for name in first}
    assert {"regularization", "text_prior", "interaction_half_life_days", "event_types.like.weight"} <= set(first)
    assert "n_factors" not in first, "the settings name it"
    for row in rows:
        assert row["state"] == "complete"
        assert len(row["user_ndcg"]) == row["n_users"] == 40
        assert row["ci_low"] <= row["ndcg_at_10"] <= row["ci_high"]
        assert row["ndcg_at_10"] == pytest.approx(np.mean(row["user_ndcg"]), abs=1e-6)
        assert (row["split"], row["error"]) == ("global_time", "")
    assert [each.n_done for each in news] == [1, 2, 3, 4, 5]
    assert news[-1].best == max(row["ndcg_at_10"] for row in rows)
    assert (outcome.receipt.n_in, outcome.receipt.n_out, outcome.receipt.reused) == (5, 5, False)
    assert not list((world.resources.home / "staging" / "tuning").glob("*/*")), "the workers' files are gone"


def test_the_same_study_again_starts_no_worker(world, monkeypatch):
    first = tune(world, max_trials=2)
    monkeypatch.setattr(SequentialResources, "compute", lambda self: pytest.fail("a worker was started"))
    again = tune(world, max_trials=2)
    assert (again.study, again.message, again.receipt.reused) == (first.study, first.message, True)


def test_a_study_that_ended_early_goes_on_as_if_it_never_had(world, chosen_home, tmp_path):
    early = tune(world, max_trials=3)
    late = tune(world, max_trials=6)
    built, whole = chosen_home
    other = copied(built, tmp_path / "other")
    assert early.study == late.study == whole.study
    assert late.receipt.n_in == 3
    assert comparable(trials_of(world, late.study)) == comparable(trials_of(other, whole.study))


SCRIPT = """
import os, signal, sys
from pathlib import Path
from infra.settings import load_settings
from tests.integration.test_tune import NOW, QUICK, Clock, SequentialResources, run_study

def kill(news):
    if news.n_done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

resources = SequentialResources(load_settings(home=Path(sys.argv[1]), factors=QUICK))
run_study(resources, now=NOW, clock=Clock(), max_trials=6, max_factors=16, on_trial=kill)
"""


def test_a_killed_study_goes_on_without_repeating_a_number(world, chosen_home, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(world.resources.home)]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read(world, "select count(*) as n from factor_trials")[0]["n"] == 3
    assert list((world.resources.home / "staging" / "tuning").glob("*/*.parquet")), "files of the killed run"
    outcome = tune(world, max_trials=6)
    assert outcome.receipt.n_in == 3
    found = trials_of(world, outcome.study)
    assert [trial.number for trial in found] == list(range(6))
    built, whole = chosen_home
    assert comparable(found) == comparable(trials_of(copied(built, tmp_path / "other"), whole.study))


def test_no_trial_begins_after_the_time_is_over(world):
    clock = Clock()

    def pass_time(news):
        clock.seconds += 40

    left = []
    outcome = tune(world, clock=clock, on_trial=lambda news: (left.append(news.seconds_left), pass_time(news)))
    assert [trial.number for trial in trials_of(world, outcome.study)] == [0, 1]
    assert left == [60, 20]
    assert outcome.choice is None or outcome.in_force == 0


def test_time_that_is_over_before_the_first_trial_chooses_nothing(world):
    outcome = tune(world, clock=Clock(3600))
    assert (outcome.choice, outcome.in_force, outcome.receipt.n_out) == (None, None, 0)
    assert "give it more minutes" in outcome.message


DIVERGED = TrainingError("The fit diverged. Raise the regularization.")


def failing(monkeypatch, *calls, error=DIVERGED):
    """The measurement fails at these calls, counted from 0."""
    real, made = tasks.trials.measure_recipe, []

    def measure(*arguments, **named):
        made.append(1)
        if len(made) - 1 in calls:
            raise error
        return real(*arguments, **named)

    monkeypatch.setattr(tasks.trials, "measure_recipe", measure)


def test_a_trial_that_fails_is_a_row_with_its_reason_and_the_others_go_on(world, monkeypatch):
    failing(monkeypatch, 1, 3, error=MemoryError("out of memory"))
    outcome = tune(world)
    rows = read(world, "select number, state, error, ndcg_at_10, user_ndcg from factor_trials order by number")
    assert [row["state"] for row in rows] == ["complete", "failed", "complete", "failed", "complete"]
    assert rows[1] == {
        "number": 1, "state": "failed", "error": "MemoryError: out of memory", "ndcg_at_10": None, "user_ndcg": None,
    }  # fmt: skip
    assert tune(world, max_trials=6).receipt.n_in == 1, "failed trials count, and are not tried again"
    assert outcome.in_force == 0


def test_a_worker_measures_what_the_split_in_memory_gives_with_all_that_is_known_of_items_and_users(world, tmp_path):
    """A half-life without end, so that both sides have the same weights."""
    recipe = replace(build_draft(world.resources, UNLEARNED), interaction_half_life_days=1e12)
    encoder, rng = world.resources.encoder(), np.random.default_rng(0)
    with world.resources.warehouse(read_only=True) as warehouse, warehouse.at(warehouse.latest_snapshot()) as past:
        snapshot = warehouse.latest_snapshot()
        inputs = load_inputs(warehouse, recipe, snapshot, encoder.encoder_id, encoder.width)
        users = sparse.csr_matrix(np.eye(3, dtype=np.float32)[rng.integers(0, 3, 40)])
        items = sparse.csr_matrix(np.eye(2, dtype=np.float32)[rng.integers(0, 2, 40)])
        arrived_at = np.where(np.arange(40) % 5 == 0, inputs.log.last_at.min() + 10**11, np.iinfo(np.int64).min)
        catalog = inputs.catalog._replace(features=items, arrived_at=arrived_at)
        inputs = replace(inputs, log=replace(inputs.log, user_features=users), catalog=catalog)
        split = split_for_tuning(inputs.log, inputs.texts, seed=0)
        events = tasks.trials.load_fit_events(past, recipe, inputs, split.split.train)
    tasks.trials.write_trial_files(tmp_path / "files", events, inputs, split)
    trial = tasks.trials.run_trial(
        tasks.trials.TrialWork(world.resources, tmp_path / "files", 0, "defaults", {}, recipe)
    )
    assert trial.error == ""
    assert trial.values.tolist() == measure_recipe(split.split, catalog, recipe).tolist()
    assert measure_recipe(split.split, catalog._replace(features=None), recipe).tolist() != trial.values.tolist()


def test_parameters_that_diverge_are_a_failed_trial(world):
    """The real fit, with a penalty below zero."""
    setup, write_files = tasks.tune._prepare(world.resources, 0, 16)
    write_files(world.resources.home / "files")
    recipe = setup.defaults
    recipe = replace(recipe, factor_parameters=replace(recipe.factor_parameters, regularization=-5.0))
    work = tasks.trials.TrialWork(world.resources, world.resources.home / "files", 9, "search", {}, recipe)
    trial = tasks.trials.run_trial(work)
    assert trial.values is None
    assert trial.error.startswith("TrainingError: ")


def test_defaults_that_fail_stop_the_study_and_are_tried_again(world, monkeypatch):
    with monkeypatch.context() as broken:
        failing(broken, 0)
        with pytest.raises(TrainingError, match=r"could not measure the defaults.*The fit diverged"):
            tune(world)
    assert read(world, "select count(*) as n from factor_trials")[0]["n"] == 0
    assert trials_of(world, tune(world, max_trials=1).study)[0].origin == "defaults"


@dataclass
class Losing:
    """Compute whose workers are lost at some of its fan-outs, before the second result."""

    fan_outs: list = field(default_factory=list)

    @contextmanager
    def open(self):
        self.fan_outs.append(1)
        yield self

    def map(self, function, partitions, *, in_flight=2):
        for number, partition in enumerate(partitions):
            if len(self.fan_outs) <= 2 and number == 1:
                raise ComputeLostError("Dask gave up on a partition.")
            yield function(partition)


def test_lost_workers_cost_the_trials_under_way_and_not_the_study(world, monkeypatch):
    losing = Losing()
    monkeypatch.setattr(SequentialResources, "compute", lambda self: losing.open())
    outcome = tune(world, max_trials=6)
    found = trials_of(world, outcome.study)
    assert [trial.number for trial in found] == list(range(6))
    assert [trial.number for trial in found if trial.error] == [1, 3]
    assert found[1].error == "Dask gave up on a partition."
    assert len(losing.fan_outs) == 3


def test_workers_that_are_lost_at_once_are_an_error(world, monkeypatch):
    @contextmanager
    def lost(_resources):
        raise ComputeLostError("No Dask worker came.")
        yield

    monkeypatch.setattr(SequentialResources, "compute", lost)
    with pytest.raises(ComputeLostError, match="No Dask worker"):
        tune(world)


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"minutes": -1}, {"max_trials": 0}, {"max_factors": 0}])
def test_arguments_out_of_range_are_named(world, wrong):
    with pytest.raises(InputError, match="Allowed are more than 0 minutes"):
        tune(world, **wrong)


def test_new_events_another_seed_and_other_settings_are_another_study(world):
    first = tune(world, max_trials=1)
    assert tune(world, max_trials=1, seed=1).study != first.study
    assert tune(world, max_trials=1, max_factors=16).study == first.study
    other = SequentialResources(load_settings(home=world.resources.home, factors={**QUICK, "text_prior": 0.5}))
    assert tune(world, other, max_trials=1).study != first.study
    world.add_events(world.event("u01", "i05"))
    assert tune(world, max_trials=1).study != first.study


def test_a_new_study_begins_with_the_best_of_the_one_before(world):
    first = tune(world, max_trials=4)
    ranked = sorted(trials_of(world, first.study), key=lambda trial: (-trial.mean, trial.number))
    world.add_events(world.event("u01", "i05"))
    second = trials_of(world, tune(world, max_trials=5).study)
    assert second[0].origin == "defaults"
    expected = [trial.parameters for trial in ranked[:3] if trial.origin != "defaults"]
    assert [trial.parameters for trial in second if trial.origin == "earlier"] == expected


@pytest.fixture(scope="session")
def chosen_home(tuned_home, tmp_path_factory):
    """Built once: a study of six trials whose best one was chosen, however small the difference."""
    built = copied(tuned_home, tmp_path_factory.mktemp("chosen") / "var")
    with pytest.MonkeyPatch.context() as patch:
        make_choices_easy(patch)
        outcome = tune(built, max_trials=6)
    assert outcome.choice is not None, outcome.message
    return built, outcome


@pytest.fixture
def choosing(chosen_home, tmp_path, monkeypatch):
    """A copy of it, and the next choice is as easy."""
    make_choices_easy(monkeypatch)
    built, outcome = chosen_home
    return copied(built, tmp_path / "chosen"), outcome


@pytest.fixture(scope="session")
def plain_home(chosen_home, tmp_path_factory):
    """Built once: after that study, a version with the parameters of the settings serves."""
    built, outcome = chosen_home
    world = copied(built, tmp_path_factory.mktemp("plain") / "var")
    plan = train(world, plan_version(world.resources, now=world.tick(), use_tuned=False))
    publish_version(world.resources, plan.version, now=world.tick())
    return world, outcome, plan


@pytest.fixture
def plain(plain_home, tmp_path):
    """A copy of it, the study's outcome and the plan of the version that serves."""
    built, outcome, plan = plain_home
    return copied(built, tmp_path / "plain"), outcome, plan


@pytest.fixture(scope="session")
def served_choice_home(chosen_home, tmp_path_factory):
    """Built once: after that study, a version with its choice serves."""
    built, outcome = chosen_home
    world = copied(built, tmp_path_factory.mktemp("served") / "var")
    plan = train(world, plan_version(world.resources, now=world.tick(), choice=outcome.choice))
    publish_version(world.resources, plan.version, now=world.tick())
    return world, outcome


@pytest.fixture
def served_choice(served_choice_home, tmp_path, monkeypatch):
    """A copy of it, the study's outcome, and the next choice is as easy."""
    make_choices_easy(monkeypatch)
    built, outcome = served_choice_home
    return copied(built, tmp_path / "served"), outcome


def make_choices_easy(patch):
    """The best proposal is chosen, however small the difference."""
    patch.setattr(tasks.tune, "is_better", lambda difference: True)
    patch.setattr(tasks.tune, "best_trial", lambda trials: best_trial([t for t in trials if t.origin == "search"]))


def train(world, plan):
    learn_version(world.resources, plan, now=world.tick())
    refit_version(world.resources, plan, now=world.tick())
    return plan


def recipe_of(world, version):
    with world.resources.warehouse(read_only=True) as warehouse:
        return load_version(warehouse, version).recipe


def test_a_choice_is_a_row_with_its_paired_difference(choosing):
    world, outcome = choosing
    (row,) = read(world, "select * from factor_choices")
    trials = {trial.number: trial for trial in trials_of(world, outcome.study)}
    chosen, current = trials[row["number"]], trials[outcome.in_force]
    assert row["choice"] == outcome.choice == f"{outcome.study}-{chosen.number}"
    assert json.loads(row["parameters"]) == chosen.parameters
    assert row["difference"] == pytest.approx(chosen.mean - current.mean)
    assert row["ci_low"] <= row["difference"] <= row["ci_high"]
    assert row["n_users"] == 40


def test_a_choice_is_in_force_only_while_a_version_with_it_serves(plain):
    """Trained is not enough; published is; the next night keeps it; a rollback takes it back."""
    world, outcome, first = plain
    tuned = train(world, plan_version(world.resources, now=world.tick(), choice=outcome.choice))
    values = read_values(recipe_of(world, tuned.version))
    (row,) = read(world, "select parameters from factor_choices")
    assert {name: values[name] for name in json.loads(row["parameters"])} == json.loads(row["parameters"])
    assert plan_version(world.resources, now=world.tick()).choice is None, "it was trained and does not serve"

    publish_version(world.resources, tuned.version, now=world.tick())
    nightly = plan_version(world.resources, now=world.tick())
    assert nightly.choice.choice == outcome.choice
    assert nightly.unchanged == tuned.version, "the same inputs, the chosen parameters among them"
    world.add_events(world.event("u01", "i05"))
    nightly = train(world, plan_version(world.resources, now=world.tick()))
    assert recipe_of(world, nightly.version).factor_parameters == recipe_of(world, tuned.version).factor_parameters
    publish_version(world.resources, nightly.version, now=world.tick())
    assert plan_version(world.resources, now=world.tick()).choice.choice == outcome.choice

    rollback(world.resources, first.version, now=world.tick())
    assert plan_version(world.resources, now=world.tick()).choice is None


def test_without_use_tuned_the_version_and_those_after_it_have_the_parameters_of_the_settings(served_choice):
    world, _ = served_choice
    plain = plan_version(world.resources, now=world.tick(), use_tuned=False)
    assert plain.unchanged is None
    publish_version(world.resources, train(world, plain).version, now=world.tick())
    assert plan_version(world.resources, now=world.tick()).choice is None


def test_the_inputs_hash_notices_a_choice(choosing):
    world, outcome = choosing
    plain = plan_version(world.resources, now=world.tick())
    tuned = plan_version(world.resources, now=world.tick(), choice=outcome.choice)
    assert plain.inputs_hash != tuned.inputs_hash
    assert plan_version(world.resources, now=world.tick(), choice=outcome.choice).inputs_hash == tuned.inputs_hash


def test_settings_win_over_a_choice_and_a_choice_over_the_defaults(choosing, monkeypatch):
    world, outcome = choosing
    with world.resources.warehouse(read_only=True) as warehouse:
        choice = load_choice(warehouse, outcome.choice)
    choice = replace(choice, parameters={**choice.parameters, "regularization": 0.77, "event_types.like.weight": 3.0})
    monkeypatch.setenv("NEARLINE_FACTORS__UNOBSERVED_WEIGHT", "0.123")
    monkeypatch.setenv("NEARLINE_INTERACTION_HALF_LIFE_DAYS", "77")
    own = {"like": {"effect": "positive", "weight": 0.5}}
    settings = load_settings(home=world.resources.home, factors={"unobserved_weight": 0.123}, event_types=own)
    draft = build_draft(SequentialResources(settings), UNLEARNED, choice)
    assert draft.factor_parameters.regularization == 0.77
    assert draft.factor_parameters.unobserved_weight == 0.123
    assert draft.factor_parameters.text_prior == choice.parameters["text_prior"]
    assert draft.interaction_half_life_days == 77
    weights = {event_type.name: event_type.weight for event_type in draft.event_types}
    assert weights["like"] == 0.5
    plain = load_settings(home=world.resources.home, event_types={"like": {"effect": "positive"}})
    weights = build_draft(SequentialResources(plain), UNLEARNED, choice).event_types
    assert {event_type.name: event_type.weight for event_type in weights}["like"] == 3.0, "a type without a weight"


def test_an_unknown_choice_is_named(world):
    with pytest.raises(NotFoundError, match=r"'nothing-7', which does not exist"):
        plan_version(world.resources, now=world.tick(), choice="nothing-7")


def test_what_is_in_force_is_measured_after_the_defaults_and_has_to_be_beaten(served_choice):
    world, outcome = served_choice
    again = tune(world, max_trials=6)
    assert again.study == outcome.study, "a publication is no new data"
    assert (again.choice, f"{again.study}-{again.in_force}") == (None, outcome.choice)
    assert "none is better than those in force" in again.message
    world.add_events(world.event("u01", "i05"))
    second = trials_of(world, tune(world, max_trials=3).study)
    assert [trial.origin for trial in second][:2] == ["defaults", "current"]


def test_a_version_with_a_choice_is_judged_beside_the_serving_one(plain):
    world, outcome, first = plain
    plan = plan_version(world.resources, now=world.tick(), choice=outcome.choice)
    learn_version(world.resources, plan, now=world.tick())
    report = evaluate_version(world.resources, plan, now=world.tick())
    assert report.champion == first.version
    assert report.find("user_tail", "champion") is not None


def test_a_choice_that_is_no_better_is_not_made(world):
    trials = [Trial(n, "search", {}, np.full(40, 0.5, np.float32), 1.0) for n in (0, 1)]
    with world.resources.warehouse() as warehouse:
        difference = tasks.tune.compare_trials(*trials)
        assert not tasks.tune.is_better(difference)
        write_choice(warehouse, "s", trials[1], trials[0], difference, now=NOW)
    with world.resources.warehouse(read_only=True) as warehouse:
        assert load_choice(warehouse) is None, "a row alone changes nothing"


@pytest.mark.timeout(120)
def test_trials_on_workers_are_those_of_one_process(tuned_home, tmp_path):
    """Two real Dask workers, which get the files and not the matrices."""
    alone = copied(tuned_home, tmp_path / "alone")
    one = trials_of(alone, tune(alone, max_trials=1).study)
    shared = copied(tuned_home, tmp_path / "shared")
    resources = SmallResources(load_settings(home=shared.resources.home, factors=QUICK, compute={"n_workers": 2}))
    found = trials_of(shared, tune(shared, resources, max_trials=5).study)
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4]
    assert found[0].values.tolist() == one[0].values.tolist()
    assert not [trial.error for trial in found if trial.error]
