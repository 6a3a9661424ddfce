"""One vector space: the fused item and query vectors, and the weights that join their blocks.

    score(u, i) = alpha * <t_u, t_i> + (1 - alpha) * scale * <f_u, f_i> + beta * b_i

The stored item vector is ``[t_i ; factor_block * f_i ; prior_block * b_i]``; the query holds the inverse of the block
scales, so that one dot product is the formula. It knows nothing of how the weights are learned or stored.
"""

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bucket:
    """Weights of users with at least ``min_history`` positive interactions (up to the next bucket)."""

    min_history: int
    alpha: float
    beta: float


@dataclass(frozen=True)
class Fusion:
    """Learned weights and block scales of one model version.

    ``buckets`` ascend by ``min_history`` and the first starts at 0. ``text_request`` are the weights of a request
    that is made of text alone, ``attribute_request`` those of a user of whom only attributes are known (None where the
    version knows no attributes). ``factor_block`` and ``prior_block`` bring the stored blocks to the scale of the text
    block (mean norm 1).
    """

    scale: float
    buckets: tuple[Bucket, ...]
    text_request: Bucket
    factor_block: float
    prior_block: float
    attribute_request: Bucket | None = None

    def weights(self, n_history: int) -> Bucket:
        """The bucket of a user with ``n_history`` positive interactions."""
        return next(bucket for bucket in reversed(self.buckets) if bucket.min_history <= n_history)

    def to_json(self) -> str:
        """As stored in ``model_versions.fusion``."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Fusion":
        """The inverse of ``to_json``."""
        document = json.loads(text)
        document["buckets"] = tuple(Bucket(**bucket) for bucket in document["buckets"])
        document["text_request"] = Bucket(**document["text_request"])
        if document.get("attribute_request"):
            document["attribute_request"] = Bucket(**document["attribute_request"])
        return cls(**document)


class ScoreParts(NamedTuple):
    """The three parts of scores, each (n_queries, n_items) float32; their sum is the score."""

    text: Floats
    factors: Floats
    prior: Floats


def fuse_items(text: Floats, factors: Floats, prior: Floats, fusion: Fusion) -> Floats:
    """Stored item vectors.

    ``text`` (n, text_width), ``factors`` (n, n_factors), ``prior`` (n,); returns (n, text_width + n_factors + 1).
    """
    blocks = [text, factors * np.float32(fusion.factor_block), prior[:, None] * np.float32(fusion.prior_block)]
    return np.concatenate(blocks, axis=1).astype(np.float32, copy=False)


def fuse_queries(text: Floats, factors: Floats, alpha: Floats, beta: Floats, fusion: Fusion) -> Floats:
    """Query vectors: ``text`` (n, text_width), ``factors`` (n, n_factors), ``alpha`` and ``beta`` (n,)."""
    factor_weight = (1 - alpha) * np.float32(fusion.scale / fusion.factor_block)
    blocks = [alpha[:, None] * text, factor_weight[:, None] * factors, beta[:, None] / np.float32(fusion.prior_block)]
    return np.concatenate(blocks, axis=1).astype(np.float32, copy=False)


def split_scores(queries: Floats, items: Floats, text_width: int) -> ScoreParts:
    """The parts of every score from fused vectors: ``queries`` (n, width), ``items`` (m, width)."""
    n = text_width
    return ScoreParts(
        text=queries[:, :n] @ items[:, :n].T,
        factors=queries[:, n:-1] @ items[:, n:-1].T,
        prior=queries[:, -1:] @ items[:, -1:].T,
    )
