"""One side of the alternation: every user against the items, or every item against the users.

A half-step goes to the basis in which the Gram matrix of the fixed side is diagonal. There, each row is a diagonal
system plus the few entries of its history, which conjugate gradients solve without any term that is quadratic in the
number of factors (``tasks/domain/least_squares.py``). It knows nothing of sweeps, text or storage.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from tasks.domain.errors import TrainingError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Features: TypeAlias = Floats | sparse.csr_matrix
R = TypeVar("R")

CG_STEPS = 3
"""Steps of conjugate gradients for each row of a sweep; they start from the row of the sweep before."""
EXACT_STEPS = 1000
"""Most steps of an exact solution. A row needs at most one more than its history has entries, in exact arithmetic."""
EXACT_TOLERANCE = 1e-16
"""Share of the squared right side, in the norm of the preconditioner, that an exact solution leaves."""
_GRAM_ROWS = 2048
_GRAM_TILES = 8
_BLOCK_CELLS = 2**18
_N_CHUNKS = 96
_ROW_COST = 16


@dataclass(frozen=True)
class Side:
    """The rows of one side, and everything about them that no sweep changes.

    ``interactions`` (n_rows, n_columns) CSR float32 of signed confidence weights; ``unobserved`` (n_rows,) float32, the
    weight of a row's pairs as ones of preference 0; ``column_weight`` (n_columns,) float32 multiplies it for each
    column; ``penalty`` (n_rows,) float32. Rows are pulled toward ``features @ map`` with strength ``pull`` (n_rows,);
    ``features`` (n_rows, width) is None where nothing is known of them.
    """

    interactions: sparse.csr_matrix
    unobserved: Floats
    column_weight: Floats
    penalty: Floats
    features: Features | None = None
    pull: Floats | None = None

    @property
    def n_rows(self) -> int:
        """Rows to be solved."""
        return int(self.interactions.shape[0])

    @cached_property
    def chunks(self) -> tuple[Integers, ...]:
        """All rows, in chunks of about equal work, the longest histories first."""
        if not self.n_rows:
            return ()
        lengths = np.diff(self.interactions.indptr).astype(np.int64)
        order = np.argsort(-lengths, kind="stable")
        work = np.cumsum(lengths[order] + _ROW_COST)
        ends = np.searchsorted(work, work[-1:] * np.arange(1, _N_CHUNKS) / _N_CHUNKS) + 1
        return tuple(chunk for chunk in np.split(order, ends) if len(chunk))

    def target(self, rows: Integers, feature_map: Floats | None) -> Floats:
        """What ``rows`` are pulled toward, times its strength: (len(rows), d), or (0, 0) for nothing."""
        if self.features is None or self.pull is None or feature_map is None:
            return np.zeros((0, 0), np.float32)
        return np.asarray(self.features[rows] @ feature_map, np.float32) * self.pull[rows, None]


class Basis(NamedTuple):
    """Eigenvectors (d, d), in columns, and eigenvalues (d,) of a weighted Gram matrix, ascending, float64."""

    rotation: Doubles
    spectrum: Doubles


class RowSolver(Protocol):
    """Solves all rows of a side: threads of one process, a GPU, or the workers of a cluster."""

    def __call__(
        self, side: Side, fixed: Floats, rows: Floats, feature_map: Floats | None, *, exact: bool = False
    ) -> Basis:
        """Improve ``rows`` (n_rows, d), in place, against ``fixed`` (n_columns, d).

        ``rows`` holds the start values. Both arrays, which share a basis, are left in the basis of the result: the one
        in which the Gram matrix of ``fixed`` is diagonal. ``feature_map`` (width, d) is in the basis of the call. A
        sweep takes ``CG_STEPS`` steps for each row; ``exact`` goes on until nothing is left, and raises TrainingError
        if that fails.
        """


class ThreadedSolver:
    """Solves rows in the threads of this process. Their number changes no bit of the result.

    BLAS must run on one thread meanwhile (``tasks.training_inputs.fixed_threads``).
    """

    def __init__(self, n_threads: int = 1) -> None:
        self._n_threads = n_threads

    def __call__(
        self, side: Side, fixed: Floats, rows: Floats, feature_map: Floats | None, *, exact: bool = False
    ) -> Basis:
        """As ``RowSolver`` says."""
        with threads(self._n_threads) as run:
            basis = find_basis(fixed, side.column_weight, run)
            rotate(fixed, basis.rotation, run)
            rotate(rows, basis.rotation, run)
            solve_side(side, fixed, basis.spectrum, rows, rotated_map(feature_map, basis), run, exact=exact)
        return basis


Run = Callable[[Callable[[Any], R], Iterable[Any]], R]


@contextmanager
def threads(n_threads: int) -> Iterator[Run[Any]]:
    """A function that maps over ``n_threads`` threads, or in this one, and adds up the results, in order; None where
    there are none."""
    if n_threads == 1:
        yield lambda function, parts: _add_up(map(function, parts))
        return
    with ThreadPoolExecutor(n_threads) as pool:
        yield lambda function, parts: _add_up(pool.map(function, parts))


def find_basis(fixed: Floats, column_weight: Floats, run: Run[Any]) -> Basis:
    """Diagonalise ``fixed' diag(column_weight) fixed``, summed in double precision over blocks of rows.

    Raises TrainingError if the factors are not finite.
    """
    width = fixed.shape[1]
    total = np.zeros((width, width))

    def fill(columns: slice) -> None:
        below = slice(columns.start, None)
        for rows in _blocks(len(fixed), _GRAM_ROWS):
            part = fixed[rows, columns] * column_weight[rows, None]
            total[below, columns] += fixed[rows, below].T @ part

    run(fill, _blocks(width, max(32, -(-width // _GRAM_TILES))))
    if not np.isfinite(total).all():
        raise TrainingError(
            "The factor fit diverged: its factors are no longer finite numbers. Raise the regularization or the"
            " unobserved weight, and look at the weights of the interactions."
        )
    spectrum, rotation = linalg.eigh(total, driver="evd", lower=True, overwrite_a=True, check_finite=False)
    return Basis(rotation, np.maximum(spectrum, 0))


def rotate(factors: Floats, rotation: Doubles, run: Run[Any]) -> None:
    """``factors @ rotation``, in place."""
    single = rotation.astype(np.float32)

    def one(block: slice) -> None:
        factors[block] = factors[block] @ single

    run(one, _blocks(len(factors), max(128, _BLOCK_CELLS // factors.shape[1])))


def rotated_map(feature_map: Floats | None, basis: Basis) -> Floats | None:
    """The map from features to factors, in the basis of the rotated factors."""
    return None if feature_map is None else (feature_map @ basis.rotation).astype(np.float32)


def solve_side(
    side: Side,
    fixed: Floats,
    spectrum: Doubles,
    rows: Floats,
    feature_map: Floats | None,
    run: Run[Any],
    *,
    exact: bool = False,
) -> None:
    """Solve every row, in place; everything is in the basis of ``spectrum`` already.

    A row depends on no other row. Raises TrainingError where ``exact`` fails for a row.
    """
    from tasks.domain.least_squares import solve_rows

    interactions = side.interactions
    indptr, indices = interactions.indptr.astype(np.int64), interactions.indices.astype(np.int32, copy=False)
    precise: npt.NDArray[np.floating[Any]] = spectrum if exact else spectrum.astype(np.float32)
    n_steps, tolerance = (EXACT_STEPS, EXACT_TOLERANCE) if exact else (CG_STEPS, 0.0)

    def solve(chunk: Integers) -> int:
        target = np.asarray(side.target(chunk, feature_map), precise.dtype)
        sizes = side.unobserved, side.penalty
        entries = indptr, indices, interactions.data
        return solve_rows(chunk, *entries, fixed, precise, *sizes, target, rows, n_steps, tolerance)

    n_open = run(solve, side.chunks)
    if exact and (n_open or not np.isfinite(rows).all()):
        raise TrainingError(
            f"{n_open or 'Some'} of {side.n_rows} rows of the factor model could not be solved exactly: their matrices"
            " are not finite and positive definite. Raise the regularization or the unobserved weight, and look at the"
            " weights of the interactions."
        )


def _add_up(parts: Iterable[Any]) -> Any:
    """The sum, in place, so that no more than two of the parts are kept."""
    total = None
    for part in parts:
        if total is None:
            total = part
        elif part is not None:
            total += part
    return total


def _blocks(n_rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n_rows, size)]
