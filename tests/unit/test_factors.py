from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from tasks.domain.attribution import attribute_scores
from tasks.domain.errors import TrainingError
from tasks.domain.factor_model import FactorParameters, ItemWeights, best_sweep, item_side, user_side
from tasks.domain.factors import fit_factors
from tasks.domain.fold_in import FixedItems, TextTerms, fold_in
from tasks.domain.half_steps import ThreadedSolver, find_basis, threads

SMALL = FactorParameters(
    n_factors=8, regularization=0.25, frequency_exponent=0.5, unobserved_weight=0.2, popularity_discount=0.5,
    text_prior=1.0, text_ridge=1.0, n_sweeps=6,
)  # fmt: skip


def random_world(n_users=30, n_items=40, width=12, seed=0, *, every_item=False):
    """Interactions with likes of several strengths, dislikes and neutral entries, and unit texts."""
    rng = np.random.default_rng(seed)
    dense = rng.choice([0, 0, 0, 0.25, 1, 1, 3, -1], (n_users, n_items)) * (rng.random((n_users, n_items)) < 0.35)
    if every_item:
        dense[rng.integers(0, n_users, n_items), np.arange(n_items)] = 1
    texts = rng.normal(size=(n_items, width))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return sparse.csr_matrix(dense.astype(np.float32)), texts.astype(np.float32)


def fixed_items(fit, parameters=SMALL):
    return FixedItems(fit.items, fit.weights, parameters)


def reference_user(row, items, weights, parameters):
    """The normal equations of one row, written out in double precision."""
    items, exposure, row = items.astype(np.float64), weights.exposure.astype(np.float64), row * weights.confidence
    system = parameters.unobserved_weight * items.T @ (items * exposure[:, None])
    side = np.zeros(items.shape[1])
    for column, weight in enumerate(row):
        system += abs(weight) * np.outer(items[column], items[column])
        side += max(weight, 0) * items[column]
    spread = np.abs(row).sum() + parameters.unobserved_weight * len(items)
    penalty = parameters.regularization * spread**parameters.frequency_exponent
    return np.linalg.solve(system + penalty * np.eye(len(side)), side)


def test_fold_in_solves_the_normal_equations():
    matrix, texts = random_world()
    fit = fit_factors(matrix, texts, SMALL)
    rows = matrix.toarray().astype(np.float64)
    expected = np.array([reference_user(row, fit.items, fit.weights, SMALL) for row in rows])
    assert np.abs(fold_in(matrix, fixed_items(fit)) - expected).max() < 1e-5 * np.abs(expected).max()


def test_items_are_solved_by_the_same_function():
    """Items against fixed users: the transposed call, where every user counts alike."""
    matrix, texts = random_world()
    plain = replace(SMALL, popularity_discount=0.0)
    fit = fit_factors(matrix, texts, plain)
    alike = ItemWeights(*np.ones((2, len(fit.users)), np.float32))
    everybody = FixedItems(fit.users, alike, plain)
    solved = fold_in(matrix.T.tocsr(), everybody)
    rows = matrix.T.toarray().astype(np.float64)
    expected = np.array([reference_user(row, fit.users, alike, plain) for row in rows])
    assert np.abs(solved - expected).max() < 1e-5 * np.abs(expected).max()


def test_very_different_weights_and_lengths_are_solved_exactly():
    rng = np.random.default_rng(5)
    items = rng.normal(size=(300, 16)).astype(np.float32)
    dense = np.zeros((20, 300), np.float32)
    for row in range(20):
        dense[row, rng.choice(300, 1 + 15 * row, replace=False)] = 10.0 ** rng.uniform(-3, 3)
    parameters = replace(SMALL, n_factors=16, regularization=0.01, unobserved_weight=0.001)
    weights = ItemWeights(*rng.random((2, 300)).astype(np.float32))
    expected = np.array([reference_user(row, items, weights, parameters) for row in dense.astype(np.float64)])
    solved = fold_in(sparse.csr_matrix(dense), FixedItems(items, weights, parameters))
    assert np.abs(solved - expected).max() < 1e-5 * np.abs(expected).max()


