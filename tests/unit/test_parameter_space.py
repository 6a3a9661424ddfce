"""Which parameters are turned, how far, and how they go into a recipe and back."""

from dataclasses import replace

import pytest

from tasks.domain.factor_model import FactorParameters
from tasks.domain.learning import UNLEARNED
from tasks.domain.parameter_space import HALF_LIFE, apply_values, build_space, read_values
from tasks.domain.profiles import Recipe
from tasks.domain.records import EventType

TYPES = (
    EventType("view", "positive", 0.25),
    EventType("like", "positive", 1.0),
    EventType("dislike", "negative", 1.0),
    EventType("search", "text", 1.0),
)
DRAFT = Recipe(FactorParameters(), UNLEARNED, 8.0, 200.0, 365.0, TYPES)
EVENTS = {"view": 900, "like": 90, "dislike": 10, "search": 500}


def space_of(draft=DRAFT, events=EVENTS, **changes):
    features = {"has_item_features": True, "has_user_features": False}
    given = {**features, "history": 20.0, "n_items": 1000, "max_factors": 128, **changes}
    return build_space(draft, events, **given)


def names(space):
    return [dial.name for dial in space.dials]


def test_every_parameter_of_the_issue_has_a_dial():
    wanted = {
        "n_factors", "regularization", "frequency_exponent", "unobserved_weight", "popularity_discount", "text_prior",
        "text_ridge", HALF_LIFE, "event_types.like.weight", "event_types.dislike.weight",
    }  # fmt: skip
    assert set(names(space_of())) == wanted


def test_the_most_frequent_positive_type_holds_the_scale_of_the_weights():
    assert "event_types.view.weight" not in names(space_of())
    turned = names(space_of(events={"view": 1, "like": 90, "dislike": 10}))
    assert "event_types.like.weight" not in turned
    assert "event_types.dislike.weight" in turned


def test_a_weight_that_the_settings_name_holds_the_scale_instead():
    turned = names(space_of(fixed={"event_types.like.weight"}))
    assert "event_types.view.weight" in turned
    assert "event_types.like.weight" not in turned


def test_rare_and_textual_types_keep_their_weight():
    turned = names(space_of(events={"view": 10_000, "like": 49, "search": 5000}))
    assert not [name for name in turned if name.startswith("event_types")]


def test_what_the_settings_name_and_what_has_no_effect_is_left_alone():
    assert "n_factors" not in names(space_of(fixed={"n_factors"}))
    priors = {"text_prior", "text_ridge", "user_prior"}
    assert priors & set(names(space_of())) == {"text_prior", "text_ridge"}
    assert priors & set(names(space_of(has_item_features=False))) == set()
    assert priors & set(names(space_of(has_item_features=False, has_user_features=True))) == {
        "text_ridge",
        "user_prior",
    }


def test_the_dimension_stays_below_its_limit_and_the_catalog_but_reaches_the_draft():
    (dial,) = [dial for dial in space_of(max_factors=50).dials if dial.name == "n_factors"]
    assert dial.steps == (16, 24, 32, 48, 64)
    (dial,) = [dial for dial in space_of(n_items=20).dials if dial.name == "n_factors"]
    assert dial.steps == (16, 64)


def test_a_range_is_wide_enough_for_the_draft():
    parameters = FactorParameters(regularization=40.0, unobserved_weight=5.0)
    space = space_of(replace(DRAFT, factor_parameters=parameters))
    assert space.to_search(space.complete({})) is not None


def test_values_go_into_a_recipe_and_come_back():
    space = space_of()
    values = space.complete({"n_factors": 32, "regularization": 0.5, HALF_LIFE: 30.0, "event_types.like.weight": 4.0})
    recipe = apply_values(DRAFT, values)
    assert recipe.factor_parameters == FactorParameters(n_factors=32, regularization=0.5)
    assert recipe.interaction_half_life_days == 30.0
    assert {t.name: t.weight for t in recipe.event_types} == {"view": 0.25, "like": 4.0, "dislike": 1.0, "search": 1.0}
    assert {name: read_values(recipe)[name] for name in values} == values
    assert isinstance(recipe.factor_parameters.n_factors, int)


def test_fixed_names_win_and_unknown_ones_are_passed_over():
    values = {"n_factors": 32.0, "regularization": 0.5, "event_types.gone.weight": 2.0, "of_another_release": 1.0}
    recipe = apply_values(DRAFT, values, fixed={"regularization"})
    assert recipe == replace(DRAFT, factor_parameters=FactorParameters(n_factors=32))


def test_what_a_search_sees_comes_back_the_same():
    space = space_of()
    values = space.complete({"regularization": 0.0123, "frequency_exponent": 0.9, "unobserved_weight": 0.05})
    found = space.to_search(values)
    assert found["regularization"] == pytest.approx(0.0123 * (20 + 0.05 * 1000) ** 0.9)
    assert found["n_factors"] == 4
    assert space.from_search(found) == values


def test_the_same_strength_goes_with_every_exponent():
    """With one value of the search, the average user's penalty is the same whatever the exponent."""
    space = space_of()
    found = space.to_search(space.complete({}))
    penalties = []
    for exponent in (0.1, 0.9):
        values = space.from_search({**found, "frequency_exponent": exponent})
        penalties.append(values["regularization"] * (20 + values["unobserved_weight"] * 1000) ** exponent)
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-4)


def test_values_outside_the_space_are_none():
    space = space_of()
    assert space.to_search(space.complete({"n_factors": 100})) is None
    assert space.to_search(space.complete({"text_prior": 1.5})) is None
    assert space.to_search(space.complete({"text_prior": 1.0})) is not None
