"""Between list columns of Arrow tables and matrices. It knows nothing of what the vectors mean."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.errors import InputError

Floats = npt.NDArray[np.float32]


def matrix_from_lists(column: pa.ChunkedArray | pa.Array, width: int) -> Floats:
    """(n, width) float32 from a column of lists; an empty column gives (0, width).

    Raises InputError for a null or a list of another length.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(array) == 0:
        return np.zeros((0, width), np.float32)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    if array.null_count or not (lengths == width).all():
        bad = int((~(lengths == width)).sum())
        raise InputError(
            f"Read {len(array)} vectors of width {width}; {bad} of them are missing or have another width."
            " Vectors of one version share one width; run the embed stage again."
        )
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(array), width)


def lists_from_matrix(matrix: npt.NDArray[Any]) -> pa.ListArray:
    """A column of float lists, one for each row of ``matrix`` (n, width)."""
    n, width = matrix.shape
    values = pa.array(np.ascontiguousarray(matrix, np.float32).ravel(), pa.float32())
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * width), values)


def unit_rows(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows scaled to length 1; rows of zeros stay zero."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    units: npt.NDArray[Any] = np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 0)
    return units
