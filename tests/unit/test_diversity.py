"""Slates of items that are unlike each other."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.diversity import check_diversity, diversify, item_likeness
from tasks.domain.errors import InputError


def candidates(n, seed=0, width=8):
    """Falling scores, and the likeness of items in four groups, of which the first has the best scores."""
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((4, width))[np.arange(n) * 4 // n] + 0.1 * rng.standard_normal((n, width))
    return -np.sort(-rng.random(n)), item_likeness(text.astype(np.float32), np.zeros((n, 2), np.float32))


def inner_likeness(likeness, chosen):
    among = likeness[np.ix_(chosen, chosen)]
    return (among.sum() - np.trace(among)) / (len(chosen) * (len(chosen) - 1))


def by_hand(scores, likeness, k, diversity):
    relevance = (scores - scores[-1]) / (scores[0] - scores[-1])
    chosen = [0]
    while len(chosen) < k:
        values = {
            row: (1 - diversity) * relevance[row] - diversity * max(likeness[row, other] for other in chosen)
            for row in range(len(scores))
            if row not in chosen
        }
        chosen.append(max(values, key=lambda row: (values[row], -row)))
    return chosen


@given(n=st.integers(1, 40), k=st.integers(1, 50), diversity=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_candidate_at_most_once_and_the_best_first(n, k, diversity, seed):
    scores, likeness = candidates(n, seed)
    chosen = diversify(scores, likeness, k, diversity)
    assert len(set(chosen.tolist())) == len(chosen) == min(k, n)
    assert set(chosen.tolist()) <= set(range(n))
    assert chosen[0] == 0
    assert chosen.tolist() == diversify(scores, likeness, k, diversity).tolist()


@pytest.mark.parametrize("diversity", [0.1, 0.3, 0.7, 1.0])
def test_it_is_the_formula(diversity):
    scores, likeness = candidates(30)
    assert diversify(scores, likeness, 12, diversity).tolist() == by_hand(scores, likeness, 12, diversity)


def test_without_diversity_it_is_the_order_by_score():
    scores, likeness = candidates(20)
    assert diversify(scores, likeness, 7, 0.0).tolist() == list(range(7))
    assert diversify(scores[:0], likeness[:0, :0], 7, 0.5).tolist() == []


def test_a_slate_gets_less_alike_the_more_it_is_asked_to():
    scores, likeness = candidates(100)
    found = [inner_likeness(likeness, diversify(scores, likeness, 8, share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert found[-1] < found[0] - 0.05
    assert found == sorted(found, reverse=True)
    assert {row // 25 for row in diversify(scores, likeness, 4, 1.0).tolist()} == {0, 1, 2, 3}


def test_equal_scores_go_by_unlikeness_alone():
    _, likeness = candidates(12)
    chosen = diversify(np.full(12, 0.4), likeness, 4, 0.2).tolist()
    assert chosen[0] == 0
    assert {row // 3 for row in chosen} == {0, 1, 2, 3}


def test_items_without_a_text_are_compared_by_their_factors():
    text = np.array([[1, 0], [3, 4], [0, 0], [0, 0]], np.float32)
    factors = np.array([[0, 2], [1, 0], [0, 1], [0, 0]], np.float32)
    expected = [[1, 0.6, 1, 0], [0.6, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(item_likeness(text, factors), expected, atol=1e-6)


@pytest.mark.parametrize("diversity", [-0.01, 1.01, float("nan")])
def test_a_diversity_out_of_range_is_refused(diversity):
    with pytest.raises(InputError, match=r"from 0.*to 1"):
        check_diversity(diversity)


def test_a_long_slate_is_ordered_quickly():
    rng = np.random.default_rng(1)
    text, factors = rng.standard_normal((2000, 384)).astype("f4"), rng.standard_normal((2000, 64)).astype("f4")
    scores = -np.sort(-rng.random(2000))
    started = time.process_time()
    assert len(diversify(scores, item_likeness(text, factors), 500, 0.3)) == 500
    assert time.process_time() - started < 1.0, "it takes about 30 ms"
