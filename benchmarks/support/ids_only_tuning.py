"""Chooses parameters and the number of sweeps on a held-out part of the training data, within a budget of time.

A random tenth of each user's training interactions is held out. A search (Optuna's tree-structured Parzen estimator)
looks for four parameters at a quarter of the dimension, which costs little; steps along one parameter at a time then
refine its best at the full dimension. Every trial stops early: its number of sweeps is the one after which the held-out
part was ranked best. Trials are compared by the mean of Recall@20 and NDCG@20, over the same users. The test part is
not known here.
"""

import itertools
import math
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, replace

from scipy import sparse

from benchmarks.support.full_ranking import Quality
from benchmarks.support.ids_only import FinishedQuality, fit_ids, sample_users
from benchmarks.support.interaction_files import hold_out
from benchmarks.support.parameter_search import Range, Search, Values
from tasks.domain.errors import TrainingError
from tasks.domain.factor_model import FactorParameters, Sweep

VALIDATION_SHARE = 0.1
MOST_USERS = 8000
"""Validation users, at most; a sample of them ranks trials as well and costs less."""
MOST_SWEEPS = 40
COARSE_SHARE = 0.45
"""Of the time, for the search at the smaller dimension."""
HOPELESS = 0.95
"""A trial that is below this share of the best one, after as many sweeps, is ended."""
REACH = 12.0
"""How far the search goes from the start in strength and unobserved weight, as a factor."""
_BY_FACTOR = ("strength", "unobserved_weight")
STEPS = {"strength": 1.5, "unobserved_weight": 1.5, "popularity_discount": 0.1, "frequency_exponent": 0.1}
"""First steps of the refinement: factors of the first two, differences of the others."""


@dataclass(frozen=True)
class Trial:
    """What parameters came to: ``parameters.n_sweeps`` is the best number of sweeps, ``quality`` that after it, and
    ``curve`` the metric after each sweep. ``fit_seconds`` are those of that many sweeps."""

    parameters: FactorParameters
    quality: Quality
    curve: tuple[float, ...]
    fit_seconds: float
    seconds: float

    @property
    def metric(self) -> float:
        """What trials are compared by; 0 for a fit that failed."""
        return max(self.curve, default=0.0)


