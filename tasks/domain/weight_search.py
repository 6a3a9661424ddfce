"""The compiled search for fusion weights: NDCG@10 of many weight combinations at once.

It knows nothing of users, buckets or how a combination is chosen. Importing this module imports numba.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from tasks.domain.metrics import CUTOFF, DISCOUNTS, IDEAL_GAINS

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


def search_weights(
    text: Floats, factors: Floats, prior: Floats, blocked: Flags, wanted: Flags, combinations: Floats
) -> Floats:
    """NDCG@10 of each user under each combination, (n_users, n_combinations) float32.

    ``text`` and ``factors`` (n_users, n_items) are the parts of the score, ``prior`` (n_items,); a row of
    ``combinations`` (n_combinations, 3) weighs text, factors and prior. ``blocked`` items are not ranked; users without
    a ``wanted`` item get 0. The order is that of ``tasks.domain.metrics.rank_users``.
    """
    out = np.zeros((len(text), len(combinations)), np.float32)
    wanted = wanted & ~blocked
    _search(text, factors, prior, blocked, wanted, combinations, DISCOUNTS, IDEAL_GAINS, CUTOFF, out)
    return out


@njit(nogil=True, cache=True)
def _search(
    text: Floats,
    factors: Floats,
    prior: Floats,
    blocked: Flags,
    wanted: Flags,
    combinations: Floats,
    discounts: npt.NDArray[np.float64],
    ideal: npt.NDArray[np.float64],
    k: int,
    out: Floats,
) -> None:
    n_users, n_items = text.shape
    scores = np.empty(n_items, np.float32)
    best = np.empty(k, np.float32)
    rows = np.empty(k, np.int64)
    for user in range(n_users):
        n_wanted = min(wanted[user].sum(), k)
        if n_wanted == 0:
            continue
        for number in range(len(combinations)):
            a, b, c = combinations[number, 0], combinations[number, 1], combinations[number, 2]
            t, f = text[user], factors[user]
            for item in range(n_items):
                scores[item] = a * t[item] + b * f[item] + c * prior[item]
            n_found = _head(scores, blocked[user], best, rows)
            gain = 0.0
            for rank in range(n_found):
                if wanted[user, rows[rank]]:
                    gain += discounts[rank]
            out[user, number] = gain / ideal[n_wanted]


@njit(nogil=True, cache=True)
def _head(scores: Floats, blocked: Flags, best: Floats, rows: npt.NDArray[np.int64]) -> int:
    """The highest scores in order into ``best`` and ``rows``; the earlier item first where they are equal."""
    k, n_found = len(best), 0
    for item in range(len(scores)):
        score = scores[item]
        if n_found == k and score <= best[k - 1]:
            continue
        if blocked[item]:
            continue
        place = n_found if n_found < k else k - 1
        while place > 0 and best[place - 1] < score:
            best[place] = best[place - 1]
            rows[place] = rows[place - 1]
            place -= 1
        best[place] = score
        rows[place] = item
        if n_found < k:
            n_found += 1
    return n_found
