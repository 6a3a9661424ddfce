"""Offline evaluation of a recipe on a split, beside simpler policies. It knows nothing of storage.

Every policy ranks the whole catalog for the same users; what a user met in the training part is left out, whether they
liked it or not. Relevant is what they liked in the test part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.fusion import fuse_items, fuse_queries
from tasks.domain.half_steps import RowSolver
from tasks.domain.histories import build_histories, select_users
from tasks.domain.item_fit import Catalog, fit_items
from tasks.domain.learning import BUCKET_STARTS
from tasks.domain.metrics import Interval, Ranking, coverage, mean_interval, rank_users
from tasks.domain.neighbours import fit_neighbours, score_by_neighbours
from tasks.domain.profiles import Histories, ItemSpace, Profiles, Recipe, compute_profiles, weigh_recency
from tasks.domain.splits import Split, SplitName

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Policy = Literal["fused", "factors", "text", "neighbours", "popularity", "champion"]
OWN_POLICIES: tuple[Policy, ...] = ("fused", "factors", "text", "neighbours", "popularity")
"""What is measured of every new version. A champion is measured beside it."""
MAX_TEST_USERS = 5000
_CHUNK_CELLS = 4_000_000
_USER_METRICS = ("ndcg_at_10", "recall_at_10", "mrr")
HEADLINE = "ndcg_at_10"
_Scored = Iterator[tuple[slice, Floats]]


@dataclass(frozen=True)
class MetricValue:
    """One row of ``eval_metrics``: a mean over users with its 95 % interval.

    ``segment`` is ``all`` or a range of history lengths. A metric ``ndcg_at_10_minus_<policy>`` is the mean paired
    difference over the same users. ``coverage`` has no interval: its ends equal its value.
    """

    split: SplitName
    policy: Policy
    segment: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n_users: int


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that was measured of one version. ``notes`` say what could not be measured, and why."""

    version: str
    metrics: tuple[MetricValue, ...]
    notes: tuple[str, ...] = ()
    champion: str | None = None

    def find(
        self, split: SplitName, policy: Policy, metric: str = HEADLINE, segment: str = "all"
    ) -> MetricValue | None:
        """One of the metrics, or None if it was not measured."""
        wanted = (split, policy, metric, segment)
        return next((m for m in self.metrics if (m.split, m.policy, m.metric, m.segment) == wanted), None)


class SplitResult(NamedTuple):
    """Metrics of each test user under each policy; ``lengths`` (n_users,) are their histories in the training part."""

    rankings: Mapping[Policy, Ranking]
    lengths: Integers
    n_items: int


def evaluate_split(
    split: Split,
    catalog: Catalog,
    recipe: Recipe,
    policies: Sequence[Policy] = OWN_POLICIES,
    *,
    solver: RowSolver | None = None,
    n_threads: int = 1,
) -> SplitResult | None:
    """Fit a recipe on the training part and rank for the test users; its fusion is used as it is.

    Test users are those who liked something new in the test part, the same ones for every recipe; where there are more
    than 5000, a fixed sample. None if there are none.
    """
    users = _test_users(split)
    if not len(users):
        return None
    items, _ = fit_items(split.train, catalog, recipe.factor_parameters, solver=solver, n_threads=n_threads)
    histories = select_users(build_histories(split.train, split.texts, [""] * split.train.n_users), users)
    profiles = compute_profiles(histories, items, recipe, n_threads=n_threads)
    rankings = {}
    for policy in policies:
        if policy == "popularity":
            scored = _popularity(split, users)
        elif policy == "neighbours":
            scored = _neighbours(split, weigh_recency(histories, items, recipe)[0], n_threads)
        else:
            scored = _scores(policy, profiles, items, recipe)
        rankings[policy] = _rank(scored, split, users)
    return SplitResult(rankings, profiles.n_history, split.train.n_items)


