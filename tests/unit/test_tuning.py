"""What tuning may see, what it measures, and when something counts as better."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.domain.errors import TrainingError
from tasks.domain.factor_model import FactorParameters
from tasks.domain.histories import InteractionLog, TextLog
from tasks.domain.item_fit import Catalog
from tasks.domain.learning import UNLEARNED
from tasks.domain.metrics import Interval
from tasks.domain.profiles import Recipe
from tasks.domain.splits import split_global_time, split_user_tail
from tasks.domain.tuning import (
    Trial,
    best_trial,
    compare_trials,
    is_better,
    mean_history,
    measure_recipe,
    split_for_tuning,
)

WIDTH = 4
DRAFT = Recipe(FactorParameters(n_factors=8, n_sweeps=5), UNLEARNED, 4.0, 200.0, 3650.0, ())


def no_texts():
    empty = np.zeros(0, np.float32)
    return TextLog(np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64), empty, np.zeros(0, np.int64))


def world(n_users=60, n_items=60, n_each=20, *, at_once=False, seed=0):
    """Users of two tastes who like twenty items, spread over the same time, or each in a session of their own."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(n_users), n_each)
    item = np.concatenate([rng.permutation(n_items // 2)[:n_each] * 2 + u % 2 for u in range(n_users)])
    step = np.tile(np.arange(n_each), n_users)
    last_at = user * 1000 + step if at_once else step * 1000 + user
    return InteractionLog(user, item, np.ones(len(user), np.float32), last_at, n_users, n_items)


def keys(log):
    return set(zip(log.user.tolist(), log.item.tolist(), strict=True))


@pytest.mark.parametrize("at_once", [False, True])
def test_nothing_of_either_test_part_is_seen(at_once):
    log, texts = world(at_once=at_once), no_texts()
    found = split_for_tuning(log, texts, seed=0)
    seen = keys(found.split.train) | keys(found.split.test)
    for cut in (split_user_tail, split_global_time):
        assert not seen & keys(cut(log, texts).test)
        assert seen <= keys(cut(log, texts).train)


def test_another_test_part_changes_nothing_that_tuning_sees():
    log, texts = world(), no_texts()
    tests = [keys(cut(log, texts).test) for cut in (split_user_tail, split_global_time)]
    pairs = list(zip(log.user.tolist(), log.item.tolist(), strict=True))
    is_test = np.array([pair in tests[0] | tests[1] for pair in pairs])
    other = replace(log, weight=np.where(is_test, -log.weight, log.weight))
    first, second = (split_for_tuning(each, texts, seed=0).split for each in (log, other))
    for part in ("train", "test"):
        for name in ("user", "item", "weight", "last_at"):
            assert np.array_equal(getattr(getattr(first, part), name), getattr(getattr(second, part), name))


def test_the_validation_part_comes_after_one_moment():
    found = split_for_tuning(world(), no_texts(), seed=0)
    assert found.name == "global_time"
    assert found.split.train.last_at.max() < found.split.test.last_at.min()


def test_people_who_came_once_are_measured_by_their_tails():
    log = world(at_once=True)
    found = split_for_tuning(log, no_texts(), seed=0)
    assert found.name == "user_tail"
    train, test = found.split.train, found.split.test
    for user in found.users:
        assert train.last_at[train.user == user].max() < test.last_at[test.user == user].min()


def test_texts_of_the_validation_and_of_both_tests_are_left_out():
    log = world()
    written_at = np.array([0, 8_000, 13_500, 19_500])
    texts = TextLog(np.eye(4, dtype=np.float32), np.zeros(4, np.int64), np.ones(4, np.float32), written_at)
    found = split_for_tuning(log, texts, seed=0)
    cut = found.split.train.last_at.max()
    assert found.split.texts.written_at.tolist() == [0, 8_000]
    assert cut < 13_500


def test_users_are_a_sample_that_the_seed_fixes(monkeypatch):
    monkeypatch.setattr("tasks.domain.tuning.MAX_USERS", 31)
    first, same, other = (split_for_tuning(world(), no_texts(), seed=seed) for seed in (1, 1, 2))
    assert first.users.tolist() == same.users.tolist() != other.users.tolist()
    assert len(first.users) == 31
    assert np.unique(first.split.test.user).tolist() == first.users.tolist()
    assert keys(first.split.train) == keys(other.split.train)


def test_too_few_users_are_named():
    with pytest.raises(TrainingError, match=r"found 20 users.*at least 30"):
        split_for_tuning(world(n_users=20), no_texts(), seed=0)
    empty = world().select(np.zeros(60 * 20, bool))
    with pytest.raises(TrainingError, match="found 0 users"):
        split_for_tuning(empty, no_texts(), seed=0)


def test_who_learns_the_tastes_measures_better_than_who_does_not():
    found = split_for_tuning(world(), no_texts(), seed=0)
    catalog = Catalog(tuple(str(n) for n in range(60)), np.zeros((60, WIDTH), np.float32))
    good = measure_recipe(found.split, catalog, DRAFT)
    bad = measure_recipe(
        found.split, catalog, replace(DRAFT, factor_parameters=FactorParameters(n_factors=1, n_sweeps=1))
    )
    assert good.shape == (len(found.users),)
    assert good.dtype == np.float32
    assert ((good >= 0) & (good <= 1)).all()
    assert good.mean() > bad.mean()
    assert measure_recipe(found.split, catalog, DRAFT, n_threads=2).tolist() == good.tolist()


def trial(number, values, origin="search"):
    return Trial(number, origin, {}, None if values is None else np.array(values, np.float32), 1.0)


def test_the_best_trial_is_the_first_of_equals_and_never_a_failed_one():
    trials = [trial(0, [0.0, 0.25]), trial(1, None), trial(2, [0.5, 0.25]), trial(3, [0.25, 0.5])]
    assert best_trial(trials).number == 2
    assert best_trial([trial(1, None)]) is None
    assert best_trial([]) is None


def test_better_is_better_for_the_same_users_and_not_by_a_hair():
    rng = np.random.default_rng(0)
    base = rng.random(400)
    clearly = compare_trials(trial(1, base + 0.02), trial(0, base))
    assert clearly.value == pytest.approx(0.02, abs=1e-6)
    assert is_better(clearly)
    noisy = compare_trials(trial(1, base + 0.005 + rng.normal(0, 0.2, 400)), trial(0, base))
    assert not is_better(noisy)
    assert not is_better(Interval(0.0, 0.0, 0.0))


def test_a_failed_trial_cannot_be_compared():
    with pytest.raises(TrainingError, match="cannot be compared"):
        compare_trials(trial(1, None), trial(0, [0.1]))


def test_the_mean_history_counts_dislikes_too():
    log = InteractionLog(
        np.array([0, 0, 2]), np.array([0, 1, 1]), np.array([1.0, -0.5, 2.0], np.float32), np.arange(3), 4, 2
    )
    assert mean_history(log) == pytest.approx(3.5 / 2)
    assert mean_history(log.select(np.zeros(3, bool))) == 0
