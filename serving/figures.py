"""Figures of the warehouse, read beside the requests and never for one of them. It knows nothing of metrics' names."""

import logging
import threading
import time
from collections.abc import Callable

from tasks.figures import Figures

KEEP_SECONDS = 10.0
"""For how long figures are good; the next one who asks for them has them read anew."""

logger = logging.getLogger(__name__)


class KeptFigures:
    """What ``load`` returned last. It runs in a thread of its own, one at a time, and only when somebody asks."""

    def __init__(self, load: Callable[[], Figures], keep_seconds: float = KEEP_SECONDS) -> None:
        self._load, self._keep_seconds = load, keep_seconds
        self._lock = threading.Lock()
        self._kept: Figures | None = None
        self._due = 0.0
        self._thread: threading.Thread | None = None

    def current(self) -> Figures | None:
        """The figures at hand, at once; None before the first are read."""
        with self._lock:
            is_busy = self._thread is not None and self._thread.is_alive()
            if not is_busy and time.monotonic() >= self._due:
                self._thread = threading.Thread(target=self._read, name="figures", daemon=True)
                self._thread.start()
            return self._kept

    def close(self, seconds: float = 2.0) -> None:
        """Wait for a reading that is under way."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _read(self) -> None:
        try:
            self._kept = self._load()
        except Exception as error:  # the figures stay as they were; their age tells
            logger.warning("figures_not_read error=%s", type(error).__name__)
        self._due = time.monotonic() + self._keep_seconds
