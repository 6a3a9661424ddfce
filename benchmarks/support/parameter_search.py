"""Proposes values of parameters from what earlier ones came to: Optuna's tree-structured Parzen estimator, in memory.

It knows nothing of what is measured.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Values = dict[str, float]


class Range(NamedTuple):
    """What a parameter may be."""

    low: float
    high: float
    is_log: bool = True


class Search:
    """One search over named ranges; higher is better. It depends on the seed and on what it was told."""

    def __init__(self, ranges: Mapping[str, Range], *, seed: int) -> None:
        import optuna
        from optuna.distributions import FloatDistribution

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._ranges: dict[str, BaseDistribution] = {
            name: FloatDistribution(found.low, found.high, log=found.is_log) for name, found in ranges.items()
        }
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._asked: Trial | None = None

    def learn(self, values: Values, metric: float) -> None:
        """Take in values, within the ranges, that were not proposed here."""
        from optuna.trial import create_trial

        self._study.add_trial(create_trial(value=metric, params=values, distributions=self._ranges))

    def propose(self) -> Values:
        """The next values; ``tell`` says what they came to."""
        self._asked = self._study.ask(self._ranges)
        return dict(self._asked.params)

    def tell(self, metric: float) -> None:
        """What the last proposal came to."""
        assert self._asked is not None, "tell follows propose"
        self._study.tell(self._asked, metric)