def test_items_that_are_almost_nothing_are_solved_too():
    items = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    items[:3] *= np.float32(1e-12)
    alike = ItemWeights(*np.ones((2, 20), np.float32))
    likes = sparse.csr_matrix((np.ones(3, np.float32), np.arange(3), [0, 3]), (1, 20))
    assert np.abs(fold_in(likes, FixedItems(items, alike, SMALL))).max() < 1e-10


def test_the_last_half_step_of_the_training_is_the_fold_in():
    matrix, texts = random_world()
    fit = fit_factors(matrix, texts, SMALL)
    assert np.abs(fit.users - fold_in(matrix, fixed_items(fit))).max() < 1e-5


def test_one_user_is_solved_as_in_the_batch():
    matrix, texts = random_world()
    items = fixed_items(fit_factors(matrix, texts, SMALL))
    batch = fold_in(matrix, items)
    alone = np.concatenate([fold_in(matrix[[row]], items) for row in range(matrix.shape[0])])
    assert np.abs(batch - alone).max() < 1e-6


def test_threads_and_repetition_change_nothing_but_the_seed_does():
    matrix, texts = random_world(n_users=600)
    first = fit_factors(matrix, texts, SMALL)
    threaded = fit_factors(matrix, texts, SMALL, n_threads=4)
    assert np.array_equal(first.items, threaded.items)
    assert np.array_equal(first.users, threaded.users)
    assert [sweep.loss for sweep in first.sweeps] == [sweep.loss for sweep in threaded.sweeps]
    assert not np.allclose(first.items, fit_factors(matrix, texts, replace(SMALL, seed=1)).items)


@pytest.mark.parametrize("text_prior", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_the_loss_never_rises(text_prior, exponent):
    matrix, texts = random_world(every_item=True)
    parameters = replace(SMALL, text_prior=text_prior, popularity_discount=exponent, n_sweeps=25)
    users = np.random.default_rng(1).normal(size=(matrix.shape[0], 3)).astype(np.float32)
    losses = [sweep.loss for sweep in fit_factors(matrix, texts, parameters, user_features=users).sweeps]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))
    assert losses[-1] < 0.99 * losses[0]


def test_the_loss_is_the_objective_written_out():
    """The loss of the last sweep, from the state in which that sweep left users, items and map."""
    matrix, texts = random_world(n_users=9, n_items=11, width=3, every_item=True)
    parameters = replace(SMALL, n_factors=2, text_prior=0.7, n_sweeps=3)
    seen = {}

    def keep(users, items):
        seen.update(users=users.astype(np.float64), items=items.astype(np.float64))
        return 0.0

    opportunity = np.random.default_rng(1).random(11).astype(np.float32)
    fit = fit_factors(matrix, texts, parameters, opportunity=opportunity, measure=keep, patience=9)
    users, items, dense = seen["users"], seen["items"], matrix.toarray().astype(np.float64)
    turn = np.linalg.lstsq(fit.items.astype(np.float64), items, rcond=None)[0]
    text_map = fit.item_map @ turn
    expected, dense = 0.0, dense * fit.weights.confidence

    def penalty(size, others):
        return parameters.regularization * (size + parameters.unobserved_weight * others) ** 0.5

    for u in range(9):
        expected += penalty(np.abs(dense[u]).sum(), 11) * users[u] @ users[u]
        for i in range(11):
            score = users[u] @ items[i]
            expected += abs(dense[u, i]) * ((dense[u, i] > 0) - score) ** 2
            expected += parameters.unobserved_weight * opportunity[i] * score**2
    for i in range(11):
        away = items[i] - texts[i] @ text_map
        strength = penalty(np.abs(dense[:, i]).sum(), 9)
        expected += strength * (0.3 * items[i] @ items[i] + 0.7 * away @ away)
    expected += 0.7 * parameters.text_ridge * (text_map**2).sum()
    assert fit.sweeps[-1].loss == pytest.approx(expected, rel=1e-4)


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
    items = fixed_items(fit_factors(matrix, texts, SMALL))
    liked = sparse.csr_matrix(([1.0, 1.0], ([0, 0], [3, 5])), shape=(1, 40), dtype=np.float32)
    target = int((fold_in(liked, items) @ items.factors.T).ravel().argmax())
    both = sparse.csr_matrix(([1.0, 1.0, -2.0], ([0, 0, 0], [3, 5, target])), shape=(1, 40), dtype=np.float32)
    before, after = fold_in(liked, items), fold_in(both, items)
    assert after[0] @ items.factors[target] < before[0] @ items.factors[target]


