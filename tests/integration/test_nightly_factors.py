"""Nights after the first: the last fit goes on from the serving version, and new items are known to be new."""

from dataclasses import replace

import numpy as np
import pytest

from infra.settings import FactorSettings
from tasks.model_state import load_item_space
from tasks.progress import watch_stages
from tasks.publish import publish_version
from tasks.train import WARM_SWEEPS, learn_version, plan_version, refit_version
from tasks.transform import build_models
from tests.conftest import copied_world


def night(world, resources=None):
    """A training without its evaluation, published; returns the receipts of learning and of the last fit."""
    resources = resources or world.resources
    build_models(resources, now=world.tick())
    plan = plan_version(resources, now=world.tick())
    receipts = [step(resources, plan, now=world.tick()) for step in (learn_version, refit_version)]
    publish_version(resources, plan.version, now=world.tick())
    return plan.version, *receipts


@pytest.fixture(scope="session")
def first_night_home(trained_home, tmp_path_factory):
    """Built once: the small world after its first night, and what that night returned."""
    _, built = trained_home
    world = copied_world(built, tmp_path_factory.mktemp("night") / "var")
    return world, night(world)


@pytest.fixture
def first_night(first_night_home, tmp_path):
    """A copy of it, and what the night returned."""
    built, outcome = first_night_home
    return copied_world(built, tmp_path / "var"), outcome


def sweeps(world, version):
    with world.resources.warehouse(read_only=True) as warehouse:
        sql = "select * from factor_sweeps where version = $v order by fit, sweep"
        return warehouse.read(sql, {"v": version}).to_pylist()


def with_factors(world, **changes):
    """The same home with other settings of the factors."""
    settings = world.resources.settings
    return replace(world.resources, settings=settings.model_copy(update={"factors": FactorSettings(**changes)}))


def test_the_second_night_goes_on_from_the_first(first_night):
    world, (first, _, cold) = first_night
    world.add_events(world.event("u03", "i05"), world.event("newcomer", "i05"))
    second, learned, warm = night(world)
    assert "from" not in cold.note
    assert f"{WARM_SWEEPS} sweeps from {first}" in warm.note
    assert "sweeps are best" in learned.note
    rows = sweeps(world, second)
    assert [row["sweep"] for row in rows if row["fit"] == "refit"] == list(range(1, WARM_SWEEPS + 1))
    assert {row["started_from"] for row in rows if row["fit"] == "refit"} == {first}
    assert {row["started_from"] for row in rows if row["fit"] == "learn"} == {None}
    earlier = [row["loss"] for row in sweeps(world, first) if row["fit"] == "refit"]
    assert rows[-1]["loss"] == pytest.approx(earlier[-1], rel=0.1)
    with world.resources.warehouse(read_only=True) as warehouse:
        before, after = (load_item_space(warehouse, version).factors for version in (first, second))
        newcomer = warehouse.read(
            "select factors from user_factors where version = $v and user_id = 'newcomer'", {"v": second}
        )["factors"][0].as_py()
    cosine = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert np.median(cosine) > 0.99  # the same basis, not a turned one
    assert any(newcomer)


def test_other_parameters_or_the_setting_start_anew(first_night):
    world, _ = first_night
    world.add_events(world.event("u03", "i05"))
    _, _, changed = night(world, with_factors(world, n_factors=5))
    assert "from" not in changed.note
    world.add_events(world.event("u04", "i05"))
    _, _, anew = night(world, with_factors(world, n_factors=5, warm_start=False))
    assert "from" not in anew.note
    world.add_events(world.event("u05", "i05"))
    _, _, warm = night(world, with_factors(world, n_factors=5))
    assert "sweeps from" in warm.note


def test_what_arrives_after_the_first_training_is_new(first_night):
    world, (first, *_) = first_night
    world.clock = world.clock.replace(year=world.clock.year + 1)
    world.add_items(("new", "space robot alien", True))
    world.add_events(world.event("u03", "i05"))
    second, *_ = night(world)
    with world.resources.warehouse(read_only=True) as warehouse:
        old, spaces = load_item_space(warehouse, first), load_item_space(warehouse, second)
    assert (old.weights.exposure == 1).all()
    is_new = np.arange(len(spaces.item_ids)) == spaces.index["new"]
    assert spaces.weights.exposure[is_new] == 0
    assert (spaces.weights.exposure[~is_new] == 1).all()


def test_whoever_watches_hears_of_every_sweep(small_world):
    heard = []
    with watch_stages(heard.append):
        version, *_ = night(small_world)
    told = [event.stage for event in heard if event.kind == "progress"]
    rows = sweeps(small_world, version)
    for stage, fit in (("learn_version", "learn"), ("refit_version", "refit")):
        assert told.count(stage) == len([row for row in rows if row["fit"] == fit]) > 0


def test_running_the_last_fit_again_changes_nothing(first_night):
    world, _ = first_night
    world.add_events(world.event("u03", "i05"))
    build_models(world.resources, now=world.tick())
    plan = plan_version(world.resources, now=world.tick())
    learn_version(world.resources, plan, now=world.tick())
    found = []
    for _ in range(2):
        refit_version(world.resources, plan, now=world.tick())
        with world.resources.warehouse(read_only=True) as warehouse:
            found.append(load_item_space(warehouse, plan.version).factors)
    assert np.array_equal(*found)
    assert len(sweeps(world, plan.version)) == len({(r["fit"], r["sweep"]) for r in sweeps(world, plan.version)})
