"""How stages grow, from measurements of several sizes: exponents, and what breaks first. It knows nothing of stages.

A family is a set of sizes in which one number grows and the other stays: ``events`` (the catalog stays), ``items`` (the
events stay), or ``both`` (the diagonal). An exponent is the least-squares slope of log seconds over the logarithm of
that number. A size whose run is not above the fixed costs of its stage is left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

FLOOR_SECONDS = 2.0
"""Shorter runs are mostly fixed costs (imports, opening the warehouse, the gates' engine)."""
HIGHEST_EXPONENT = 1.15
MEMORY_LIMIT_MB = 4 * 1024**3 / 1e6
NIGHT_SECONDS = 8 * 3600.0
"""A main job that takes longer is no longer a nightly one."""
FURTHER = 100.0
Family = Literal["events", "items", "both"]
FAMILIES: tuple[Family, ...] = ("events", "items", "both")


@dataclass(frozen=True)
class Measured:
    """One stage at one size. ``means`` names what stood in for real parts: only equal ones are compared."""

    stage: str
    n_items: int
    n_events: int
    rows: int
    seconds: float
    peak_mb: float
    added_mb: float
    means: str = ""

    @property
    def size(self) -> str:
        """As it is asked for."""
        return f"{self.n_items}x{self.n_events}"


def fit_stage(points: Sequence[Measured]) -> dict[str, Any]:
    """Exponents of one stage in each family that has two sizes or more above the floor; None for the others.
    ``last_two`` is the slope between the largest two: where it is above the exponent, growth gets worse.

    ``exponent`` is the highest of one growing number, ``is_within`` whether it is at most 1.15 (None where nothing was
    long enough to tell).
    """
    usual = Counter(point.means for point in points).most_common(1)[0][0] if points else ""
    alike = [point for point in points if point.means == usual]
    families = {family: _fit_family(family, alike) for family in FAMILIES}
    single = [found["exponent"] for name, found in families.items() if found and name != "both"]
    highest = max(single, default=None)
    return {
        "exponent": highest,
        "is_within": None if highest is None else highest <= HIGHEST_EXPONENT,
        "by": families,
    }


def breaks_first(stages: Mapping[str, Sequence[Measured]]) -> dict[str, Any] | None:
    """The stage that is first past its limit when events and items both are 100 times those of the largest size.

    Seconds go on with the exponents of events and of items together (1 where one is not known), and what a stage adds
    to the memory in proportion to the larger of the two; a stage breaks by time at eight hours, by memory at 4 GiB.
    The first is the one that needs the largest multiple of its limit.
    """
    foreseen = [_foresee(points) for points in stages.values() if points]
    return max(foreseen, key=lambda row: float(row["times_the_limit"]), default=None)


def _fit_family(family: Family, points: Sequence[Measured]) -> dict[str, Any] | None:
    chosen = sorted((p for p in _members(family, points) if p.seconds >= FLOOR_SECONDS), key=_grown(family))
    sizes = [_grown(family)(point) for point in chosen]
    if len(set(sizes)) < 2:
        return None
    slopes = [
        float(np.polyfit(np.log(sizes[start:]), np.log([point.seconds for point in chosen[start:]]), 1)[0])
        for start in (0, -2)
    ]
    return {
        "exponent": round(slopes[0], 3),
        "last_two": round(slopes[1], 3),
        "sizes": [point.size for point in chosen],
    }


def _members(family: Family, points: Sequence[Measured]) -> list[Measured]:
    if family == "both":
        return _diagonal(points)
    kept = "n_items" if family == "events" else "n_events"
    counts = Counter(getattr(point, kept) for point in points)
    if not counts:
        return []
    most = max(counts.values())
    value = max(value for value, count in counts.items() if count == most)
    return [point for point in points if getattr(point, kept) == value]


def _diagonal(points: Sequence[Measured]) -> list[Measured]:
    """The longest chain of sizes, from the smallest on, in which items and events both grow."""
    chains: list[list[Measured]] = []
    for point in sorted(points, key=lambda p: (p.n_items, p.n_events)):
        before = [c for c in chains if c[-1].n_items < point.n_items and c[-1].n_events < point.n_events]
        chains.append([*max(before, key=len, default=[]), point])
    return max(chains, key=len, default=[])


def _grown(family: Family) -> Any:
    return (lambda p: p.n_items) if family == "items" else (lambda p: p.n_events)


def _foresee(points: Sequence[Measured]) -> dict[str, Any]:
    largest = max(points, key=lambda p: (p.n_items * p.n_events, p.n_events))
    by = fit_stage(points)["by"]
    together = by["both"]["exponent"] if by["both"] else None
    exponent = together if together is not None else max(1.0, *(f["exponent"] for f in by.values() if f), 0.0)
    seconds = largest.seconds * FURTHER**exponent
    memory = largest.peak_mb - largest.added_mb + largest.added_mb * FURTHER
    shares = {"time": seconds / NIGHT_SECONDS, "memory": memory / MEMORY_LIMIT_MB}
    reason = max(shares, key=lambda name: shares[name])
    return {
        "stage": largest.stage,
        "reason": reason,
        "from_size": largest.size,
        "foreseen_hours": round(seconds / 3600, 2),
        "foreseen_memory_gb": round(memory / 1000, 1),
        "times_the_limit": round(shares[reason], 2),
    }