def test_nobody_without_history_or_text_has_factors():
    matrix, texts = random_world()
    items = fixed_items(fit_factors(matrix, texts, SMALL))
    nobody = sparse.csr_matrix((3, 40), dtype=np.float32)
    assert not fold_in(nobody, items).any()
    assert fold_in(sparse.csr_matrix((0, 40), dtype=np.float32), items).shape == (0, 8)


def test_shares_add_up_to_the_score_and_dislikes_have_none():
    """Many users at once, with texts and features, and targets of different numbers."""
    matrix, texts = random_world()
    attributes = np.random.default_rng(6).normal(size=(30, 3)).astype(np.float32)
    fit = fit_factors(matrix, texts, SMALL, user_features=attributes)
    items, rng = fixed_items(fit), np.random.default_rng(3)
    written = TextTerms(rng.normal(size=(2, 8)).astype(np.float32), np.array([4, 4]), np.array([1, 0.5], np.float32))
    known = {"texts": written, "features": attributes, "feature_map": fit.user_map}
    users = fold_in(matrix, items, **known)
    targets = [rng.choice(40, 1 + user % 7, replace=False) for user in range(30)]
    for n_threads in (1, 3):
        for user, found in enumerate(attribute_scores(matrix, items, targets, n_threads=n_threads, **known)):
            total = found.items.sum(axis=1) + found.texts.sum(axis=1) + found.features
            assert np.abs(total - fit.items[targets[user]] @ users[user]).max() < 1e-4
            assert not found.items[:, matrix[user].data < 0].any()
            assert found.texts.shape[1] == (2 if user == 4 else 0)
    assert (matrix.data < 0).any()
    assert np.abs(attribute_scores(matrix, items, targets, **known)[4].texts).max() > 1e-3


def test_a_text_moves_a_user_toward_the_items_it_predicts():
    matrix, texts = random_world()
    fit = fit_factors(matrix, texts, SMALL)
    predicted = fit.items[[7]]
    nobody = sparse.csr_matrix((1, 40), dtype=np.float32)
    terms = TextTerms(predicted, np.zeros(1, np.int64), np.ones(1, np.float32))
    user = fold_in(nobody, fixed_items(fit), texts=terms)
    as_item = sparse.csr_matrix(([1.0], ([0], [7])), shape=(1, 40), dtype=np.float32)
    direction = fold_in(as_item, fixed_items(fit))
    assert user @ fit.items[7] > 0
    cosine = float((user @ direction.T).item() / np.linalg.norm(user) / np.linalg.norm(direction))
    assert cosine > 0.99


def test_attributes_of_a_newcomer_say_what_people_like_them_like():
    """Two kinds of people like two kinds of items; somebody of whom only the kind is known gets its items first."""
    kind = np.arange(40) % 2
    rng = np.random.default_rng(2)
    dense = (rng.random((40, 20)) < 0.6) * (kind[:, None] == np.arange(20) % 2)
    features = np.eye(2, dtype=np.float32)[kind]
    fit = fit_factors(sparse.csr_matrix(dense.astype(np.float32)), np.zeros((20, 0), np.float32), SMALL,
                      user_features=features)  # fmt: skip
    nobody = sparse.csr_matrix((2, 20), dtype=np.float32)
    new = fold_in(nobody, fixed_items(fit), features=np.eye(2, dtype=np.float32), feature_map=fit.user_map)
    best = np.argsort(-(new @ fit.items.T), axis=1)[:, :10] % 2
    assert (best == [[0], [1]]).all()


