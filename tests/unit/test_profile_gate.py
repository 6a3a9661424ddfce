from dataclasses import replace

import numpy as np
import pytest

from tasks.domain.profile_gate import check_profiles
from tasks.domain.profiles import Profiles


@pytest.fixture
def sound():
    text = np.array([[0.6, 0.8, 0], [0, 0, 0], [0, 1, 0]], np.float32)
    ones = np.ones(3, np.float32)
    return Profiles(("a", "b", "c"), text, np.ones((3, 2), np.float32), np.array([3, 0, 1]), ones / 2, ones, ones)


def failed(profiles, text_width=3, n_factors=2):
    return {(c.expectation, c.n_failed) for c in check_profiles(profiles, text_width, n_factors) if not c.passed}


def spoiled(matrix, row, value):
    changed = matrix.copy()
    changed[row] = value
    return changed


def test_sound_profiles_pass(sound):
    assert failed(sound) == set()
    assert all(check.severity == "stop" for check in check_profiles(sound, 3, 2))


def test_each_fault_is_found_with_its_rows(sound):
    assert failed(sound, n_factors=4) == {("vector_widths", 3)}
    assert failed(replace(sound, text=spoiled(sound.text, 0, [2, 0, 0]))) == {("unit_or_zero_length", 1)}
    assert failed(replace(sound, alpha=spoiled(sound.alpha, 2, 1.2))) == {("share", 1)}
    assert failed(replace(sound, beta=spoiled(sound.beta, 1, np.inf))) == {("finite_values", 1)}
    broken = check_profiles(replace(sound, factors=spoiled(sound.factors, 1, np.nan)), 3, 2)[1]
    assert broken.failed_rows == (1,)
    assert "1 of 3" in broken.observed


def test_nobody_is_sound(sound):
    nobody = replace(sound, user_ids=(), text=sound.text[:0], factors=sound.factors[:0], n_history=sound.n_history[:0],
                     alpha=sound.alpha[:0], beta=sound.beta[:0], drift=sound.drift[:0])  # fmt: skip
    assert failed(nobody) == set()
