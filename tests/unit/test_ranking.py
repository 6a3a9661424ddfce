import numpy as np
import pytest

from tasks.domain.errors import InputError
from tasks.domain.fusion import Bucket, Fusion
from tasks.domain.ranking import check_slate_length, mean_block_cosine, popular_where_empty, top_items


def test_best_first_without_blocked_items():
    scores = np.array([[0.1, 0.9, 0.5, 0.7], [4, 3, 2, 1]], np.float32)
    blocked = np.array([[False, True, False, False], [True, True, True, False]])
    top = top_items(scores, 2, blocked)
    assert top.rows.tolist() == [[3, 2], [3, -1]]
    assert top.scores[0].tolist() == pytest.approx([0.7, 0.5])
    assert top.scores[1, 1] == -np.inf


def test_ties_at_the_edge_go_to_the_lower_column():
    scores = np.array([[1, 2, 1, 1, 2, 1]], np.float32)
    top = top_items(scores, 4, np.zeros((1, 6), bool))
    assert top.rows.tolist() == [[1, 4, 0, 2]]


@pytest.mark.parametrize(("n_items", "n_scores"), [(30, 6), (1000, 50), (1000, 10**9)])
def test_equals_a_full_sort_on_random_scores_with_many_ties(n_items, n_scores):
    rng = np.random.default_rng(3)
    scores = rng.integers(0, n_scores, (40, n_items)).astype(np.float32)
    blocked = rng.random((40, n_items)) < np.where(np.arange(40)[:, None] % 8, 0.4, 0.995)
    top = top_items(scores, 7, blocked)
    for user in range(40):
        order = sorted(np.flatnonzero(~blocked[user]), key=lambda item: (-scores[user, item], item))
        assert top.rows[user].tolist() == (order[:7] + [-1] * 7)[:7]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_rank(shape):
    top = top_items(np.zeros(shape, np.float32), 4, np.zeros(shape, bool))
    assert top.rows.shape == (shape[0], 4)
    assert (top.rows == -1).all()


def test_slate_longer_than_the_catalog_is_short():
    top = top_items(np.array([[1, 2]], np.float32), 5, np.zeros((1, 2), bool))
    assert top.rows.tolist() == [[1, 0, -1, -1, -1]]


@pytest.mark.parametrize("k", [0, -1, 501])
def test_slate_length_is_bounded(k):
    with pytest.raises(InputError, match="from 1 to 500"):
        check_slate_length(k)


def test_similarity_is_the_mean_of_the_block_cosines():
    query = np.array([1, 0, 3, 4, 9], np.float32)  # text width 2, factors 2, prior
    items = np.array([[1, 0, 6, 8, 0], [0, 1, 3, 4, 0], [0, 0, 4, -3, 0]], np.float32)
    text, factors = mean_block_cosine(query, items, 2)
    assert text.tolist() == pytest.approx([0.5, 0, 0])
    assert factors.tolist() == pytest.approx([0.5, 0.5, 0])


def test_similarity_of_an_item_without_text_is_that_of_its_factors():
    query = np.array([0, 0, 3, 4, 9], np.float32)
    items = np.array([[1, 0, 6, 8, 0], [1, 0, 0, 0, 0]], np.float32)
    text, factors = mean_block_cosine(query, items, 2)
    assert text.tolist() == [0, 0]
    assert factors.tolist() == pytest.approx([1, 0])


def test_who_is_unknown_asks_for_what_is_popular():
    fusion = Fusion(1.0, (Bucket(0, 0.5, 0.0),), Bucket(0, 0.5, 0.0), 1.0, 0.5)
    queries = np.array([[0.1, 0, 0], [0, 0, 0], [0, 0, 0.3], [0, 0, -1]], np.float32)
    asked, is_empty = popular_where_empty(queries, fusion)
    assert is_empty.tolist() == [False, True, True, True]
    assert asked[:, -1].tolist() == pytest.approx([0, 2, 0.3, 2])
    assert queries[1, -1] == 0
