"""How every route is answered: in a thread of its lane, within a time limit. It knows nothing of single routes."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from infra.settings import ServiceSettings
from serving.access import Access
from serving.answers import json_bytes
from serving.errors import HttpError, retry_after
from serving.limits import Lane, read_body
from serving.metrics import Metrics
from tasks.domain.errors import NotFoundError
from tasks.domain.online import BelievedProfile, ErasureReceipt, Health, IntakeKind, IntakeReceipt, SlateRequest
from tasks.domain.records import Likeness, Slate

LaneName = Literal["reads", "writes", "watch", "admin"]
Work = Callable[[bytes], tuple[int, Mapping[str, object]]]
ADMIN_SECONDS = 600.0
T = TypeVar("T")


class Online(Protocol):
    """What the routes ask; ``tasks.online.service.OnlineService`` is one. Many threads call it at once."""

    def accept(self, kind: IntakeKind, rows: Sequence[Mapping[str, object]], *, source: str) -> IntakeReceipt:
        """Take rows; they are durable when it returns. Raises OverloadedError, InputError."""

    def recommend(self, request: SlateRequest) -> Slate:
        """A slate for whatever is known. Raises InputError, NotFoundError."""

    def similar(self, item_id: str, *, k: int, by: Likeness) -> Slate:
        """Items that are like one. Raises NotFoundError."""

    def profile(self, user_id: str) -> BelievedProfile:
        """What is believed of a user. Raises NotFoundError."""

    def popular(self, request: SlateRequest) -> Slate:
        """What most people like, under the filters of the request."""

    def latest(self, request: SlateRequest) -> Slate:
        """What came last, under the filters of the request."""

    def health(self) -> Health:
        """Whether requests are answered."""

    def erase(self, user_id: str) -> ErasureReceipt:
        """Remove a person."""

    def stats(self) -> Mapping[str, float]:
        """Gauges by name."""


@dataclass(frozen=True)
class Desk:
    """What all routes share."""

    online: Online
    settings: ServiceSettings
    access: Access
    metrics: Metrics
    lanes: Mapping[LaneName, Lane]

    async def answer(self, request: Request, lane: LaneName, work: Work) -> Response:
        """Run ``work`` on the body in a thread, and send what it returns. Raises HttpError when the time is over."""
        return self.send(*await self.run(request, lane, lambda body: self._asked(work, body)))

    async def run(self, request: Request, lane: LaneName, work: Callable[[bytes], T]) -> T:
        """What ``work`` makes of the body, in a thread."""
        seconds = ADMIN_SECONDS if lane == "admin" else self.settings.request_timeout_seconds
        with self.lanes[lane].enter() as place:
            try:
                async with asyncio.timeout(seconds):
                    body = await read_body(request, self.settings.max_body_bytes)
                    return await place.run(lambda: work(body))
            except TimeoutError:
                advice = "Send the same again; rows that have an event_id are never counted twice."
                message = f"The request was not done within {seconds:g} seconds."
                raise HttpError(503, "timeout", message, advice, retry_after(1)) from None

    @staticmethod
    def send(status: int, body: bytes) -> Response:
        """JSON as an answer."""
        return Response(body, status, media_type="application/json")

    def close(self) -> None:
        """Let the threads end."""
        for lane in self.lanes.values():
            lane.close()

    def _asked(self, work: Work, body: bytes) -> tuple[int, bytes]:
        try:
            status, document = work(body)
        except NotFoundError:
            if self.online.health().version is None:
                raise HttpError(
                    503,
                    "nothing_published",
                    "No model version is published yet, so there is nothing to recommend from.",
                    "Import items and events, then: nearline run daily_batch.",
                    retry_after(60),
                ) from None
            raise
        return status, json_bytes(document)
