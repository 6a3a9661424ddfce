"""The linear map from what is known of a row (its text, categories, attributes) to its factors.

It knows nothing of what the features are. They come dense or sparse, one row each.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from tasks.domain.errors import TrainingError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Features: TypeAlias = Floats | sparse.csr_matrix
_BLOCK_ROWS = 8192


class FeatureMap:
    """Ridge regression from features (n_rows, width) to factors: its matrix never changes, its right side does.

    ``weight`` (n_rows,) is what a row counts: zero for rows whose factors nothing is known of. ``ridge`` is the
    strength of the penalty of the map. Raises TrainingError if features are not finite.
    """

    def __init__(self, features: Features, weight: Floats, ridge: float) -> None:
        self._features, self._weight = features, weight.astype(np.float32)
        system = sum((self._product(rows, None) for rows in self._blocks()), np.zeros((features.shape[1],) * 2))
        if not np.isfinite(system).all():
            raise TrainingError(
                "The factor fit got features that are not finite numbers. Look at the embeddings of the items, and at"
                " the attributes; embed again what is damaged."
            )
        self._factor = linalg.cho_factor(system + ridge * np.eye(len(system)))

    def solve(self, factors: Floats) -> Floats:
        """The map (width, d) that predicts ``factors`` (n_rows, d) best."""
        start = np.zeros((self._features.shape[1], factors.shape[1]))
        side = sum((self._product(rows, factors) for rows in self._blocks()), start)
        solved: Floats = linalg.cho_solve(self._factor, side).astype(np.float32)
        return solved

    def _product(self, rows: slice, factors: Floats | None) -> Doubles:
        part = self._features[rows]
        other: Any = part if factors is None else factors[rows]
        product = part.T @ (sparse.diags_array(self._weight[rows]) @ other)
        return np.asarray(product.todense() if sparse.issparse(product) else product, np.float64)

    def _blocks(self) -> list[slice]:
        return [slice(start, start + _BLOCK_ROWS) for start in range(0, self._features.shape[0], _BLOCK_ROWS)]
