"""What users tell of themselves, from the import to a slate."""

import json

import numpy as np
import pytest

from tasks.domain.profiles import compute_profiles
from tasks.model_state import load_histories, load_item_space, load_profiles, load_version
from tasks.recommend import recommend_to_user
from tasks.refresh import read_feed, refresh, refresh_users
from tasks.slates import write_slates
from tasks.train import learn_version, plan_version, refit_version
from tasks.transform import build_models
from warehouse.catalog import query_sql

PILOT, COOK = {"job": "pilot", "age": 30}, {"job": "cook", "age": 30}


def speaks_for_cooks(slate):
    """What the factors raise most are items from 20 on, which the cooks like, the users with odd numbers."""
    best = sorted(slate.items, key=lambda item: -item.factors_part)[:8]
    return sum(item.item_id >= "i20" for item in best) / 8


def read(world, sql, **parameters):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql, parameters).to_pylist()


def test_a_newcomer_is_served_from_attributes_after_the_training(told_world):
    slate = recommend_to_user(told_world.resources, "silent", k=40, explain=True)
    assert (slate.source, slate.version, slate.n_history) == ("attributes", "v2", 0)
    assert "attributes" in slate.note
    assert speaks_for_cooks(slate) == 1
    for item in slate.items:
        (because,) = item.because
        assert (because.kind, because.label) == ("attributes", "age 29 to 30, job cook")
        assert because.contribution + item.prior_part == pytest.approx(item.score, abs=1e-4)
    plain = recommend_to_user(told_world.resources, "silent", k=40)
    assert plain.source == "attributes"
    assert [item.item_id for item in plain.items] == [item.item_id for item in slate.items]


def test_a_newcomer_is_served_from_attributes_at_once_and_after_the_next_refresh(told_world):
    told_world.add_users(new=COOK)
    before = recommend_to_user(told_world.resources, "new", k=40)
    assert before.source == "attributes"
    assert speaks_for_cooks(before) == 1
    run = refresh(told_world.resources, now=told_world.tick())
    assert (run.n_users, run.n_events) == (1, 0)
    after = recommend_to_user(told_world.resources, "new", k=40)
    assert [item.score for item in after.items] == pytest.approx([item.score for item in before.items], abs=1e-5)
    assert refresh(told_world.resources, now=told_world.tick()) is None


def test_a_changed_attribute_counts_from_the_next_refresh_on(told_world):
    told_world.add_users(silent=PILOT)
    assert speaks_for_cooks(recommend_to_user(told_world.resources, "silent", k=40)) == 1
    refresh(told_world.resources, now=told_world.tick())
    assert speaks_for_cooks(recommend_to_user(told_world.resources, "silent", k=40)) == 0
    told_world.add_users(silent={})
    refresh(told_world.resources, now=told_world.tick())
    assert recommend_to_user(told_world.resources, "silent", k=40).source == "popular"


def test_the_first_event_makes_a_profile(told_world):
    told_world.add_events(told_world.event("silent", "i03"))
    refresh(told_world.resources, now=told_world.tick())
    slate = recommend_to_user(told_world.resources, "silent", k=40, explain=True)
    assert (slate.source, slate.n_history) == ("profile", 1)
    for item in slate.items:
        assert {because.kind for because in item.because} == {"item", "attributes"}
        total = sum(because.contribution for because in item.because) + item.prior_part
        assert total == pytest.approx(item.score, abs=1e-4)


def test_unseen_values_leave_what_is_popular(told_world):
    told_world.add_users(new={"job": "diver", "shoe": 44})
    refresh(told_world.resources, now=told_world.tick())
    assert recommend_to_user(told_world.resources, "new").source == "popular"


def test_stored_slates_say_so(told_world):
    told_world.add_users(unknown={})
    told_world.add_events(told_world.event("unknown", "i25", event_id="only"))
    told_world.add_events(told_world.event("unknown", "i25", "retraction", event_id="only"))
    refresh(told_world.resources, now=told_world.tick())
    write_slates(told_world.resources, "v2", now=told_world.tick())
    rows = read(told_world, "select user_id, source, reason, score, prior_part from mart_recommendations")
    sources = {row["user_id"]: row["source"] for row in rows}
    assert (sources["silent"], sources["unknown"], sources["u01"]) == ("attributes", "popular", "profile")
    for row in rows:
        total = sum(reason["contribution"] for reason in json.loads(row["reason"])) + row["prior_part"]
        assert total == pytest.approx(row["score"], abs=1e-4)
    assert {json.loads(row["reason"])[0]["kind"] for row in rows if row["user_id"] == "silent"} == {"attributes"}


def test_a_version_from_before_knows_no_attributes(small_world):
    small_world.add_users(u01=PILOT, new=COOK)
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, "v1"), load_item_space(warehouse, "v1")
        assert read_feed(warehouse, "v1") is None
        histories, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot(), ["new", "u01"])
    assert model.user_map is None
    assert histories.features is None
    assert recommend_to_user(small_world.resources, "new").source == "popular"
    assert recommend_to_user(small_world.resources, "u01", explain=True).source == "profile"


def test_attributes_are_those_of_the_snapshot(told_world):
    """An explained slate is the served one, though the user told something else since."""
    served = recommend_to_user(told_world.resources, "silent", k=40)
    told_world.add_users(silent=PILOT)
    explained = recommend_to_user(told_world.resources, "silent", k=40, explain=True)
    assert [item.item_id for item in explained.items] == [item.item_id for item in served.items]
    assert explained.items[0].because[0].label.endswith("job cook")


def test_named_users_are_solved_again(told_world):
    run = refresh_users(told_world.resources, ["silent"], now=told_world.tick())
    assert run.n_users == 1
    (row,) = read(told_world, query_sql("users_with_events"), user_ids=["silent", "nobody"])
    assert row["user_id"] == "silent"


def test_a_training_stores_what_serving_needs(told_world):
    """Plan to refit on the same world: profiles of the refit are those that nearline computes."""
    build_models(told_world.resources, now=told_world.tick())
    plan = plan_version(told_world.resources, now=told_world.tick())
    learn_version(told_world.resources, plan, now=told_world.tick())
    refit_version(told_world.resources, plan, now=told_world.tick())
    with told_world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, plan.version), load_item_space(warehouse, plan.version)
        stored = load_profiles(warehouse, plan.version)
        histories, _ = load_histories(warehouse, model, items, plan.snapshot, stored.user_ids)
    assert model.user_map.shape == (model.user_space.width, model.n_factors)
    assert model.recipe.fusion.attribute_request.beta >= 0
    solved = compute_profiles(histories, items, model.recipe)
    assert np.abs(stored.factors - solved.factors).max() < 1e-5
    assert np.abs(stored.beta - solved.beta).max() < 1e-6
    assert stored.factors[stored.user_ids.index("silent")].any()
    changed = plan_version(told_world.resources, now=told_world.tick()).inputs_hash
    assert changed == plan.inputs_hash
    told_world.add_users(silent=PILOT)
    assert plan_version(told_world.resources, now=told_world.tick()).inputs_hash != plan.inputs_hash
