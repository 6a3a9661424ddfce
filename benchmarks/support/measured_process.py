"""What a measurement needs to know of the process and the machine: memory, a process of its own, versions.

It knows nothing of what is measured.
"""

import ctypes
import gc
import multiprocessing
import os
import platform
import resource
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
MB = 1e6
"""Bytes of what is called a megabyte here."""
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_SAMPLE_SECONDS = 0.002


class MemoryGrowth:
    """Context whose ``mb`` is afterwards how far the resident memory rose above its state at the start.

    A thread samples it every 2 ms; where the system says that the process has set a new record meanwhile, that counts.
    """

    mb = 0.0

    def __enter__(self) -> Self:
        _return_free_memory()
        self._record, self._start = peak_bytes(), _resident_bytes()
        self._highest, self._done = self._start, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        record = peak_bytes()
        highest = max(self._highest, _resident_bytes(), record if record > self._record else 0)
        self.mb = (highest - self._start) / MB

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._highest = max(self._highest, _resident_bytes())


def peak_bytes() -> int:
    """The most resident memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def in_child(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of a module in a new process, whose memory is its own; returns or raises what it does."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, load before the measurement, versions and date."""
    return {
        "processor": _processor(),
        "n_cores": usable_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "numba", *packages)},
        "measured_on": datetime.now(UTC).date().isoformat(),
    }


def pinned_blas() -> AbstractContextManager[Any]:
    """Context in which linear algebra runs on one thread, so that the threads of row loops do not fight with it."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * resource.getpagesize()


def _return_free_memory() -> None:
    """Give what was freed back to the system, or later growth would hide in it."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
