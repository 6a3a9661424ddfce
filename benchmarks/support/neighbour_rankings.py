"""What item neighbours are compared with, and how their scores, which are sparse, become rankings and gains.

It knows nothing of files or of how a benchmark prints.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from benchmarks.support.full_ranking import CUTOFF
from tasks.domain.evaluation import segment_name
from tasks.domain.learning import BUCKET_STARTS
from tasks.domain.neighbours import NeighbourParameters, fit_neighbours, liked_only, score_by_neighbours
from tasks.domain.ranking import top_items

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
_USERS = 500
_PAIRS = 100_000


class Gains(NamedTuple):
    """Recall@20 and NDCG@20 of each user, (n_users,)."""

    recall: Doubles
    ndcg: Doubles


def cosine_strengths(likes: sparse.csr_matrix, parameters: NeighbourParameters) -> sparse.csr_matrix:
    """The plain alternative: the shrunk cosines by which neighbours are chosen, as they are."""
    everybody = fit_neighbours(likes, replace(parameters, regularization=1e9))  # so strong that nothing is cut off
    liked = liked_only(likes).astype(np.float64)
    weight = sparse.diags_array(np.maximum(np.diff(liked.indptr), 1.0) ** -0.5)
    norms = np.sqrt(np.asarray((weight @ liked.power(2)).sum(axis=0)).ravel())
    one, other = sparse.csc_matrix(weight @ liked), liked.tocsc()
    column = everybody.strengths.indices
    row = np.repeat(np.arange(len(norms)), np.diff(everybody.strengths.indptr))
    products = np.zeros(len(row))
    for start in range(0, len(row), _PAIRS):
        part = slice(start, start + _PAIRS)
        products[part] = np.asarray(one[:, row[part]].multiply(other[:, column[part]]).sum(axis=0)).ravel()
    shrunk = products / (norms[row] * norms[column])
    shrunk *= everybody.n_shared.data / (everybody.n_shared.data + parameters.shrinkage)
    shape = everybody.strengths.shape
    return sparse.csr_matrix((shrunk.astype(np.float32), column, everybody.strengths.indptr), shape=shape)


def ease_strengths(likes: sparse.csr_matrix, regularization: float) -> Doubles:
    """EASE^R (Steck 2019), every item on all others: (n_items, n_items), dense."""
    liked = liked_only(likes).astype(np.float64)
    gram = (liked.T @ liked).toarray()
    gram[np.diag_indices_from(gram)] += regularization
    inverse = np.linalg.inv(gram)
    strengths: Doubles = -inverse / np.diag(inverse)
    np.fill_diagonal(strengths, 0)
    return strengths


def rank_by_neighbours(train: sparse.csr_matrix, strengths: sparse.csr_matrix, users: Rows) -> Rows:
    """The 20 best items of each user without their training items: (n_users, 20), -1 where there are none."""
    blocks = _blocks(users)
    best = [np.zeros((0, CUTOFF), np.int64)]
    for block in blocks:
        scores = score_by_neighbours(train[block], strengths).toarray()
        best.append(top_items(scores, CUTOFF, train[block].toarray() > 0).rows)
    return np.concatenate(best)


def rank_by_popularity(train: sparse.csr_matrix, users: Rows) -> Rows:
    """The same by plain counts of likes."""
    likes = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
    best = [np.zeros((0, CUTOFF), np.int64)]
    for block in _blocks(users):
        best.append(top_items(np.tile(likes, (len(block), 1)), CUTOFF, train[block].toarray() > 0).rows)
    return np.concatenate(best)


def measure_gains(best: npt.NDArray[Any], relevant: sparse.csr_matrix) -> Gains:
    """Recall over all relevant items and NDCG with an ideal of at most 20; every user has a relevant item.

    ``best`` (n_users, 20), ``relevant`` (n_users, n_items) CSR.
    """
    n_items, lengths = relevant.shape[1], np.diff(relevant.indptr)
    wanted = np.repeat(np.arange(len(lengths)), lengths) * n_items + relevant.indices
    asked = np.arange(len(best))[:, None] * n_items + best
    hits = np.isin(asked, wanted) & (best >= 0)
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    ideal = np.concatenate([[0], np.cumsum(discounts)])[np.minimum(lengths, CUTOFF)]
    return Gains(hits.sum(axis=1) / lengths, hits @ discounts / ideal)


def segments(lengths: Rows) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Users by length of history, named as the evaluation names them."""
    starts = (0, *BUCKET_STARTS)
    for start, end in zip(starts, (*starts[1:], None), strict=True):
        members = (lengths >= start) & (lengths < (end or np.inf))
        if members.any():
            yield segment_name(start, end), members


def _blocks(users: Rows) -> list[Rows]:
    return [users[start : start + _USERS] for start in range(0, len(users), _USERS)]
