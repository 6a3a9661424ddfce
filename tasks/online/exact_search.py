"""Search over the items of a state without an index: exact, by any values.

It answers what an index cannot, such as the best items with boosts added, and stands in where the index is away. It
knows nothing of requests.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.domain.boosts import boost_terms
from tasks.domain.online import Boost
from tasks.domain.records import IndexFilter, ItemPayload

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class ItemTerms:
    """Which items (rows) have what a filter can name. ``is_available`` (n_items,)."""

    index: Mapping[str, int]
    is_available: Mask
    categories: Mapping[str, Rows]
    attributes: Mapping[str, Rows]

    @classmethod
    def of(cls, payloads: Sequence[ItemPayload], index: Mapping[str, int]) -> "ItemTerms":
        """The terms of ``payloads``, whose rows ``index`` gives by id."""
        return cls(
            index,
            np.array([payload.available for payload in payloads], bool),
            _rows_by_term(payload.categories for payload in payloads),
            _rows_by_term(payload.attributes for payload in payloads),
        )

    def allowed(self, restrict: IndexFilter) -> Mask:
        """(n_items,) True for items that may be shown under ``restrict``."""
        mask = self.is_available.copy() if restrict.only_available else np.ones(len(self.is_available), bool)
        if restrict.categories:
            mask &= self._any(self.categories, restrict.categories)
        for group in restrict.attributes:
            mask &= self._any(self.attributes, group)
        if restrict.only_items:
            mask &= self._these(restrict.only_items)
        mask[self._rows(restrict.exclude_items)] = False
        return mask

    def boosted(self, boost: Boost) -> Rows:
        """The items that have what the boost names."""
        terms = boost_terms(boost)
        if boost.kind == "item":
            return self._rows(terms)
        known = self.categories if boost.kind == "category" else self.attributes
        return np.concatenate([NO_ROWS, *(known[term] for term in terms if term in known)])

    def _any(self, known: Mapping[str, Rows], terms: Iterable[str]) -> Mask:
        mask = np.zeros(len(self.is_available), bool)
        for term in terms:
            mask[known.get(term, NO_ROWS)] = True
        return mask

    def _these(self, item_ids: Iterable[str]) -> Mask:
        mask = np.zeros(len(self.is_available), bool)
        mask[self._rows(item_ids)] = True
        return mask

    def _rows(self, item_ids: Iterable[str]) -> Rows:
        return np.array([self.index[item_id] for item_id in item_ids if item_id in self.index], np.int64)


def best_rows(values: npt.NDArray[Any], n: int, allowed: Mask) -> Rows:
    """Up to ``n`` rows with the highest ``values`` (n_items,) among the ``allowed``; equal ones go by row."""
    rows = np.flatnonzero(allowed)
    if len(rows) > n:
        found = values[rows]
        rows = rows[found >= np.partition(found, len(rows) - n)[len(rows) - n]]
    return rows[np.lexsort((rows, -values[rows]))][:n]


def _rows_by_term(terms_of_items: Iterable[Iterable[str]]) -> dict[str, Rows]:
    rows: dict[str, list[int]] = {}
    for row, terms in enumerate(terms_of_items):
        for term in set(terms):
            rows.setdefault(term, []).append(row)
    return {term: np.array(found, np.int64) for term, found in rows.items()}
