"""From a history to a profile: the text mean, the factors, the drift and the weights of a user.

The nightly batch, the nearline refresh and an online request all call ``compute_profiles``. It knows nothing of
where histories are read or profiles are written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.fusion import Fusion

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ItemSpace:
    """The items of one model version, row by row, sorted by id.

    ``text`` (n, text_width) float32, unit rows or zero where an item has no text; ``factors`` (n, n_factors) float32;
    ``prior`` (n,) float32.
    """

    item_ids: tuple[str, ...]
    text: Floats
    factors: Floats
    prior: Floats

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each item."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}


@dataclass(frozen=True)
class Histories:
    """What some users did, up to one snapshot.

    ``interactions`` is (n_users, n_items) CSR float32 over the columns of an ``ItemSpace``: confidence, above 0 liked,
    an explicit 0 only seen, below 0 disliked. ``ages`` has the same sparsity structure: 0 for the user's newest
    interaction, 1 for the one before, and so on. ``texts`` are the embeddings of what a user wrote, oldest first:
    (n_texts, text_width) with ``text_user`` (n_texts,) rows of ``user_ids`` and ``text_weight`` (n_texts,).
    """

    user_ids: tuple[str, ...]
    interactions: sparse.csr_matrix
    ages: sparse.csr_matrix
    texts: Floats
    text_user: npt.NDArray[np.int64]
    text_weight: Floats


@dataclass(frozen=True)
class Profiles:
    """Profiles of some users, row by row as in ``Histories``.

    ``text`` (n, text_width) unit rows or zero; ``factors`` (n, n_factors); ``n_history`` positive interactions;
    ``alpha``, ``beta`` and ``drift`` (n,) float32.
    """

    user_ids: tuple[str, ...]
    text: Floats
    factors: Floats
    n_history: npt.NDArray[np.int64]
    alpha: Floats
    beta: Floats
    drift: Floats


@dataclass(frozen=True)
class Recipe:
    """Everything frozen in a model version that profiles depend on beside the items.

    ``factor_parameters`` are those of ``tasks.domain.factors`` (the fold-in uses the same ones as the training);
    half-lives are counted in interactions.
    """

    factor_parameters: "FactorParameters"
    fusion: Fusion
    fast_half_life: float
    slow_half_life: float


def compute_profiles(histories: Histories, items: ItemSpace, recipe: Recipe) -> Profiles:
    """Profiles from full histories. The result for a user does not depend on who else is in the call (to 1e-5)."""
    raise NotImplementedError


def history_lengths(interactions: sparse.csr_matrix) -> Sequence[int]:
    """Positive interactions of each user."""
    raise NotImplementedError