def test_a_cold_item_starts_where_its_text_points():
    matrix, texts = random_world(n_items=41, every_item=True)
    matrix = sparse.csr_matrix(matrix.multiply(np.arange(41) != 40))
    matrix.eliminate_zeros()
    texts[40] = texts[3]
    fit = fit_factors(matrix, texts, SMALL)
    plain = fit_factors(matrix, texts, replace(SMALL, text_prior=0.0))
    users = fit.users.astype(np.float64)
    predicted = texts[40] @ fit.item_map.astype(np.float64)
    assert predicted @ fit.items[40] > 0
    assert np.linalg.norm(fit.items[40]) < np.linalg.norm(predicted)  # held back by the unobserved weight
    assert not plain.items[40].any()
    assert users.shape == (30, 8)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.02), (0.0, 0.0), (1.0, 1.0)])
def test_the_first_interaction_never_lowers_an_items_mean_score(before, after):
    """One click on an item without any raises what everybody's mean score of it is, whoever clicked, without a jump:
    whether the item is new, and little was seen since it came, or was always there."""
    matrix, texts = random_world(n_items=60, seed=2)
    matrix.data = np.abs(matrix.data)
    cold = np.arange(50, 60)
    warm = sparse.csr_matrix(matrix.multiply(~np.isin(np.arange(60), cold)))
    warm.eliminate_zeros()
    exposure = np.where(np.arange(60) < 50, 1, before).astype(np.float32)
    fit = fit_factors(warm, texts, SMALL, opportunity=exposure)
    mean = fit.users.mean(axis=0)
    level = solve_items(warm, fit, texts, exposure)[cold] @ mean
    exposure[cold] = after
    for user in range(matrix.shape[0]):
        clicked = warm.tolil()
        clicked[user, cold] = 1.0
        rise = solve_items(clicked.tocsr(), fit, texts, exposure)[cold] @ mean - level
        assert (rise >= -1e-6).all()
        assert rise.max() < (fit.items @ mean).max()


def solve_items(matrix, fit, texts, exposure, parameters=SMALL):
    """The item half-step against the users of a fit, with its map, for other interactions."""
    side = item_side(matrix.T.tocsr(), exposure, parameters, texts)
    items, users = np.zeros_like(fit.items), fit.users.copy()
    basis = ThreadedSolver()(side, users, items, fit.item_map, exact=True)
    return items @ basis.rotation.T


def test_a_new_item_can_compete_with_a_known_one():
    """Of four kinds of items one is liked much: a new one of that kind is not held back because nobody has met it."""
    rng = np.random.default_rng(4)
    kind = np.arange(41) % 4
    dense = (rng.random((80, 41)) < np.where(kind == 0, 0.7, 0.05)).astype(np.float32)
    dense[:, 40] = 0
    opportunity = np.where(np.arange(41) < 40, 1, 0).astype(np.float32)
    fit = fit_factors(sparse.csr_matrix(dense), np.eye(4, dtype=np.float32)[kind], SMALL, opportunity=opportunity)
    level = fit.items @ fit.users.mean(axis=0)
    held = fit_factors(sparse.csr_matrix(dense), np.eye(4, dtype=np.float32)[kind], SMALL)
    assert level[40] > 1.2 * (held.items @ held.users.mean(axis=0))[40]
    assert level[40] > np.median(level[:40][kind[:40] != 0])


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
    matrix.data *= np.float32(1e30)
    with pytest.raises(TrainingError, match=r"(diverged|could not be solved).*Raise the regularization"):
        fit_factors(matrix, np.zeros_like(texts), SMALL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("regularization", -5.0), ("regularization", float("nan")), ("unobserved_weight", -1.0), ("text_prior", 1.5),
        ("text_ridge", 0.0), ("n_factors", 0), ("n_sweeps", 0), ("frequency_exponent", float("inf")),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_named(name, value):
    matrix, texts = random_world()
    with pytest.raises(TrainingError, match=f"{name} = {value}. It must be"):
        fit_factors(matrix, texts, replace(SMALL, **{name: value}))


def test_features_of_another_catalog_or_damaged_ones_are_an_error():
    matrix, texts = random_world()
    with pytest.raises(TrainingError, match="features of 39 items, and interactions of 40"):
        fit_factors(matrix, texts[:39], SMALL)
    with pytest.raises(TrainingError, match="features of 4 users, and interactions of 30"):
        fit_factors(matrix, texts, SMALL, user_features=np.ones((4, 2), np.float32))
    texts[3, 0] = np.nan
    with pytest.raises(TrainingError, match="features that are not finite"):
        fit_factors(matrix, texts, SMALL)


def test_equal_pairs_are_added_up():
    once, texts = random_world()
    twice = sparse.coo_matrix(once)
    rows, columns, data = (np.concatenate([part, part]) for part in (twice.row, twice.col, twice.data / 2))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=30))])
    order = np.argsort(rows, kind="stable")
    doubled = sparse.csr_matrix((data[order], columns[order], indptr), shape=once.shape)
    first, second = fit_factors(once, texts, SMALL), fit_factors(doubled, texts, SMALL)
    assert np.allclose(first.items, second.items, atol=1e-5)
    assert doubled.nnz == 2 * once.nnz


