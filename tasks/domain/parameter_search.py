"""Proposes parameters from what earlier trials found: Optuna's tree-structured Parzen estimator, in memory.

The method is that of Bergstra, Bardenet, Bengio and Kégl 2011 ("Algorithms for Hyper-Parameter Optimization"), over all
parameters jointly. A proposal depends on the seed, its number and the trials that have been told by then, so a search
that was stopped and fed its trials again goes on as if it never had been. It knows nothing of what is measured, or of
where trials are kept.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.domain.parameter_space import Dial, Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial as AskedTrial

N_RANDOM = 10
"""Measured trials before proposals are more than random draws."""


class ParameterSearch:
    """One search over a space. Higher is better."""

    def __init__(self, space: Sequence[Dial], *, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {dial.name: dial for dial in space}
        self._distributions = {dial.name: _distribution(dial) for dial in space}
        self._seed = seed
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
        self._asked: dict[int, AskedTrial] = {}

    def learn(self, values: Values, metric: float | None) -> None:
        """Take in a trial that was not proposed here; a metric of None says that it failed. Values outside the space
        are passed over."""
        from optuna.trial import TrialState, create_trial

        inside = all(name in values and dial.allows(values[name]) for name, dial in self._space.items())
        if not inside:
            return
        state = TrialState.FAIL if metric is None else TrialState.COMPLETE
        inner = {name: _inner(dial, values[name]) for name, dial in self._space.items()}
        trial = create_trial(state=state, value=metric, params=inner, distributions=self._distributions)
        self._study.add_trial(trial)

    def propose(self, number: int) -> dict[str, float]:
        """The values of trial ``number``; ``tell`` says what came of it. Other proposals may be under way."""
        self._study.sampler = self._sampler(number)
        trial = self._study.ask(self._distributions)
        self._asked[number] = trial
        return {name: _outer(dial, trial.params[name]) for name, dial in self._space.items()}

    def tell(self, number: int, metric: float | None) -> None:
        """What trial ``number``, proposed here, came to; None if it failed."""
        from optuna.trial import TrialState

        state = TrialState.FAIL if metric is None else TrialState.COMPLETE
        self._study.tell(self._asked.pop(number), metric, state)

    def _sampler(self, number: int) -> Any:
        from optuna.samplers import TPESampler

        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        return TPESampler(n_startup_trials=N_RANDOM, multivariate=True, constant_liar=True, seed=seed)


def _distribution(dial: Dial) -> "BaseDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    if dial.scale == "steps":
        return IntDistribution(0, len(dial.steps) - 1)
    return FloatDistribution(dial.low, dial.high, log=dial.scale == "log")


def _inner(dial: Dial, value: float) -> float:
    """A value as the search sees it: steps by their place, so that neighbours are near each other."""
    return dial.steps.index(int(value)) if dial.scale == "steps" else float(value)


def _outer(dial: Dial, value: float) -> float:
    return dial.steps[int(value)] if dial.scale == "steps" else float(value)
