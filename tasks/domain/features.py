"""Attributes and categories as columns of numbers, for users and items of whom little else is known.

A column stands for one value of an attribute, or for one range of a number. Which columns there are is learned once and
kept with a model version, so that a row means the same in the nightly batch, in a refresh and in a request. It knows
nothing of what the columns are used for.
"""

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float32]
Attributes = Mapping[str, Any]
Number = int | float

MAX_VALUES = 1000
"""Values that have a column of their own, the most frequent ones."""
N_RANGES = 10
"""Ranges of a number, which hold about as many rows each. A number with no more distinct values is not cut up."""
ITEM_FEATURES = 0.3
"""Length of an item's features beside its text, which has length 1: ``docs/decisions``."""
MIN_ROWS = 2
"""A value that fewer rows have says nothing of anybody else."""
_LONGEST_NUMBER = 30
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")


@dataclass(frozen=True)
class FeatureSpace:
    """The columns of a feature matrix: one for each of ``values``, an attribute's name and a value of it, in this
    order; then, for each name in ``cuts``, one for each range between its cuts, which ascend, and beyond them."""

    values: tuple[tuple[str, str], ...] = ()
    cuts: tuple[tuple[str, tuple[Number, ...]], ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Each column for people, such as ``occupation student`` or ``age 24 to 29``."""
        ranges = (f"{name} {label}" for name, cuts in self.cuts for label in _range_labels(cuts))
        return (*(f"{name} {value}" for name, value in self.values), *ranges)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.labels)

    def encode(self, rows: Sequence[Attributes]) -> sparse.csr_matrix:
        """(n_rows, width) CSR float32: the columns of a row are equal and make it of length 1. A row of which no column
        is known is zero; values that have no column are left out."""
        columns = [sorted(set(self._columns(row))) for row in rows]
        lengths = np.array([len(found) for found in columns], np.int64)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        data = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths).astype(np.float32)
        indices = np.array([column for found in columns for column in found], np.int64)
        return sparse.csr_matrix((data, indices, indptr), shape=(len(rows), self.width))

    def describe(self, features: sparse.csr_matrix) -> tuple[str, ...]:
        """The known columns of each row in words, such as ``age 24 to 29, occupation student``; empty for none."""
        parts = np.split(features.indices, features.indptr[1:-1]) if features.shape[0] else []
        return tuple(", ".join(sorted(self.labels[column] for column in columns)) for columns in parts)

    def to_json(self) -> str:
        """As stored in ``model_versions.user_features``."""
        return json.dumps({"values": self.values, "cuts": self.cuts}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None) -> "FeatureSpace":
        """The inverse of ``to_json``; None, as in versions before there were features, gives no columns."""
        document = json.loads(text) if text else {"values": (), "cuts": ()}
        values = tuple((name, value) for name, value in document["values"])
        return cls(values, tuple((name, tuple(cuts)) for name, cuts in document["cuts"]))

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        return {value: column for column, value in enumerate(self.values)}

    @cached_property
    def _ranges(self) -> dict[str, tuple[int, tuple[Number, ...]]]:
        """First column and cuts of each number."""
        starts = np.cumsum([len(self.values), *(len(cuts) + 1 for _, cuts in self.cuts)])
        return {name: (int(start), cuts) for (name, cuts), start in zip(self.cuts, starts, strict=False)}

    def _columns(self, row: Attributes) -> Iterator[int]:
        for name, value in _facts(row):
            if name in self._ranges and not isinstance(value, str):
                start, cuts = self._ranges[name]
                yield start + bisect_right(cuts, value)
            elif (name, _written(value)) in self._places:
                yield self._places[name, _written(value)]


NO_FEATURES = FeatureSpace()
"""Of a version that knows no attributes."""


def learn_features(rows: Sequence[Attributes], *, max_values: int = MAX_VALUES) -> FeatureSpace:
    """The columns that tell these rows apart, whatever their order.

    A number with more than ``N_RANGES`` distinct values is cut into ranges. Everything else, also each element of a
    list, is a value; nested objects, nulls and numbers that are not finite are passed over.
    """
    numbers: dict[str, list[Number]] = {}
    for row in rows:
        for name, value in _facts(row):
            if not isinstance(value, str):
                numbers.setdefault(name, []).append(value)
    many = {name: _cuts(found) for name, found in sorted(numbers.items()) if len(set(found)) > N_RANGES}
    cut = {name: cuts for name, cuts in many.items() if cuts}
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        facts = _facts(row)
        counts.update({(name, _written(value)) for name, value in facts if isinstance(value, str) or name not in cut})
    frequent = sorted((-count, *value) for value, count in counts.items() if count >= MIN_ROWS)[:max_values]
    return FeatureSpace(tuple((name, value) for _, name, value in frequent), tuple(cut.items()))


def parse_attributes(text: str | None) -> Attributes:
    """Attributes as stored, a JSON object; None gives none."""
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}


def item_facts(attributes: str | None, categories: Sequence[str], has_text: bool) -> Attributes:
    """What is known of an item beside its text: its attributes, a JSON object, and the categories of one without an
    embedding. A text names its categories."""
    return {**parse_attributes(attributes), **({} if has_text else {"category": categories})}


def encode_items(space: FeatureSpace, told: Sequence[Mapping[str, Any]]) -> sparse.csr_matrix:
    """(n_items, width) CSR float32, rows of length ``ITEM_FEATURES`` or zero; ``told`` are arguments of
    ``item_facts``."""
    return sparse.csr_matrix(space.encode([item_facts(**item) for item in told]) * np.float32(ITEM_FEATURES))


def _facts(row: Attributes) -> Iterator[tuple[str, str | Number]]:
    """Each attribute with its value, or with each of its values: a number or a text that is none."""
    for name, given in row.items():
        for value in given if isinstance(given, list | tuple) else (given,):
            plain = _plain(value)
            if plain is not None:
                yield name, plain


def _plain(value: Any) -> str | Number | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = value.strip()
        if len(value) > _LONGEST_NUMBER or not _NUMBER.fullmatch(value):
            return value or None
        value = float(value) if "." in value else int(value)
    if not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def _written(value: str | Number) -> str:
    """Equal numbers are written alike: 3 and 3.0 are one value."""
    return value if isinstance(value, str) else str(int(value)) if value == int(value) else repr(value)


def _cuts(found: list[Number]) -> tuple[Number, ...]:
    """Values that part the numbers into ranges of about equal size; each begins its range."""
    ordered = sorted(found)
    places = [len(ordered) * step // N_RANGES for step in range(1, N_RANGES)]
    return tuple(value for value in sorted({ordered[place] for place in places}) if value > ordered[0])


def _range_labels(cuts: Sequence[Number]) -> Iterator[str]:
    """``below 24``, ``24 to 29``, ``30 and more``; with fractions the end of a range is the beginning of the next."""
    whole = all(isinstance(cut, int) for cut in cuts)
    yield f"below {cuts[0]}"
    for low, high in pairwise(cuts):
        last = high - 1 if whole else high
        yield f"{low}" if last == low else f"{low} to {last}"
    yield f"{cuts[-1]} and more"
