"""Recall@20 and NDCG@20 over the whole catalog, from factors, without ever holding more than a block of scores.

Scores of a block of users come from one matrix product; a compiled loop then finds the best items. It knows nothing of
how factors are made.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from tasks.domain.errors import TrainingError

Floats = npt.NDArray[np.float32]
CUTOFF = 20
_BLOCK_BYTES = 32 * 2**20


class Quality(NamedTuple):
    """Means over ``n_users`` users with something to be found."""

    recall_at_20: float
    ndcg_at_20: float
    n_users: int


def measure_ranking(
    users: Floats, items: Floats, seen: sparse.csr_matrix, relevant: sparse.csr_matrix, *, n_threads: int = 1
) -> Quality:
    """Rank all items but the seen ones for every user with something relevant, and compare with that.

    ``users`` (n_users, d), ``items`` (n_items, d); ``seen`` and ``relevant`` (n_users, n_items) CSR, every stored entry
    counts. Recall@20 is the hits over the number of relevant items; NDCG@20 is binary, its ideal has min(20, number of
    relevant items) hits. Both are averaged over all users with a relevant item, also those without a history. Nobody
    gives zeros. Raises TrainingError for factors that are not finite.
    """
    who = np.flatnonzero(np.diff(relevant.indptr))
    best = rank_items(users[who], items, seen[who], CUTOFF, n_threads=n_threads)
    wanted = relevant[who].sorted_indices()
    gains = np.zeros((len(who), 2))
    _compare(best, wanted.indptr, wanted.indices, 1 / np.log2(np.arange(2, CUTOFF + 2)), gains)
    means = gains.mean(axis=0) if len(who) else np.zeros(2)
    return Quality(float(means[0]), float(means[1]), len(who))


def rank_items(
    users: Floats, items: Floats, seen: sparse.csr_matrix, k: int, *, n_threads: int = 1
) -> npt.NDArray[np.int32]:
    """The ``k`` items of the highest score for each user, (n_users, k), best first, without those of ``seen``; -1 where
    there are too few. Of equal scores, the smaller item comes first. Raises TrainingError as ``measure_ranking``."""
    if not (np.isfinite(users).all() and np.isfinite(items).all()):
        raise TrainingError("The ranking got factors that are not finite numbers. The fit diverged: look at it.")
    best = np.full((len(users), k), -1, np.int32)
    n_rows = max(1, _BLOCK_BYTES // (4 * max(len(items), 1)))
    starts = range(0, len(users), n_rows)

    def rank(mine: range) -> None:
        scores = np.empty((n_rows, len(items)), np.float32)
        for start in mine:
            rows = slice(start, min(start + n_rows, len(users)))
            some = scores[: rows.stop - rows.start]
            np.matmul(users[rows], items.T, out=some)
            _find_best(some, seen.indptr[start:], seen.indices, best[rows])

    if n_threads == 1:
        rank(starts)
        return best
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(rank, [starts[first::n_threads] for first in range(n_threads)]))
    return best


@njit(cache=True, nogil=True)
def _find_best(scores: Any, indptr: Any, masked: Any, best: Any) -> None:
    """Keep the best of a row sorted; items come by ascending number, so one of equal score never moves ahead."""
    k = best.shape[1]
    kept = np.empty(k, scores.dtype)
    for row in range(len(scores)):
        line = scores[row]
        for e in range(indptr[row], indptr[row + 1]):
            line[masked[e]] = -np.inf
        kept[:] = -np.inf
        for item in range(len(line)):
            if line[item] > kept[k - 1]:
                at = k - 1
                while at > 0 and line[item] > kept[at - 1]:
                    kept[at], best[row, at] = kept[at - 1], best[row, at - 1]
                    at -= 1
                kept[at], best[row, at] = line[item], item


@njit(cache=True, nogil=True)
def _compare(best: Any, indptr: Any, wanted: Any, discounts: Any, gains: Any) -> None:
    """Recall and NDCG of each row; ``wanted`` is sorted within a row."""
    for row in range(len(best)):
        relevant = wanted[indptr[row] : indptr[row + 1]]
        hits, gain = 0, 0.0
        for rank in range(best.shape[1]):
            at = np.searchsorted(relevant, best[row, rank])
            if at < len(relevant) and relevant[at] == best[row, rank]:
                hits += 1
                gain += discounts[rank]
        gains[row, 0] = hits / len(relevant)
        gains[row, 1] = gain / discounts[: min(len(relevant), len(discounts))].sum()
