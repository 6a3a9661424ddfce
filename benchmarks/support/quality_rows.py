"""Rows of a table of ranking quality: what was measured, and its value as text.

It knows nothing of what is measured.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tasks.domain.histories import TextLog
from tasks.domain.item_fit import Catalog
from tasks.domain.metrics import mean_interval


def collect_rows(title: str, rows: Iterable[tuple[str, str]], show: bool) -> dict[str, str]:
    """The rows by name; shown as markdown, row by row as they are measured, if ``show``."""
    if show:
        print(f"\n### {title}\n\n| what | value |\n| --- | --- |")
    found = {}
    for what, value in rows:
        found[what] = value
        if show:
            print(f"| {what} | {value} |", flush=True)
    return found


def mean_text(values: npt.NDArray[np.float64]) -> str:
    """Mean and 95 % interval over users."""
    interval = mean_interval(values)
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def no_texts(catalog: Catalog) -> TextLog:
    """Nobody has written anything."""
    empty = np.zeros(0, np.float32)
    return TextLog(catalog.text[:0], np.zeros(0, np.int64), empty, np.zeros(0, np.int64))
