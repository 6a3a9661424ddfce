"""The HTTP service as the demo's person uses it: started beside, asked with a key of its own, and stopped.

It knows nothing of what is asked, and treats titles as text.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from rich.table import Table
from rich.text import Text

from flows.clock import utc_now
from flows.serve import find_service
from infra.key_store import KeyStore
from infra.settings import Settings
from tasks.domain.errors import NearlineError

START_SECONDS = 120.0


@dataclass(frozen=True)
class Timed:
    """An answer's document, and how long it took."""

    document: dict[str, Any]
    milliseconds: float


@dataclass(frozen=True)
class DemoService:
    """A service that answers at ``url``."""

    url: str
    client: httpx.Client

    def recommendations(self, user_id: str, k: int) -> Timed:
        """``GET /v1/users/{id}/recommendations``, explained."""
        path = f"/v1/users/{quote(user_id, safe='')}/recommendations"
        return self._timed("GET", path, params={"k": k, "explain": True})

    def send_events(self, rows: Sequence[dict[str, Any]]) -> Timed:
        """``POST /v1/events``."""
        return self._timed("POST", "/v1/events", json=list(rows))

    def _timed(self, method: str, path: str, **asked: Any) -> Timed:
        started = time.perf_counter()
        answer = self.client.request(method, path, **asked)
        milliseconds = 1000 * (time.perf_counter() - started)
        if answer.status_code != httpx.codes.OK:
            raise NearlineError(
                f"The demo asked its service {method} {path} and got {answer.status_code}: {answer.text}"
            )
        return Timed(answer.json(), milliseconds)


@contextmanager
def demo_service(settings: Settings) -> Iterator[DemoService]:
    """``nearline serve`` in a process of its own, on any free port; its key ends with it."""
    keys = KeyStore(settings.home)
    key, text = keys.create("demo", ("read", "write"), now=utc_now())
    log = (settings.home / "serving" / "demo.log").open("wb")
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = _wait(settings, process)
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {text}"}, timeout=30) as client:
            yield DemoService(url, client)
    finally:
        process.terminate()
        process.wait()
        log.close()
        keys.revoke(key.key_id)


def answer_table(answer: Timed) -> Table:
    """What the service answered, and how fresh it is."""
    document = answer.document
    fresh = f"true for snapshot {document['as_of_snapshot']}"
    if document["pending_events"]:
        fresh += f" and {document['pending_events']} newer events"
    title = f"answered in {answer.milliseconds:.0f} ms, {fresh}"
    table = Table(title=title, title_justify="left", title_style="dim", box=None)
    table.add_column("#", justify="right", style="dim")
    table.add_column("item", ratio=3)
    table.add_column("score", justify="right")
    table.add_column("why", ratio=4, style="dim")
    for item in document["items"]:
        reasons = [f"{one['label']} ({one['share']:.0%})" for one in item["because"] if one["kind"] != "rest"][:2]
        table.add_row(str(item["rank"]), Text(item["title"]), f"{item['score']:.3f}", Text(", ".join(reasons)))
    return table


def _wait(settings: Settings, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = find_service(settings.home)
        if found is not None and found.pid == process.pid:
            return found.url
        time.sleep(0.05)
    raise NearlineError(
        f"The demo's HTTP service did not start. Its log says why: {settings.home / 'serving' / 'demo.log'}. "
        "If `nearline up` or `nearline serve` runs for this home, stop it and run the demo again."
    )