def summarize_split(name: SplitName, result: SplitResult) -> list[MetricValue]:
    """Means with intervals: all metrics over all users, the headline metric over buckets of history length, and its
    paired differences between the fused policy and each other one."""
    rows = []
    for policy, ranking in result.rankings.items():
        for metric in _USER_METRICS:
            rows.append(_row(name, policy, "all", metric, getattr(ranking, metric)))
        share = coverage(ranking.slates, result.n_items)
        n_users = len(ranking.slates)
        rows.append(MetricValue(name, policy, "all", "coverage", share, share, share, n_users))
        for segment, members in _segments(result.lengths):
            rows.append(_row(name, policy, segment, HEADLINE, ranking.ndcg_at_10[members]))
    fused = result.rankings["fused"].ndcg_at_10
    for policy, ranking in result.rankings.items():
        if policy != "fused":
            rows.append(_row(name, "fused", "all", f"{HEADLINE}_minus_{policy}", fused - ranking.ndcg_at_10))
    return rows


def _rank(scored: _Scored, split: Split, users: Integers) -> Ranking:
    seen, wanted = split.train.matrix()[users], split.test.select(split.test.weight > 0).matrix()[users]
    chunks = [rank_users(scores, seen[part], wanted[part]) for part, scores in scored]
    return Ranking(*(np.concatenate(column) for column in zip(*chunks, strict=True)))


def _scores(policy: Policy, profiles: Profiles, items: ItemSpace, recipe: Recipe) -> _Scored:
    """The fused dot product, as the index computes it; ``text`` and ``factors`` have the other weights at 0."""
    ones, zeros = np.ones_like(profiles.alpha), np.zeros_like(profiles.alpha)
    alone = {"text": (ones, zeros), "factors": (zeros, zeros)}
    alpha, beta = alone.get(policy, (profiles.alpha, profiles.beta))
    stored = fuse_items(items.text, items.factors, items.prior, recipe.fusion)
    queries = fuse_queries(profiles.text, profiles.factors, alpha, beta, recipe.fusion)
    for part in _chunks(len(queries), len(stored)):
        yield part, queries[part] @ stored.T


def _neighbours(split: Split, recent: Histories, n_threads: int) -> _Scored:
    """What the liked items say through their neighbours, alone: nothing is filled up."""
    strengths = fit_neighbours(split.train.matrix(), n_threads=n_threads).strengths
    scores = score_by_neighbours(recent.interactions, strengths)
    for part in _chunks(*scores.shape):
        yield part, scores[part].toarray()


def _popularity(split: Split, users: Integers) -> _Scored:
    """Plain counts of those who liked an item, the same for everybody: the usual baseline."""
    liked = np.bincount(split.train.item[split.train.weight > 0], minlength=split.train.n_items).astype(np.float32)
    for part in _chunks(len(users), len(liked)):
        yield part, np.broadcast_to(liked, (part.stop - part.start, len(liked)))


def _chunks(n_users: int, n_items: int) -> Iterator[slice]:
    step = max(1, _CHUNK_CELLS // max(1, n_items))
    for start in range(0, n_users, step):
        yield slice(start, min(start + step, n_users))


def _test_users(split: Split) -> Integers:
    wanted = split.test.select(split.test.weight > 0).matrix()
    wanted.data[:] = 1
    met = split.train.matrix()
    met.data[:] = 1
    n_new = np.asarray((wanted - wanted.multiply(met)).sum(axis=1)).ravel()
    users = np.flatnonzero(n_new > 0)
    if len(users) > MAX_TEST_USERS:
        users = np.sort(np.random.default_rng(0).choice(users, MAX_TEST_USERS, replace=False))
    return users


def _segments(lengths: Integers) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    starts: Sequence[int] = (0, *BUCKET_STARTS)
    for start, end in zip(starts, (*starts[1:], None), strict=True):
        members = (lengths >= start) & (lengths < (end or np.inf))
        if members.any():
            yield segment_name(start, end), members


def segment_name(start: int, end: int | None) -> str:
    """Name of a bucket from ``start`` up to but not including ``end``, such as ``history 3-5`` or ``history 51+``."""
    if end is None:
        return f"history {start}+"
    return f"history {start}" if end == start + 1 else f"history {start}-{end - 1}"


def _row(split: SplitName, policy: Policy, segment: str, metric: str, values: Doubles) -> MetricValue:
    interval: Interval = mean_interval(values)
    n_users = int((~np.isnan(values)).sum())
    return MetricValue(split, policy, segment, metric, interval.value, interval.low, interval.high, n_users)
