"""Users solved against the fixed items of a model: the user half-step of the training, for any history.

It knows nothing of how the items were fitted.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.factor_model import FactorParameters, ItemWeights, discount, user_side
from tasks.domain.half_steps import Basis, Features, Side, find_basis, rotate, rotated_map, solve_side, threads

Floats = npt.NDArray[np.float32]


class TextTerms(NamedTuple):
    """What users wrote, as terms of their half-step: each text stands for an item that has the factors its words
    predict. ``factors`` (n_texts, d), ``user`` (n_texts,) rows of the interactions, ``weight`` (n_texts,)."""

    factors: Floats
    user: npt.NDArray[np.int64]
    weight: Floats


class FixedItems:
    """Item factors that users are solved against: ``factors`` (n_items, d) and the ``weights`` of the items.

    Their Gram matrix is diagonalised once, for many calls of ``fold_in`` and ``attribute_scores``.
    """

    def __init__(self, factors: Floats, weights: ItemWeights, parameters: FactorParameters) -> None:
        self.factors, self.weights, self.parameters = factors, weights, parameters

    @cached_property
    def basis(self) -> Basis:
        """Where their Gram matrix is diagonal. Items without exposure are not in it, so that an added one changes no
        bit of it."""
        met = self.weights.exposure > 0
        factors, exposure = self.factors, self.weights.exposure
        with threads(1) as run:
            return find_basis(*((factors, exposure) if met.all() else (factors[met], exposure[met])), run)

    @cached_property
    def rotated(self) -> Floats:
        """The factors in that basis."""
        rotated = self.factors.copy()
        with threads(1) as run:
            rotate(rotated, self.basis.rotation, run)
        return rotated

    def side(
        self, interactions: sparse.csr_matrix, texts: TextTerms | None = None, features: Features | None = None
    ) -> tuple[Side, Floats]:
        """Users as rows to be solved, and the fixed factors of their columns, rotated: the items, then the texts."""
        fixed, interactions = self.rotated, discount(interactions, self.weights)
        if texts is not None and len(texts.weight):
            weight = texts.weight * np.float32(self.parameters.user_text_weight)
            cells = (weight, (texts.user, np.arange(len(weight))))
            block = sparse.csr_matrix(cells, shape=(interactions.shape[0], len(weight)), dtype=np.float32)
            interactions = sparse.hstack([interactions, block], format="csr", dtype=np.float32)
            fixed = np.concatenate([fixed, (texts.factors @ self.basis.rotation).astype(np.float32)])
        weights = self.weights
        return user_side(interactions, weights.exposure, self.parameters, features, weights.n_fitted), fixed


def fold_in(
    interactions: sparse.csr_matrix,
    items: FixedItems,
    *,
    texts: TextTerms | None = None,
    features: Features | None = None,
    feature_map: Floats | None = None,
    n_threads: int = 1,
) -> Floats:
    """Solve users against fixed items, exactly: the user half-step of the training.

    ``interactions`` (n_users, n_items) CSR of full histories; ``features`` (n_users, width) with their ``feature_map``
    (width, d), where the model has one; returns (n_users, d) float32. A user with neither history, text nor features
    gets zeros. A row does not depend on the other rows. Raises TrainingError where a row cannot be solved.
    """
    side, fixed = items.side(interactions, texts, features)
    rows = np.zeros((side.n_rows, fixed.shape[1]), np.float32)
    turned = rotated_map(feature_map, items.basis)
    with threads(n_threads) as run:
        solve_side(side, fixed, items.basis.spectrum, rows, turned, run, exact=True)
        rotate(rows, items.basis.rotation.T, run)
    return rows


def load_kernels() -> None:
    """Solve one user of a toy, so that the compiled loops are loaded before somebody waits for them."""
    ones = np.ones(2, np.float32)
    items = FixedItems(np.eye(2, dtype=np.float32), ItemWeights(ones, ones), FactorParameters(n_factors=2))
    fold_in(sparse.csr_matrix(np.eye(1, 2, dtype=np.float32)), items)
