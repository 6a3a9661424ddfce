"""Proposals: inside the space, the same for a seed, and the same after a stop."""

import subprocess
import sys

import pytest

from tasks.domain.parameter_search import N_RANDOM, ParameterSearch
from tasks.domain.parameter_space import Dial, Space

SPACE = Space(
    dials=(
        Dial("n_factors", "steps", 0, 3, (16, 32, 64, 128)),
        Dial("regularization", "log", 0.1, 50.0),
        Dial("frequency_exponent", "linear", 0.0, 1.0),
    ),
    known={"n_factors": 64, "regularization": 0.25, "frequency_exponent": 0.5, "unobserved_weight": 0.2},
    history=20.0,
    n_items=1000,
)


def metric(values):
    """Best at 32 factors and a strength of the penalty of 3."""
    found = SPACE.to_search(values)
    return 1 - abs(found["n_factors"] - 1) / 4 - abs(found["regularization"] - 3) / 100


def propose(search, numbers):
    """Ask, measure and tell in turn."""
    told = []
    for number in numbers:
        values = search.propose(number)
        told.append(values)
        search.tell(number, values, None if number == 4 else metric(values))
    return told


def test_proposals_lie_in_the_space_and_get_better():
    told = propose(ParameterSearch(SPACE, seed=1), range(60))
    assert all(SPACE.to_search(values) is not None for values in told)
    assert all(values["n_factors"] in (16, 32, 64, 128) for values in told)
    early = sum(metric(values) for values in told[:N_RANDOM]) / N_RANDOM
    late = sum(metric(values) for values in told[-N_RANDOM:]) / N_RANDOM
    assert late > early + 0.05


def test_a_seed_fixes_the_proposals():
    first, same, other = (propose(ParameterSearch(SPACE, seed=seed), range(14)) for seed in (3, 3, 4))
    assert first == same
    assert first != other


def test_a_search_that_was_stopped_goes_on_as_if_it_never_had_been():
    whole = propose(ParameterSearch(SPACE, seed=7), range(16))
    resumed = ParameterSearch(SPACE, seed=7)
    for number, values in enumerate(whole[:12]):
        resumed.learn(values, None if number == 4 else metric(values))
    assert propose(resumed, range(12, 16)) == whole[12:]


def test_every_second_early_draw_stays_near_the_draft():
    search = ParameterSearch(SPACE, seed=5)
    drawn = [search.propose(number) for number in range(8)]
    middle = SPACE.to_search(SPACE.complete({}))
    for values in drawn[1::2]:
        found = SPACE.to_search(values)
        assert abs(found["frequency_exponent"] - middle["frequency_exponent"]) <= 0.26
        assert found["n_factors"] in (1, 2, 3)
    assert any(abs(values["frequency_exponent"] - 0.5) > 0.26 for values in drawn[::2])


def test_trials_outside_the_space_are_passed_over():
    search = ParameterSearch(SPACE, seed=2)
    search.learn({**SPACE.complete({}), "n_factors": 512}, 0.9)
    assert propose(search, range(3)) == propose(ParameterSearch(SPACE, seed=2), range(3))


def test_several_proposals_may_be_under_way():
    search = ParameterSearch(SPACE, seed=2)
    propose(search, range(12))
    asked = {number: search.propose(number) for number in (12, 13, 14)}
    assert len({values["regularization"] for values in asked.values()}) == 3
    for number in (14, 12, 13):
        search.tell(number, asked[number], metric(asked[number]))


@pytest.mark.parametrize("module", ["tasks.tune", "tasks.domain.parameter_search", "tasks.domain.tuning"])
def test_optuna_is_not_imported_before_it_is_needed(module):
    program = f"import sys, {module}; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_optuna_is_imported_without_a_warning():
    program = "import optuna, optuna.samplers, optuna.trial, optuna.distributions"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
