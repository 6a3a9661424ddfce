"""The routes: what each is asked with, and which method of the online side answers. Nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from serving import models
from serving.answers import (
    erasure_answer,
    health_answer,
    json_bytes,
    profile_answer,
    receipt_answer,
    slate_answer,
)
from serving.bodies import parse_rows, parse_slate
from serving.desk import Desk
from serving.errors import HttpError
from serving.metrics import CONTENT_TYPE
from serving.openapi import asked, errors
from tasks.domain.access import Scope
from tasks.domain.errors import InputError
from tasks.domain.online import IntakeKind, SlateRequest
from tasks.domain.records import Likeness

router = APIRouter(redirect_slashes=False)

UserId = Annotated[
    str, Path(min_length=1, max_length=models.MAX_ID, description="A user. Percent-encode it, slashes too.")
]
ItemId = Annotated[
    str, Path(min_length=1, max_length=models.MAX_ID, description="An item. Percent-encode it, slashes too.")
]


class ListQuery(BaseModel):
    """How long a slate is, and what may be in it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    k: int = Field(default=10, ge=1, le=models.MAX_LENGTH)
    """How many items."""
    category: models.Labels = []
    """An item must have one of these; may be repeated."""
    attribute: models.Labels = []
    """``name=value``; may be repeated. Of values of one name an item must have one, of names all."""
    available: bool = True
    """Whether items must be available."""

    def as_request(self, user_id: str | None = None) -> SlateRequest:
        """The record that the online side takes."""
        return SlateRequest(
            user_id=user_id,
            k=self.k,
            categories=tuple(self.category),
            attributes=self.attributes(),
            only_available=self.available,
        )

    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Values by name. Raises InputError."""
        found: dict[str, tuple[str, ...]] = {}
        for term in self.attribute:
            name, equals, value = term.partition("=")
            if not (name and equals and value):
                raise InputError("An attribute was given that is not name=value, such as attribute=language=en.")
            found[name] = (*found.get(name, ()), value)
        return found


class SlateQuery(ListQuery):
    """How a user's slate is made."""

    exclude_seen: bool = True
    """Whether items that the user has met are left out."""
    diversity: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Weight of unlikeness in the order (MMR); 0 is by score alone."""
    explain: bool = False
    """Whether each item says why."""
    method: Literal["fused", "neighbours"] = "fused"
    """How scores are made: the learned vectors, or the neighbours of what the user liked."""

    def as_request(self, user_id: str | None = None) -> SlateRequest:
        """The record that the online side takes."""
        return replace(
            super().as_request(user_id),
            exclude_seen=self.exclude_seen,
            diversity=self.diversity,
            explain=self.explain,
            method=self.method,
        )


class SimilarQuery(BaseModel):
    """How many, and by what."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    k: int = Field(default=10, ge=1, le=models.MAX_LENGTH)
    """How many items."""
    by: Likeness = "factors"
    """What is compared: who likes them, what they say, or both."""


def needs(scope: Scope) -> Any:
    """Let a request in only with a key of that scope."""

    async def check(request: Request) -> None:
        _desk(request).access.check(request, scope)

    return Depends(check)


@router.post(
    "/v1/events",
    dependencies=[needs("write")],
    summary="Take in events",
    response_model=models.ReceiptAnswer,
    responses=errors(413, 415, refused=True),
    openapi_extra=asked("EventRow", rows=True),
    tags=["intake"],
)
async def send_events(request: Request) -> Response:
    """One event as an object, or a list of up to 1,000. It answers when they are durable; the next request shows them.

    With an ``event_id`` the same event may be sent again: it counts once.
    """
    return await _take(request, "events")


@router.post(
    "/v1/items",
    dependencies=[needs("write")],
    summary="Take in items",
    response_model=models.ReceiptAnswer,
    responses=errors(413, 415, refused=True),
    openapi_extra=asked("ItemRow", rows=True),
    tags=["intake"],
)
async def send_items(request: Request) -> Response:
    """One item as an object, or a list of up to 1,000. A later row of the same item replaces the earlier one."""
    return await _take(request, "items")


@router.post(
    "/v1/users",
    dependencies=[needs("write")],
    summary="Take in what users told of themselves",
    response_model=models.ReceiptAnswer,
    responses=errors(413, 415, refused=True),
    openapi_extra=asked("UserRow", rows=True),
    tags=["intake"],
)
async def send_users(request: Request) -> Response:
    """One user as an object, or a list of up to 1,000. Not needed: everyone with an event is a user."""
    return await _take(request, "users")


@router.get(
    "/v1/users/{user_id:path}/recommendations",
    dependencies=[needs("read")],
    summary="Recommend to a user",
    response_model=models.SlateAnswer,
    responses=errors(404),
    tags=["recommendations"],
)
async def recommend_to_user(request: Request, user_id: UserId, query: Annotated[SlateQuery, Query()]) -> Response:
    """A slate with the parts of every score. An unknown user gets what is popular, and ``fallbacks`` says so."""
    return await _read(request, lambda desk: slate_answer(desk.online.recommend(query.as_request(user_id))))


