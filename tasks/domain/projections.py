"""A model version as the index should hold it, and exact search over it.

It knows nothing of the warehouse it comes from or the index it goes to.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tasks.domain.records import Hit, ItemPayload, UserPayload

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

TOP_K = 10
"""Length of the slates that checks compare."""


@dataclass(frozen=True)
class Projection:
    """Fused vectors with their payloads, row by row.

    ``items`` (n_items, width) and ``users`` (n_users, width) float32; the first ``text_width`` columns of an item are
    its text block. ``user_text`` (n_users, text_width): unit rows or zero, before alpha.
    """

    version: str
    text_width: int
    items: Floats
    item_payloads: tuple[ItemPayload, ...]
    users: Floats
    user_payloads: tuple[UserPayload, ...]
    user_text: Floats

    @property
    def width(self) -> int:
        """Length of a fused vector."""
        return int(self.items.shape[1])

    @property
    def item_text(self) -> Floats:
        """(n_items, text_width): unit rows, or zero where an item has no text."""
        return self.items[:, : self.text_width]

    @cached_property
    def available(self) -> npt.NDArray[np.bool_]:
        """(n_items,) whether each item may be recommended."""
        return np.array([payload.available for payload in self.item_payloads], bool)

    @cached_property
    def item_rows(self) -> dict[str, int]:
        """Row of each item."""
        return {payload.item_id: row for row, payload in enumerate(self.item_payloads)}

    @cached_property
    def user_rows(self) -> dict[str, int]:
        """Row of each user."""
        return {payload.user_id: row for row, payload in enumerate(self.user_payloads)}


def sample_rows(version: str, purpose: str, n_rows: int, size: int) -> Rows:
    """Sorted positions of at most ``size`` of ``n_rows`` rows; the same ones for the same version and purpose."""
    seed = int.from_bytes(hashlib.sha256(f"{purpose} {version}".encode()).digest()[:8])
    chosen = np.random.default_rng(seed).choice(n_rows, min(size, n_rows), replace=False)
    return np.sort(chosen).astype(np.int64)


def as_kept(vector: Floats, found: Floats) -> Floats:
    """``vector``, in half precision where ``found`` is just that: an index may keep it so. A value too large for half
    precision is not kept."""
    rounded = _rounded(vector)
    return rounded if np.isfinite(rounded).all() and np.array_equal(found, rounded) else vector


def in_half_precision(projection: Projection) -> Projection:
    """The same with vectors rounded as an index in half precision has them, and rounds queries."""
    return replace(projection, items=_rounded(projection.items), users=_rounded(projection.users))


def exact_scores(projection: Projection, user_rows: Rows) -> Floats:
    """(len(user_rows), n_items) scores by exact search; an item that is not available scores -inf."""
    with np.errstate(invalid="ignore", over="ignore"):  # vectors that are not finite fail a check of their own
        scores: Floats = projection.users[user_rows] @ projection.items.T
    scores[:, ~projection.available] = -np.inf
    return scores


def canary_recall(projection: Projection, scores: Floats, hits: Sequence[Hit]) -> float:
    """Share of the exact top ``TOP_K`` that an index's answer ``hits`` holds; items that tie count as one another.

    ``scores`` (n_items,) are the exact ones. A hit whose score is not that of its item, to 1e-4 of the largest, is
    not found. With nothing to find the share is 1.
    """
    best = np.sort(scores[np.isfinite(scores)])[::-1][:TOP_K]
    if len(best) == 0:
        return 0.0 if hits else 1.0
    tolerance = 1e-4 * max(1.0, float(np.abs(best).max()))
    found = {
        hit.item_id
        for hit in hits
        if hit.item_id in projection.item_rows
        and abs(float(scores[projection.item_rows[hit.item_id]]) - hit.score) <= tolerance
        and hit.score >= best[-1] - tolerance
    }
    return len(found) / len(best)


def slate_overlap(candidate: Projection, serving: Projection, n_users: int = 50) -> float | None:
    """Mean share of the serving version's top items that the candidate keeps, over a sample of users in both."""
    shared = np.array([row for user, row in serving.user_rows.items() if user in candidate.user_rows], np.int64)
    if len(shared) == 0:
        return None
    before = shared[sample_rows(candidate.version, "drift", len(shared), n_users)]
    after = np.array([candidate.user_rows[serving.user_payloads[row].user_id] for row in before], np.int64)
    slates = zip(_top_items(serving, before), _top_items(candidate, after), strict=True)
    return float(np.mean([len(old & new) / max(1, len(old)) for old, new in slates]))


def checksum(vectors: Floats) -> str:
    """Twelve hexadecimal digits of the SHA-256 over the values as 32-bit floats, in row order."""
    return hashlib.sha256(np.ascontiguousarray(vectors, np.float32).tobytes()).hexdigest()[:12]


def _rounded(vectors: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16).astype(np.float32)


def _top_items(projection: Projection, user_rows: Rows) -> list[frozenset[str]]:
    scores = exact_scores(projection, user_rows)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
    return [
        frozenset(projection.item_payloads[row].item_id for row in rows if np.isfinite(scores[user, row]))
        for user, rows in enumerate(top)
    ]
