"""Interactions that look like real ones, of any number, from a seed.

Items have a popularity after Zipf's law, users an activity that is log-normal, and both have tastes: items fall into
groups, a user prefers three of them, and most of what a user takes is from these. It knows nothing of files or factors.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from tasks.domain.errors import InputError

GENERATOR = "generated (Zipf popularity, log-normal activity, latent tastes)"
USERS_EVERY = 30
"""Mean number of interactions of a user."""
ITEMS_EVERY = 30
"""Mean number of interactions of an item."""
_N_GROUPS = 40
_N_PREFERRED = 3
_PREFERRED_SHARE = 0.75
_ZIPF_EXPONENT = 0.8
_ZIPF_OFFSET = 10
_ACTIVITY_SPREAD = 1.0
_FEWEST = 8
_PATIENCE = 8
"""Draws for each interaction before a user who keeps drawing what they have takes any item."""


def generate_interactions(n_interactions: int, *, seed: int = 0) -> sparse.csr_matrix:
    """About ``n_interactions`` distinct pairs, (n_users, n_items) CSR float32 of ones, with sorted rows.

    Users and items grow in proportion to the interactions. Memory is that of the result and a few numbers for each user
    and item. Raises InputError for fewer than 100.
    """
    if n_interactions < 100:
        raise InputError(f"{n_interactions} interactions were to be generated. At least 100 are needed: ask for more.")
    n_users, n_items = n_interactions // USERS_EVERY + 1, n_interactions // ITEMS_EVERY + 4 * _FEWEST
    rng = np.random.default_rng(seed)
    activity = _activity(n_users, n_items, n_interactions, rng)
    return _draw_rows(activity, *_popularity(n_items, rng), rng)


def draw_interactions(
    activity: npt.NDArray[np.int64],
    popularity: npt.NDArray[np.float64],
    group: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    """As ``generate_interactions``, for users and items that are given: (n_users, n_items) CSR.

    ``activity`` (n_users,) is how many items each user takes, at most half of them; ``popularity`` (n_items,) their
    weights, ``group`` (n_items,) the group of each, from 0. Nobody takes an item twice, so the head of the popularity
    comes out flatter than it is given.
    """
    order = np.argsort(group, kind="stable")
    group_ends = np.cumsum(np.bincount(group))
    return _draw_rows(activity, order.astype(np.int32), np.cumsum(popularity[order]), group_ends, rng)


def _activity(n_users: int, n_items: int, n_interactions: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Interactions of each user: log-normal, at least a few, at most a quarter of the items."""
    drawn = np.exp(_ACTIVITY_SPREAD * rng.standard_normal(n_users))
    spare = n_interactions - _FEWEST * n_users
    activity: npt.NDArray[np.int64] = _FEWEST + np.round(drawn * spare / drawn.sum()).astype(np.int64)
    return np.minimum(activity, n_items // 4)


def _popularity(
    n_items: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Items in an order where groups lie together, the summed popularity up to each, and where each group ends."""
    popularity = (np.arange(n_items) + _ZIPF_OFFSET) ** -_ZIPF_EXPONENT
    group = rng.integers(0, _N_GROUPS, n_items)
    order = np.argsort(group, kind="stable")
    name = rng.permutation(n_items).astype(np.int32)  # ids say nothing of popularity
    return name[order], np.cumsum(popularity[order]), np.cumsum(np.bincount(group, minlength=_N_GROUPS))


def _draw_rows(
    activity: npt.NDArray[np.int64],
    item_of_place: npt.NDArray[np.int32],
    reach: npt.NDArray[np.float64],
    group_ends: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    indptr = np.concatenate([[0], np.cumsum(activity)])
    indices = np.empty(indptr[-1], np.int32)
    _draw(indptr, item_of_place, reach, group_ends, np.uint64(rng.integers(2**63)), indices)
    ones = np.ones(len(indices), np.float32)
    kind = np.int32 if indptr[-1] < np.iinfo(np.int32).max else np.int64
    return sparse.csr_matrix((ones, indices, indptr.astype(kind)), shape=(len(activity), len(item_of_place)))


@njit(cache=True, nogil=True)
def _next(state: Any) -> Any:  # the generator splitmix64 of Steele, Lea and Flood 2014
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _uniform(state: Any) -> Any:
    return (_next(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def _draw(indptr: Any, item_of_place: Any, reach: Any, group_ends: Any, seed: Any, indices: Any) -> None:
    n_items = len(item_of_place)
    owner = np.full(n_items, -1, np.int32)
    state = np.zeros(1, np.uint64)
    preferred = np.zeros(_N_PREFERRED, np.int64)
    for user in range(len(indptr) - 1):
        state[0] = seed + np.uint64(user) * np.uint64(0xD1342543DE82EF95)
        for a in range(_N_PREFERRED):
            preferred[a] = int(_uniform(state) * len(group_ends))
        n_found, n_tried, n_wanted = 0, 0, indptr[user + 1] - indptr[user]
        while n_found < n_wanted:
            n_tried += 1
            place = _place(state, preferred, reach, group_ends)
            if n_tried > _PATIENCE * n_wanted:
                place = int(_uniform(state) * n_items)
            item = item_of_place[place]
            if owner[item] != user:
                owner[item] = user
                indices[indptr[user] + n_found] = item
                n_found += 1
        indices[indptr[user] : indptr[user + 1]].sort()


@njit(cache=True, nogil=True)
def _place(state: Any, preferred: Any, reach: Any, group_ends: Any) -> Any:
    """Draw by popularity: among all items, or in one of the preferred groups."""
    start, end = 0, len(reach)
    if _uniform(state) < _PREFERRED_SHARE:
        group = preferred[int(_uniform(state) * len(preferred))]
        start, end = (0 if group == 0 else group_ends[group - 1]), group_ends[group]
        if start == end:
            start, end = 0, len(reach)
    low = 0.0 if start == 0 else reach[start - 1]
    wanted = low + _uniform(state) * (reach[end - 1] - low)
    return min(start + np.searchsorted(reach[start:end], wanted, side="right"), end - 1)
