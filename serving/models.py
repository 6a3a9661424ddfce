"""What goes over the wire, as models: bodies are validated by them, answers only described by them.

They know nothing of how answers are made; ``serving.answers`` writes what is described here, and a test compares them.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.domain.online import Boost, SlateRequest

MAX_LENGTH = 500
MAX_NAMED = 1_000
MAX_TEXT = 10_000
MAX_ID = 1_024

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Ids = Annotated[list[Id], Field(max_length=MAX_NAMED)]
Label = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Labels = Annotated[list[Label], Field(max_length=100)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class BoostBody(_Body):
    """Raises or lowers the items that a term names."""

    kind: Literal["category", "attribute", "item"]
    """What ``value`` is."""
    value: Label
    """A category, an attribute as ``name=value``, or the id of an item."""
    weight: float = Field(ge=-1, le=1, allow_inf_nan=False)
    """Added to the score, in units of the size of the best score without boosts."""


class SlateBody(_Body):
    """What somebody asks for: a user, a text, liked items, any of them together, or nothing for what is popular."""

    user_id: Id | None = None
    """A user; one that is not known is served what is popular."""
    text: str | None = Field(default=None, min_length=1, max_length=MAX_TEXT)
    """What they are looking for, in their words; it counts for this request alone."""
    liked: Ids = []
    """Items that count as liked in this request alone, the last one newest."""
    disliked: Ids = []
    """Items that count as disliked in this request alone."""
    k: int = Field(default=10, ge=1, le=MAX_LENGTH)
    """How many items."""
    categories: Labels = []
    """An item must have one of them."""
    attributes: dict[Label, Labels] = Field(default={}, max_length=100)
    """For each name, an item must have one of the values."""
    available: bool = True
    """Whether items must be available."""
    exclude_seen: bool = True
    """Whether items that the user has met are left out."""
    exclude_items: Ids = []
    """Items that are left out."""
    diversity: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Weight of unlikeness in the order (MMR); 0 is by score alone."""
    boosts: list[BoostBody] = Field(default=[], max_length=100)
    """What is raised or lowered."""
    explain: bool = False
    """Whether each item says why."""
    method: Literal["fused", "neighbours"] = "fused"
    """How scores are made: the learned vectors, or the neighbours of what the user liked."""

    def as_request(self) -> SlateRequest:
        """The record that the online side takes."""
        return SlateRequest(
            user_id=self.user_id,
            text=self.text,
            liked=tuple(self.liked),
            disliked=tuple(self.disliked),
            k=self.k,
            categories=tuple(self.categories),
            attributes={name: tuple(values) for name, values in self.attributes.items()},
            only_available=self.available,
            exclude_seen=self.exclude_seen,
            exclude_items=tuple(self.exclude_items),
            diversity=self.diversity,
            boosts=tuple(Boost(boost.kind, boost.value, boost.weight) for boost in self.boosts),
            explain=self.explain,
            method=self.method,
        )


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class EventRow(_Row):
    """One thing that a user did."""

    user_id: str | int
    """Who."""
    event_type: str
    """One of the event types of the settings."""
    occurred_at: str | float
    """When: ISO 8601, or a number of seconds since 1970."""
    item_id: str | int | None = None
    """What; may be left out for types whose effect is ``text``."""
    event_id: str | int | None = None
    """Your id of the event; without one it is a hash of the row."""
    value: float | None = None
    """A number, such as stars."""
    text: str | None = None
    """What the user wrote."""


class ItemRow(_Row):
    """One item; it replaces an earlier one of the same id."""

    item_id: str | int
    """Its id."""
    title: str
    """What people call it; may be empty."""
    description: str | None = None
    """Longer text."""
    categories: list[str] | str | None = None
    """Labels."""
    attributes: dict[str, Any] | str | None = None
    """Anything else."""
    available: bool | str | int | None = None
    """May it be recommended now?"""
    updated_at: str | float | None = None
    """When your source last changed it."""


