"""Seconds, rows per second and peak memory of every stage of the main job, and how they grow.

    python -m benchmarks.growth                         about 15 minutes on two quiet cores
    python -m benchmarks.growth --full                  up to 100,000 items and 10 million events
    python -m benchmarks.growth --sizes 1000x100000 4000x300000

The demo's data (MovieLens 100K) comes first, then generated catalogs and events, which are named so and have its skew;
the JSON object says how far. A size is ITEMSxEVENTS; users are one for 106 events. Every size runs in a process of its
own, which imports files, and goes through all stages to maintenance; Dask workers are counted apart. Larger sizes do
without the language model (``simulated_encoder``) or without Qdrant's local mode, which is not for so many points
(``memory_index``, in the process that is measured); exponents never mix them with the others. Seconds are those of the
first night: no version serves before it, so nothing is compared with a champion.

A size that fails or takes too long is part of the result, with the stages that it finished. The last line printed is
one JSON object.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.generated_catalog import GENERATOR, Size, describe_skew, write_generated
from benchmarks.support.growth_fit import (
    FLOOR_SECONDS,
    HIGHEST_EXPONENT,
    MEMORY_LIMIT_MB,
    Measured,
    breaks_first,
    fit_stage,
)
from benchmarks.support.growth_stages import DEMO, STAGES, demo_sources, parse_size
from benchmarks.support.measured_process import describe_machine, in_child

DEFAULT_SIZES = ("1000x100000", "3000x300000", "10000x300000", "3000x1000000", "10000x1000000", "30000x1000000",
                 "10000x3000000")  # fmt: skip
FULL_SIZES = (*DEFAULT_SIZES, "100000x1000000", "10000x10000000", "100000x10000000")
REAL_ENCODER_ITEMS = 10_000
LOCAL_INDEX_POINTS = 50_000
_KEPT_LINES = 15
_AFTER_STAND_INS = {"embed": "simulated_encoder", "publish": "memory_index", "refresh": "memory_index"}
"""Stages whose seconds depend on what stands in for a real part."""


def main() -> None:
    """Parse, measure size after size, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", metavar="ITEMSxEVENTS", help=f"default: {' '.join(DEFAULT_SIZES)}")
    parser.add_argument("--full", action="store_true", help=f"also {' '.join(FULL_SIZES[len(DEFAULT_SIZES) :])}")
    parser.add_argument("--no-demo", action="store_true", help="leave out MovieLens 100K")
    parser.add_argument("--encoder", choices=("auto", "real", "simulated"), default="auto",
                        help=f"auto: the language model up to {REAL_ENCODER_ITEMS:,} items")  # fmt: skip
    parser.add_argument("--index", choices=("auto", "local", "memory"), default="auto",
                        help=f"auto: Qdrant's local mode up to {LOCAL_INDEX_POINTS:,} items and users")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=60, help="how long one size may take")
    parser.add_argument("--folder", type=Path, help="where sizes are worked on, one after the other")
    parser.add_argument("--json", action="store_true", help="accepted by every benchmark; the object is always printed")
    given = parser.parse_args()
    names = [*([] if given.no_demo else [DEMO]), *(given.sizes or (FULL_SIZES if given.full else DEFAULT_SIZES))]
    print(json.dumps(measure(names, given.encoder, given.index, 60 * given.minutes, given.folder)))


