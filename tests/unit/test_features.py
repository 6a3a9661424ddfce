"""Attributes as columns, and what follows from them: profiles, weights, explanations."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from tasks.domain.explanations import name_reasons, phrase_reasons, split_by_reason
from tasks.domain.factor_model import FactorParameters
from tasks.domain.features import MIN_ROWS, N_RANGES, FeatureSpace, learn_features, parse_attributes
from tasks.domain.fusion import Fusion, fuse_items, fuse_queries, split_scores
from tasks.domain.histories import InteractionLog, TextLog, build_histories, select_users, truncate_histories
from tasks.domain.item_fit import Catalog, fit_items
from tasks.domain.learning import UNLEARNED, learn_recipe
from tasks.domain.profiles import Recipe, compute_profiles
from tasks.domain.ranking import only_attributes
from tasks.domain.records import Because, Recommendation

PEOPLE = [{"age": 18 + n % 60, "job": ("pilot", "cook")[n % 2], "likes": ["sea", "sky"][: n % 3]} for n in range(120)]


def names(space, row):
    return set(space.describe(space.encode([row]))[0].split(", ")) - {""}


def test_values_of_their_own_the_most_frequent_ones_first():
    space = learn_features([{"job": "cook"}, {"job": "pilot"}, {"job": "cook"}, {"job": "pilot"}, {"job": "cook"}])
    assert space.values == (("job", "cook"), ("job", "pilot"))
    assert space.labels == ("job cook", "job pilot")
    many = [{"town": f"t{n % 40:02}"} for n in range(200)] + [{"town": "t07"}]
    assert learn_features(many, max_values=3).values == (("town", "t07"), ("town", "t00"), ("town", "t01"))


def test_a_row_has_length_one_whatever_is_known_of_it():
    space = learn_features(PEOPLE)
    features = space.encode([*PEOPLE, {"job": "cook"}, {}])
    assert features.shape == (122, space.width)
    assert np.linalg.norm(features.toarray(), axis=1) == pytest.approx([1] * 121 + [0], abs=1e-6)
    assert space.describe(features)[-2:] == ("job cook", "")


@pytest.mark.parametrize(
    "row",
    [
        {}, {"job": "diver"}, {"job": None}, {"job": ""}, {"job": {"title": "cook"}}, {"age": float("nan")},
        {"age": "old"}, {"age": None}, {"age": 10**400}, {"likes": []}, {"shoe": 44}, {"job": ["diver", None]},
        {"age": "9" * 5000},
    ],
)  # fmt: skip
def test_what_is_missing_or_was_never_seen_is_zero(row):
    assert learn_features(PEOPLE).encode([row]).nnz == 0


def test_numbers_are_cut_into_ranges_of_about_equal_size():
    space = learn_features(PEOPLE)
    ((name, cuts),) = space.cuts
    assert (name, len(cuts)) == ("age", N_RANGES - 1)
    assert all(low < high for low, high in pairwise(cuts))
    columns = space.encode([{"age": person["age"]} for person in PEOPLE]).indices
    assert np.bincount(columns)[len(space.values) :].tolist() == [12] * N_RANGES
    assert names(space, {"age": 3}) == {"age below 24"}
    assert names(space, {"age": 24}) == names(space, {"age": 29.5}) == names(space, {"age": "29"}) == {"age 24 to 29"}
    assert names(space, {"age": 900}) == {"age 72 and more"}


def test_few_numbers_and_texts_among_numbers_are_values():
    stars = learn_features([{"stars": n % 5} for n in range(50)])
    assert not stars.cuts
    assert names(stars, {"stars": 3.0}) == names(stars, {"stars": "3"}) == {"stars 3"}
    mixed = learn_features([{"age": n} for n in range(50)] + [{"age": "unknown"}] * 2)
    assert names(mixed, {"age": "unknown"}) == {"age unknown"}
    assert len(names(mixed, {"age": 7})) == 1
    assert names(learn_features([{"zip": "07030"}] * 2), {"zip": "07030"}) == {"zip 07030"}
    flags = learn_features([{"paid": True}, {"paid": False}] * 2)
    assert names(flags, {"paid": True}) == {"paid true"}


def test_a_number_that_is_nearly_always_the_same_stays_a_value():
    space = learn_features([{"visits": 0}] * 500 + [{"visits": n} for n in range(1, 20)])
    assert names(space, {"visits": 0}) == {"visits 0"}
    assert space.encode([{"visits": 7}]).nnz == 0


def test_what_only_one_has_tells_nothing_of_others():
    space = learn_features([{"mail": f"{n}@example.org", "job": "cook"} for n in range(30)])
    assert space.values == (("job", "cook"),)
    assert MIN_ROWS == 2


def test_each_element_of_a_list_counts_and_order_does_not():
    space = learn_features(PEOPLE)
    assert names(space, {"likes": ["sky", "sea", "sea"]}) == {"likes sea", "likes sky"}
    assert learn_features(PEOPLE[::-1]) == space


def test_stored_and_read_again_it_is_the_same_space():
    space = learn_features([*PEOPLE, *({"price": n / 7, "name": 'Zoë, "x"'} for n in range(60))])
    assert FeatureSpace.from_json(space.to_json()) == space
    assert FeatureSpace.from_json(None).width == 0
    assert "Zoë" in space.to_json()
    assert json.loads(space.to_json()).keys() == {"values", "cuts"}
    assert parse_attributes('{"age": 3}') == {"age": 3}
    assert parse_attributes(None) == {}


N_USERS, N_ITEMS = 90, 60
SMALL = FactorParameters(n_factors=8, n_sweeps=6)
DRAFT = Recipe(SMALL, UNLEARNED, 4.0, 200.0, 365.0, ())


@pytest.fixture(scope="module")
def world():
    """Pilots like the even items and cooks the odd ones; item texts say nothing."""
    rng = np.random.default_rng(3)
    people = [{"job": ("pilot", "cook")[user % 2], "age": user} for user in range(N_USERS)]
    space = learn_features(people)
    rows = [
        (user, item, 1.0, 1000 * user + step)
        for user in range(N_USERS)
        for step, item in enumerate(rng.permutation(np.arange(user % 2, N_ITEMS, 2))[: 5 + user % 9])
    ]
    user, item, weight, last_at = (np.array(column) for column in zip(*rows, strict=True))
    log = InteractionLog(user, item, weight.astype(np.float32), last_at, N_USERS, N_ITEMS, space.encode(people))
    text = np.zeros((N_ITEMS, 2), np.float32)
    return log, Catalog(tuple(f"i{n:02}" for n in range(N_ITEMS)), text), space


@pytest.fixture(scope="module")
def learned(world):
    log, catalog, space = world
    recipe = learn_recipe(log, no_texts(), catalog, DRAFT)[0]
    items = fit_items(log, catalog, recipe.factor_parameters).items
    return replace(items, user_space=space), recipe


def no_texts():
    empty = np.zeros(0, np.float32)
    return TextLog(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), empty, np.zeros(0, np.int64))


def newcomers(world, *people):
    """Histories of users who have done nothing."""
    log, _, space = world
    none = np.zeros(0, np.int64)
    empty = InteractionLog(none, none, none.astype(np.float32), none, len(people), log.n_items, space.encode(people))
    return build_histories(empty, no_texts(), [f"n{number}" for number in range(len(people))])


def test_a_newcomer_gets_what_people_like_them_like(world, learned):
    items, recipe = learned
    people = newcomers(world, {"job": "pilot"}, {"job": "cook"}, {"job": "diver"}, {})
    profiles = compute_profiles(people, items, recipe)
    request = recipe.fusion.attribute_request
    first = recipe.fusion.buckets[0]
    assert profiles.beta.tolist() == pytest.approx([request.beta, request.beta, first.beta, first.beta])
    best = np.argsort(-(profiles.factors[:2] @ items.factors.T), axis=1)[:, :20] % 2
    assert (best == [[0], [1]]).all()
    assert not profiles.factors[2:].any()
    queries = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, recipe.fusion)
    assert only_attributes(queries, profiles.n_history, 2).tolist() == [True, True, False, False]


def test_the_profile_of_a_newcomer_does_not_depend_on_who_else_is_in_the_call(world, learned):
    items, recipe = learned
    people = newcomers(world, {"job": "pilot", "age": 20}, {}, {"job": "cook"})
    together = compute_profiles(people, items, recipe).factors
    alone = [compute_profiles(select_users(people, np.array([row])), items, recipe).factors[0] for row in range(3)]
    assert np.abs(together - alone).max() < 1e-6


def test_histories_keep_the_attributes_when_they_are_cut(world):
    log, *_ = world
    histories = build_histories(log, no_texts(), [""] * N_USERS)
    cut = truncate_histories(histories, np.zeros(N_USERS, np.int64))
    assert cut.interactions.nnz == 0
    assert (cut.features != log.user_features).nnz == 0
    assert cut.has_features.all()
    split = log.select(log.user < 5)
    assert split.user_features is log.user_features


def test_the_share_of_attributes_is_a_reason_and_all_reasons_add_up(world, learned):
    items, recipe = learned
    log, *_ = world
    histories = build_histories(log, no_texts(), [""] * N_USERS)
    profiles = compute_profiles(histories, items, recipe)
    queries = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, recipe.fusion)
    stored = fuse_items(items.text, items.factors, items.prior, recipe.fusion)
    parts = split_scores(queries, stored, 2)
    targets = [np.array([1, 2, 30])] * N_USERS
    splits = list(split_by_reason(histories, profiles, items, recipe, targets))
    for user, split in enumerate(splits):
        assert split.values.sum(axis=0) == pytest.approx((parts.text + parts.factors)[user, targets[user]], abs=1e-5)
        assert split.attribute_labels == (items.user_space.describe(log.user_features[[user]])[0],)
    told = [reason for reason in name_reasons(splits[0], 1, 1.0, items.item_ids, {}, 99) if reason.kind == "attributes"]
    assert len(told) == 1
    assert told[0].label == "age below 9, job pilot"
    assert told[0].contribution > 0.001


def test_a_newcomer_has_one_reason(world, learned):
    items, recipe = learned
    people = newcomers(world, {"job": "cook"}, {})
    profiles = compute_profiles(people, items, recipe)
    known, unknown = split_by_reason(people, profiles, items, recipe, [np.array([1])] * 2)
    assert [r.kind for r in name_reasons(known, 0, 1.0, items.item_ids, {}, 5)] == ["attributes"]
    assert unknown.values.shape == (0, 1)


def test_reasons_are_put_into_words():
    because = (Because("attributes", "age 20 to 29, job cook", 0.6), Because("item", "Heat", 0.2, "1"))
    item = Recommendation("x", "X", 1, 1.0, 0.0, 0.8, 0.2, because)
    assert phrase_reasons(item) == "Because of what you told us: age 20 to 29, job cook (60%) and Heat (20%)"


def test_without_attributes_nothing_changes(world, learned):
    log, catalog, _ = world
    _, recipe = learned
    plain = replace(log, user_features=None)
    items = fit_items(plain, catalog, recipe.factor_parameters).items
    histories = build_histories(log, no_texts(), [""] * N_USERS)
    assert items.user_map is None
    told = compute_profiles(histories, items, recipe)  # a version from before, and users who told something since
    never = compute_profiles(replace(histories, features=None), items, recipe)
    assert np.array_equal(told.factors, never.factors)
    assert learn_recipe(plain, no_texts(), catalog, recipe)[0].fusion.attribute_request is None


def test_the_weights_are_stored_with_the_others(learned):
    _, recipe = learned
    assert Fusion.from_json(recipe.fusion.to_json()) == recipe.fusion
    older = json.loads(recipe.fusion.to_json())
    del older["attribute_request"]
    assert Fusion.from_json(json.dumps(older)).attribute_request is None


def test_few_newcomers_to_learn_from_get_the_usual_weight(world):
    log, catalog, _ = world
    features = log.user_features.tolil()
    features[5:] = 0
    few = replace(log, user_features=sparse.csr_matrix(features))
    fusion = learn_recipe(few, no_texts(), catalog, DRAFT)[0].fusion
    assert fusion.attribute_request.beta > 0


def test_items_lean_on_what_is_known_beside_their_text(world):
    """Of three items that nobody has met, two say what they are like; there are no texts."""
    log, catalog, _ = world
    kinds = [{"kind": ("light", "heavy")[item % 2]} for item in range(N_ITEMS)]
    kinds[58] = {}
    known = replace(log.select(log.item < 57), user_features=None)
    features = learn_features(kinds).encode(kinds) * np.float32(0.5)
    items = fit_items(known, catalog._replace(features=features), SMALL).items
    assert not fit_items(known, catalog, SMALL).items.factors[57:].any()
    assert not items.factors[58].any()
    assert items.text_map.shape == (2, 8)
    pilot, cook = (items.factors[kind:57:2].mean(axis=0) for kind in (0, 1))
    assert items.factors[57] @ cook > items.factors[57] @ pilot
    assert items.factors[59] @ cook > items.factors[59] @ pilot