class UserRow(_Row):
    """What a user told of themselves."""

    user_id: str | int
    """Who."""
    attributes: dict[str, Any] | str | None = None
    """Anything that may be learned from."""


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class ErrorDetail(_Answer):
    """What went wrong."""

    type: str
    """A name for programs."""
    message: str
    """A sentence for people."""
    advice: str | None = None
    """What to do next."""
    request_id: str
    """By which the log of the service has it; also in the header ``X-Request-Id``."""


class ErrorAnswer(_Answer):
    """The shape of every error."""

    error: ErrorDetail


class Rejected(_Answer):
    """A row that was not taken."""

    index: int
    """Its place in the request, from 0."""
    reason: str
    """Why."""


class ReceiptAnswer(_Answer):
    """What became of the rows. They are durable."""

    receipt_id: str
    """The ``batch_id`` under which they are stored."""
    accepted: int
    """Rows that are in the warehouse now."""
    duplicates: int
    """Rows that were there already."""
    rejected: list[Rejected]
    """Rows that are in quarantine instead."""
    snapshot: int
    """A snapshot of the warehouse that holds all of them."""


class RefusedAnswer(ReceiptAnswer):
    """No row could be taken: the receipt, and the error beside it."""

    error: ErrorDetail


class Parts(_Answer):
    """Where a score comes from; they add up to it."""

    text: float
    factors: float
    prior: float
    boost: float
    neighbours: float


class Reason(_Answer):
    """One reason of a score."""

    kind: Literal["item", "text", "attributes", "rest"]
    label: str
    item_id: str | None
    contribution: float
    """What it adds to the score."""
    share: float
    """That over the size of the score; may be negative."""


class SlateItem(_Answer):
    """One item."""

    rank: int
    item_id: str
    title: str
    categories: list[str]
    score: float
    parts: Parts
    because: list[Reason]
    """Empty unless ``explain`` was asked for."""


class SlateAnswer(_Answer):
    """A slate, best first, and how fresh it is."""

    items: list[SlateItem]
    user_id: str | None
    source: str
    """What the query was made from."""
    version: str
    """The model version."""
    alpha: float
    beta: float
    n_history: int
    as_of_snapshot: int | None
    """What the user's stored profile is true for."""
    pending_events: int
    """Events since then; they are in this slate."""
    stale_seconds: float
    """Age of the oldest event that is not in this slate; 0: none."""
    fallbacks: list[str]
    """What this slate had to do without."""
    note: str


class EvidenceAnswer(_Answer):
    """An event or attribute behind a profile."""

    kind: Literal["item", "text", "attribute"]
    label: str
    item_id: str | None
    weight: float
    at: datetime | None


class CategoryShare(_Answer):
    """A category's share of the positive weight in the history."""

    category: str
    share: float


class ProfileAnswer(_Answer):
    """What the platform believes of a user, and from what."""

    user_id: str
    version: str
    n_history: int
    alpha: float
    """Weight of text against behaviour."""
    beta: float
    """Weight of popularity."""
    drift: float
    """Cosine distance of short and long interest."""
    as_of_snapshot: int
    pending_events: int
    """Events since then; they are in here."""
    categories: list[CategoryShare]
    evidence: list[EvidenceAnswer]
    """The newest."""
    n_evidence: int
    """All of it."""
    note: str


class RemovedAnswer(_Answer):
    """One place from which a person was removed."""

    place: str
    removed: int
    left: int


class ErasureAnswer(_Answer):
    """What was removed of a person, and where."""

    erasure_id: str
    user: str
    """A salted pseudonym."""
    erased_at: datetime
    removed: list[RemovedAnswer]
    expired_snapshots: int
    deleted_files: int
    remains: list[str]
    """What goes later, and with what."""
    is_complete: bool


class ProblemAnswer(_Answer):
    """Something that keeps the platform from being whole."""

    name: str
    text: str
    advice: str


class HealthAnswer(_Answer):
    """Whether requests are answered, and how well."""

    state: Literal["ready", "degraded", "unavailable"]
    version: str | None
    problems: list[ProblemAnswer]
    watermark: int | None
    """Snapshot up to which all events are in the stored profiles."""
    waiting_events: int
    """Events that no stored profile holds yet."""
    oldest_waiting_seconds: float
    index: str
    """What is searched."""
