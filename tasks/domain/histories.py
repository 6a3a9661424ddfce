"""Logs of interactions and texts as arrays, and the histories that are made from them.

It knows nothing of ids, tables or how a history becomes a profile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.profiles import Histories

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class InteractionLog:
    """Who met what, one row for a user and an item, (n,) each.

    ``user`` and ``item`` are dense indices below ``n_users`` and ``n_items``; ``weight`` is the signed confidence, 0
    for seen only; ``last_at`` is the time of the newest event in microseconds. ``user_features`` (n_users, width) CSR
    are the users' attributes, in unit or zero rows; None where nobody has any.
    """

    user: Integers
    item: Integers
    weight: Floats
    last_at: Integers
    n_users: int
    n_items: int
    user_features: sparse.csr_matrix | None = None

    def select(self, mask: Mask) -> "InteractionLog":
        """The rows where ``mask`` (n,) is true; indices stay."""
        rows = self.user[mask], self.item[mask], self.weight[mask], self.last_at[mask]
        return InteractionLog(*rows, self.n_users, self.n_items, self.user_features)

    def matrix(self) -> sparse.csr_matrix:
        """(n_users, n_items) CSR of the weights, zeros kept; columns ascend."""
        return _csr(self, self.weight)


@dataclass(frozen=True)
class TextLog:
    """Who wrote what, (n,) each, by user and then time: embeddings (n, text_width), times in microseconds."""

    vectors: Floats
    user: Integers
    weight: Floats
    written_at: Integers
    labels: tuple[str, ...] = ()

    def select(self, mask: Mask) -> "TextLog":
        """The rows where ``mask`` (n,) is true."""
        rows = self.vectors[mask], self.user[mask], self.weight[mask], self.written_at[mask]
        return TextLog(*rows, _kept(self.labels, mask))


def build_histories(log: InteractionLog, texts: TextLog, user_ids: Sequence[str]) -> Histories:
    """Histories of all users of the logs, one row for each of ``user_ids``.

    An interaction's age is its place in the user's history, newest first; equal times go by item.
    """
    return Histories(
        user_ids=tuple(user_ids),
        interactions=log.matrix(),
        ages=_csr(log, _ages(log)),
        texts=texts.vectors,
        text_user=texts.user,
        text_weight=texts.weight,
        text_age=_newer_interactions(texts, log),
        text_labels=texts.labels,
        features=log.user_features,
    )


def select_users(histories: Histories, rows: Integers) -> Histories:
    """The histories of some users; ``rows`` ascend."""
    place = np.full(len(histories.user_ids), -1)
    place[rows] = np.arange(len(rows))
    kept = place[histories.text_user] >= 0
    return Histories(
        user_ids=tuple(histories.user_ids[row] for row in rows),
        interactions=histories.interactions[rows],
        ages=histories.ages[rows],
        texts=histories.texts[kept],
        text_user=place[histories.text_user[kept]],
        text_weight=histories.text_weight[kept],
        text_age=histories.text_age[kept],
        text_labels=_kept(histories.text_labels, kept),
        features=None if histories.features is None else histories.features[rows],
    )


def truncate_histories(histories: Histories, lengths: Integers) -> Histories:
    """The same users as if they had liked only their ``lengths`` (n_users,) newest things, and written nothing; their
    attributes stay."""
    matrix = histories.interactions
    user = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    newest_first = np.lexsort((histories.ages.data, user))
    liked = (matrix.data > 0)[newest_first]
    before = np.cumsum(liked) - liked
    at_start = before[np.searchsorted(user, user)]
    n_newer = np.empty(len(user), np.int64)
    n_newer[newest_first] = before - at_start
    kept = n_newer < lengths[user]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(user[kept], minlength=matrix.shape[0]))])

    def keep(values: Floats) -> sparse.csr_matrix:
        return sparse.csr_matrix((values[kept], matrix.indices[kept], indptr), shape=matrix.shape)

    return Histories(
        user_ids=histories.user_ids,
        interactions=keep(matrix.data),
        ages=keep(histories.ages.data),
        texts=histories.texts[:0],
        text_user=histories.text_user[:0],
        text_weight=histories.text_weight[:0],
        text_age=histories.text_age[:0],
        features=histories.features,
    )


def _kept(labels: tuple[str, ...], mask: Mask) -> tuple[str, ...]:
    """Labels may be left out altogether."""
    return tuple(label for label, kept in zip(labels, mask, strict=True) if kept) if labels else ()


def _csr(log: InteractionLog, values: Floats) -> sparse.csr_matrix:
    order = np.lexsort((log.item, log.user))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(log.user, minlength=log.n_users))])
    return sparse.csr_matrix((values[order], log.item[order], indptr), shape=(log.n_users, log.n_items))


def _ages(log: InteractionLog) -> Floats:
    order = np.lexsort((log.item, -log.last_at, log.user))
    users = log.user[order]
    ages = np.empty(len(users), np.float32)
    ages[order] = np.arange(len(users)) - np.searchsorted(users, users)
    return ages


def _newer_interactions(texts: TextLog, log: InteractionLog) -> Floats:
    """For each text, how many interactions of its user came after it."""
    if len(texts.user) == 0:
        return np.zeros(0, np.float32)
    order = np.lexsort((log.last_at, log.user))
    user, last_at = log.user[order], log.last_at[order]
    starts, ends = np.searchsorted(user, texts.user, "left"), np.searchsorted(user, texts.user, "right")
    parts = zip(starts, ends, texts.written_at, strict=True)
    return np.array([end - start - np.searchsorted(last_at[start:end], at, "right") for start, end, at in parts], "f4")