def test_more_factors_than_items_and_users_without_interactions_are_fine():
    matrix, texts = random_world(n_users=6, n_items=5)
    matrix = sparse.vstack([matrix, sparse.csr_matrix((2, 5), dtype=np.float32)]).tocsr()
    fit = fit_factors(matrix, texts, replace(SMALL, n_factors=32))
    assert fit.items.shape == (5, 32)
    assert np.isfinite(fit.items).all()
    assert not fit.users[6:].any()


def test_a_warm_start_goes_on_where_the_other_fit_ended():
    matrix, texts = random_world()
    long = fit_factors(matrix, texts, replace(SMALL, n_sweeps=30))
    warm = fit_factors(matrix, texts, replace(SMALL, n_sweeps=1), start=long.items)
    cold = fit_factors(matrix, texts, replace(SMALL, n_sweeps=1))
    assert warm.sweeps[-1].loss <= long.sweeps[-1].loss * (1 + 1e-6) < cold.sweeps[-1].loss
    assert np.abs(warm.users @ warm.items.T - long.users @ long.items.T).max() < 0.02


def test_new_users_and_items_enter_a_warm_start():
    matrix, texts = random_world(every_item=True)
    before = fit_factors(sparse.csr_matrix(matrix[:25, :36]), texts[:36], SMALL)
    start = np.zeros((40, 8), np.float32)
    start[:36] = before.items
    fit = fit_factors(matrix, texts, SMALL, start=start)
    assert fit.users[25:].any(axis=1).all()
    assert fit.items[36:].any(axis=1).all()


@pytest.mark.parametrize("start", [np.zeros((40, 9), np.float32), np.zeros((39, 8), np.float32),
                                   np.full((40, 8), np.nan, np.float32)])  # fmt: skip
def test_start_values_of_another_model_are_an_error(start):
    matrix, texts = random_world()
    with pytest.raises(TrainingError, match="got start values of shape"):
        fit_factors(matrix, texts, SMALL, start=start)


def test_a_fit_ends_when_its_metric_no_longer_rises():
    matrix, texts = random_world()
    values = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    seen = []
    fit = fit_factors(matrix, texts, SMALL, measure=lambda users, items: next(values), on_sweep=seen.append)
    assert [sweep.metric for sweep in fit.sweeps] == [0.1, 0.3, 0.2, 0.25]
    assert best_sweep(fit.sweeps) == 2
    assert seen == list(fit.sweeps)


def test_the_gram_matrix_is_as_exact_as_single_precision_allows():
    factors = np.random.default_rng(0).normal(1, 1, (20_000, 8)).astype(np.float32)
    with threads(1) as run:
        basis = find_basis(factors, np.ones(20_000, np.float32), run)
    exact = factors.astype(np.float64).T @ factors.astype(np.float64)
    found = basis.rotation * basis.spectrum @ basis.rotation.T
    assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()


def test_chunks_hold_every_row_once_and_share_the_work():
    lengths = np.concatenate([[5000], np.ones(500, int)])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    wide = sparse.csr_matrix((np.ones(indptr[-1], np.float32), np.arange(indptr[-1]) % 5000, indptr), (501, 5000))
    chunks = user_side(wide, np.ones(5000, np.float32), SMALL).chunks
    assert sorted(np.concatenate(chunks)) == list(range(501))
    assert chunks[0].tolist() == [0]
