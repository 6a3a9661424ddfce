"""The highest resident memory of this process and of its children while something runs. It knows nothing of what runs.

On Linux the kernel keeps the highest value, and is asked to begin anew (``/proc/self/clear_refs``); elsewhere samples
have to do. Children (Dask workers) are sampled in either case.
"""

import threading
from pathlib import Path
from typing import Self

import psutil

MB = 1e6
_SAMPLE_SECONDS = 0.1


class MemoryPeaks:
    """Context that afterwards tells how much memory the process had at most, and at its start."""

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self._start = self._highest = self._process.memory_info().rss
        self._workers, self._n_workers = 0, 0
        self._is_exact = _begin_anew()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._highest = max(self._highest, self._process.memory_info().rss)
        if self._is_exact:
            self._highest = _kernel_peak() or self._highest

    def megabytes(self) -> dict[str, float]:
        """``peak_mb`` of this process, ``start_mb`` before; ``workers_peak_mb`` of all children together, if any."""
        found = {"peak_mb": round(self._highest / MB, 1), "start_mb": round(self._start / MB, 1)}
        return {**found, "workers_peak_mb": round(self._workers / MB, 1)} if self._workers else found

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._highest = max(self._highest, self._process.memory_info().rss)
            self._workers = max(
                self._workers, sum(_resident(child) for child in self._process.children(recursive=True))
            )


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _begin_anew() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _kernel_peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
