"""The compiled inner loop of the item neighbours. It knows nothing of what its matrices mean.

Importing this module imports numba; the machine code is cached beside the file.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Compressed = tuple[Integers, Integers, Doubles]


@njit(nogil=True, cache=True, error_model="numpy")
def solve_items(
    start: int,
    stop: int,
    columns: Compressed,
    rows: Compressed,
    user_weight: Doubles,
    norms: Doubles,
    diagonal: Doubles,
    shrinkage: float,
    neighbour: npt.NDArray[np.int32],
    strength: Floats,
    n_shared: npt.NDArray[np.int32],
) -> None:
    """Nearest items of the items ``start`` to ``stop``, and the ridge regression of each on them.

    ``columns`` and ``rows`` are one matrix (n_users, n_items) by column and by row: indptr, indices, values, all above
    0. ``norms`` (n_items,) are those of the columns weighted by ``user_weight`` (n_users,), ``diagonal`` (n_items,) of
    the Gram matrix with the penalty. Writes the rows ``start`` to ``stop`` of ``neighbour``, ``strength`` and
    ``n_shared`` (n_items, k), nearest first; places that stay empty are left as they are.
    """
    n_items, k = neighbour.shape
    near, product, shared = np.zeros(n_items), np.zeros(n_items), np.zeros(n_items, np.int32)
    column = np.zeros(len(user_weight))
    touched = np.empty(n_items, np.int64)
    best, ids = np.empty(k), np.empty(k, np.int64)
    for target in range(start, stop):
        n_touched = _meet(target, columns, rows, user_weight, near, product, shared, touched)
        n_found = 0
        for other in touched[:n_touched]:
            if other != target:
                n = shared[other]
                likeness = near[other] / (norms[other] * norms[target]) * n / (n + shrinkage)
                n_found = _insert(best, ids, n_found, likeness, other)
        if n_found:
            side = product[ids[:n_found]]
            solved = np.linalg.solve(_gram(ids[:n_found], columns, diagonal, column), side)
            for place in range(n_found):
                neighbour[target, place] = ids[place]
                strength[target, place] = solved[place]
                n_shared[target, place] = shared[ids[place]]
        for other in touched[:n_touched]:
            near[other], product[other], shared[other] = 0.0, 0.0, 0


@njit(nogil=True, cache=True, error_model="numpy")
def _meet(
    target: int,
    columns: Compressed,
    rows: Compressed,
    user_weight: Doubles,
    near: Doubles,
    product: Doubles,
    shared: npt.NDArray[np.int32],
    touched: Integers,
) -> int:
    """Add up the products of the target's column with all others, over the users it has; returns how many it met."""
    column_start, users, weights = columns
    row_start, items, likes = rows
    n_touched = 0
    for entry in range(column_start[target], column_start[target + 1]):
        user, weight = users[entry], weights[entry]
        for cell in range(row_start[user], row_start[user + 1]):
            other, both = items[cell], weight * likes[cell]
            if shared[other] == 0:
                touched[n_touched] = other
                n_touched += 1
            near[other] += both * user_weight[user]
            product[other] += both
            shared[other] += 1
    return n_touched


@njit(nogil=True, cache=True, error_model="numpy")
def _insert(best: Doubles, ids: Integers, n_found: int, value: float, item: int) -> int:
    """Keep the highest values in falling order, equal ones by item; returns how many there are now."""
    k = len(best)
    if n_found == k and (value < best[k - 1] or (value == best[k - 1] and item > ids[k - 1])):
        return n_found
    place = n_found if n_found < k else k - 1
    while place > 0 and (best[place - 1] < value or (best[place - 1] == value and ids[place - 1] > item)):
        best[place], ids[place] = best[place - 1], ids[place - 1]
        place -= 1
    best[place], ids[place] = value, item
    return n_found + 1 if n_found < k else k


@njit(nogil=True, cache=True, error_model="numpy")
def _gram(ids: Integers, columns: Compressed, diagonal: Doubles, column: Doubles) -> npt.NDArray[np.float64]:
    """Products of the columns ``ids`` with each other; ``column`` (n_users,) is zero, and is left so.

    The longer column of a pair is spread out and the shorter one is read.
    """
    starts, users, weights = columns
    gram = np.empty((len(ids), len(ids)))
    for a in range(len(ids)):
        first, last = starts[ids[a]], starts[ids[a] + 1]
        gram[a, a] = diagonal[ids[a]]
        for entry in range(first, last):
            column[users[entry]] = weights[entry]
        for b in range(len(ids)):
            from_b, to_b = starts[ids[b]], starts[ids[b] + 1]
            if to_b - from_b < last - first or (to_b - from_b == last - first and b < a):
                total = 0.0
                for entry in range(from_b, to_b):
                    total += column[users[entry]] * weights[entry]
                gram[a, b], gram[b, a] = total, total
        for entry in range(first, last):
            column[users[entry]] = 0.0
    return gram
