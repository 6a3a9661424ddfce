"""Judges parameters of the factor model on a validation part, and chooses between them.

What tuning sees. A version is judged later by two tests: the tail of each user (``user_tail``) and what came after one
moment (``global_time``). Every interaction of either test part is taken away first, so that neither test has been
looked at when it judges the winner. What remains is cut once more: the last fifth of it by time is the validation part,
and trials fit on what came before that moment. Where too few people were there both before and after it, as in a log
of people who came once, the validation part is the tail of each user instead. Both cuts go by the newest event of an
interaction; weights are computed from the events before them alone.

Later events only push the cuts of both tests later, so a version that is trained at a newer snapshot is still judged on
interactions that its tuning has not seen. It knows nothing of storage, workers or how values are proposed.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.errors import TrainingError
from tasks.domain.evaluation import evaluate_split
from tasks.domain.histories import InteractionLog, TextLog
from tasks.domain.item_fit import Catalog
from tasks.domain.metrics import Interval, mean_interval
from tasks.domain.profiles import Recipe
from tasks.domain.splits import SPLITS, Split, SplitName, split_global_time, split_user_tail

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Origin = Literal["defaults", "current", "earlier", "search"]

ENOUGH_USERS = 300
"""With fewer validation users after one moment, the tail of each user is taken."""
MIN_USERS = 30
"""With fewer than that nothing is tuned."""
MAX_USERS = 2000


class TuningSplit(NamedTuple):
    """What trials fit on and are measured by. ``split.test`` holds what the chosen users liked, ``users`` (n_users,)
    who they are, ascending; ``name`` is the kind of the cut."""

    name: SplitName
    split: Split
    users: Integers


@dataclass(frozen=True)
class Trial:
    """Parameters that were measured: ``values`` (n_users,) float32 is NDCG@10 of each validation user, or None where
    the fit failed; then ``error`` says why. ``origin`` is who proposed them."""

    number: int
    origin: Origin
    parameters: Mapping[str, float]
    values: Floats | None
    seconds: float
    error: str = ""

    @property
    def ndcg(self) -> Interval | None:
        """Mean over the users with its 95 % interval."""
        return None if self.values is None else mean_interval(self.values.astype(np.float64))

    @property
    def mean(self) -> float | None:
        """NDCG@10 over the users, None where the fit failed."""
        return None if self.ndcg is None else self.ndcg.value


def split_for_tuning(log: InteractionLog, texts: TextLog, *, seed: int) -> TuningSplit:
    """The split of the module's docstring, with at most 2000 validation users, a sample that the seed fixes.

    A validation user liked something in both parts. Raises TrainingError if there are fewer than 30.
    """
    seen = _before_both_tests(log, texts)
    moment, tail = (_usable(name, *seen) for name in ("global_time", "user_tail"))
    found = moment if len(moment.users) >= min(ENOUGH_USERS, len(tail.users)) else tail
    if len(found.users) < MIN_USERS:
        raise TrainingError(
            f"Tuning found {len(found.users)} users to measure parameters on, outside both test parts. It needs at "
            f"least {MIN_USERS} who liked something before and after the cut. Import more events; until then the "
            "parameters stay as they are."
        )
    users = found.users
    if len(users) > MAX_USERS:
        users = np.sort(np.random.default_rng(seed).choice(users, MAX_USERS, replace=False))
    test = found.split.test
    wanted = test.select((test.weight > 0) & np.isin(test.user, users))
    return TuningSplit(found.name, found.split._replace(test=wanted), users)


def mean_history(log: InteractionLog) -> float:
    """Mean sum of the sizes of the weights over the users who have any, the same in any order of the log; 0 without
    interactions."""
    n_users = len(np.unique(log.user))
    return math.fsum(np.abs(log.weight).tolist()) / n_users if n_users else 0.0


def measure_recipe(split: Split, catalog: Catalog, recipe: Recipe, *, n_threads: int = 1) -> Floats:
    """NDCG@10 of each validation user by factors alone, (n_users,): fitted on the training part, with the users folded
    in from their histories as serving does it. The recipe's fusion is not used. Raises TrainingError as the fit does,
    and for scores that are not finite."""
    result = evaluate_split(split, catalog, recipe, ("factors",), n_threads=n_threads)
    values = np.zeros(0, np.float32) if result is None else result.rankings["factors"].ndcg_at_10.astype(np.float32)
    if not len(values) or not np.isfinite(values).all():
        raise TrainingError(
            f"The ranking of {len(values)} validation users gave no finite NDCG@10. Look at the weights of the events "
            "and at the parameters of the trial."
        )
    return values


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The one with the highest mean, of equals the first; None if all failed."""
    measured = [(trial.mean, -trial.number, trial) for trial in trials if trial.mean is not None]
    return max(measured, key=lambda found: found[:2])[2] if measured else None


def compare_trials(trial: Trial, other: Trial) -> Interval:
    """Mean difference over the same users with its 95 % interval, ``trial`` minus ``other``. Both were measured."""
    if trial.values is None or other.values is None:
        raise TrainingError(f"Trials {trial.number} and {other.number} cannot be compared: one of them failed.")
    return mean_interval(trial.values.astype(np.float64) - other.values.astype(np.float64))


def is_better(difference: Interval) -> bool:
    """Whether the whole interval lies above zero: not by a hair."""
    return difference.low > 0


def _before_both_tests(log: InteractionLog, texts: TextLog) -> tuple[InteractionLog, TextLog]:
    """What lies in the training part of both splits by which versions are judged."""
    moment, tail = split_global_time(log, texts), split_user_tail(log, texts)
    kept = moment.train.select(~np.isin(_keys(moment.train), _keys(tail.test)))
    cut = np.full(log.n_users, np.iinfo(np.int64).max)
    np.minimum.at(cut, tail.test.user, tail.test.last_at)
    return kept, moment.texts.select(moment.texts.written_at < cut[moment.texts.user])


def _usable(name: SplitName, log: InteractionLog, texts: TextLog) -> TuningSplit:
    split = SPLITS[name](log, texts)
    users = np.intersect1d(split.train.user[split.train.weight > 0], split.test.user[split.test.weight > 0])
    return TuningSplit(name, split, users)


def _keys(log: InteractionLog) -> Integers:
    return log.user * log.n_items + log.item
