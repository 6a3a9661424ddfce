"""Splits factor scores exactly over the history they come from (Hu, Koren and Volinsky 2008, section 5).

``<f_i, f_u> = sum_j max(w_uj, 0) f_i' A_u^-1 f_j`` with the matrix ``A_u`` of the user's half-step: what was only seen
or disliked has the share 0, and acts through the shares of the others. It knows nothing of words or titles.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.fold_in import FixedItems, TextTerms
from tasks.domain.half_steps import EXACT_TOLERANCE, Features, rotated_map, threads

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Attribution(NamedTuple):
    """Shares of ``<f_i, f_u>`` of one user: of the history items (n_targets, n_history), of the user's texts
    (n_targets, n_texts) and of the user's features (n_targets,). They add up to the score of their target."""

    items: Doubles
    texts: Doubles
    features: Doubles


def attribute_scores(
    interactions: sparse.csr_matrix,
    items: FixedItems,
    targets: list[Integers],
    *,
    texts: TextTerms | None = None,
    features: Features | None = None,
    feature_map: Floats | None = None,
    n_threads: int = 1,
) -> list[Attribution]:
    """Split the scores of ``targets[u]``, rows of the items, for each user u, in the order of their entries and texts.

    The other arguments are those of ``fold_in``, and so is what the shares add up to.
    """
    from tasks.domain.least_squares import attribute_rows

    side, fixed = items.side(interactions, texts, features)
    entries, n_users, d = side.interactions, side.n_rows, fixed.shape[1]
    indptr, indices = entries.indptr.astype(np.int64), entries.indices.astype(np.int32, copy=False)
    wanted = np.full((n_users, max([len(some) for some in targets], default=0)), -1, np.int64)
    for user, some in enumerate(targets):
        wanted[user, : len(some)] = some
    lengths, n_targets = np.diff(indptr), (wanted >= 0).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths * n_targets)])
    shares, extra_shares = np.zeros(offsets[-1]), np.zeros(wanted.shape)
    extra = np.zeros((n_users, d))
    turned = rotated_map(feature_map, items.basis)
    if features is not None and turned is not None:
        extra += side.target(np.arange(n_users), turned)
    sized = side.unobserved, side.penalty, extra, wanted, offsets, shares, extra_shares, EXACT_TOLERANCE
    with threads(n_threads) as run:
        given = indptr, indices, entries.data, fixed, items.basis.spectrum, *sized
        run(lambda rows: attribute_rows(rows, *given), side.chunks)
    n_items = len(items.factors)
    found = []
    for user in range(n_users):
        own = shares[offsets[user] : offsets[user + 1]].reshape(n_targets[user], lengths[user])
        is_item = indices[indptr[user] : indptr[user + 1]] < n_items
        found.append(Attribution(own[:, is_item], own[:, ~is_item], extra_shares[user, : n_targets[user]]))
    return found
