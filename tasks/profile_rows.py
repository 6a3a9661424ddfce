"""Profiles as they are stored: rows of the warehouse and points of the index. It knows nothing of when."""

from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.fusion import fuse_queries
from tasks.domain.profiles import Profiles
from tasks.domain.records import UserPayload
from tasks.domain.vectors import lists_from_matrix
from tasks.model_state import ModelVersion


def profile_rows(profiles: Profiles, version: str, as_of_snapshot: int, now: datetime) -> pa.Table:
    """Rows of ``user_profiles``."""
    n = len(profiles.user_ids)
    return pa.table(
        {
            "version": pa.array([version] * n, pa.string()),
            "user_id": pa.array(profiles.user_ids, pa.string()),
            "text_embedding": lists_from_matrix(profiles.text),
            "factors": lists_from_matrix(profiles.factors),
            "n_history": pa.array(profiles.n_history, pa.int64()),
            "alpha": pa.array(profiles.alpha, pa.float64()),
            "beta": pa.array(profiles.beta, pa.float64()),
            "drift": pa.array(profiles.drift, pa.float64()),
            "seen_items": pa.array(profiles.seen or [()] * n, pa.list_(pa.string())),
            "as_of_snapshot": pa.array([as_of_snapshot] * n, pa.int64()),
            "refreshed_at": pa.array([now] * n, pa.timestamp("us", tz="UTC")),
        }
    )


def user_points(
    profiles: Profiles, model: ModelVersion, as_of_snapshot: int
) -> tuple[npt.NDArray[np.float32], list[UserPayload]]:
    """Query vectors (n, width) and their payloads, as ``VectorIndex.upsert_users`` takes them."""
    vectors = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, model.recipe.fusion)
    numbers = (profiles.n_history.tolist(), profiles.alpha.tolist(), profiles.beta.tolist())
    columns = zip(profiles.user_ids, *numbers, profiles.seen or [()] * len(profiles.user_ids), strict=True)
    return vectors, [UserPayload(u, n, alpha, beta, as_of_snapshot, seen) for u, n, alpha, beta, seen in columns]
