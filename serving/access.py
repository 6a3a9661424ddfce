"""Which key came with a request, and whether it may do what it asks for. It knows nothing of what that is."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from starlette.requests import Request

from serving.errors import HttpError, retry_after
from serving.limits import TokenBuckets, too_fast
from tasks.domain.access import ApiKey, Scope

logger = logging.getLogger(__name__)

BURST_SECONDS = 2.0
FAILURES_PER_SECOND, FAILURES_AT_ONCE = 1.0, 20.0


class Keys(Protocol):
    """Where keys are looked up; ``infra.key_store.KeyStore`` is one."""

    def find(self, text: str, now: datetime) -> ApiKey | None:
        """The key whose text this is, unless it has expired or been revoked."""


class Access:
    """Checks a request's key, its scope and its rate; used from the event loop only.

    A caller who fails too often is told to wait, and a right key is let in all the same: behind a proxy many callers
    have one address.
    """

    def __init__(self, keys: Keys, requests_per_second: float, clock: Callable[[], datetime]) -> None:
        self._keys, self._clock = keys, clock
        self._requests = TokenBuckets(requests_per_second, BURST_SECONDS * requests_per_second)
        self._failures = TokenBuckets(FAILURES_PER_SECOND, FAILURES_AT_ONCE)

    def check(self, request: Request, scope: Scope) -> ApiKey:
        """The key of a request that may do this. Raises HttpError: 401, 403 or 429."""
        text = _presented(request)
        key = self._keys.find(text, self._clock()) if text else None
        if key is None:
            raise self._refusal(request, bool(text))
        request.state.key_id = key.key_id
        if wait := self._requests.take(key.key_id):
            raise too_fast(wait)
        if scope not in key.scopes:
            raise HttpError(
                403,
                "scope",
                f"This key may not do that: it has the scopes {', '.join(sorted(key.scopes))}, and this needs {scope}.",
                f"Use another key, or make one: nearline keys create NAME --scope {scope}.",
            )
        return key

    def _refusal(self, request: Request, was_given: bool) -> HttpError:
        address = request.client.host if request.client else "?"
        if wait := self._failures.take(address):
            return HttpError(
                429, "too_many_failures", "Too many requests without a right key.", headers=retry_after(wait)
            )
        what = "The API key is unknown, revoked or past its time." if was_given else "The request has no API key."
        return HttpError(
            401,
            "unauthorized",
            what,
            "Send Authorization: Bearer KEY, or X-API-Key: KEY. A key is made by: nearline keys create NAME.",
            {"WWW-Authenticate": 'Bearer realm="nearline"'},
        )


def _presented(request: Request) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "").strip()
