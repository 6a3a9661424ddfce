from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from tasks.domain.errors import TrainingError
from tasks.domain.factors import (
    FactorParameters,
    TextTerms,
    attribute_scores,
    compute_loss,
    fit_factors,
    fold_in,
    half_step,
)

SMALL = FactorParameters(n_factors=8, text_ridge=1.0, n_sweeps=6)


def random_world(n_users=30, n_items=40, width=12, seed=0, *, every_item=False):
    """Interactions with likes of several strengths, dislikes and neutral entries, and unit texts."""
    rng = np.random.default_rng(seed)
    dense = rng.choice([0, 0, 0, 0.25, 1, 1, 3, -1], (n_users, n_items)) * (rng.random((n_users, n_items)) < 0.35)
    if every_item:
        dense[rng.integers(0, n_users, n_items), np.arange(n_items)] = 1
    texts = rng.normal(size=(n_items, width))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return sparse.csr_matrix(dense.astype(np.float32)), texts.astype(np.float32)


def reference_user(row, items, parameters, n_others):
    """The normal equations of one row, written out in double precision."""
    items = items.astype(np.float64)
    system = parameters.unobserved_weight * items.T @ items
    side = np.zeros(items.shape[1])
    for column, weight in enumerate(row):
        system += abs(weight) * np.outer(items[column], items[column])
        side += max(weight, 0) * items[column]
    spread = np.abs(row).sum() + parameters.unobserved_weight * n_others
    penalty = parameters.regularization * spread**parameters.frequency_exponent
    return np.linalg.solve(system + penalty * np.eye(len(side)), side)


def test_fold_in_solves_the_normal_equations():
    matrix, texts = random_world()
    items = fit_factors(matrix, texts, SMALL).items
    expected = [reference_user(row, items, SMALL, len(items)) for row in matrix.toarray().astype(np.float64)]
    assert np.allclose(fold_in(matrix, items, SMALL), expected, atol=1e-6)


def test_fold_in_equals_the_last_half_step_of_the_training():
    matrix, texts = random_world()
    fit = fit_factors(matrix, texts, SMALL)
    assert np.abs(fit.users - fold_in(matrix, fit.items, SMALL)).max() < 1e-5
    assert np.abs(fit.users - half_step(matrix, fit.items.astype(np.float64), SMALL)).max() < 1e-5


def test_one_user_is_solved_as_in_the_batch():
    matrix, texts = random_world()
    items = fit_factors(matrix, texts, SMALL).items
    batch = fold_in(matrix, items, SMALL)
    alone = np.concatenate([fold_in(matrix[[row]], items, SMALL) for row in range(matrix.shape[0])])
    assert np.abs(batch - alone).max() < 1e-6


def test_threads_and_repetition_change_nothing_but_the_seed_does():
    matrix, texts = random_world(n_users=600)
    first = fit_factors(matrix, texts, SMALL)
    threaded = fit_factors(matrix, texts, SMALL, n_threads=4)
    assert np.array_equal(first.items, threaded.items)
    assert np.array_equal(first.users, threaded.users)
    assert first.losses == threaded.losses
    assert not np.allclose(first.items, fit_factors(matrix, texts, replace(SMALL, seed=1)).items)


@pytest.mark.parametrize("text_prior", [0.0, 0.5, 1.0])
def test_the_loss_never_rises(text_prior):
    matrix, texts = random_world(every_item=True)
    losses = fit_factors(matrix, texts, replace(SMALL, text_prior=text_prior, n_sweeps=25)).losses
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(losses))
    assert losses[-1] < 0.99 * losses[0]


