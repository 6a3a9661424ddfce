import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tasks.domain.metrics import DISCOUNTS, coverage, mean_interval, rank_users
from tasks.domain.weight_search import search_weights


def marks(*rows, n_items=12):
    """A CSR with an explicit entry (0, as for what was only seen) in each named column."""
    indptr = np.cumsum([0, *map(len, rows)])
    columns = np.array([column for row in rows for column in row], np.int64)
    return sparse.csr_matrix((np.zeros(len(columns), np.float32), columns, indptr), shape=(len(rows), n_items))


FALLING = np.arange(12, 0, -1, dtype=np.float32)[None]


def test_metrics_of_known_rankings():
    ranking = rank_users(np.repeat(FALLING, 3, axis=0), marks([], [0], []), marks([0, 1], [2], [3, 11]))
    assert ranking.ndcg_at_10[0] == pytest.approx(1)
    assert ranking.ndcg_at_10[1] == pytest.approx(DISCOUNTS[1])  # item 2 is second once item 0 is left out
    assert ranking.ndcg_at_10[2] == pytest.approx(DISCOUNTS[3] / (DISCOUNTS[0] + DISCOUNTS[1]))
    assert ranking.recall_at_10.tolist() == [1, 1, 0.5]
    assert ranking.mrr.tolist() == [1, 1 / 2, 1 / 4]
    assert ranking.slates[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_the_first_relevant_item_counts_for_mrr_wherever_it_is():
    assert rank_users(FALLING, marks([]), marks([11])).mrr.tolist() == [1 / 12]


def test_what_was_seen_is_neither_shown_nor_relevant():
    ranking = rank_users(np.repeat(FALLING, 2, axis=0), marks([0], [0]), marks([0, 5], [0]))
    assert ranking.recall_at_10[0] == 1
    assert np.isnan(ranking.ndcg_at_10[1])
    assert 0 not in ranking.slates


def test_equal_scores_are_ordered_by_column():
    ranking = rank_users(np.zeros((1, 12), np.float32), marks([]), marks([2]))
    assert ranking.slates[0].tolist() == list(range(10))
    assert ranking.mrr.tolist() == [1 / 3]


def test_a_catalog_smaller_than_the_slate():
    ranking = rank_users(np.array([[1, 2, 3]], np.float32), marks([0], n_items=3), marks([1], n_items=3))
    assert ranking.slates[0].tolist() == [2, 1] + [-1] * 8
    assert ranking.ndcg_at_10[0] == pytest.approx(DISCOUNTS[1])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_metrics_stay_between_0_and_1_and_a_user_alone_scores_as_in_a_batch(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (5, 12)).astype(np.float32)
    seen, relevant = (sparse.csr_matrix(rng.random((5, 12)) < share) for share in (0.2, 0.3))
    batch = rank_users(scores, seen, relevant)
    for row in range(5):
        alone = rank_users(scores[[row]], seen[[row]], relevant[[row]])
        for one, all_of_them in zip(alone, batch, strict=True):
            assert np.allclose(one[0], all_of_them[row], rtol=1e-12, equal_nan=True)
    for values in batch[:3]:
        known = values[~np.isnan(values)]
        assert ((known >= 0) & (known <= 1)).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_compiled_search_ranks_as_the_metrics_do(seed):
    rng = np.random.default_rng(seed)
    text, factors = rng.integers(-3, 3, (2, 4, 15)).astype(np.float32)
    prior = rng.integers(0, 3, 15).astype(np.float32)
    seen, relevant = (rng.random((4, 15)) < share for share in (0.3, 0.3))
    combinations = np.array([[1, 0, 0], [0.5, 2, 1], [0, 0, 1], [0, 0, 0]], np.float32)
    found = search_weights(text, factors, prior, seen, relevant, combinations)
    for column, (a, b, c) in enumerate(combinations):
        expected = rank_users(
            a * text + b * factors + c * prior, sparse.csr_matrix(seen), sparse.csr_matrix(relevant)
        ).ndcg_at_10
        assert np.allclose(found[:, column], np.nan_to_num(expected), atol=1e-6)


def test_intervals_hold_the_mean_and_shrink_with_users():
    few, many = mean_interval(np.array([0.0, 1.0] * 5)), mean_interval(np.array([0.0, 1.0] * 500))
    assert few.value == many.value == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high
    assert many.high - 0.5 == pytest.approx(1.96 * 0.5 / np.sqrt(1000), rel=0.01)
    assert mean_interval(np.array([0.3, np.nan])) == (0.3, -0.7, 1.3)
    assert mean_interval(np.array([np.nan])) == (0.0, 0.0, 0.0)


def test_coverage_counts_distinct_items():
    assert coverage(np.array([[0, 1, -1], [1, 2, -1]]), 6) == 0.5
    assert coverage(np.zeros((0, 10), np.int64), 6) == 0
