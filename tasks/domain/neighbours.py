"""Item-based neighbours: which liked items speak for an item, how strongly, and what that adds to a score.

Each item is predicted from its nearest items by a ridge regression: EASE^R (Steck 2019, "Embarrassingly Shallow
Autoencoders for Sparse Data") over the items that are most like it, as fsSLIM chooses them (Ning and Karypis 2011,
"SLIM: Sparse Linear Methods for Top-N Recommender Systems"), with a penalty that grows with the likes of a neighbour.
With x_i the column of the weights of everybody who liked item i, and N(i) its nearest items:

    min over b of  |x_i - sum_{j in N(i)} b_j x_j|^2  +  sum_{j in N(i)} l_j b_j^2,   l_j = regularization * |x_j|^(2e)

Strengths below zero are cut off: a like only ever speaks for an item. It knows nothing of ids, time or storage.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.errors import InputError, TrainingError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
USER_EXPONENT = 0.5
"""In the cosine, a user's likes weigh their number to the power of minus this: who likes everything says little."""
_CHUNK_ITEMS = 512


@dataclass(frozen=True)
class NeighbourParameters:
    """Parameters of a fit. ``docs/decisions`` says how the defaults were measured."""

    n_neighbours: int = 50
    """Nearest items that may speak for an item."""
    regularization: float = 30.0
    """Strength of the penalty."""
    frequency_exponent: float = 0.5
    """How the penalty grows with the likes of a neighbour: 0 not at all, 1 in proportion."""
    shrinkage: float = 5.0
    """Shared users at which a cosine counts half when the nearest items are chosen."""


class Neighbours(NamedTuple):
    """What a like of one item adds to the score of another.

    ``strengths`` (n_items, n_items) CSR float32, all above 0: the row is what was liked, the column what it speaks
    for; a column has at most ``n_neighbours`` entries and none on the diagonal. ``n_shared``, in the same structure,
    int32, counts the users who liked both.
    """

    strengths: sparse.csr_matrix
    n_shared: sparse.csr_matrix


def fit_neighbours(
    interactions: sparse.csr_matrix, parameters: NeighbourParameters | None = None, *, n_threads: int = 1
) -> Neighbours:
    """Find the neighbours of every item.

    ``interactions`` (n_users, n_items) CSR of signed confidence weights; only those above 0 count. Nearest are the
    items with the highest cosine, times n / (n + shrinkage) for n shared users; equal ones go by column. An item that
    nobody likes together with another one has none. Items are solved one by one, so threads change nothing; beside the
    result, each thread needs memory for a few numbers per item and user. BLAS must run on one thread meanwhile. Raises
    TrainingError for weights that are not finite, InputError for parameters out of range.
    """
    parameters = parameters or NeighbourParameters()
    _check(interactions, parameters)
    by_user = liked_only(interactions).astype(np.float64)
    by_item = by_user.tocsc()
    by_item.sort_indices()
    lengths = np.maximum(np.diff(by_user.indptr), 1).astype(np.float64)
    user_weight = lengths**-USER_EXPONENT
    squares = by_item.power(2)
    sizes = np.asarray(squares.sum(axis=0)).ravel()
    norms = np.sqrt(np.asarray(squares.T @ user_weight).ravel())
    penalty = parameters.regularization * sizes**parameters.frequency_exponent
    n_items = by_item.shape[1]
    shape = n_items, min(parameters.n_neighbours, max(n_items - 1, 1))
    found = np.full(shape, -1, np.int32), np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    columns = by_item.indptr.astype(np.int64), by_item.indices.astype(np.int64), by_item.data
    rows = by_user.indptr.astype(np.int64), by_user.indices.astype(np.int64), by_user.data

    def solve(start: int) -> None:
        from tasks.domain.nearest_items import solve_items

        end = min(start + _CHUNK_ITEMS, n_items)
        solve_items(start, end, columns, rows, user_weight, norms, sizes + penalty, parameters.shrinkage, *found)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(solve, range(0, n_items, _CHUNK_ITEMS)))
    return _as_matrices(*found)


def liked_only(interactions: sparse.csr_matrix) -> sparse.csr_matrix:
    """The entries above 0, columns ascending."""
    liked = sparse.csr_matrix(interactions, copy=True)
    liked.data = np.maximum(liked.data, 0)
    liked.eliminate_zeros()
    liked.sort_indices()
    return liked


def score_by_neighbours(recent: sparse.csr_matrix, strengths: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scores (n_users, n_items) CSR: the sum of the strengths of what a user liked, by the weight of each like.

    ``recent`` (n_users, n_items) CSR are the histories as ``tasks.domain.profiles.weigh_recency`` weighs them; what was
    only seen or disliked adds nothing. Items without an entry have no neighbour in the history.
    """
    return sparse.csr_matrix(liked_only(recent) @ strengths)


def split_by_neighbour(history: Rows, weights: Floats, strengths: sparse.csr_matrix, targets: Rows) -> Doubles:
    """What each item of one user's history adds to the scores of ``targets``: (n_history, n_targets) float64.

    ``history`` (n_history,) are rows of ``strengths`` and ``weights`` (n_history,) their likes, as they were scored. A
    column adds up to the score of its target.
    """
    added = strengths[history][:, targets].toarray().astype(np.float64)
    split: Doubles = np.maximum(weights, 0).astype(np.float64)[:, None] * added
    return split


def _check(interactions: sparse.csr_matrix, parameters: NeighbourParameters) -> None:
    bad = int((~np.isfinite(interactions.data)).sum())
    if bad:
        raise TrainingError(
            f"The neighbours of items were asked for, from {bad} interaction weights that are not finite numbers."
            " Weights must be finite; look at fct_interactions and at the weights of the event types."
        )
    p = parameters
    if p.n_neighbours < 1 or p.shrinkage < 0 or not p.regularization > 0 or not np.isfinite(p.regularization):
        raise InputError(
            f"The neighbours of items were asked for with {p}. Allowed are at least 1 neighbour, a shrinkage of at"
            " least 0 and a finite regularization above 0. Ask with other parameters."
        )


def _as_matrices(neighbour: npt.NDArray[np.int32], strength: Floats, n_shared: npt.NDArray[np.int32]) -> Neighbours:
    target, place = np.nonzero((neighbour >= 0) & (strength > 0))
    cells = neighbour[target, place], target
    shape = (len(neighbour),) * 2
    matrices = [sparse.csr_matrix((values[target, place], cells), shape=shape) for values in (strength, n_shared)]
    for matrix in matrices:
        matrix.sort_indices()
    return Neighbours(*matrices)
