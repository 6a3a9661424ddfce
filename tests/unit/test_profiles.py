from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from tasks.domain.errors import InputError
from tasks.domain.factor_model import FactorParameters, ItemWeights
from tasks.domain.fold_in import fold_in
from tasks.domain.fusion import Bucket, Fusion, fuse_items, fuse_queries, split_scores
from tasks.domain.histories import select_users
from tasks.domain.profiles import (
    Histories,
    ItemSpace,
    Recipe,
    compute_profiles,
    history_lengths,
    request_histories,
    text_coefficients,
    weigh_recency,
)
from tasks.domain.records import EventType
from tasks.domain.vectors import lists_from_matrix, matrix_from_lists, unit_rows

N_ITEMS, WIDTH, N_FACTORS = 20, 6, 4
FUSION = Fusion(
    scale=1.5,
    buckets=(Bucket(0, 0.0, 1.0), Bucket(1, 0.4, 0.2), Bucket(3, 0.2, 0.1)),
    text_request=Bucket(0, 0.9, 0.05),
    factor_block=0.5,
    prior_block=2.0,
)
RECIPE = Recipe(FactorParameters(n_factors=N_FACTORS), FUSION, 2.0, 50.0, 365.0, (EventType("like", "positive"),))


@pytest.fixture
def items():
    rng = np.random.default_rng(0)
    text = unit_rows(rng.normal(size=(N_ITEMS, WIDTH))).astype(np.float32)
    text[0] = 0
    factors = rng.normal(size=(N_ITEMS, N_FACTORS)).astype(np.float32)
    prior = rng.random(N_ITEMS).astype(np.float32)
    text_map = rng.normal(size=(WIDTH, N_FACTORS)).astype(np.float32)
    return ItemSpace(
        tuple(f"i{n:02}" for n in range(N_ITEMS)),
        text,
        factors,
        prior,
        text_map,
        ItemWeights(*rng.random((2, N_ITEMS)).astype(np.float32)),
    )


@pytest.fixture
def histories():
    """Likes, seen and disliked; likes and a text; a text alone; nothing; a dislike alone."""
    weight = np.array([1, 0.5, 0, -1, 2, 1, -1], np.float32)
    column, indptr = np.array([0, 3, 5, 8, 2, 7, 4]), np.array([0, 4, 6, 6, 6, 7])
    age = np.array([3, 0, 1, 2, 0, 1, 0], np.float32)
    shape = (5, N_ITEMS)
    return Histories(
        user_ids=("many", "both", "writer", "nobody", "hater"),
        interactions=sparse.csr_matrix((weight, column, indptr), shape=shape),
        ages=sparse.csr_matrix((age, column, indptr), shape=shape),
        texts=unit_rows(np.random.default_rng(2).normal(size=(2, WIDTH))).astype(np.float32),
        text_user=np.array([1, 2]),
        text_weight=np.ones(2, np.float32),
        text_age=np.array([1, 0], np.float32),
        text_labels=("noir", "space"),
    )


def test_a_user_alone_gets_the_profile_of_the_batch(histories, items):
    batch = compute_profiles(histories, items, RECIPE)
    for row in range(5):
        alone = compute_profiles(select_users(histories, np.array([row])), items, RECIPE)
        for name in ("text", "factors", "n_history", "alpha", "beta", "drift"):
            assert np.allclose(getattr(alone, name)[0], getattr(batch, name)[row], atol=1e-5), name


def test_threads_change_nothing(histories, items):
    one, four = (compute_profiles(histories, items, RECIPE, n_threads=n) for n in (1, 4))
    assert np.array_equal(one.factors, four.factors)
    assert np.array_equal(one.text, four.text)


def test_text_means_have_unit_length_or_none(histories, items):
    norms = np.linalg.norm(compute_profiles(histories, items, RECIPE).text, axis=1)
    assert np.allclose(norms, [1, 1, 1, 0, 0], atol=1e-6)


def test_the_weights_of_a_text_mean_give_it_back(histories, items):
    recent, _ = weigh_recency(histories, items, RECIPE)
    coefficients = text_coefficients(recent, items)
    mean = coefficients.items @ items.text + coefficients.texts @ histories.texts
    assert np.allclose(mean, compute_profiles(histories, items, RECIPE).text, atol=1e-6)
    assert (coefficients.items.data >= 0).all()  # what was disliked does not enter
    assert coefficients.texts[1, 0] > 0


def test_recency_follows_its_formula_and_keeps_signs_and_zeros(histories, items):
    recent, drift = weigh_recency(histories, items, RECIPE)
    share = np.minimum(1, RECIPE.fast_share + drift[0])
    ages = np.array([3, 0, 1, 2])
    decay = (1 - share) * 0.5 ** (ages / 50) + share * 0.5 ** (ages / 2)
    assert np.allclose(recent.interactions.data[:4], [1, 0.5, 0, -1] * decay, atol=1e-6)
    assert recent.interactions.nnz == histories.interactions.nnz
    assert recent.text_weight[1] == 1
    assert recent.text_weight[0] < 1


