"""What goes in and out of the online side, as records. It knows nothing of HTTP or of how answers are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import pyarrow as pa

from tasks.domain.records import SlateMethod

IntakeKind = Literal["events", "items", "users"]
HealthState = Literal["ready", "degraded", "unavailable"]


@dataclass(frozen=True)
class Boost:
    """Raises or lowers the items that a term names: ``category``, ``attribute`` (``name=value``) or ``item``.

    ``weight``, in [-1, 1], is added to their scores in units of the size of the best score without boosts.
    """

    kind: Literal["category", "attribute", "item"]
    value: str
    weight: float


@dataclass(frozen=True)
class SlateRequest:
    """What somebody asks for: at least one of a user, a text and liked items, or nothing for what is popular.

    ``liked`` (the last one newest) and ``disliked`` count as events of this request alone; ``text`` as something the
    user has just written. ``categories``: an item must have one of them. ``attributes``: for each name, an item must
    have one of the values. ``diversity``, in [0, 1], is the weight of unlikeness in the order (MMR); 0 is by score
    alone.
    """

    user_id: str | None = None
    text: str | None = None
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    k: int = 10
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_available: bool = True
    exclude_seen: bool = True
    exclude_items: tuple[str, ...] = ()
    diversity: float = 0.0
    boosts: tuple[Boost, ...] = ()
    explain: bool = False
    method: SlateMethod = "fused"


@dataclass(frozen=True)
class RejectedRow:
    """A row that was not taken: its place in the request, from 0, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class IntakeReceipt:
    """What became of one request's rows; they are durable once it is given out.

    ``n_accepted`` rows are in the warehouse now, ``n_duplicates`` were there already. ``snapshot`` is one that holds
    all of them; ``receipt_id`` is the ``batch_id`` under which they are stored.
    """

    receipt_id: str
    n_accepted: int
    n_duplicates: int
    rejected: tuple[RejectedRow, ...]
    snapshot: int


@dataclass(frozen=True)
class CommittedRows:
    """Rows of one commit as they stand in ``raw_<kind>``, with a snapshot that holds them."""

    kind: IntakeKind
    rows: pa.Table
    snapshot: int


@dataclass(frozen=True)
class Problem:
    """Something that keeps the platform from being whole: a name for programs, a sentence, and what to do."""

    name: str
    text: str
    advice: str


@dataclass(frozen=True)
class Health:
    """Whether requests are answered, and how well. ``degraded``: answered, with each problem named."""

    state: HealthState
    version: str | None
    problems: tuple[Problem, ...]
    watermark: int | None
    n_waiting_events: int
    oldest_waiting_seconds: float
    index: str


@dataclass(frozen=True)
class Evidence:
    """An event or attribute behind a profile, the newest first; ``weight`` is its signed confidence."""

    kind: Literal["item", "text", "attribute"]
    label: str
    item_id: str | None
    weight: float
    at: datetime | None


@dataclass(frozen=True)
class BelievedProfile:
    """What the platform believes of a user, and from what.

    ``categories`` are shares of the positive weight in the history, the largest first. ``n_evidence`` counts all
    of the evidence, of which the newest is listed. ``n_pending_events`` came after ``as_of_snapshot`` and are in here
    all the same.
    """

    user_id: str
    version: str
    n_history: int
    alpha: float
    beta: float
    drift: float
    as_of_snapshot: int
    n_pending_events: int
    categories: tuple[tuple[str, float], ...]
    evidence: tuple[Evidence, ...]
    n_evidence: int
    note: str = ""


@dataclass(frozen=True)
class RemovedRows:
    """How many rows or points of a user were removed from one place, and how many are there now."""

    place: str
    n_removed: int
    n_left: int


@dataclass(frozen=True)
class ErasureReceipt:
    """What was removed of one user and where; ``user`` is a salted pseudonym. ``remains`` says in sentences what goes
    later, and with what."""

    erasure_id: str
    user: str
    erased_at: datetime
    removed: tuple[RemovedRows, ...]
    n_expired_snapshots: int
    n_deleted_files: int
    remains: tuple[str, ...]
    is_complete: bool
