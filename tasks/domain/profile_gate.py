"""What must hold before a refreshed profile is served. It knows nothing of where profiles go."""

import numpy as np
import numpy.typing as npt

from tasks.domain.profiles import Profiles
from tasks.domain.records import CheckResult

LENGTH_TOLERANCE = 1e-3


def check_profiles(profiles: Profiles, text_width: int, n_factors: int) -> list[CheckResult]:
    """The gate ``nearline``: widths, finite values, texts of unit length or zero, alpha in [0, 1]. All of them stop."""
    text_norms = np.linalg.norm(profiles.text, axis=1)
    values = np.column_stack([profiles.text, profiles.factors, profiles.alpha, profiles.beta, profiles.drift])
    largest: npt.NDArray[np.float32] = np.abs(values).max(axis=1)
    widths, expected = (profiles.text.shape[1], profiles.factors.shape[1]), (text_width, n_factors)
    right_width = np.full(len(profiles.user_ids), widths == expected)
    is_unit_or_zero = np.minimum(text_norms, np.abs(text_norms - 1)) < LENGTH_TOLERANCE
    return [
        _check("vector_widths", "factors", right_width, f"{widths}", f"{expected}"),
        _check("finite_values", None, np.isfinite(largest), "NaN or infinity", "finite numbers"),
        _check("unit_or_zero_length", "text_embedding", is_unit_or_zero, "another length", "1 (to 0.001) or 0"),
        _check("share", "alpha", np.abs(profiles.alpha - 0.5) <= 0.5, "outside", "0 to 1"),
    ]


def _check(
    expectation: str, column: str | None, passed: npt.NDArray[np.bool_], found: str, allowed: str
) -> CheckResult:
    failed = np.flatnonzero(~passed)
    return CheckResult(
        table="user_profiles",
        expectation=expectation,
        column=column,
        severity="stop",
        passed=len(failed) == 0,
        observed=f"{found} in {len(failed)} of {len(passed)} profiles" if len(failed) else "as expected",
        allowed=allowed,
        n_failed=len(failed),
        failed_rows=tuple(failed[:20].tolist()),
        advice="The users keep the profiles they have. Look at their events in fct_interactions and at the factors of"
        " the version; `nearline rollback` serves the version before it.",
    )
