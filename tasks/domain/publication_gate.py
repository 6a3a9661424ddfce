"""The gate ``publish``: what a version must hold before it may serve, as check results.

It knows nothing of where the numbers come from or where the results go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.domain.projections import TOP_K, Projection, slate_overlap
from tasks.domain.records import CheckResult, Severity

ITEMS, USERS, INDEX = "item_factors", "user_profiles", "index"
TRAIN_AGAIN = "Run the daily batch again: it trains and writes a version anew. If it repeats, look at the encoder."
WRITE_AGAIN = "Run it again: the version is written anew. If it repeats, another program writes to this index."


@dataclass(frozen=True)
class PublicationLimits:
    """Shares in [0, 1]: of items that must have a text, and of the catalog that may be missing or lost."""

    min_text_coverage: float = 0.5
    max_catalog_drop: float = 0.2


def check_shapes(n_wrong_width: Mapping[str, int], n_not_finite: Mapping[str, int]) -> list[CheckResult]:
    """Stored vectors by table: how many have another width than their version, or values that are not finite."""
    wanted = (("vectors have the width of their version", n_wrong_width), ("vectors are finite", n_not_finite))
    return [
        _all(table, expectation, n_failed, TRAIN_AGAIN)
        for expectation, counts in wanted
        for table, n_failed in counts.items()
    ]


def check_projection(
    candidate: Projection, n_catalog: int, serving: Projection | None, limits: PublicationLimits
) -> list[CheckResult]:
    """Values, norms, coverage, and drift against the serving version, before anything is written.

    ``n_catalog`` counts the available items of the catalog now.
    """
    results = [
        *_check_vectors(ITEMS, candidate.items, candidate.item_text),
        *_check_vectors(USERS, candidate.users, candidate.user_text),
        _share(
            ITEMS,
            "items have something to be found by",
            candidate.items.any(axis=1),
            0.5,
            "Give the items texts, or import events, and run the daily batch again.",
        ),
        _share(
            ITEMS,
            "items have a text embedding",
            candidate.item_text.any(axis=1),
            limits.min_text_coverage,
            "Import titles or descriptions; or lower gates.min_text_coverage (NEARLINE_GATES__MIN_TEXT_COVERAGE).",
        ),
        _check_catalog(candidate, n_catalog, limits.max_catalog_drop),
    ]
    return results if serving is None else results + _check_drift(candidate, serving, limits.max_catalog_drop)


def check_counts(expected: tuple[int, int], found: tuple[int, int]) -> CheckResult:
    """The index holds every item and no other, and every user (a refresh may have added some since)."""
    return _result(
        INDEX,
        "holds as many points as the warehouse has rows",
        found[0] == expected[0] and found[1] >= expected[1],
        f"{found[0]} items and {found[1]} users",
        f"{expected[0]} items and {expected[1]} users",
        WRITE_AGAIN,
    )


def check_sample(kind: str, n_checked: int, n_wrong: int, expected: str, found: str) -> CheckResult:
    """A sample of points reads back as the warehouse has it, to the bit: checksums ``expected`` and ``found``."""
    return _result(
        INDEX,
        f"a sample of {kind} reads back as it was written",
        n_wrong == 0 and expected == found,
        f"checksum {found}, {n_wrong} of {n_checked} differ",
        f"checksum {expected}",
        WRITE_AGAIN,
        n_failed=n_wrong,
    )


def check_canaries(recalls: Sequence[float], least: float) -> CheckResult:
    """Searches of the index find what exact search over the warehouse's vectors finds: a share for each query."""
    mean = float(np.mean(recalls)) if recalls else 1.0
    return _result(
        INDEX,
        f"canary queries find the exact top {TOP_K}",
        mean >= least,
        f"{mean:.1%} of it over {len(recalls)} users",
        f"at least {least:.0%}",
        "Run it again: the version is written anew. If it repeats, look at the search settings of the index.",
        n_failed=sum(recall < 1 for recall in recalls),
    )


def _check_vectors(
    table: str, fused: npt.NDArray[np.float32], text: npt.NDArray[np.float32]
) -> tuple[CheckResult, CheckResult]:
    norms = np.linalg.norm(text, axis=1)
    n_spoiled = int((~np.isfinite(fused).all(axis=1)).sum())
    n_off = int(((norms != 0) & ~(np.abs(norms - 1) <= 1e-3)).sum())
    return (
        _all(table, "fused vectors are finite", n_spoiled, TRAIN_AGAIN),
        _all(table, "text blocks have unit length, or are empty", n_off, TRAIN_AGAIN),
    )


def _check_catalog(candidate: Projection, n_catalog: int, max_drop: float) -> CheckResult:
    n_held = int(candidate.available.sum())
    return _result(
        ITEMS,
        "the version holds the catalog",
        n_held >= (1 - max_drop) * n_catalog,
        f"{n_held} of {n_catalog} available items",
        f"at least {1 - max_drop:.0%}",
        "The catalog has grown since this version was trained: run the daily batch again.",
        n_failed=max(0, n_catalog - n_held),
    )


def _check_drift(candidate: Projection, serving: Projection, max_drop: float) -> list[CheckResult]:
    n_before, n_after = int(serving.available.sum()), int(candidate.available.sum())
    overlap = slate_overlap(candidate, serving)
    return [
        _result(
            ITEMS,
            "the catalog did not shrink since the serving version",
            n_after >= (1 - max_drop) * n_before,
            f"{n_after} available items after {n_before}",
            f"at most {max_drop:.0%} fewer",
            "Import the missing items again; or, if it is meant, raise gates.max_catalog_drop "
            "(NEARLINE_GATES__MAX_CATALOG_DROP) for this run.",
        ),
        _result(
            USERS,
            "users were not lost since the serving version",
            len(candidate.users) >= (1 - max_drop) * len(serving.users),
            f"{len(candidate.users)} users after {len(serving.users)}",
            f"at most {max_drop:.0%} fewer",
            "Look whether events are missing: nearline status shows the last imports.",
            severity="warn",
        ),
        _result(
            USERS,
            f"slates of {TOP_K} resemble those of the serving version",
            overlap is None or overlap >= 0.1,
            "no user is in both" if overlap is None else f"{overlap:.1%} of the items are the same",
            "at least 10%",
            "Compare a few users with nearline recommend before you trust it; nearline rollback goes back.",
            severity="warn",
        ),
    ]


def _share(table: str, expectation: str, holds: npt.ArrayLike, least: float, advice: str) -> CheckResult:
    """A share of no items at all is 0."""
    n_held, n_all = int(np.sum(holds)), int(np.size(holds))
    share, n_failed = n_held / max(1, n_all), n_all - n_held
    return _result(
        table, expectation, share >= least, f"{share:.1%}", f"at least {least:.0%}", advice, n_failed=n_failed
    )


def _all(table: str, expectation: str, n_failed: int, advice: str) -> CheckResult:
    return _result(table, expectation, n_failed == 0, f"{n_failed} are not", "all", advice, n_failed=n_failed)


def _result(
    table: str,
    expectation: str,
    passed: bool,
    observed: str,
    allowed: str,
    advice: str,
    *,
    severity: Severity = "stop",
    n_failed: int = 0,
) -> CheckResult:
    return CheckResult(table, expectation, None, severity, bool(passed), observed, allowed, n_failed, (), advice)
