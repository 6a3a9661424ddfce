"""The outermost layer: an id for each request, one log line, its metrics, and no error that is not JSON.

It knows nothing of routes. A log line has the route's template, never the path: ids and texts are in no log.
"""

import logging
import secrets
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import json_bytes
from serving.errors import HttpError, as_http_error
from serving.metrics import Metrics

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Door:
    """Middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began, status = secrets.token_hex(8), time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            if not status:
                await error_response(as_http_error(error, request_id), request_id)(scope, receive, send_on)
        finally:
            self._tell(scope, status, time.perf_counter() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        route, state = _route(scope), scope["state"]
        self._metrics.count_request(method, route, status, seconds)
        logger.info(
            "request method=%s route=%s status=%d ms=%.1f key=%s request_id=%s",
            *(method, route, status, 1000 * seconds, state.get("key_id", "-"), state["request_id"]),
        )


def error_response(error: HttpError, request_id: str) -> Response:
    """An error as an answer."""
    body = json_bytes(error.document(request_id))
    return Response(body, error.status, error.headers, media_type="application/json")


def framework_error(error: HTTPException) -> HttpError:
    """What the framework itself refuses: no such path, no such method."""
    messages = {404: "There is no such path.", 405: "This path does not take this method."}
    kinds = {404: "no_such_path", 405: "method"}
    return HttpError(
        error.status_code,
        kinds.get(error.status_code, "request"),
        messages.get(error.status_code, "The request cannot be read."),
        "The paths are in /openapi.json.",
        dict(error.headers or {}),
    )


def _route(scope: Scope) -> str:
    route: Any = scope.get("route")
    return getattr(route, "path_format", None) or getattr(route, "path", None) or UNKNOWN
