"""Records that cross module borders. They know nothing of how they are stored or shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

Severity = Literal["stop", "warn"]
EventEffect = Literal["positive", "negative", "rating", "text", "ignored", "retraction"]
SlateSource = Literal["profile", "attributes", "text", "liked_items", "popular", "latest", "similar_item", "neighbours"]
SlateMethod = Literal["fused", "neighbours"]
Likeness = Literal["both", "factors", "text"]


@dataclass(frozen=True)
class Receipt:
    """What one stage did.

    ``n_in`` and ``n_out`` count rows of the stage's own grain; ``location`` is a table, collection or path;
    ``reused`` says that nothing had changed and the earlier output stands.
    """

    stage: str
    n_in: int
    n_out: int
    location: str
    seconds: float
    version: str | None = None
    reused: bool = False
    note: str = ""


@dataclass(frozen=True)
class EventType:
    """How one type of event enters learning.

    ``positive`` and ``negative``: the user likes or dislikes the item with confidence ``weight``.
    ``rating``: ``value >= threshold`` is positive with ``weight``, anything lower only marks the item as seen,
    and ``value <= dislike_below`` (where given) is negative with ``weight``.
    ``text``: no item is needed; ``text`` says what the user wants. ``ignored``: kept, but not learned from.
    ``retraction``: takes back the event that has the same ``event_id``.
    """

    name: str
    effect: EventEffect
    weight: float = 1.0
    threshold: float | None = None
    dislike_below: float | None = None


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one expectation on one table.

    ``observed`` and ``allowed`` are short texts for people; ``failed_rows`` are positions in the checked batch,
    ``n_failed`` counts them (it may exceed ``len(failed_rows)``); ``advice`` says what to do next.
    """

    table: str
    expectation: str
    column: str | None
    severity: Severity
    passed: bool
    observed: str
    allowed: str
    n_failed: int = 0
    failed_rows: tuple[int, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class ItemPayload:
    """What is stored beside an item's vector, for filters and for showing it. ``attributes`` are terms such as
    ``language=en``, sorted: ``tasks.domain.attribute_terms`` makes them."""

    item_id: str
    title: str
    categories: tuple[str, ...] = ()
    available: bool = True
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class UserPayload:
    """What is stored beside a user's query vector. ``seen`` are the items that the user has met, by id."""

    user_id: str
    n_history: int
    alpha: float
    beta: float
    as_of_snapshot: int
    seen: tuple[str, ...] = ()


@dataclass(frozen=True)
class IndexFilter:
    """Restricts a search: an item must be available, must have any of ``categories`` (when given), any term of each
    group of ``attributes``, and must not be one of ``exclude_items``. With ``only_items`` it must be one of these."""

    categories: tuple[str, ...] = ()
    attributes: tuple[tuple[str, ...], ...] = ()
    exclude_items: frozenset[str] = frozenset()
    only_available: bool = True
    only_items: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Hit:
    """One answer of the index: an item and the dot product of its vector with the query. ``vector`` (width,) float32 is
    there if it was asked for."""

    item_id: str
    score: float
    payload: ItemPayload
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Because:
    """One reason of a score: a history item, a text of the user, their attributes, a boost of the request, or the rest
    taken together.

    ``contribution`` is what it adds to the score and ``share`` is that over the size of the score; both may be
    negative. Over all reasons of an explained item, contributions add up to the score without ``prior_part``.
    """

    kind: Literal["item", "text", "attributes", "boost", "rest"]
    label: str
    share: float
    item_id: str | None = None
    contribution: float = 0.0


@dataclass(frozen=True)
class Recommendation:
    """One item of a slate. Its parts add up to its score to 1e-4; ``neighbours_part`` is all of it where the source is
    ``neighbours``, and nothing elsewhere; ``boost_part`` is what the boosts of the request added."""

    item_id: str
    title: str
    rank: int
    score: float
    text_part: float
    factors_part: float
    prior_part: float
    because: tuple[Because, ...] = ()
    neighbours_part: float = 0.0
    boost_part: float = 0.0
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slate:
    """The final ordered list for one request; ranks start at 1, items are distinct.

    ``as_of_snapshot`` is what the user's vector is true for, and ``n_pending_events`` came after that and are in the
    slate all the same; ``stale_seconds`` is the age of the oldest event that is *not* in it (0: none). ``fallbacks``
    name what this slate had to do without, such as ``unknown_user``, ``empty_history`` or ``index_away``.
    """

    version: str
    source: SlateSource
    alpha: float
    beta: float
    items: tuple[Recommendation, ...]
    user_id: str | None = None
    n_history: int = 0
    note: str = ""
    as_of_snapshot: int | None = None
    n_pending_events: int = 0
    stale_seconds: float = 0.0
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedItem:
    """An item that two users liked."""

    item_id: str
    title: str


@dataclass(frozen=True)
class SimilarUser:
    """A user who is like another one: the cosine of their vectors, how many items both liked, and some of these, those
    that the fewest people like first."""

    user_id: str
    rank: int
    similarity: float
    n_shared: int
    shared: tuple[SharedItem, ...]


@dataclass(frozen=True)
class SimilarUsers:
    """The users most like one user in a model version, by their factors or texts; ranks start at 1. By ``nothing``,
    and then nobody, if there is no history to be compared."""

    version: str
    user_id: str
    by: Literal["factors", "text", "nothing"]
    users: tuple[SimilarUser, ...]
    note: str = ""


@dataclass(frozen=True)
class NearlineRun:
    """What one refresh did. ``lag`` is from an event's arrival in the warehouse to its profile being served.
    ``n_new_items`` were added to the version."""

    version: str
    from_snapshot: int
    to_snapshot: int
    n_events: int
    n_users: int
    n_missing_texts: int
    started_at: datetime
    finished_at: datetime
    lag_p50_seconds: float | None = None
    lag_p95_seconds: float | None = None
    lag_p99_seconds: float | None = None
    n_new_items: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