class Tuner:
    """Trials on one training matrix."""

    def __init__(self, train: sparse.csr_matrix, *, n_threads: int, show: bool = True) -> None:
        self._fit_part, held = hold_out(train, VALIDATION_SHARE, seed=1)
        self._held, self._n_threads, self._show = sample_users(held, MOST_USERS), n_threads, show
        self._spread: tuple[float, int] = train.nnz / train.shape[0], train.shape[1]
        self.trials: list[Trial] = []

    def tune(self, start: FactorParameters, deadline: float) -> Trial:
        """The best trial at ``start.n_factors`` that fits in before ``deadline`` (of ``time.perf_counter``), with time
        left for a fit on all the training data."""
        began = time.perf_counter()
        best = self.try_parameters(start, began + (deadline - began) / 2)
        coarse_factors = min(start.n_factors, max(64, start.n_factors // 4))
        coarse_end = began + COARSE_SHARE * (deadline - began)
        if coarse_factors == start.n_factors:
            best = self._search(best, coarse_end)
        elif time.perf_counter() < coarse_end:
            first = self.try_parameters(replace(start, n_factors=coarse_factors), coarse_end)
            found = self._search(first, coarse_end)
            best = self._compete(best, replace(found.parameters, n_factors=start.n_factors), deadline)
        return self._refine(best, deadline)

    def try_parameters(
        self, parameters: FactorParameters, deadline: float = math.inf, rival: Trial | None = None
    ) -> Trial:
        """Fit and measure, until nothing improves, ``deadline`` has passed, or ``rival`` is out of reach."""
        began = time.perf_counter()
        parameters = replace(parameters, n_sweeps=MOST_SWEEPS)
        measure = FinishedQuality(
            self._fit_part, self._held, parameters, n_threads=self._n_threads, scalar=mean_of_metrics
        )
        sweeps: list[Sweep] = []

        def watch(sweep: Sweep) -> None:
            sweeps.append(sweep)
            is_late = time.perf_counter() > deadline
            if is_late or (rival is not None and _is_hopeless(sweeps, rival)):
                raise _TrialEndedError

        try:
            fit_ids(self._fit_part, parameters, measure=measure, on_sweep=watch, n_threads=self._n_threads)
        except _TrialEndedError:
            pass
        except TrainingError as problem:
            self._say(f"failed: {problem}")
        trial = _summarize(parameters, sweeps, measure, time.perf_counter() - began)
        self.trials.append(trial)
        self._say(_describe(len(self.trials), trial))
        return trial

    def _search(self, best: Trial, deadline: float) -> Trial:
        """The best of proposals for parameters, at the dimension of a first trial."""
        start = best.parameters
        search = Search(self._ranges(start), seed=0)
        search.learn(self._values(start), best.metric)
        while time.perf_counter() + best.seconds < deadline:
            trial = self.try_parameters(self._parameters(start, search.propose()), deadline, best)
            search.tell(trial.metric)
            best = max(best, trial, key=lambda trial: trial.metric)
        return best

    def _refine(self, best: Trial, deadline: float) -> Trial:
        """Steps along one parameter at a time, as long as there is time and one helps."""
        steps = propose_steps(self._values(best.parameters))
        values: Values | None = next(steps)
        while values is not None and time.perf_counter() + best.seconds + _reserve(best) < deadline:
            before = best
            best = self._compete(best, self._parameters(best.parameters, values), deadline)
            values = _next_or_none(steps, best is not before)
        return best

    def _compete(self, best: Trial, parameters: FactorParameters, deadline: float) -> Trial:
        """The better of ``best`` and a trial of ``parameters``."""
        trial = self.try_parameters(parameters, deadline - _reserve(best), best)
        return trial if trial.metric > best.metric else best

    def _ranges(self, start: FactorParameters) -> dict[str, Range]:
        """Around the start, and all exponents that make sense."""
        at = self._values(start)
        around = {name: Range(at[name] / REACH, at[name] * REACH) for name in _BY_FACTOR}
        return {**around, "popularity_discount": Range(0, 0.8, False), "frequency_exponent": Range(0, 1.2, False)}

    def _values(self, parameters: FactorParameters) -> Values:
        size = self._size(parameters.unobserved_weight)
        return {
            "strength": parameters.regularization * size**parameters.frequency_exponent,
            "unobserved_weight": parameters.unobserved_weight,
            "popularity_discount": parameters.popularity_discount,
            "frequency_exponent": parameters.frequency_exponent,
        }

    def _parameters(self, like: FactorParameters, values: Values) -> FactorParameters:
        size = self._size(values["unobserved_weight"])
        regularization = values["strength"] / size ** values["frequency_exponent"]
        others = {name: value for name, value in values.items() if name != "strength"}
        return replace(like, regularization=regularization, **others)  # type: ignore[arg-type]

    def _size(self, unobserved_weight: float) -> float:
        """Size of a mean user, whose penalty is called the strength: it says how strong a penalty is whatever the
        exponent."""
        n_interactions, n_items = self._spread
        return n_interactions + unobserved_weight * n_items

    def _say(self, line: str) -> None:
        if self._show:
            print(line, file=sys.stderr, flush=True)


def propose_steps(values: Values) -> Generator[Values, bool, None]:
    """Steps from ``values`` along one of them at a time, on as long as one was better, which is what is sent in; once
    none is, steps of half and of a quarter of the size. Nothing is proposed twice."""
    tried = {_key(values)}
    for finer in (1.0, 0.5, 0.25):
        any_better = True
        while any_better:
            any_better = False
            for name, direction in itertools.product(STEPS, (finer, -finer)):
                step = _stepped(values, name, direction)
                while _key(step) not in tried:
                    tried.add(_key(step))
                    if not (yield step):
                        break
                    values, any_better = step, True
                    step = _stepped(values, name, direction)


def mean_of_metrics(quality: Quality) -> float:
    """What trials are compared by."""
    return (quality.recall_at_20 + quality.ndcg_at_20) / 2


class _TrialEndedError(Exception):
    pass


def _stepped(values: Values, name: str, direction: float) -> Values:
    size, value = STEPS[name], values[name]
    moved = value * size**direction if name in _BY_FACTOR else max(0.0, value + direction * size)
    return {**values, name: moved}


def _key(values: Values) -> tuple[str, ...]:
    return tuple(f"{value:.3e}" for value in values.values())


def _next_or_none(steps: Generator[Values, bool, None], is_better: bool) -> Values | None:
    try:
        return steps.send(is_better)
    except StopIteration:
        return None


def _reserve(best: Trial) -> float:
    """Seconds to keep for the fit on all the training data, and its exact half-step."""
    return 1.5 * best.fit_seconds


def _is_hopeless(sweeps: list[Sweep], rival: Trial) -> bool:
    at = len(sweeps) - 1
    reference = rival.curve[min(at, len(rival.curve) - 1)] if rival.curve else 0.0
    return at >= 2 and (sweeps[-1].metric or 0.0) < HOPELESS * reference


def _summarize(parameters: FactorParameters, sweeps: list[Sweep], measure: FinishedQuality, seconds: float) -> Trial:
    curve = tuple(sweep.metric or 0.0 for sweep in sweeps)
    if not curve:
        return Trial(parameters, Quality(0.0, 0.0, 0), (), 0.0, seconds)
    best = max(range(len(curve)), key=lambda at: (curve[at], -at))
    fit_seconds = sum(sweep.seconds for sweep in sweeps[: best + 1]) - sum(measure.seconds[: best + 1])
    return Trial(replace(parameters, n_sweeps=best + 1), measure.qualities[best], curve, fit_seconds, seconds)


def _describe(number: int, trial: Trial) -> str:
    p, q = trial.parameters, trial.quality
    return (
        f"trial {number}: {p.n_factors} factors, regularization {p.regularization:.4g}, exponent"
        f" {p.frequency_exponent:.3f}, unobserved {p.unobserved_weight:.4g}, popularity {p.popularity_discount:.3f} ->"
        f" recall@20 {q.recall_at_20:.4f}, ndcg@20 {q.ndcg_at_20:.4f} after {p.n_sweeps} of {len(trial.curve)} sweeps,"
        f" {trial.seconds:.1f} s"
    )
