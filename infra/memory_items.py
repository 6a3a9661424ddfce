"""Items of one version in memory, with exact search. It knows nothing of versions, users or who writes when."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

import numpy as np
import numpy.typing as npt

from tasks.domain.item_terms import ItemTerms
from tasks.domain.records import Hit, IndexFilter, ItemPayload

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

GATHERED_SHARE = 0.1
"""Where fewer items than this share may be found, their vectors are collected before they are multiplied."""
SPARE_SHARE = 0.125
"""Room for new items, of those there are, when the vectors are copied."""


@dataclass(frozen=True)
class ItemTable:
    """Vectors and payloads by row, and which rows have what a filter names. A change makes another table; readers keep
    theirs.

    ``vectors`` (at least n_items, width) float32, of which the rows behind the items are room for the next table;
    ``terms`` knows the row of each item.
    """

    vectors: Floats
    payloads: tuple[ItemPayload, ...] = ()
    terms: ItemTerms = field(default_factory=ItemTerms)

    @classmethod
    def empty(cls, width: int) -> "ItemTable":
        """No items, and vectors of ``width``."""
        return cls(np.zeros((0, width), np.float32))

    def with_items(self, vectors: Floats, payloads: Sequence[ItemPayload]) -> "ItemTable":
        """This table with items added or put in the place of those of the same id; of two with one id the last counts.

        Only the newest table may be changed: its successor may lie in the same memory. Vectors that cannot be written
        to are kept in an empty table as they are, without a copy.
        """
        newest = {payload.item_id: place for place, payload in enumerate(payloads)}
        rows = {**self.terms.rows}
        for item_id in newest:
            rows.setdefault(item_id, len(rows))
        at = np.array([rows[item_id] for item_id in newest], np.int64)
        places = np.array(list(newest.values()), np.int64)
        stored = [*self.payloads, *(payloads[place] for place in places[at >= len(self.payloads)])]
        before = {row: self.payloads[row] for row in at.tolist() if row < len(self.payloads)}
        for row, place in zip(at.tolist(), places.tolist(), strict=True):
            stored[row] = payloads[place]
        after = {row: stored[row] for row in at.tolist()}
        terms = self.terms.changed(rows, before, after)
        return ItemTable(self._with_vectors(vectors, at, places, len(rows)), tuple(stored), terms)

    def search(self, query: Floats, k: int, restrict: IndexFilter, *, with_vectors: bool) -> list[Hit]:
        """The ``k`` items with the highest dot product, best first; equal ones by id. Exact, in float32."""
        rows = np.flatnonzero(self.terms.allowed(restrict))
        if k < 1 or len(rows) == 0:
            return []
        if len(rows) < GATHERED_SHARE * len(self.payloads):
            scores = self.vectors[rows] @ query
        else:
            scores = (self.vectors[: len(self.payloads)] @ query)[rows]
        best = self._best(rows, scores, k)
        vectors: Iterable[Floats | None] = self.vectors[rows[best]] if with_vectors else [None] * len(best)
        found = zip(rows[best].tolist(), scores[best].tolist(), vectors, strict=True)
        return [Hit(self.payloads[row].item_id, score, self.payloads[row], vector) for row, score, vector in found]

    def _best(self, rows: Rows, scores: Floats, k: int) -> Rows:
        """Positions in ``scores``, in the order of the answer."""
        chosen = np.arange(len(scores))
        if len(scores) > k:
            last = np.partition(scores, len(scores) - k)[len(scores) - k]
            above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
            if len(above) + len(equal) > k:
                by_id = nsmallest(k - len(above), equal.tolist(), key=lambda at: self.payloads[rows[at]].item_id)
                equal = np.array(by_id, np.int64)
            chosen = np.concatenate([above, equal])
        ordered = sorted(zip((-scores[chosen]).tolist(), self._ids(rows[chosen]), chosen.tolist(), strict=True))
        return np.array([at for _, _, at in ordered], np.int64)

    def _ids(self, rows: Rows) -> Iterator[str]:
        return (self.payloads[row].item_id for row in rows.tolist())

    def _with_vectors(self, vectors: Floats, at: Rows, places: Rows, n_rows: int) -> Floats:
        """The vectors with those at ``places`` in the rows ``at``; no row that a reader may see is written."""
        n_before = len(self.payloads)
        if n_before == 0 and len(places) == len(vectors) and not vectors.flags.writeable:
            return vectors
        known = at < n_before
        changed = known.any() and not np.array_equal(self.vectors[at[known]], vectors[places[known]])
        target = self.vectors
        if changed or n_rows > len(target) or not target.flags.writeable:
            target = np.empty((n_rows + int(SPARE_SHARE * n_before), target.shape[1]), np.float32)
            target[:n_before] = self.vectors[:n_before]
            target[at] = vectors[places]
        else:
            target[at[~known]] = vectors[places[~known]]
        return target
