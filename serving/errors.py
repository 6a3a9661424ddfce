"""Every error as one JSON shape: ``{"error": {"type", "message", "advice", "request_id"}}``.

It knows nothing of what was asked for. What a client did wrong is told in full; what went wrong here is told by name,
since its message may hold paths of this machine, and the log has the place in the code, by the request's id.
"""

import logging
import math
import traceback
from dataclasses import dataclass, field

from tasks.domain.errors import (
    IndexUnavailableError,
    InputError,
    ModelMissingError,
    NotFoundError,
    OverloadedError,
    SettingsError,
    StorageError,
    TransientError,
    WarehouseBusyError,
)

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1


@dataclass
class HttpError(Exception):
    """An answer that is not what was asked for. ``headers`` go with it."""

    status: int
    type: str
    message: str
    advice: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def document(self, request_id: str) -> dict[str, object]:
        """The body of the answer."""
        told = {"type": self.type, "message": self.message, "advice": self.advice, "request_id": request_id}
        return {"error": {name: text for name, text in told.items() if text}}


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come again: whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def as_http_error(error: Exception, request_id: str) -> HttpError:
    """What a client is told of an error; one that is not theirs is logged, without its message."""
    match error:
        case HttpError():
            return error
        case OverloadedError():
            wait = retry_after(error.retry_after_seconds)
            return HttpError(429, "overloaded", str(error), "Send the same again after Retry-After.", wait)
        case InputError():
            return HttpError(422, "input", str(error))
        case NotFoundError():
            return HttpError(404, "not_found", str(error))
    log_error(error, request_id)
    match error:
        case WarehouseBusyError():
            return _unavailable("warehouse_busy", "The warehouse stayed locked by another process for too long.")
        case StorageError():
            return _unavailable("storage", "The disk is full, or closed to writing: nothing of the request was stored.")
        case IndexUnavailableError():
            return _unavailable("index_unavailable", "The vector index did not answer.")
        case ModelMissingError() | SettingsError():
            return _unavailable("model_missing", "The language model that reads texts cannot be loaded here.", 60)
        case TransientError():
            return _unavailable("unavailable", "A part of the platform did not answer.")
    return HttpError(
        500, "internal", "Something went wrong here, and not with your request.", "The log has it by request_id."
    )


def log_error(error: BaseException, request_id: str) -> None:
    """One line: which error, and where in the code. Its message is left out, since it may hold ids or texts."""
    chain: list[str] = []
    while error is not None and len(chain) < 4:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        places = " ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}:{frame.name}" for frame in frames)
        chain.append(f"{type(error).__name__} at {places or '?'}")
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    logger.error("request_failed request_id=%s error=%s", request_id, " from ".join(chain))


def _unavailable(kind: str, message: str, seconds: float = RETRY_SECONDS) -> HttpError:
    advice = "Send the same again after Retry-After; GET /v1/health says what is wrong."
    return HttpError(503, kind, message, advice, retry_after(seconds))