def measure(
    names: Sequence[str], encoder: str = "auto", index: str = "auto", limit_seconds: float = 3600.0,
    folder: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run every size and put the results together; see the module."""
    for name in names:
        if name != DEMO:
            parse_size(name)
    machine, began = describe_machine("duckdb", "qdrant-client", "torch"), time.perf_counter()
    runs = [_run_size(name, encoder, index, limit_seconds, folder) for name in names]
    stages = {stage: _points(runs, stage) for stage in STAGES}
    generated = {stage: [p for p in points if not p.means.startswith(DEMO)] for stage, points in stages.items()}
    fits = {stage: fit_stage(points) for stage, points in generated.items()}
    known = {stage: fit["exponent"] for stage, fit in fits.items() if fit["exponent"] is not None}
    return {
        "benchmark": "growth",
        "data": {DEMO: "MovieLens 100K", "others": GENERATOR},
        "runs": runs,
        "exponents": fits,
        "exponents_fitted_above_seconds": FLOOR_SECONDS,
        "highest_exponent": max(known.items(), key=lambda pair: pair[1], default=None),
        "target_exponent": HIGHEST_EXPONENT,
        "peak_memory_mb": max((run["peak_mb"] for run in runs if run["peak_mb"]), default=None),
        "target_memory_mb": round(MEMORY_LIMIT_MB),
        "breaks_first_at_100_times": breaks_first(generated),
        "failed": [run["size"] for run in runs if run["failure"]],
        "seconds": round(time.perf_counter() - began, 1),
        "load_average_at_end": round(os.getloadavg()[0], 2),
        "machine": machine,
    }


def _run_size(name: str, encoder: str, index: str, limit_seconds: float, folder: Path | None) -> dict[str, Any]:
    home = Path(tempfile.mkdtemp(prefix=f"nearline-growth-{name}-", dir=folder))
    try:
        size = None if name == DEMO else parse_size(name)
        began = time.perf_counter()
        if size is not None:
            in_child(write_generated, size, home / "sources")
        skew = describe_skew(demo_sources().events if size is None else home / "sources" / "events")
        _say(f"{name}: data {'fetched' if size is None else 'generated'} in {time.perf_counter() - began:.1f} s")
        options = _stand_ins(size, encoder, index)
        rows, failure = _run_stages(name, home, options, limit_seconds)
        state = sum(path.stat().st_size for path in (home / "state").rglob("*") if path.is_file())
        return {
            "size": name,
            "n_items": size.n_items if size else 1682,
            "n_events": size.n_events if size else 100_000,
            "n_users": size.n_users if size else 943,
            **options,
            "skew": skew,
            "stages": _joined(rows),
            "gates": {row["part"]: row for row in rows if row["stage"] == "gates"},
            "peak_mb": max((row["peak_mb"] for row in rows), default=None),
            "state_mb": round(state / 1e6, 1),
            "failure": failure,
        }
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _stand_ins(size: Size | None, encoder: str, index: str) -> dict[str, bool]:
    n_items, n_points = (size.n_items, size.n_items + size.n_users) if size else (0, 0)
    return {
        "simulated_encoder": encoder == "simulated" or (encoder == "auto" and n_items > REAL_ENCODER_ITEMS),
        "memory_index": index == "memory" or (index == "auto" and n_points > LOCAL_INDEX_POINTS),
    }


def _run_stages(
    name: str, home: Path, options: dict[str, bool], limit_seconds: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of the stages that were finished, and why it was not all of them."""
    flags = [f"--{option.replace('_', '-')}" for option, is_used in options.items() if is_used]
    command = [sys.executable, "-m", "benchmarks.support.growth_stages", name, "--home", str(home), *flags]
    rows, current = [], "start"
    with (home / "errors.txt").open("w+") as errors:
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        overdue = threading.Event()
        timer = threading.Timer(limit_seconds, _end_overdue, (job, overdue))
        timer.start()
        try:
            for row in _lines(job):
                if "begins" in row:
                    current = f"{row['begins']} {row['part']}".strip()
                    continue
                rows.append(row)
                _say(
                    f"{name}: {current:16} {row['seconds']:9.2f} s  {row['rows']:>12,} rows  "
                    f"{row['rows_per_second']:>12,.0f} rows/s  peak {row['peak_mb']:,.0f} MB"
                )
            code = job.wait()
        finally:
            timer.cancel()
            _end(job)
        if code == 0:
            return rows, None
        errors.seek(0)
        last = " | ".join(line.strip() for line in errors.readlines()[-_KEPT_LINES:])[-600:]
    why = f"took longer than {limit_seconds / 60:g} minutes" if overdue.is_set() else f"ended with {code}: {last}"
    _say(f"{name}: {current} {why}")
    return rows, f"{current} {why}"


def _lines(job: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert job.stdout is not None
    with job.stdout as lines:
        for line in lines:
            if line.startswith("{"):
                yield json.loads(line)


def _end(job: "subprocess.Popen[str]") -> None:
    """End the job with everything that it started: the group is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def _end_overdue(job: "subprocess.Popen[str]", overdue: threading.Event) -> None:
    overdue.set()
    _end(job)


def _joined(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One row for each stage: the gates' seconds and rows are added up, of their memory the highest counts."""
    found: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        parts = [row for row in rows if row["stage"] == stage]
        if not parts:
            continue
        total = {name: sum(row[name] for row in parts) for name in ("seconds", "cpu_seconds", "rows")}
        highest = max(parts, key=lambda row: float(row["peak_mb"]))
        found[stage] = {
            **{name: round(value, 3) for name, value in total.items()},
            "rows_per_second": round(total["rows"] / max(total["seconds"], 1e-9), 1),
            **{name: highest[name] for name in ("peak_mb", "start_mb", "workers_peak_mb") if name in highest},
        }
    return found


def _points(runs: Sequence[dict[str, Any]], stage: str) -> list[Measured]:
    points = []
    for run in runs:
        row = run["stages"].get(stage)
        if row is None:
            continue
        stand_in = _AFTER_STAND_INS.get(stage)
        means = stand_in if stand_in and run[stand_in] else ""
        means = f"{DEMO} {means}".strip() if run["size"] == DEMO else means
        added = max(0.0, row["peak_mb"] - row["start_mb"])
        numbers = row["rows"], row["seconds"], row["peak_mb"], added
        points.append(Measured(stage, run["n_items"], run["n_events"], *numbers, means))
    return points


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
