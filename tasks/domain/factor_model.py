"""The parameters of the factor model, what a fit is, and the two sides that it alternates between.

``tasks/domain/factors.py`` says what is computed. It knows nothing of how rows are solved.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.half_steps import Features, Side

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class FactorParameters:
    """Parameters of a fit. ``docs/decisions`` says how the defaults were measured."""

    n_factors: int = 64
    """Length of a factor."""
    regularization: float = 0.25
    """Strength of the penalty of users and items."""
    frequency_exponent: float = 0.5
    """How the penalty grows with the size of a history: 0 not at all, 1 in proportion."""
    unobserved_weight: float = 0.2
    """Weight of every pair, seen or not, as one of preference 0."""
    popularity_discount: float = 0.0
    """How the weight of an interaction falls with the likes of its item: 0 not at all, 1 in inverse proportion."""
    text_prior: float = 1.0
    """Share, in [0, 1], of a row's penalty that pulls it toward what its features predict instead of zero."""
    text_ridge: float = 10.0
    """Strength of the ridge of the map from features to factors."""
    user_text_weight: float = 1.0
    """Confidence of a user's text as a term of their half-step, times the weight of its event."""
    user_prior: float = 0.5
    """Share, in [0, 1], of a user's penalty that pulls it toward what their attributes predict instead of zero."""
    n_sweeps: int = 12
    """Passes over users and items, at most."""
    seed: int = 0
    """Seed of the start values."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Sweep(NamedTuple):
    """What one pass over users and items came to: its number from 1, the loss after it, its seconds, and the value of
    ``measure``, if one was given."""

    number: int
    loss: float
    seconds: float
    metric: float | None


class ItemWeights(NamedTuple):
    """What items weigh: ``exposure`` (n_items,) in the unobserved part, and ``confidence`` (n_items,), the factor on
    the weights of their interactions. ``n_fitted`` of them were in the fit, all if None: the penalty of users goes by
    it, so that an item that was added since changes nothing for those who have not met it."""

    exposure: Floats
    confidence: Floats
    n_fitted: int | None = None


class FactorModel(NamedTuple):
    """A fit: ``users`` (n_users, d) and ``items`` (n_items, d) with their ``weights``, the maps from features to
    factors (width, d), all float32, and what each sweep came to."""

    users: Floats
    items: Floats
    weights: ItemWeights
    item_map: Floats
    user_map: Floats
    sweeps: tuple[Sweep, ...]


def best_sweep(sweeps: list[Sweep] | tuple[Sweep, ...]) -> int:
    """Number of the sweep with the highest metric, the first of equals; the last one where nothing was measured."""
    measured = [sweep for sweep in sweeps if sweep.metric is not None]
    return max(measured, key=lambda sweep: (sweep.metric, -sweep.number)).number if measured else sweeps[-1].number


def user_side(
    interactions: sparse.csr_matrix,
    exposure: Floats,
    parameters: FactorParameters,
    features: Features | None = None,
    n_fitted: int | None = None,
) -> Side:
    """Users as rows, against items with the given exposure, of which ``n_fitted`` (None: all) count in the penalty."""
    unobserved = np.full(interactions.shape[0], parameters.unobserved_weight, np.float32)
    n_items = len(exposure) if n_fitted is None else n_fitted
    penalty = _penalty(_sizes(interactions), float(n_items), parameters)
    return Side(interactions, unobserved, exposure, penalty, features, _pull(penalty, features, parameters.user_prior))


def item_side(
    by_item: sparse.csr_matrix, exposure: Floats, parameters: FactorParameters, features: Features | None = None
) -> Side:
    """Items as rows, from ``by_item`` (n_items, n_users), against users who all count alike."""
    unobserved = (parameters.unobserved_weight * exposure).astype(np.float32)
    everybody = np.ones(by_item.shape[1], np.float32)
    penalty = _penalty(_sizes(by_item), float(len(everybody)), parameters)
    return Side(by_item, unobserved, everybody, penalty, features, _pull(penalty, features, parameters.text_prior))


def weigh_items(
    n_likes: npt.NDArray[Any],
    parameters: FactorParameters,
    opportunity: Floats | None = None,
    fitted: npt.NDArray[np.bool_] | None = None,
) -> ItemWeights:
    """Weights of items by their number of likes, (n_items,): the confidence is 1 in the mean over all likes.

    That somebody did not meet an item says little about it where there was little ``opportunity`` (n_items,) to, which
    is 1 if None. ``fitted`` (n_items,) says which items were in the fit, all if None: the mean is theirs.
    """
    counts = np.maximum(np.asarray(n_likes, np.float64), 1)
    known = np.ones(len(counts), bool) if fitted is None else fitted
    confidence = counts**-parameters.popularity_discount
    confidence /= (counts[known] @ confidence[known]) / counts[known].sum() if known.any() else 1.0
    exposure = np.ones(len(counts), np.float32) if opportunity is None else opportunity.astype(np.float32)
    return ItemWeights(exposure, confidence.astype(np.float32), None if known.all() else int(known.sum()))


def discount(interactions: sparse.csr_matrix, weights: ItemWeights) -> sparse.csr_matrix:
    """The interactions (n_users, n_items), weighted with the confidence of their items."""
    if (weights.confidence == 1).all():
        return interactions
    data = interactions.data * weights.confidence[interactions.indices]
    return sparse.csr_matrix((data, interactions.indices, interactions.indptr), shape=interactions.shape)


def _penalty(sizes: Doubles, n_others: float, parameters: FactorParameters) -> Floats:
    spread = sizes + parameters.unobserved_weight * n_others
    return (parameters.regularization * spread**parameters.frequency_exponent).astype(np.float32)


def _pull(penalty: Floats, features: Features | None, share: float) -> Floats | None:
    return None if features is None else np.float32(share) * penalty


def _sizes(interactions: sparse.csr_matrix) -> Doubles:
    """Sum of the sizes of the weights of each row, without a copy of all of them."""
    sizes = np.zeros(interactions.shape[0])
    for start in range(0, len(sizes), _BLOCK_ROWS):
        rows = interactions.indptr[start : start + _BLOCK_ROWS + 1]
        running = np.concatenate([[0.0], np.cumsum(np.abs(interactions.data[rows[0] : rows[-1]]), dtype=np.float64)])
        sizes[start : start + _BLOCK_ROWS] = np.diff(running[rows - rows[0]])
    return sizes
