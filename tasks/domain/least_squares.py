"""The compiled inner loop of the factor model. It knows nothing of what its rows mean.

Importing this module imports numba; the machine code is cached beside the file. Inner loops run over slices, from 0,
because an index that could be negative keeps the compiler from using vector instructions (measured: 3 times slower).
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@njit(nogil=True, cache=True, error_model="numpy")
def solve_rows(
    rows: Integers,
    indptr: Integers,
    indices: Integers,
    weights: Doubles,
    fixed: Doubles,
    base: Doubles,
    penalty: Doubles,
    pull: Doubles,
    out: Doubles,
    start: int,
    stop: int,
) -> None:
    """Solve ``rows[start:stop]`` of a CSR matrix of signed weights, each on its own, into ``out``.

    Row ``r`` solves ``(base + penalty[r] I + sum |w| f f') x = pull[r] + sum_{w > 0} w f`` over its entries by
    Cholesky. Four entries are added at a time, which saves loads and stores of the matrix. NaN where the matrix is not
    positive definite.
    """
    d = fixed.shape[1]
    system = np.empty((d, d))
    for row in rows[start:stop]:
        side = out[row]
        side[:] = pull[row]
        system[:, :] = base
        for a in range(d):
            system[a, a] += penalty[row]
        entry, end = indptr[row], indptr[row + 1]
        while entry + 4 <= end:
            _add_four(system, side, fixed, indices[entry:], weights[entry:])
            entry += 4
        while entry < end:
            _add_one(system, side, fixed[indices[entry]], weights[entry])
            entry += 1
        _factorize(system)
        _substitute(system, side)


@njit(nogil=True, cache=True, error_model="numpy")
def _add_four(system: Doubles, side: Doubles, fixed: Doubles, indices: Integers, weights: Doubles) -> None:
    d = len(side)
    f0, f1, f2, f3 = fixed[indices[0]], fixed[indices[1]], fixed[indices[2]], fixed[indices[3]]
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for a in range(d):
        side[a] += max(w0, 0.0) * f0[a] + max(w1, 0.0) * f1[a] + max(w2, 0.0) * f2[a] + max(w3, 0.0) * f3[a]
        c0, c1, c2, c3 = abs(w0) * f0[a], abs(w1) * f1[a], abs(w2) * f2[a], abs(w3) * f3[a]
        target, g0, g1, g2, g3 = system[a, a:], f0[a:], f1[a:], f2[a:], f3[a:]
        for b in range(d - a):
            target[b] += c0 * g0[b] + c1 * g1[b] + c2 * g2[b] + c3 * g3[b]


@njit(nogil=True, cache=True, error_model="numpy")
def _add_one(system: Doubles, side: Doubles, f: Doubles, w: float) -> None:
    d = len(side)
    for a in range(d):
        side[a] += max(w, 0.0) * f[a]
        c, target, g = abs(w) * f[a], system[a, a:], f[a:]
        for b in range(d - a):
            target[b] += c * g[b]


@njit(nogil=True, cache=True, error_model="numpy")
def _factorize(system: Doubles) -> None:
    """Cholesky ``U' U`` of the upper triangle, in place, four rows at a time."""
    d = len(system)
    for first in range(0, d, 4):
        last = min(first + 4, d)
        for k in range(first, last):
            row = system[k, k:]
            pivot = 1 / np.sqrt(row[0])
            for b in range(d - k):
                row[b] *= pivot
            for a in range(k + 1, last):
                c, target, r = system[k, a], system[a, a:], system[k, a:]
                for b in range(d - a):
                    target[b] -= c * r[b]
        for a in range(last, d):  # only a full block of four has rows after it
            r0, r1, r2, r3 = system[first, a:], system[first + 1, a:], system[first + 2, a:], system[first + 3, a:]
            c0, c1, c2, c3, target = r0[0], r1[0], r2[0], r3[0], system[a, a:]
            for b in range(d - a):
                target[b] -= c0 * r0[b] + c1 * r1[b] + c2 * r2[b] + c3 * r3[b]


@njit(nogil=True, cache=True, error_model="numpy")
def _substitute(system: Doubles, side: Doubles) -> None:
    """Solve ``U' U x = side`` in place."""
    d = len(side)
    for k in range(d):
        side[k] /= system[k, k]
        c, row, rest = side[k], system[k, k + 1 :], side[k + 1 :]
        for b in range(d - k - 1):
            rest[b] -= c * row[b]
    for k in range(d - 1, -1, -1):
        total, row, rest = side[k], system[k, k + 1 :], side[k + 1 :]
        for b in range(d - k - 1):
            total -= row[b] * rest[b]
        side[k] = total / system[k, k]
