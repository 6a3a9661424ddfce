"""Memory that this process has freed goes back to the system. It knows nothing of what needed it."""

import ctypes
import functools
import gc
from collections.abc import Callable
from typing import Any

import pyarrow as pa


def release_memory() -> None:
    """Collect cycles, and have the allocators of Arrow and of the C library let go of what they hold unused: on ten
    million rows this is a gigabyte, which the next stage would need on top."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], Any]:
    """``malloc_trim`` of the GNU C library; where there is none, nothing is done."""
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
