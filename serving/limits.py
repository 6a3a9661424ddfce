"""What keeps one caller, or all together, from taking more than there is. It knows nothing of what is asked for."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from serving.errors import HttpError, retry_after
from tasks.domain.errors import OverloadedError

T = TypeVar("T")
MAX_BUCKETS = 10_000


class TokenBuckets:
    """For each name so many requests per second, and ``burst`` at once; used from the event loop only."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, max(1.0, burst), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """0 if there was a token, else the seconds until there is one."""
        now = self._clock()
        tokens, at = self._buckets.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
        self._buckets[name] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait


class Lane:
    """Threads for one kind of request, so that no kind takes those of another.

    ``n_threads`` requests run at once and ``n_waiting`` may wait; the next one is refused, which keeps waiting short
    under any load. The threads are daemons: one that hangs keeps no process from ending.
    """

    def __init__(self, name: str, n_threads: int, n_waiting: int) -> None:
        self.name = name
        self._n_threads, self._limit = n_threads, n_threads + n_waiting
        self._n_started = self._n_inside = 0
        self._counting = threading.Lock()
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    @property
    def n_inside(self) -> int:
        """Requests that are at work or waiting."""
        return self._n_inside

    def enter(self) -> "Place":
        """A place, to be used as a context. Raises OverloadedError when all are taken."""
        with self._counting:
            if self._n_inside >= self._limit:
                raise OverloadedError(
                    f"{self._n_inside} requests of this kind ({self.name}) are at work or waiting: no more may."
                )
            self._n_inside += 1
        return Place(self)

    def leave(self) -> None:
        """Give a place back."""
        with self._counting:
            self._n_inside -= 1

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run it in a thread."""
        future: Future[T] = Future()
        self._work.put((future, function))
        if self._n_started < min(self._n_threads, self._n_inside):
            self._n_started += 1
            threading.Thread(target=self._run, name=f"{self.name}-{self._n_started}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end when they have nothing to do."""
        for _ in range(self._n_started):
            self._work.put(None)
        self._n_started = 0

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, function = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            del work, future, function


class Place:
    """One request's place in a lane; given back when its thread is done, even if nobody waits for that any more."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._is_used = False

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_used:
            self._lane.leave()

    async def run(self, function: Callable[[], T]) -> T:
        """The result, once; a request whose caller has gone before its turn is not run at all."""
        self._is_used = True
        future = self._lane.submit(function)
        future.add_done_callback(lambda _: self._lane.leave())
        return await asyncio.wrap_future(future)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, of which never more than ``max_bytes`` are held. Raises HttpError: 413 or 415."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HttpError(415, "encoding", "Bodies are taken as they are.", "Send it without Content-Encoding.")
    too_large = HttpError(
        413, "too_large", f"The body is larger than {max_bytes:,} bytes.", "Send it in several requests."
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise too_large
            parts.append(part)
    except ClientDisconnect:
        raise HttpError(400, "disconnected", "The connection was closed before the body was complete.") from None
    return b"".join(parts)


def too_fast(wait_seconds: float) -> HttpError:
    """The answer to a key that asks too often."""
    return HttpError(
        429,
        "rate_limit",
        "This key has asked for more than it may.",
        "Send the same again after Retry-After; put several rows into one request.",
        retry_after(wait_seconds),
    )
