"""An encoder without a language model, for catalogs that a model would take too long over: every word has a fixed
direction, and a text is the sum of its words at unit length. It knows nothing of language.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

WIDTH = 384


class SimulatedEncoder:
    """Implements ``tasks.domain.ports.TextEncoder``; texts that share words are near each other."""

    encoder_id = f"simulated@{WIDTH}"
    width = WIDTH

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, 384) float32 of unit length; an empty text gives a zero row."""
        vectors = np.zeros((len(texts), WIDTH), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row] += _direction(word)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As ``encode``."""
        return self.encode(texts)


@lru_cache(maxsize=4096)
def _direction(word: str) -> npt.NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(WIDTH, np.float32)
