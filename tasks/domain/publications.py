"""What the history of publications says: where a rollback goes, and which versions are kept.

It knows nothing of where publications are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

PublicationAction = Literal["publish", "rollback", "rebuild", "reconcile"]


@dataclass(frozen=True)
class Publication:
    """A switch of the serving version, as in ``publications``."""

    version: str
    previous_version: str | None
    action: PublicationAction
    published_at: datetime


def version_before(history: Sequence[Publication], version: str) -> str | None:
    """The version that served when ``version`` was first published, or None for the first of all.

    ``history`` is oldest first. A rollback does not change what came before: going back twice goes back two versions.
    """
    for publication in history:
        if publication.version == version and publication.action in ("publish", "reconcile"):
            return publication.previous_version
    return None


def has_gone_back(history: Sequence[Publication]) -> bool:
    """Whether the last switch, oldest first, was to a version that had served before."""
    return bool(history) and history[-1].version in {publication.version for publication in history[:-1]}


def kept_versions(history: Sequence[Publication], serving: str, n_versions: int) -> tuple[str, ...]:
    """The serving version, those that rollbacks would go to one after the other, then those that served last.

    At most ``n_versions``, the serving one always; ``history`` is oldest first.
    """
    kept = [serving]
    before = version_before(history, serving)
    while before is not None and before not in kept:
        kept.append(before)
        before = version_before(history, before)
    for publication in reversed(history):
        if publication.version not in kept:
            kept.append(publication.version)
    return tuple(kept[:n_versions])


def stopped_serving_at(history: Sequence[Publication], version: str) -> datetime | None:
    """When another version took the place of ``version`` for the last time; None if it never served or still does.

    ``history`` is oldest first.
    """
    switches = [p for p in history if p.action != "rebuild"]
    for earlier, later in zip(reversed(switches[:-1]), reversed(switches[1:]), strict=True):
        if earlier.version == version and later.version != version:
            return later.published_at
    return None
