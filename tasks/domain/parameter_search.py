"""Proposes parameters from what earlier trials found: Optuna's tree-structured Parzen estimator, in memory.

The method is that of Bergstra, Bardenet, Bengio and Kégl 2011 ("Algorithms for Hyper-Parameter Optimization"), over all
parameters jointly. A proposal depends on the seed, its number and the trials that have been told by then, so a search
that was stopped and fed its trials again goes on as if it never had been. It knows nothing of what is measured, or of
where trials are kept.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.domain.parameter_space import Dial, Space, Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial as AskedTrial

N_RANDOM = 10
"""Measured trials before proposals are more than random draws; every second draw stays near the draft's values."""
_NEAR = 0.25


class ParameterSearch:
    """One search over a space. Higher is better."""

    def __init__(self, space: Space, *, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._seed = space, seed
        self._distributions = {dial.name: _distribution(dial) for dial in space.dials}
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
        self._asked: dict[int, AskedTrial] = {}
        self._n_measured = 0

    def learn(self, values: Values, metric: float | None) -> None:
        """Take in a trial that was not proposed here; a metric of None says that it failed. Values outside the space
        are passed over."""
        from optuna.trial import TrialState, create_trial

        found = self._space.to_search(values)
        if found is None:
            return
        state = TrialState.FAIL if metric is None else TrialState.COMPLETE
        params = {name: _typed(self._distributions[name], value) for name, value in found.items()}
        trial = create_trial(state=state, value=metric, params=params, distributions=self._distributions)
        self._study.add_trial(trial)
        self._n_measured += metric is not None

    def propose(self, number: int) -> dict[str, float]:
        """The values of trial ``number``; ``tell`` says what came of it. Other proposals may be under way."""
        self._study.sampler = self._sampler(number)
        if self._n_measured < N_RANDOM and number % 2:
            self._study.enqueue_trial(self._draw_near(number))
        trial = self._study.ask(self._distributions)
        self._asked[number] = trial
        return self._space.from_search(trial.params)

    def tell(self, number: int, values: Values, metric: float | None) -> None:
        """What trial ``number``, proposed here, came to; None if it failed. It is taken in as it will be read from
        where trials are kept, so that a search that goes on and one that never stopped propose the same."""
        from optuna.trial import TrialState

        self._study.tell(self._asked.pop(number), state=TrialState.FAIL)  # it no longer counts as under way
        self.learn(values, metric)

    def _draw_near(self, number: int) -> dict[str, float]:
        """A draw within a quarter of each range on either side of the draft's value."""
        rng = np.random.default_rng([self._seed, number])
        middle = self._space.to_search(self._space.complete({})) or {}
        found: dict[str, float] = {}
        for dial in self._space.dials:
            ends = np.array([dial.low, dial.high, middle[dial.name]], np.float64)
            low, high, value = np.log(ends) if dial.scale == "log" else ends
            drawn = float(np.clip(value + _NEAR * (high - low) * rng.uniform(-1, 1), low, high))
            drawn = math.exp(drawn) if dial.scale == "log" else drawn
            clipped = min(max(drawn, dial.low), dial.high)  # the exponential of a logarithm may pass an end by a hair
            found[dial.name] = _typed(self._distributions[dial.name], clipped)
        return found

    def _sampler(self, number: int) -> Any:
        from optuna.samplers import TPESampler

        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        return TPESampler(n_startup_trials=N_RANDOM, multivariate=True, constant_liar=True, seed=seed)


def _distribution(dial: Dial) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    if dial.scale == "steps":
        return IntDistribution(0, len(dial.steps) - 1)
    return FloatDistribution(dial.low, dial.high, log=dial.scale == "log")


def _typed(distribution: "BaseDistribution", value: float) -> float:
    from optuna.distributions import IntDistribution

    return round(value) if isinstance(distribution, IntDistribution) else value
