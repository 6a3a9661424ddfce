"""Asks the index which version serves, in a thread of its own: an index that is away must not hold anybody up.

It knows nothing of what is done with the answer.
"""

import logging
import threading
import time
from dataclasses import dataclass

from tasks.domain.errors import NearlineError
from tasks.domain.ports import Resources

PATIENCE = 50
"""Asking takes at most one part in so many of the time: opening a large local folder takes seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexAnswer:
    """What the index said last: the version that serves, None before the first publication; ``problem`` is why there
    is no answer."""

    version: str | None
    problem: str = ""


class ServingVersionWatch:
    """Asks every ``seconds`` between ``start`` and ``close``."""

    def __init__(self, resources: Resources, seconds: float) -> None:
        self._resources = resources
        self._seconds = seconds
        self._stop = threading.Event()
        self._answered = threading.Event()
        self._answer = IndexAnswer(None, "it has not answered yet")
        self._thread = threading.Thread(target=self._run, name="online-index", daemon=True)

    def start(self, wait_seconds: float) -> None:
        """Begin, and wait so long for the first answer."""
        self._thread.start()
        self._answered.wait(wait_seconds)

    def close(self) -> None:
        """End the thread; one that waits for the index ends with it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=1)

    @property
    def answer(self) -> IndexAnswer:
        """The last answer."""
        return self._answer

    def ask(self) -> IndexAnswer:
        """Ask now."""
        try:
            with self._resources.index() as index:
                answer = IndexAnswer(index.serving_version())
        except NearlineError as error:
            answer = IndexAnswer(None, type(error).__name__)
        if answer.problem and not self._answer.problem:
            logger.warning("index away: error=%s", answer.problem)
        self._answer = answer
        self._answered.set()
        return answer

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self.ask()
            except Exception as error:
                logger.exception("asking the index failed")
                self._answer = IndexAnswer(None, type(error).__name__)
                self._answered.set()
            self._stop.wait(max(self._seconds, PATIENCE * (time.monotonic() - started)))
