"""The factor engine on ids alone: its parameters, a fit, and what a fit would rank after each of its sweeps.

It knows nothing of files or of other libraries.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from benchmarks.support.full_ranking import Quality, measure_ranking
from tasks.domain.factor_model import FactorModel, FactorParameters, Sweep, weigh_items
from tasks.domain.factors import fit_factors
from tasks.domain.fold_in import FixedItems, fold_in

Floats = npt.NDArray[np.float32]

IDS_ONLY = FactorParameters(
    regularization=0.003, frequency_exponent=1.0, unobserved_weight=0.03, popularity_discount=0.35, text_prior=0.0
)
"""Parameters for catalogs without text or features, where a user's interactions all count alike."""


def fit_ids(matrix: sparse.csr_matrix, parameters: FactorParameters, **options: Any) -> FactorModel:
    """``fit_factors`` without features."""
    return fit_factors(matrix, np.zeros((matrix.shape[1], 0), np.float32), parameters, **options)


def factor_megabytes(matrix: sparse.csr_matrix, n_factors: int) -> tuple[float, float]:
    """Size of the factors of all users and items, and of the interactions as given (CSR), in MB."""
    interactions = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    return sum(matrix.shape) * n_factors * 4 / 1e6, interactions / 1e6


def warm_up(n_threads: int) -> None:
    """Load or compile all kernels, so that no measurement includes it."""
    matrix = sparse.csr_matrix(np.eye(4, 6, dtype=np.float32))
    parameters = FactorParameters(n_factors=2, n_sweeps=1, text_prior=0.0)
    model = fit_ids(matrix, parameters, n_threads=n_threads)
    FinishedQuality(matrix, matrix, parameters, n_threads=n_threads)(model.users, model.items)


class FinishedQuality:
    """A ``measure`` for ``fit_factors``: the ranking quality of the fit as it would be if it ended after this sweep.

    A fit ends with an exact half-step of its users, so they are solved exactly here too; only those with something
    relevant are. ``scalar`` makes one number of the quality. ``qualities`` and ``seconds``, what measuring
    took, have one entry for each sweep.
    """

    def __init__(
        self,
        train: sparse.csr_matrix,
        relevant: sparse.csr_matrix,
        parameters: FactorParameters,
        *,
        n_threads: int,
        scalar: Callable[[Quality], float] = lambda quality: quality.ndcg_at_20,
    ) -> None:
        who = np.flatnonzero(np.diff(relevant.indptr))
        self._seen, self._relevant = train[who], relevant[who]
        n_likes = np.bincount(train.indices, minlength=train.shape[1])
        self._weights = weigh_items(n_likes, parameters)
        self._parameters, self._n_threads, self._scalar = parameters, n_threads, scalar
        self.qualities: list[Quality] = []
        self.seconds: list[float] = []

    def __call__(self, users: Floats, items: Floats) -> float:
        """Measure; ``users`` are not used."""
        began = time.perf_counter()
        fixed = FixedItems(items, self._weights, self._parameters)
        solved = fold_in(self._seen, fixed, n_threads=self._n_threads)
        quality = measure_ranking(solved, items, self._seen, self._relevant, n_threads=self._n_threads)
        self.qualities.append(quality)
        self.seconds.append(time.perf_counter() - began)
        return self._scalar(quality)


def sample_users(relevant: sparse.csr_matrix, n_users: int, *, seed: int = 0) -> sparse.csr_matrix:
    """The same matrix with the rows of at most ``n_users`` random users, those of the others empty."""
    who = np.flatnonzero(np.diff(relevant.indptr))
    if len(who) <= n_users:
        return relevant
    chosen = np.zeros(relevant.shape[0], np.float32)
    chosen[np.random.default_rng(seed).choice(who, n_users, replace=False)] = 1
    sampled = sparse.csr_matrix(relevant.multiply(chosen[:, None]))
    sampled.eliminate_zeros()
    return sampled


def sweep_seconds(sweeps: tuple[Sweep, ...]) -> float:
    """Seconds of the fastest sweep: they all do the same work, and other work on the machine only slows one down."""
    return min(sweep.seconds for sweep in sweeps)
