"""The compiled inner loop of the factor model. It knows nothing of what its rows mean.

Importing this module imports numba; the machine code is cached beside the file.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]


@njit(nogil=True, cache=True, error_model="numpy")
def solve_rows(
    indptr: Array,
    indices: Array,
    weights: Array,
    fixed: Array,
    base: Array,
    penalty: Array,
    pull: Array,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """Solve rows ``start`` to ``stop`` of a CSR matrix of signed weights, each on its own, into ``out``.

    Row ``r`` solves ``(base + penalty[r] I + sum |w| f f') x = pull[r] + sum_{w > 0} w f`` over its entries by
    Cholesky. All floats have one dtype. Four entries are added at a time, which keeps the matrix in registers.
    """
    d = fixed.shape[1]
    system = np.empty((d, d), fixed.dtype)
    side = np.empty(d, fixed.dtype)
    for row in range(start, stop):
        system[:, :] = base
        side[:] = pull[row]
        for a in range(d):
            system[a, a] += penalty[row]
        entry, end = indptr[row], indptr[row + 1]
        while entry + 4 <= end:
            _add_four(system, side, fixed, indices, weights, entry)
            entry += 4
        while entry < end:
            _add_one(system, side, fixed, indices, weights, entry)
            entry += 1
        _solve(system, side)
        out[row] = side


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _add_four(system: Array, side: Array, fixed: Array, indices: Array, weights: Array, entry: int) -> None:
    d = fixed.shape[1]
    f0, f1 = fixed[indices[entry]], fixed[indices[entry + 1]]
    f2, f3 = fixed[indices[entry + 2]], fixed[indices[entry + 3]]
    w0, w1, w2, w3 = weights[entry], weights[entry + 1], weights[entry + 2], weights[entry + 3]
    for a in range(d):
        side[a] += max(w0, 0) * f0[a] + max(w1, 0) * f1[a] + max(w2, 0) * f2[a] + max(w3, 0) * f3[a]
        c0, c1, c2, c3 = abs(w0) * f0[a], abs(w1) * f1[a], abs(w2) * f2[a], abs(w3) * f3[a]
        target = system[a]
        for b in range(a, d):
            target[b] += c0 * f0[b] + c1 * f1[b] + c2 * f2[b] + c3 * f3[b]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _add_one(system: Array, side: Array, fixed: Array, indices: Array, weights: Array, entry: int) -> None:
    d = fixed.shape[1]
    f, w = fixed[indices[entry]], weights[entry]
    for a in range(d):
        side[a] += max(w, 0) * f[a]
        c = abs(w) * f[a]
        target = system[a]
        for b in range(a, d):
            target[b] += c * f[b]


@njit(nogil=True, cache=True, error_model="numpy")
def _solve(system: Array, side: Array) -> None:
    """Cholesky of the upper triangle, in place, and both substitutions. NaN where it is not positive definite."""
    d = len(side)
    for k in range(d):
        pivot = 1 / np.sqrt(system[k, k])
        row = system[k]
        for b in range(k, d):
            row[b] *= pivot
        for a in range(k + 1, d):
            c = row[a]
            target = system[a]
            for b in range(a, d):
                target[b] -= c * row[b]
    for k in range(d):
        side[k] /= system[k, k]
        for b in range(k + 1, d):
            side[b] -= side[k] * system[k, b]
    for k in range(d - 1, -1, -1):
        total = side[k]
        for b in range(k + 1, d):
            total -= system[k, b] * side[b]
        side[k] = total / system[k, k]