def test_factors_are_the_fold_in_of_the_recent_history(histories, items):
    recent, _ = weigh_recency(histories, items, RECIPE)
    alone = select_users(recent, np.array([0]))
    expected = fold_in(alone.interactions, items.fixed(RECIPE.factor_parameters))
    assert np.allclose(compute_profiles(histories, items, RECIPE).factors[0], expected[0], atol=1e-5)


def test_drift_is_the_distance_of_the_newest_interest_from_the_old_one(items):
    """Ten things of one kind; then a user goes on with it, another turns to its opposite."""
    text = np.zeros((N_ITEMS, WIDTH), np.float32)
    text[:10, 0], text[10:, 1] = 1, 1
    space = replace(items, text=text)
    steady = request_histories(space, [f"i{n:02}" for n in range(8)])
    turned = request_histories(space, [f"i{n:02}" for n in (0, 1, 2, 3, 10, 11, 12)])
    (_, none), (_, much) = (weigh_recency(history, space, RECIPE) for history in (steady, turned))
    assert none[0] == pytest.approx(0, abs=1e-6)
    assert much[0] > 0.1
    assert compute_profiles(turned, space, RECIPE).text[0, 1] > 0.9  # the profile has followed


def test_weights_go_by_likes_and_by_what_was_written(histories, items):
    profiles = compute_profiles(histories, items, RECIPE)
    assert profiles.n_history.tolist() == [2, 2, 0, 0, 0]
    assert history_lengths(histories.interactions).tolist() == [2, 2, 0, 0, 0]
    assert profiles.alpha.tolist() == pytest.approx([0.4, 0.4, 0.9, 0, 0])
    assert profiles.beta.tolist() == pytest.approx([0.2, 0.2, 0.05, 1, 1])
    assert FUSION.weights(2) == FUSION.buckets[1]
    assert FUSION.weights(300) == FUSION.buckets[2]


def test_a_user_without_history_is_served_in_the_order_of_the_prior(histories, items):
    profiles = compute_profiles(histories, items, RECIPE)
    stored = fuse_items(items.text, items.factors, items.prior, FUSION)
    queries = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, FUSION)
    order = np.argsort(-(queries @ stored.T), axis=1, kind="stable")
    by_prior = np.argsort(-items.prior, kind="stable")
    assert order[3].tolist() == by_prior.tolist()  # nobody
    assert order[4].tolist() == by_prior.tolist()  # one who only dislikes
    assert order[2].tolist() != by_prior.tolist()  # one who wrote something


def test_the_fused_dot_product_is_the_formula(histories, items):
    profiles = compute_profiles(histories, items, RECIPE)
    stored = fuse_items(items.text, items.factors, items.prior, FUSION)
    queries = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, FUSION)
    for user in range(5):
        alpha, beta = profiles.alpha[user], profiles.beta[user]
        expected = alpha * items.text @ profiles.text[user]
        expected += (1 - alpha) * FUSION.scale * items.factors @ profiles.factors[user] + beta * items.prior
        assert np.allclose(stored @ queries[user], expected, atol=1e-5)
    assert np.allclose(sum(split_scores(queries, stored, WIDTH)), queries @ stored.T, atol=1e-5)


def test_recipes_survive_json():
    assert Recipe.from_json(RECIPE.to_json(), FUSION.to_json()) == RECIPE
    assert "fusion" not in RECIPE.to_json()


def test_a_request_likes_each_item_once_and_the_last_one_is_newest(items):
    history = request_histories(items, ["i05", "i02", "i05"])
    assert history.interactions.indices.tolist() == [2, 5]
    assert history.ages.data.tolist() == [0, 1]
    with pytest.raises(KeyError):
        request_histories(items, ["unknown"])


def test_nobody_at_all(items):
    shape = (0, N_ITEMS)
    nothing = np.zeros(0, np.float32)
    empty = sparse.csr_matrix(shape, dtype=np.float32)
    histories = Histories((), empty, empty, np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64), nothing, nothing)
    profiles = compute_profiles(histories, items, RECIPE)
    assert profiles.text.shape == (0, WIDTH)
    assert profiles.factors.shape == (0, N_FACTORS)


def test_vectors_survive_the_round_trip_and_wrong_widths_are_refused():
    matrix = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    column = lists_from_matrix(matrix)
    assert np.array_equal(matrix_from_lists(column, 4), matrix)
    assert matrix_from_lists(lists_from_matrix(matrix[:0]), 4).shape == (0, 4)
    assert np.array_equal(matrix_from_lists(column.slice(1, 1), 4), matrix[1:2])
    with pytest.raises(InputError, match="3 of them are missing or have another width"):
        matrix_from_lists(column, 5)
