"""Item neighbours: who speaks for whom, and what that adds to a score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tasks.domain.errors import InputError, TrainingError
from tasks.domain.neighbours import (
    NeighbourParameters,
    fit_neighbours,
    liked_only,
    score_by_neighbours,
    split_by_neighbour,
)
from tasks.domain.ranking import top_items


def log(n_users=60, n_items=40, density=0.2, seed=0):
    """Signed weights, a few of them 0 (only seen)."""
    rng = np.random.default_rng(seed)
    matrix = sparse.random(n_users, n_items, density, format="csr", dtype=np.float32, rng=rng)
    matrix.data = rng.choice(np.array([1, 0.25, 1.5, 0, -1], np.float32), len(matrix.data), p=[0.5, 0.2, 0.1, 0.1, 0.1])
    return matrix


def checkerboard(n_users=20, n_items=16):
    """Every user likes all items of one colour but one: (likes, the withheld item of each user)."""
    likes = (np.add.outer(np.arange(n_users), np.arange(n_items)) % 2 == 0).astype(np.float32)
    withheld = np.array([(user % 2 + 2 * (user // 2)) % n_items for user in range(n_users)])
    likes[np.arange(n_users), withheld] = 0
    return sparse.csr_matrix(likes), withheld


def slow_strengths(likes, parameters):
    """The same from the definition, densely."""
    x = np.maximum(likes.toarray().astype(np.float64), 0)
    n_items = x.shape[1]
    weighted = x / np.maximum((x > 0).sum(axis=1, keepdims=True), 1) ** 0.25
    products, shared = weighted.T @ weighted, (x > 0).T.astype(int) @ (x > 0)
    norms, sizes = np.sqrt(np.diag(products)), (x**2).sum(axis=0)
    strengths = np.zeros((n_items, n_items))
    for target in range(n_items):
        met = np.flatnonzero((shared[target] > 0) & (np.arange(n_items) != target))
        n = shared[target, met]
        near = products[target, met] / (norms[target] * norms[met]) * n / (n + parameters.shrinkage)
        chosen = met[np.lexsort((met, -near))][: parameters.n_neighbours]
        penalty = parameters.regularization * sizes[chosen] ** parameters.frequency_exponent
        system = x[:, chosen].T @ x[:, chosen] + np.diag(penalty)
        strengths[chosen, target] = np.maximum(np.linalg.solve(system, x[:, chosen].T @ x[:, target]), 0)
    return strengths, shared


@pytest.mark.parametrize("parameters", [NeighbourParameters(), NeighbourParameters(7, 2.0, 1.0, 0.0)])
def test_strengths_are_the_ridge_regression_on_the_nearest_items(parameters):
    likes = log()
    found = fit_neighbours(likes, parameters)
    strengths, shared = slow_strengths(likes, parameters)
    np.testing.assert_allclose(found.strengths.toarray(), strengths, atol=1e-6)
    rows, columns = found.n_shared.nonzero()
    assert (found.n_shared.toarray()[rows, columns] == shared[rows, columns]).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n_neighbours=st.integers(1, 50), density=st.floats(0, 0.6))
def test_what_always_holds(seed, n_neighbours, density):
    likes = log(30, 20, density, seed)
    found = fit_neighbours(likes, NeighbourParameters(n_neighbours))
    strengths = found.strengths
    assert strengths.diagonal().sum() == 0
    assert np.isfinite(strengths.data).all() and (strengths.data > 0).all()
    assert (np.diff(strengths.tocsc().indptr) <= n_neighbours).all()
    assert (found.n_shared.indices == strengths.indices).all() and (found.n_shared.indptr == strengths.indptr).all()
    assert (found.n_shared.data >= 1).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_shares_add_up_to_the_score(seed):
    likes = log(seed=seed)
    strengths = fit_neighbours(likes).strengths
    scores = score_by_neighbours(likes, strengths).toarray()
    for user in range(5):
        start, end = likes.indptr[user : user + 2]
        history, weights = likes.indices[start:end].astype(np.int64), likes.data[start:end]
        targets = np.arange(likes.shape[1])
        split = split_by_neighbour(history, weights, strengths, targets)
        np.testing.assert_allclose(split.sum(axis=0), scores[user], atol=1e-5)
        assert not split[weights <= 0].any(), "what was only seen or disliked adds nothing"
        assert not split[np.arange(len(history)), history].any(), "no item speaks for itself"


def test_a_checkerboard_is_solved():
    likes, withheld = checkerboard()
    scores = score_by_neighbours(likes, fit_neighbours(likes).strengths).toarray().astype(np.float32)
    assert top_items(scores, 1, likes.toarray() > 0).rows[:, 0].tolist() == withheld.tolist()


def test_one_user_is_scored_as_in_a_batch():
    likes = log()
    strengths = fit_neighbours(likes).strengths
    together = score_by_neighbours(likes, strengths).toarray()
    for user in range(likes.shape[0]):
        np.testing.assert_array_equal(score_by_neighbours(likes[user], strengths).toarray()[0], together[user])


def test_threads_change_nothing():
    likes = log(300, 1500, 0.02)
    alone, together = fit_neighbours(likes), fit_neighbours(likes, n_threads=3)
    np.testing.assert_array_equal(alone.strengths.toarray(), together.strengths.toarray())
    np.testing.assert_array_equal(alone.n_shared.toarray(), together.n_shared.toarray())


def test_only_likes_count():
    likes = log()
    np.testing.assert_array_equal(
        fit_neighbours(likes).strengths.toarray(), fit_neighbours(liked_only(likes)).strengths.toarray()
    )


def test_equally_near_items_go_by_column():
    likes = sparse.csr_matrix(np.ones((6, 5), np.float32))
    found = fit_neighbours(likes, NeighbourParameters(n_neighbours=2)).strengths
    assert [found[:, item].nonzero()[0].tolist() for item in range(5)] == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0), (4, 4)])
def test_nothing_gives_nothing(shape):
    found = fit_neighbours(sparse.csr_matrix(shape, dtype=np.float32))
    assert found.strengths.shape == (shape[1], shape[1])
    assert found.strengths.nnz == 0
    assert score_by_neighbours(sparse.csr_matrix((2, shape[1]), dtype=np.float32), found.strengths).nnz == 0


def test_items_that_nobody_likes_together_have_no_neighbours():
    found = fit_neighbours(sparse.csr_matrix(np.eye(4, dtype=np.float32)))
    assert found.strengths.nnz == 0


def test_a_user_with_an_empty_history_has_no_scores():
    strengths = fit_neighbours(log()).strengths
    assert score_by_neighbours(sparse.csr_matrix((1, 40), dtype=np.float32), strengths).nnz == 0
    nothing = split_by_neighbour(np.zeros(0, np.int64), np.zeros(0, np.float32), strengths, np.arange(3))
    assert nothing.shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    likes = log()
    likes.data[3] = value
    with pytest.raises(TrainingError, match="1 interaction weights that are not finite"):
        fit_neighbours(likes)


@pytest.mark.parametrize("changes", [{"n_neighbours": 0}, {"regularization": 0.0}, {"shrinkage": -1.0}])
def test_parameters_out_of_range_are_refused(changes):
    with pytest.raises(InputError, match="at least 1 neighbour"):
        fit_neighbours(log(), NeighbourParameters(**changes))
