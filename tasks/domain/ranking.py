"""Orders items by score: exact, deterministic, without what a user must not be shown.

It knows nothing of how scores are made or where slates go.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.errors import InputError
from tasks.domain.fusion import Fusion

Floats = npt.NDArray[np.float32]
MAX_SLATE = 500
BLOCK = 64
"""Items of which ``top_items`` looks at the highest score first."""


class TopItems(NamedTuple):
    """The best items of each user, best first.

    ``rows`` (n_users, k) int64 are columns of the scores, -1 where a user has fewer than ``k`` items to be shown;
    ``scores`` (n_users, k) float32, minus infinity there.
    """

    rows: npt.NDArray[np.int64]
    scores: Floats


def check_slate_length(k: int) -> None:
    """Raises InputError unless 1 <= k <= 500."""
    if not 1 <= k <= MAX_SLATE:
        raise InputError(f"A slate of {k} items was asked for; k must be from 1 to {MAX_SLATE}. Ask with another k.")


def top_items(scores: Floats, k: int, blocked: npt.NDArray[np.bool_]) -> TopItems:
    """The ``k`` highest scores of each row.

    ``scores`` (n_users, n_items) float32 without NaN, ``blocked`` (n_users, n_items): True is never shown. Equal
    scores are ordered by column, so columns that are sorted by id give the same slate every time.
    """
    n_users, n_items = scores.shape
    n_kept = min(k, n_items)
    open_scores = np.where(blocked, np.float32(-np.inf), scores).astype(np.float32, copy=False)
    rows = np.full((n_users, k), -1, np.int64)
    best = np.full((n_users, k), -np.inf, np.float32)
    if n_users and n_kept:
        user, item = _candidates(open_scores, n_kept)
        rank = _ranks(user, n_users)
        head = rank < n_kept
        rows[user[head], rank[head]] = item[head]
        best[user[head], rank[head]] = open_scores[user[head], item[head]]
    return TopItems(rows, best)


def _candidates(scores: Floats, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Users and items at or above a score that ``k`` items of the user reach, by user, falling score, then item."""
    floor = _kth_highest(_block_maxima(scores) if scores.shape[1] >= 2 * k * BLOCK else scores, k)
    user, item = np.nonzero(scores >= np.maximum(floor, np.finfo(np.float32).min)[:, None])
    order = np.lexsort((item, -scores[user, item], user))
    return user[order], item[order]


def _block_maxima(scores: Floats) -> Floats:
    """The highest of every ``BLOCK`` scores of a row, (n_users, n_items // BLOCK); the last few items are in no block.

    Each is a score of another item, so that the k-th highest of them is not above the k-th highest of all, and little
    below it: it is found without ordering all scores.
    """
    n_users, n_blocks = len(scores), scores.shape[1] // BLOCK
    maxima: Floats = scores[:, : n_blocks * BLOCK].reshape(n_users, BLOCK, n_blocks).max(axis=1)
    return maxima


def _kth_highest(scores: Floats, k: int) -> Floats:
    n = scores.shape[1]
    highest: Floats = np.partition(scores, n - k, axis=1)[:, n - k]
    return highest


def _ranks(user: npt.NDArray[np.int64], n_users: int) -> npt.NDArray[np.int64]:
    """Position of each entry within its user, from 0; ``user`` ascends."""
    starts = np.searchsorted(user, np.arange(n_users))
    return np.arange(len(user)) - starts[user]


def popular_where_empty(queries: Floats, fusion: Fusion) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Queries of which nothing but the prior is known, made to ask for what is popular.

    ``queries`` (n, width) are fused. Returns them, and (n,) True where text and factors are all zero. Their prior
    keeps its learned weight if that is above 0; a weight of 0 or less would rank the catalog at random or upside down,
    and becomes 1.
    """
    is_empty: npt.NDArray[np.bool_] = np.abs(queries[:, :-1]).max(axis=1, initial=0) == 0
    asked = queries.copy()
    asked[is_empty & (queries[:, -1] <= 0), -1] = np.float32(1 / fusion.prior_block)
    return asked, is_empty


def only_attributes(queries: Floats, n_history: npt.NDArray[np.int64], text_width: int) -> npt.NDArray[np.bool_]:
    """(n,) whether a fused query (n, width) was made from attributes alone: the user has neither liked nor written
    anything, and has factors all the same. ``n_history`` (n,) counts what they liked."""
    alone: npt.NDArray[np.bool_] = (n_history == 0) & queries[:, text_width:-1].any(axis=1)
    return alone & ~queries[:, :text_width].any(axis=1)


def mean_block_cosine(query: Floats, items: Floats, text_width: int) -> tuple[Floats, Floats]:
    """How alike items are to one item, block by block.

    ``query`` (width,) and ``items`` (n, width) are stored item vectors. Returns the shares of the text and the factor
    block, each (n,) float32; their sum is the mean of the cosines of the blocks. A block that is zero in ``query``
    counts nothing and the other one counts whole.
    """
    cosines = []
    for block in (slice(0, text_width), slice(text_width, -1)):
        norms = np.linalg.norm(items[:, block], axis=1) * np.linalg.norm(query[block])
        products = items[:, block] @ query[block]
        cosines.append(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0))
    has_text, has_factors = bool(query[:text_width].any()), bool(query[text_width:-1].any())
    weight = np.float32(1 / max(1, has_text + has_factors))
    return weight * cosines[0], weight * cosines[1]
