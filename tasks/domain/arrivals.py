"""New and changed items beside what a model version holds: what becomes of each, and what must hold of it.

It knows nothing of where items come from or vectors go.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from tasks.domain.records import CheckResult

Floats = npt.NDArray[np.float32]

NO_TEXT = hashlib.sha256(b"").hexdigest()
"""Stands for the text of an item that has none in its vector: blank, or one that cannot be encoded."""
LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ArrivedItem:
    """An item as the catalog has it now, a row of ``arrived_items.sql``. ``held_hash`` is the text that the version
    has of it, None where it lacks the item; ``is_added``: it came after the training."""

    item_id: str
    title: str
    categories: Sequence[str]
    attributes: str | None
    available: bool
    first_seen_at: datetime
    text: str
    content_hash: str
    template_version: str
    held_hash: str | None
    is_added: bool
    is_embedded: bool

    @property
    def is_new(self) -> bool:
        """The version lacks it."""
        return self.held_hash is None

    @property
    def wants_vector(self) -> bool:
        """Whether its vector is to be made: it is new, or it was added with another text. An item of the training
        keeps its own, since users and factors were fitted to it."""
        return self.is_new or (self.is_added and self.held_hash != self.content_hash)

    @property
    def has_text(self) -> bool:
        """Whether there is something to encode."""
        return bool(self.text.strip())


def choose_texts(items: Sequence[ArrivedItem], n_user_texts: int, most: int) -> tuple[list[ArrivedItem], int]:
    """One item for each text that waits for its embedding, in order, and how many texts of users go with them, at
    most ``most`` in all. Neither kind takes more than half from the other."""
    waiting = {
        item.content_hash: item for item in items if item.wants_vector and item.has_text and not item.is_embedded
    }
    n_users = min(n_user_texts, max(most // 2, most - len(waiting)))
    return list(waiting.values())[: most - n_users], n_users


def text_hash(item: ArrivedItem, embedded: Collection[str], failed: Collection[str]) -> str | None:
    """The text that stands in an item's vector now, by hash: its own, ``NO_TEXT``, or None while it waits."""
    if item.content_hash in embedded:
        return item.content_hash
    return None if item.has_text and item.content_hash not in failed else NO_TEXT


def check_arrivals(text: Floats, factors: Floats, text_width: int, n_factors: int) -> list[CheckResult]:
    """The gate ``nearline`` for items: widths, finite values, texts of unit length or zero. All of them stop."""
    norms = np.linalg.norm(text, axis=1)
    widths, expected = (text.shape[1], factors.shape[1]), (text_width, n_factors)
    largest: Floats = np.abs(np.column_stack([text, factors])).max(axis=1)
    is_unit_or_zero: npt.NDArray[np.bool_] = np.minimum(norms, np.abs(norms - 1)) < LENGTH_TOLERANCE
    return [
        _check("vector_widths", "factors", np.full(len(text), widths == expected), f"{widths}", f"{expected}"),
        _check("finite_values", None, np.isfinite(largest), "NaN or infinity", "finite numbers"),
        _check("unit_or_zero_length", "content_hash", is_unit_or_zero, "another length", "1 (to 0.001) or 0"),
    ]


def _check(
    expectation: str, column: str | None, passed: npt.NDArray[np.bool_], found: str, allowed: str
) -> CheckResult:
    failed = np.flatnonzero(~passed)
    return CheckResult(
        table="item_factors",
        expectation=expectation,
        column=column,
        severity="stop",
        passed=len(failed) == 0,
        observed=f"{found} in {len(failed)} of {len(passed)} items" if len(failed) else "as expected",
        allowed=allowed,
        n_failed=len(failed),
        failed_rows=tuple(failed[:20].tolist()),
        advice="No item was added or changed. Look at the embeddings of the newest texts in item_embeddings, and at"
        " text_map and item_map of the version; `nearline rollback` serves the version before it.",
    )
