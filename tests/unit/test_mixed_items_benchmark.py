"""What the benchmark of new items cuts, and what it says of how much an item could have been met."""

import numpy as np
import pytest

from benchmarks.mixed_items import EXPOSURES, KEPT, cut
from tasks.domain.histories import InteractionLog

N_USERS, N_ITEMS = 60, 40


@pytest.fixture
def log():
    """Everybody likes every item, at a time of its own."""
    user, item = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    at = np.random.default_rng(0).permutation(len(user))
    return InteractionLog(user, item, np.ones(len(user), np.float32), at, N_USERS, N_ITEMS)


def test_a_tenth_of_the_items_keeps_each_number_of_likes(log):
    short, group, opportunity = cut(log, 0, KEPT)
    left = np.bincount(short.item, minlength=N_ITEMS)
    for number, n_likes in enumerate(KEPT):
        assert left[group == number].tolist() == [n_likes] * (N_ITEMS // 10)
    uncut = group == len(KEPT)
    assert (left[uncut] == N_USERS).all()
    assert (opportunity[uncut] == 1).all()
    assert (opportunity[group == 0] == 0).all()
    assert (opportunity[group == 1] < opportunity[group == len(KEPT) - 1].max()).all()


def test_nothing_is_cut_when_nothing_is_asked_for(log):
    short, group, opportunity = cut(log, 0, ())
    assert len(short.item) == len(log.item)
    assert (group == len(KEPT)).all()
    assert (opportunity == 1).all()


@pytest.mark.parametrize("name", EXPOSURES)
def test_an_exposure_is_a_share_and_least_for_items_without_likes(log, name):
    short, group, _ = cut(log, 0, KEPT)
    shares = EXPOSURES[name](short)
    assert shares.shape == (N_ITEMS,)
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert (shares[group == 0] == shares.min()).all()
    assert shares[group == len(KEPT)].min() > shares.min()