@router.post(
    "/v1/recommendations",
    dependencies=[needs("read")],
    summary="Recommend to a user, for a text, or for liked items",
    response_model=models.SlateAnswer,
    responses=errors(404, 413, 415),
    openapi_extra=asked("SlateBody"),
    tags=["recommendations"],
)
async def recommend(request: Request) -> Response:
    """The same with everything that can be asked for; all of it is optional, and nothing is kept."""
    desk = _desk(request)
    return await desk.answer(
        request,
        "reads",
        lambda body: (200, slate_answer(desk.online.recommend(parse_slate(body).as_request()))),
    )


@router.get(
    "/v1/items/{item_id:path}/similar",
    dependencies=[needs("read")],
    summary="Items that are like one",
    response_model=models.SlateAnswer,
    responses=errors(404),
    tags=["recommendations"],
)
async def similar(request: Request, item_id: ItemId, query: Annotated[SimilarQuery, Query()]) -> Response:
    """By who likes them, by what they say, or by both."""
    return await _read(request, lambda desk: slate_answer(desk.online.similar(item_id, k=query.k, by=query.by)))


@router.get(
    "/v1/popular",
    dependencies=[needs("read")],
    summary="What is popular",
    response_model=models.SlateAnswer,
    responses=errors(),
    tags=["recommendations"],
)
async def popular(request: Request, query: Annotated[ListQuery, Query()]) -> Response:
    """For everybody the same."""
    return await _read(request, lambda desk: slate_answer(desk.online.popular(query.as_request())))


@router.get(
    "/v1/latest",
    dependencies=[needs("read")],
    summary="What came last",
    response_model=models.SlateAnswer,
    responses=errors(),
    tags=["recommendations"],
)
async def latest(request: Request, query: Annotated[ListQuery, Query()]) -> Response:
    """The newest items first, for everybody the same."""
    return await _read(request, lambda desk: slate_answer(desk.online.latest(query.as_request())))


@router.get(
    "/v1/users/{user_id:path}/profile",
    dependencies=[needs("read")],
    summary="What is believed of a user",
    response_model=models.ProfileAnswer,
    responses=errors(404),
    tags=["users"],
)
async def profile(request: Request, user_id: UserId) -> Response:
    """What the platform believes of a user, and from which events."""
    return await _read(request, lambda desk: profile_answer(desk.online.profile(user_id)))


@router.delete(
    "/v1/users/{user_id:path}",
    dependencies=[needs("admin")],
    summary="Erase a user",
    response_model=models.ErasureAnswer,
    responses=errors(404),
    tags=["users"],
)
async def erase(request: Request, user_id: UserId) -> Response:
    """Removes a person everywhere and says where. It may take minutes; asking again does no harm."""
    desk = _desk(request)
    return await desk.answer(request, "admin", lambda _: (200, erasure_answer(desk.online.erase(user_id))))


@router.get(
    "/v1/health",
    summary="How it is doing",
    response_model=models.HealthAnswer,
    responses={503: {"model": models.HealthAnswer, "description": "Requests cannot be answered."}},
    openapi_extra={"security": []},
    tags=["operation"],
)
async def health(request: Request) -> Response:
    """Needs no key. 200 when requests are answered, each problem named; 503 when they are not."""
    desk = _desk(request)

    def work(_: bytes) -> tuple[int, bytes]:
        found = desk.online.health()
        return 503 if found.state == "unavailable" else 200, json_bytes(health_answer(found))

    return desk.send(*await desk.run(request, "watch", work))


@router.get(
    "/metrics",
    dependencies=[needs("read")],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}, **errors()},
    tags=["operation"],
)
async def metrics(request: Request) -> Response:
    """Requests, rows, and how fresh it all is. Needs a key with the scope ``read``."""
    desk = _desk(request)
    return Response(await desk.run(request, "watch", lambda _: desk.metrics.text()), media_type=CONTENT_TYPE)


def _desk(request: Request) -> Desk:
    return cast(Desk, request.app.state.desk)


async def _read(request: Request, work: Callable[[Desk], Mapping[str, object]]) -> Response:
    desk = _desk(request)
    return await desk.answer(request, "reads", lambda _: (200, work(desk)))


async def _take(request: Request, kind: IntakeKind) -> Response:
    desk, state = _desk(request), request.state

    def work(body: bytes) -> tuple[int, Mapping[str, object]]:
        rows = parse_rows(body, desk.settings.max_batch_rows)
        receipt = desk.online.accept(kind, rows, source=f"http:{state.key_id}")
        desk.metrics.count_rows(kind, receipt)
        answer = receipt_answer(receipt)
        if receipt.n_accepted or receipt.n_duplicates:
            return 200, answer
        refused = HttpError(422, "rejected", "No row could be taken; rejected says why.", "Correct the rows.")
        return 422, {**answer, **refused.document(state.request_id)}

    return await desk.answer(request, "writes", work)
