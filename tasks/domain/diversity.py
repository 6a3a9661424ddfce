"""Orders a slate so that its items are unlike each other: maximal marginal relevance.

Carbonell and Goldstein 1998, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing
Summaries". Scores have no common scale with a cosine, so we bring those of the candidates to [0, 1] first. It knows
nothing of ids, titles or how scores are made.
"""

import numpy as np
import numpy.typing as npt

from tasks.domain.errors import InputError
from tasks.domain.vectors import unit_rows

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def check_diversity(diversity: float) -> None:
    """Raises InputError unless 0 <= diversity <= 1."""
    if not 0 <= diversity <= 1:
        raise InputError(
            f"A slate with the diversity {diversity!r} was asked for; it must be from 0, which orders by score alone,"
            " to 1, which orders by unlikeness alone. Ask with another one."
        )


def diversify(scores: Doubles, likeness: Floats, k: int, diversity: float) -> Rows:
    """Places of ``k`` of the candidates (all, if there are fewer) in the order they are to be shown.

    ``scores`` (n,) fall, best first; ``likeness`` (n, n) is symmetric. Each next item has the highest
    ``(1 - diversity) * relevance - diversity * likeness to the most alike one before it``, where relevance is the score
    as a share of the span of all n. The best by score comes first; of equal ones the better score does.
    """
    n = len(scores)
    if diversity == 0 or n == 0:
        return np.arange(min(k, n))
    span = float(scores[0] - scores[-1])
    relevance = ((scores - scores[-1]) / span if span > 0 else np.zeros(n)).astype(np.float32)
    worth, weight = np.float32(1 - diversity) * relevance, np.float32(diversity)
    chosen = np.zeros(min(k, n), np.int64)
    nearest, value = np.full(n, -1, np.float32), np.empty(n, np.float32)
    worth[0] = -np.inf
    for place in range(1, len(chosen)):
        np.maximum(nearest, likeness[chosen[place - 1]], out=nearest)
        np.subtract(worth, weight * nearest, out=value)
        chosen[place] = value.argmax()
        worth[chosen[place]] = -np.inf
    return chosen


def item_likeness(text: Floats, factors: Floats) -> Floats:
    """How alike items are, (n, n) float32 in [-1, 1]: the cosine of their texts, or of their factors where one of the
    two has no text.

    ``text`` (n, text_width) and ``factors`` (n, n_factors). An item without either is like no other one, 0.
    """
    texts = _units(text)
    alike = np.asarray(texts @ texts.T)
    silent = np.flatnonzero(~texts.any(axis=1))
    if len(silent):
        units = _units(factors)
        alike[silent] = units[silent] @ units.T
        alike[:, silent] = alike[silent].T
    return alike


def _units(rows: Floats) -> Floats:
    return np.asarray(unit_rows(rows), np.float32)
