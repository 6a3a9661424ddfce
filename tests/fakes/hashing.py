"""An encoder without a language model, and resources that use it. Dask workers import this module by its name."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra.resources import LocalResources


@dataclass(frozen=True)
class HashingEncoder:
    """Each word has a fixed random direction, and a text is the sum of its words at unit length: texts that share
    words are near each other. The same in every process.

    ``log`` gets a line for each text that is encoded; a text that holds a word of ``poison`` raises; ``delay_seconds``
    passes at each call.
    """

    width: int = 32
    name: str = "hashing"
    log: Path | None = None
    poison: tuple[str, ...] = ()
    delay_seconds: float = 0.0

    @property
    def encoder_id(self) -> str:
        return f"{self.name}@{self.width}"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        time.sleep(self.delay_seconds)
        for text in texts:
            if any(word in text for word in self.poison):
                raise ValueError("this text cannot be encoded")
        if self.log:
            with self.log.open("a") as stream:
                stream.writelines(f"{hashlib.sha256(text.encode()).hexdigest()}\n" for text in texts)
        vectors = np.zeros((len(texts), self.width), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
                vectors[row] += np.random.default_rng(seed).standard_normal(self.width, np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self.encode(texts)


@dataclass(frozen=True)
class HashingResources(LocalResources):
    """The real adapters, with a hashing encoder in the place of the language model."""

    hashing: HashingEncoder = HashingEncoder()

    def encoder(self) -> HashingEncoder:
        return self.hashing
