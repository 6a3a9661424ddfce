"""Search over the items of a state without an index: exact, by any values.

It answers what an index cannot, such as the best items with boosts added, and stands in where the index is away. It
knows nothing of requests.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def best_rows(values: npt.NDArray[Any], n: int, allowed: Mask) -> Rows:
    """Up to ``n`` rows with the highest ``values`` (n_items,) among the ``allowed``; equal ones go by row."""
    rows = np.flatnonzero(allowed)
    if len(rows) > n:
        found = values[rows]
        rows = rows[found >= np.partition(found, len(rows) - n)[len(rows) - n]]
    return rows[np.lexsort((rows, -values[rows]))][:n]
