"""Which items have what a filter or a boost can name. It knows nothing of vectors, scores or what is searched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tasks.domain.boosts import boost_terms
from tasks.domain.online import Boost
from tasks.domain.records import IndexFilter, ItemPayload

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
RowsByTerm = Mapping[str, Rows]
NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class ItemTerms:
    """Rows of items by id, and ascending rows by term; ``available`` is (n_items,). A change makes another."""

    rows: Mapping[str, int] = field(default_factory=dict)
    available: Mask = field(default_factory=lambda: np.zeros(0, bool))
    categories: RowsByTerm = field(default_factory=dict)
    attributes: RowsByTerm = field(default_factory=dict)

    @classmethod
    def of(cls, payloads: Sequence[ItemPayload], rows: Mapping[str, int]) -> "ItemTerms":
        """The terms of ``payloads``, whose rows ``rows`` gives by id."""
        return cls(
            rows,
            np.array([payload.available for payload in payloads], bool),
            _rows_by_term(payload.categories for payload in payloads),
            _rows_by_term(payload.attributes for payload in payloads),
        )

    def changed(
        self, rows: Mapping[str, int], before: Mapping[int, ItemPayload], after: Mapping[int, ItemPayload]
    ) -> "ItemTerms":
        """With ``after`` in the place of ``before``, both by row; a row that only ``after`` has is new. ``rows`` are
        all there are then."""
        if not self.rows:
            return ItemTerms.of([after[row] for row in range(len(rows))], rows)
        available = np.zeros(len(rows), bool)
        available[: len(self.available)] = self.available
        available[list(after)] = [payload.available for payload in after.values()]
        return ItemTerms(
            rows,
            available,
            _moved(self.categories, _pairs(before, "categories"), _pairs(after, "categories")),
            _moved(self.attributes, _pairs(before, "attributes"), _pairs(after, "attributes")),
        )

    def allowed(self, restrict: IndexFilter) -> Mask:
        """(n_items,) whether each item may be shown under ``restrict``."""
        allowed = self.available.copy() if restrict.only_available else np.ones(len(self.available), bool)
        if restrict.categories:
            allowed &= self._marked(self.categories.get(term, NO_ROWS) for term in restrict.categories)
        for group in restrict.attributes:
            allowed &= self._marked(self.attributes.get(term, NO_ROWS) for term in group)
        if restrict.only_items:
            allowed &= self._marked([self._known(restrict.only_items)])
        if restrict.exclude_items:
            allowed[self._known(restrict.exclude_items)] = False
        return allowed

    def boosted(self, boost: Boost) -> Rows:
        """The items that have what the boost names."""
        terms = boost_terms(boost)
        if boost.kind == "item":
            return self._known(terms)
        known = self.categories if boost.kind == "category" else self.attributes
        return np.concatenate([NO_ROWS, *(known[term] for term in terms if term in known)])

    def _marked(self, groups: Iterable[Rows]) -> Mask:
        marked = np.zeros(len(self.available), bool)
        for rows in groups:
            marked[rows] = True
        return marked

    def _known(self, item_ids: Iterable[str]) -> Rows:
        return np.array([self.rows[item_id] for item_id in item_ids if item_id in self.rows], np.int64)


def _rows_by_term(terms_of_items: Iterable[Iterable[str]]) -> RowsByTerm:
    pairs = ((term, row) for row, terms in enumerate(terms_of_items) for term in set(terms))
    return {term: np.array(rows, np.int64) for term, rows in _by_term(pairs).items()}


def _pairs(payloads: Mapping[int, ItemPayload], kind: str) -> set[tuple[str, int]]:
    return {(term, row) for row, payload in payloads.items() for term in getattr(payload, kind)}


def _moved(known: RowsByTerm, before: set[tuple[str, int]], after: set[tuple[str, int]]) -> RowsByTerm:
    """Rows by term, without the pairs that went away and with those that came."""
    if before == after:
        return known
    gone, come = _by_term(before - after), _by_term(after - before)
    moved = dict(known)
    for term in gone.keys() | come.keys():
        rows = np.array(sorted(come.get(term, ())), np.int64)
        if term in known:
            rows = np.union1d(np.setdiff1d(known[term], gone.get(term, [])), rows)
        moved[term] = rows
        if len(rows) == 0:
            del moved[term]
    return moved


def _by_term(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for term, row in pairs:
        rows.setdefault(term, []).append(row)
    return rows
