"""Requests at a given rate from a process of its own, and how long each took.

The load is open: request i is due at ``i / rate`` whether or not earlier ones were answered, and its time counts from
then, so that a service that falls behind cannot hide it. It knows nothing of what is asked.
"""

import http.client
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

N_THREADS = 32


class Ask(NamedTuple):
    """One request: ``body`` goes as JSON."""

    method: str
    path: str
    body: Any = None


class Answer(NamedTuple):
    """``due_at`` and ``seconds`` are of the wall clock; ``status`` is 0 where no answer came."""

    number: int
    due_at: float
    seconds: float
    status: int
    document: Any


@dataclass(frozen=True)
class Service:
    """Where it answers, and with which key."""

    url: str
    key: str

    def ask(self, ask: Ask, connection: http.client.HTTPConnection | None = None) -> tuple[int, Any]:
        """Status and JSON document of one answer. Raises OSError or http.client.HTTPException where none comes."""
        own = connection or self.connect()
        body = None if ask.body is None else json.dumps(ask.body)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        own.request(ask.method, ask.path, body, headers)
        answer = own.getresponse()
        text = answer.read()
        if connection is None:
            own.close()
        return answer.status, json.loads(text) if text else None

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is kept."""
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)


@contextmanager
def load_process() -> Iterator[ProcessPoolExecutor]:
    """A process of its own, in which ``send_load`` may be submitted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def send_load(
    service: Service, make: Callable[[int], Ask], rate: float, seconds: float, keep: Callable[[Any], Any] | None = None
) -> list[Answer]:
    """Send ``make(0)``, ``make(1)`` and so on, ``rate`` a second, for ``seconds``.

    ``keep`` says what to keep of a document (None: nothing). A connection that breaks is made anew and counts as
    status 0. Both callables travel to another process, so they are functions of modules or objects of such classes.
    """
    total = int(rate * seconds)
    started = time.time() + 0.2
    answers: list[Answer] = []
    turn, numbers = threading.Lock(), iter(range(total))

    def work() -> None:
        connection = service.connect()
        while True:
            with turn:
                number = next(numbers, None)
            if number is None:
                return
            due_at = started + number / rate
            time.sleep(max(0.0, due_at - time.time()))
            try:
                status, document = service.ask(make(number), connection)
            except (OSError, http.client.HTTPException):
                connection.close()
                connection, status, document = service.connect(), 0, None
            kept = keep(document) if keep is not None else None
            answers.append(Answer(number, due_at, time.time() - due_at, status, kept))

    threads = [threading.Thread(target=work) for _ in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def summarize_answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """Requests a second, milliseconds at the 50th, 95th and 99th percentile of those that were answered, and counts."""
    done = [answer for answer in answers if answer.status == 200]
    times = np.array([answer.seconds for answer in done]) * 1000
    span = max((a.due_at + a.seconds for a in answers), default=0.0) - min((a.due_at for a in answers), default=0.0)
    return {
        "requests": len(answers),
        "per_second": round(len(done) / span, 1) if span else 0.0,
        **{f"p{q}_ms": round(float(np.percentile(times, q)), 1) if len(times) else None for q in (50, 95, 99)},
        "statuses": _counts([answer.status for answer in answers]),
    }


def _counts(statuses: Sequence[int]) -> Mapping[str, int]:
    return {str(status): statuses.count(status) for status in sorted(set(statuses))}