def test_the_loss_is_the_objective_written_out():
    matrix, texts = random_world(n_users=5, n_items=6, width=3)
    parameters = replace(SMALL, n_factors=2, text_prior=0.7)
    rng = np.random.default_rng(1)
    users, items, text_map = rng.normal(size=(5, 2)), rng.normal(size=(6, 2)), rng.normal(size=(3, 2))
    dense, expected = matrix.toarray(), 0.0

    def penalty(size, n_others):
        return parameters.regularization * (size + parameters.unobserved_weight * n_others) ** 0.5

    for u in range(5):
        expected += penalty(np.abs(dense[u]).sum(), 6) * users[u] @ users[u]
        for i in range(6):
            score = users[u] @ items[i]
            expected += abs(dense[u, i]) * ((dense[u, i] > 0) - score) ** 2 + parameters.unobserved_weight * score**2
    for i in range(6):
        away = items[i] - texts[i] @ text_map
        expected += penalty(np.abs(dense[:, i]).sum(), 5) * (0.3 * items[i] @ items[i] + 0.7 * away @ away)
    expected += 0.7 * parameters.text_ridge * (text_map**2).sum()
    assert compute_loss(matrix, users, items, texts @ text_map, text_map, parameters) == pytest.approx(expected)


def test_a_checkerboard_of_two_tastes_is_solved():
    """Even users like even items, odd users odd ones; the one item that each has not met must come first."""
    n = 12
    dense = np.array([[float(u % 2 == i % 2) for i in range(n)] for u in range(n)], np.float32)
    held_out = np.array([(u + 2 * (u // 2)) % n for u in range(n)])
    dense[np.arange(n), held_out] = 0
    fit = fit_factors(sparse.csr_matrix(dense), np.zeros((n, 3), np.float32), replace(SMALL, n_sweeps=15))
    scores = fit.users @ fit.items.T
    scores[dense > 0] = -np.inf
    assert scores.argmax(axis=1).tolist() == held_out.tolist()


def test_what_is_disliked_falls():
    matrix, texts = random_world()
    items = fit_factors(matrix, texts, SMALL).items
    liked = sparse.csr_matrix(([1.0, 1.0], ([0, 0], [3, 5])), shape=(1, 40), dtype=np.float32)
    target = int((fold_in(liked, items, SMALL) @ items.T).ravel().argmax())
    both = sparse.csr_matrix(([1.0, 1.0, -2.0], ([0, 0, 0], [3, 5, target])), shape=(1, 40), dtype=np.float32)
    before, after = fold_in(liked, items, SMALL), fold_in(both, items, SMALL)
    assert after[0] @ items[target] < before[0] @ items[target]


def test_nobody_without_history_or_text_has_factors():
    matrix, texts = random_world()
    items = fit_factors(matrix, texts, SMALL).items
    nobody = sparse.csr_matrix((3, 40), dtype=np.float32)
    assert not fold_in(nobody, items, SMALL).any()
    assert fold_in(sparse.csr_matrix((0, 40), dtype=np.float32), items, SMALL).shape == (0, 8)


def test_shares_add_up_to_the_score_and_dislikes_have_none():
    matrix, texts = random_world()
    fit = fit_factors(matrix, texts, SMALL)
    rng = np.random.default_rng(3)
    written = TextTerms(rng.normal(size=(2, 8)).astype(np.float32), np.array([4, 4]), np.array([1, 0.5], np.float32))
    user = fold_in(matrix, fit.items, SMALL, texts=written)[4]
    history, weights = matrix[4].indices.astype(np.int64), matrix[4].data
    alone = written._replace(user=np.zeros(2, np.int64))
    shares = attribute_scores(history, weights, fit.items, np.arange(40), SMALL, texts=alone)
    assert np.abs(shares.items.sum(axis=1) + shares.texts.sum(axis=1) - fit.items @ user).max() < 1e-4
    assert (weights < 0).any()
    assert not shares.items[:, weights < 0].any()
    assert shares.texts.any()


def test_a_text_moves_a_user_toward_the_items_it_predicts():
    matrix, texts = random_world()
    fit = fit_factors(matrix, texts, SMALL)
    predicted = fit.items[[7]]
    nobody = sparse.csr_matrix((1, 40), dtype=np.float32)
    terms = TextTerms(predicted, np.zeros(1, np.int64), np.ones(1, np.float32))
    user = fold_in(nobody, fit.items, SMALL, texts=terms)
    as_item = fold_in(sparse.csr_matrix(([1.0], ([0], [7])), shape=(1, 40), dtype=np.float32), fit.items, SMALL)
    assert np.allclose(user, as_item, atol=1e-6)


def test_a_cold_item_starts_where_its_text_points():
    matrix, texts = random_world(n_items=41, every_item=True)
    matrix = sparse.csr_matrix(matrix.multiply(np.arange(41) != 40))
    matrix.eliminate_zeros()
    texts[40] = texts[3]
    fit = fit_factors(matrix, texts, SMALL)
    plain = fit_factors(matrix, texts, replace(SMALL, text_prior=0.0))
    users = fit.users.astype(np.float64)
    predicted = texts[40] @ fit.text_map.astype(np.float64)
    assert predicted @ fit.items[40] > 0
    assert np.linalg.norm(fit.items[40]) < np.linalg.norm(predicted)  # held back by the unobserved weight
    assert not plain.items[40].any()
    assert users.shape == (30, 8)


def test_the_first_interaction_never_lowers_an_items_mean_score():
    """One click on an item without any raises what everybody's mean score of it is, whoever clicked, without a jump."""
    matrix, texts = random_world(n_items=60, seed=2)
    matrix.data = np.abs(matrix.data)
    cold = np.arange(50, 60)
    warm = sparse.csr_matrix(matrix.multiply(~np.isin(np.arange(60), cold)))
    warm.eliminate_zeros()
    fit = fit_factors(warm, texts, SMALL)
    users = fit.users.astype(np.float64)
    by_item = warm.T.tocsr()
    strength = SMALL.regularization * (SMALL.unobserved_weight * len(users)) ** SMALL.frequency_exponent
    clicked = SMALL.regularization * (1 + SMALL.unobserved_weight * len(users)) ** SMALL.frequency_exponent
    predicted = texts.astype(np.float64) @ fit.text_map
    before = half_step(by_item, users, SMALL, pull=strength * predicted)[cold]
    liked_scores = (users @ fit.items[np.arange(50)].T).mean(axis=0)
    for user in range(len(users)):
        click = sparse.csr_matrix(np.eye(len(users), dtype=np.float32)[[user] * len(cold)])
        after = half_step(click, users, SMALL, pull=clicked * predicted[cold])
        rise = (users @ after.T).mean(axis=0) - (users @ before.T).mean(axis=0)
        assert (rise >= -1e-9).all()
        assert rise.max() < liked_scores.max()


def test_nothing_to_learn_from_is_an_error():
    texts = np.zeros((3, 2), np.float32)
    with pytest.raises(TrainingError, match="no positive interaction among 0"):
        fit_factors(sparse.csr_matrix((2, 3), dtype=np.float32), texts, SMALL)
    with pytest.raises(TrainingError, match="no positive interaction among 1"):
        fit_factors(sparse.csr_matrix(np.array([[0, -1, 0]], np.float32)), texts, SMALL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_an_error(bad):
    matrix = sparse.csr_matrix(np.array([[1, bad, 0]], np.float32))
    with pytest.raises(TrainingError, match="got 1 interaction weights that are not finite"):
        fit_factors(matrix, np.zeros((3, 2), np.float32), SMALL)


def test_a_fit_that_diverges_is_an_error():
    matrix, texts = random_world()
    with pytest.raises(TrainingError, match=r"diverged in sweep 1: .*Raise the regularization"):
        fit_factors(matrix, np.zeros_like(texts), replace(SMALL, regularization=-5.0))
    with pytest.raises(TrainingError, match=r"could not solve a system of 12 equations.*Raise the regularization"):
        fit_factors(matrix, texts, replace(SMALL, regularization=-5.0))
