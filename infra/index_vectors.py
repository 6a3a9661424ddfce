"""What every index asks of vectors before it takes them. It knows nothing of an index."""

import numpy as np
import numpy.typing as npt

from tasks.domain.errors import InputError

Floats = npt.NDArray[np.float32]


def check_vectors(vectors: Floats, n_payloads: int) -> None:
    """Raises InputError unless there is one row of finite values for each payload."""
    if vectors.ndim != 2 or len(vectors) != n_payloads:
        raise InputError(
            f"Vectors of shape {vectors.shape} came with {n_payloads} payloads; the index takes a table of vectors "
            "with one payload for each row."
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{int((~finite).sum())} of {len(vectors)} vectors have values that are not finite; the index takes only "
            "finite ones. Look at the gate of the stage that made them."
        )
