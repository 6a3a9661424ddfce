"""Splits of a log into what a model may learn from and what it is tested on. It knows nothing of models.

A split goes by the newest event of an interaction, so nothing of the test part is known in the training part.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.histories import InteractionLog, TextLog

SplitName = Literal["user_tail", "global_time"]
HELD_OUT_SHARE = 0.2
_END_OF_TIME = np.iinfo(np.int64).max


class Split(NamedTuple):
    """The two parts of a log, and the texts that were written before the cut."""

    train: InteractionLog
    texts: TextLog
    test: InteractionLog


def split_user_tail(log: InteractionLog, texts: TextLog, share: float = HELD_OUT_SHARE) -> Split:
    """Hold out the last ``share`` of each user's interactions, rounded down; equal times go by item."""
    order = np.lexsort((log.item, log.last_at, log.user))
    users = log.user[order]
    position = np.arange(len(users)) - np.searchsorted(users, users)
    length = np.bincount(log.user, minlength=log.n_users)
    is_test = np.empty(len(users), bool)
    is_test[order] = position >= length[users] - np.floor(length[users] * share)
    cut = np.full(log.n_users, _END_OF_TIME)
    np.minimum.at(cut, log.user[is_test], log.last_at[is_test])
    return _parts(log, texts, is_test, texts.written_at < cut[texts.user])


def split_global_time(log: InteractionLog, texts: TextLog, share: float = HELD_OUT_SHARE) -> Split:
    """Hold out everything after one moment, chosen so that it is the last ``share`` of all interactions.

    Test users may be new. Interactions at the moment itself stay in the training part.
    """
    if not len(log.last_at):
        return _parts(log, texts, np.zeros(0, bool), np.ones(len(texts.user), bool))
    cut = np.sort(log.last_at)[max(0, int(np.ceil(len(log.last_at) * (1 - share))) - 1)]
    return _parts(log, texts, log.last_at > cut, texts.written_at <= cut)


SPLITS: dict[SplitName, Callable[[InteractionLog, TextLog], Split]] = {
    "user_tail": split_user_tail,
    "global_time": split_global_time,
}


def _parts(
    log: InteractionLog, texts: TextLog, is_test: npt.NDArray[np.bool_], is_early: npt.NDArray[np.bool_]
) -> Split:
    return Split(log.select(~is_test), texts.select(is_early), log.select(is_test))
