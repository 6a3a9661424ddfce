"""Ranking metrics with intervals. It knows nothing of how scores are made.

Relevance is binary. Metrics are over the whole catalog: every item that the user has not met competes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

from tasks.domain.ranking import top_items

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
CUTOFF = 10
DISCOUNTS: Doubles = 1 / np.log2(np.arange(2, CUTOFF + 2))
IDEAL_GAINS: Doubles = np.concatenate([[0.0], np.cumsum(DISCOUNTS)])
"""The highest possible gain with 0 to 10 relevant items."""


class Ranking(NamedTuple):
    """Metrics of each user, (n_users,) in [0, 1], and the items of their slates (n_users, 10), -1 where none."""

    ndcg_at_10: Doubles
    recall_at_10: Doubles
    mrr: Doubles
    slates: npt.NDArray[np.int64]


class Interval(NamedTuple):
    """A mean over users with its 95 % interval (Student's t)."""

    value: float
    low: float
    high: float


def rank_users(scores: Floats, seen: sparse.csr_matrix, relevant: sparse.csr_matrix) -> Ranking:
    """Rank the whole catalog for some users, without what they have seen.

    ``scores`` (n_users, n_items); ``seen`` and ``relevant`` (n_users, n_items) CSR, every stored entry counts. NDCG is
    that of Jarvelin and Kekalainen 2002 with binary gains and the ideal of the user's own relevant items; ``recall`` is
    the share of the relevant items that are in the slate; ``mrr`` is 1 / rank of the first relevant item, over the
    whole ranking. Relevant items that were seen do not count. Users without a relevant item get NaN. Equal scores are
    ordered by column.
    """
    blocked, wanted = _dense(seen), _dense(relevant)
    wanted &= ~blocked
    n_wanted = wanted.sum(axis=1)
    slates = top_items(scores, CUTOFF, blocked).rows
    hits = np.take_along_axis(wanted, slates.clip(0), axis=1) & (slates >= 0)
    none = np.where(n_wanted > 0, 1.0, np.nan)
    return Ranking(
        ndcg_at_10=none * (hits @ DISCOUNTS) / np.maximum(IDEAL_GAINS[np.minimum(n_wanted, CUTOFF)], DISCOUNTS[-1]),
        recall_at_10=none * hits.sum(axis=1) / np.maximum(n_wanted, 1),
        mrr=none / _first_rank(scores, blocked, wanted),
        slates=slates,
    )


def mean_interval(values: Doubles) -> Interval:
    """Mean and 95 % interval over users; NaNs are left out. One user says nothing: the interval is the mean +- 1.
    Nobody gives zeros."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(0.0, 0.0, 0.0)
    mean = float(known.mean())
    n = len(known)
    half = float(special.stdtrit(n - 1, 0.975) * known.std(ddof=1) / np.sqrt(n)) if n > 1 else 1.0
    return Interval(mean, mean - half, mean + half)


def coverage(slates: npt.NDArray[np.int64], n_items: int) -> float:
    """Share of the catalog that is in anybody's slate."""
    return len(np.unique(slates[slates >= 0])) / max(n_items, 1)


def _first_rank(scores: Floats, blocked: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_]) -> Doubles:
    """Rank, from 1, of each user's best wanted item; any number where there is none."""
    best = np.where(wanted, scores, -np.inf).max(axis=1, keepdims=True)
    column = np.argmax(wanted & (scores == best), axis=1)
    earlier = np.arange(scores.shape[1]) < column[:, None]
    ahead = ~blocked & ((scores > best) | ((scores == best) & earlier))
    return np.asarray(1.0 + ahead.sum(axis=1), np.float64)


def _dense(entries: sparse.csr_matrix) -> npt.NDArray[np.bool_]:
    dense = np.zeros(entries.shape, bool)
    dense[np.repeat(np.arange(entries.shape[0]), np.diff(entries.indptr)), entries.indices] = True
    return dense
