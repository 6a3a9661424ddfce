"""Custom events to a Prefect server by its REST API, for processes that do not load Prefect.

It knows nothing of what the events mean; ``docs/flows.md`` lists them.
"""

import logging
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from infra.prefect_server import find_server

TIMEOUT_SECONDS = 2.0

logger = logging.getLogger(__name__)


def emit(name: str, resource: str, payload: Mapping[str, object], *, home: Path | None = None) -> bool:
    """Send one event about ``resource`` to the server of ``PREFECT_API_URL``, or else to the one that ``nearline up``
    runs for ``home``; returns whether it was taken.

    Never raises, and gives up after two seconds: nobody's work waits for an event.
    """
    import httpx

    url = os.environ.get("PREFECT_API_URL") or _found(home)
    if url is None:
        return False
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": name,
        "resource": {"prefect.resource.id": resource, "prefect.resource.name": resource},
        "payload": dict(payload),
    }
    try:
        httpx.post(f"{url.rstrip('/')}/events", json=[event], timeout=TIMEOUT_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, TypeError, ValueError) as error:
        logger.warning("event_not_sent event=%s reason=%s", name, type(error).__name__)
        return False
    return True


def _found(home: Path | None) -> str | None:
    server = find_server(home) if home is not None else None
    return server.api_url if server else None
