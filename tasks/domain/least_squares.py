"""The compiled inner loops of the factor model. They know nothing of what their rows mean.

A row solves ``(u S + l I + sum |w| f f') x = t + sum_{w > 0} w f`` over the entries of its history, where ``S`` is a
diagonal matrix: the fixed factors come in the basis in which their Gram matrix is diagonal. There, ``u S + l I`` is the
preconditioner, what is left has at most the rank of the history, and a step of conjugate gradients costs four flops for
each entry and factor, with no term that is quadratic in the number of factors.

Importing this module imports numba; the machine code is cached beside the file. Inner loops run over slices, from 0,
because an index that could be negative keeps the compiler from using vector instructions (measured: 3 times slower).
Sums may be reordered, so that they use vector instructions too; the order is the same in every run on one machine.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])
Reals = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]
_NOTHING = 1e-30
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}


def _compiled(function: F) -> F:
    compiled: F = njit(**_OPTIONS)(function)
    return compiled


def _part_of_a_kernel(function: F) -> F:
    """Compiled into whatever calls it, so that a kernel is the same machine code in whichever order and process the
    kernels are compiled."""
    compiled: F = njit(inline="always", **{**_OPTIONS, "cache": False})(function)
    return compiled


@_compiled
def solve_rows(
    rows: Integers,
    indptr: Integers,
    indices: Indices,
    weights: Floats,
    fixed: Floats,
    spectrum: Reals,
    unobserved: Floats,
    penalty: Floats,
    target: Reals,
    out: Floats,
    n_steps: int,
    tolerance: float,
) -> int:
    """Improve ``out[rows]`` by at most ``n_steps`` steps of preconditioned conjugate gradients, each row on its own.

    ``indptr``, ``indices`` and ``weights`` are a CSR matrix of signed weights; ``fixed`` (n_columns, d); ``spectrum``
    (d,) is the diagonal of S, and its precision is that of the arithmetic; ``unobserved`` and ``penalty`` (n_rows,) are
    u and l; ``target`` (len(rows), d) is t, or empty. A row starts from its value in ``out`` and ends early when its
    squared residual has fallen by ``tolerance``. Returns the number of rows that ended without reaching it; a row whose
    matrix is not positive definite gets NaN.
    """
    d = len(spectrum)
    x, r, p = np.empty_like(spectrum), np.empty_like(spectrum), np.empty_like(spectrum)
    q, m = np.empty_like(spectrum), np.empty_like(spectrum)
    n_open = 0
    for number in range(len(rows)):
        row = rows[number]
        start, end = indptr[row], indptr[row + 1]
        columns, weight = indices[start:end], weights[start:end]
        x[:] = out[row]
        for a in range(d):
            m[a] = unobserved[row] * spectrum[a] + penalty[row]
            r[a] = 0
        if len(target):
            r[:] = target[number]
        scale = _add_wanted(columns, weight, fixed, r, m)
        if scale == 0:
            out[row] = 0
            continue
        for a in range(d):
            r[a] -= m[a] * x[a]
        _apply(columns, weight, fixed, x, r, -1)
        size = _precondition(r, m, p)
        for _ in range(n_steps):
            if size <= tolerance * scale or size <= _NOTHING:
                break
            for a in range(d):
                q[a] = m[a] * p[a]
            _apply(columns, weight, fixed, p, q, 1)
            size = _step(x, r, p, q, m, size)
        if size > tolerance * scale and size > _NOTHING:
            n_open += 1
        out[row] = x
    return n_open


@_compiled
def attribute_rows(
    rows: Integers,
    indptr: Integers,
    indices: Indices,
    weights: Floats,
    fixed: Floats,
    spectrum: Doubles,
    unobserved: Floats,
    penalty: Floats,
    extra: Doubles,
    targets: Integers,
    offsets: Integers,
    shares: Doubles,
    extra_shares: Doubles,
    tolerance: float,
) -> None:
    """Split the scores of ``targets[row]`` over the entries of each row, for ``rows``.

    The share of entry e in the score of target j is ``max(w, 0) f_j' A^-1 f_e``. ``targets`` (n_rows, n_targets) are
    rows of ``fixed``, -1 for none; the shares of a row lie at ``shares[offsets[row]:]``, target by target, in the order
    of its entries. ``extra`` (n_rows, d) is a further term of the right side, whose part goes into ``extra_shares``
    (n_rows, n_targets). The other arguments are those of ``solve_rows``.
    """
    d = len(spectrum)
    x, r, p = np.empty_like(spectrum), np.empty_like(spectrum), np.empty_like(spectrum)
    q, m = np.empty_like(spectrum), np.empty_like(spectrum)
    for row in rows:
        start, end = indptr[row], indptr[row + 1]
        columns, weight = indices[start:end], weights[start:end]
        for a in range(d):
            m[a] = unobserved[row] * spectrum[a] + penalty[row]
        at = offsets[row]
        for place in range(targets.shape[1]):
            if targets[row, place] < 0:
                continue
            r[:] = fixed[targets[row, place]]
            x[:] = 0
            size = _precondition(r, m, p)
            scale = size
            for _ in range(10 * d):
                if size <= tolerance * scale:
                    break
                for a in range(d):
                    q[a] = m[a] * p[a]
                _apply(columns, weight, fixed, p, q, 1)
                size = _step(x, r, p, q, m, size)
            for e in range(len(columns)):
                shares[at + e] = max(weight[e], 0) * _dot(fixed[columns[e]], x)
            at += len(columns)
            extra_shares[row, place] = _dot(extra[row], x)


@_compiled
def sum_observed(
    rows: Integers, indptr: Integers, indices: Indices, weights: Floats, fixed: Floats, out: Floats
) -> float:
    """``sum |w| (p - <x, f>)^2`` over the entries of ``rows``, with p = 1 where w > 0 and p = 0 elsewhere."""
    total = 0.0
    for row in rows:
        x = out[row]
        for e in range(indptr[row], indptr[row + 1]):
            miss = (1.0 if weights[e] > 0 else 0.0) - _dot(fixed[indices[e]], x)
            total += abs(weights[e]) * miss * miss
    return total


@_part_of_a_kernel
def _add_wanted(columns: Indices, weight: Floats, fixed: Floats, r: Reals, m: Reals) -> Any:
    """Add ``sum_{w > 0} w f`` to r, and return the size of the whole right side in the norm of the residuals."""
    d = len(r)
    for e in range(len(columns)):
        f, w = fixed[columns[e]], r.dtype.type(max(weight[e], np.float32(0)))
        for a in range(d):
            r[a] += w * f[a]
    scale = 0.0
    for a in range(d):
        scale += r[a] * r[a] / m[a]
    return scale


@_part_of_a_kernel
def _apply(columns: Indices, weight: Floats, fixed: Floats, p: Reals, q: Reals, direction: int) -> None:
    """Add ``direction * sum |w| f <f, p>`` to q; four entries at a time, which saves loads and stores of p and q."""
    d, n = len(p), len(columns)
    e = 0
    sign = q.dtype.type(direction)
    while e + 4 <= n:
        f0, f1, f2, f3 = fixed[columns[e]], fixed[columns[e + 1]], fixed[columns[e + 2]], fixed[columns[e + 3]]
        s0 = s1 = s2 = s3 = q.dtype.type(0)
        for a in range(d):
            s0 += f0[a] * p[a]
            s1 += f1[a] * p[a]
            s2 += f2[a] * p[a]
            s3 += f3[a] * p[a]
        c0, c1, c2, c3 = abs(weight[e]), abs(weight[e + 1]), abs(weight[e + 2]), abs(weight[e + 3])
        s0, s1, s2, s3 = sign * c0 * s0, sign * c1 * s1, sign * c2 * s2, sign * c3 * s3
        for a in range(d):
            q[a] += s0 * f0[a] + s1 * f1[a] + s2 * f2[a] + s3 * f3[a]
        e += 4
    while e < n:
        f = fixed[columns[e]]
        s = sign * abs(weight[e]) * _dot(f, p)
        for a in range(d):
            q[a] += s * f[a]
        e += 1


@_part_of_a_kernel
def _precondition(r: Reals, m: Reals, p: Reals) -> Any:
    """Set p to ``r / m`` and return ``<r, p>``."""
    size = r.dtype.type(0)
    for a in range(len(r)):
        p[a] = r[a] / m[a]
        size += r[a] * p[a]
    return size


@_part_of_a_kernel
def _step(x: Reals, r: Reals, p: Reals, q: Reals, m: Reals, size: float) -> Any:
    """One step along p, whose image is q: new x, r and p; returns the new ``<r, r / m>``."""
    d = len(x)
    curvature = _dot(p, q)
    if not curvature > 0:
        x[:] = np.nan
        return x.dtype.type(0)
    length = x.dtype.type(size / curvature)
    new = x.dtype.type(0)
    for a in range(d):
        x[a] += length * p[a]
        r[a] -= length * q[a]
        new += r[a] * r[a] / m[a]
    ratio = x.dtype.type(new / size)
    for a in range(d):
        p[a] = r[a] / m[a] + ratio * p[a]
    return new


@_part_of_a_kernel
def _dot(f: Reals, x: Reals) -> Any:
    total = x.dtype.type(0)
    for a in range(len(x)):
        total += f[a] * x[a]
    return total
