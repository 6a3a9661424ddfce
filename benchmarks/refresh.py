"""Seconds of a refresh by the number of users it touches, over a generated lake.

    python -m benchmarks.refresh
    python -m benchmarks.refresh --events 1000000 --users 10000 --touched 10 100

The lake is generated and says so: by default 10 million events of 100,000 users over 20,000 items, 100 of each user,
with 64 factors and text of width 384. Before every measured refresh one new event of each touched user is committed, in
commits of 250 rows as the intake makes them. The vector index is one that counts its users and writes nothing: **its
writing is not in these figures**. The first refresh of the process, which compiles and warms up, is told apart from the
others; of the others the median counts. Last comes what a refresh costs when nothing is new. The last line printed is
one JSON object.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.generated_lake import GENERATOR, LakeResources, LakeSize, generate_lake, new_events
from benchmarks.support.measured_process import peak_bytes
from infra.settings import load_settings
from tasks.refresh import refresh

COMMIT_ROWS = 250


def main() -> None:
    """Parse, generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="events in the lake")
    parser.add_argument("--users", type=int, default=100_000, help="users in the lake")
    parser.add_argument("--items", type=int, default=20_000, help="items in the catalog")
    parser.add_argument("--touched", type=int, nargs="+", default=[10, 100, 1000, 4000], help="users of a refresh")
    parser.add_argument("--repeat", type=int, default=3, help="refreshes of each size")
    parser.add_argument("--home", type=Path, help="a generated lake to keep and use again (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="accepted by every benchmark; the object is always printed")
    arguments = parser.parse_args()
    home = arguments.home or Path(tempfile.mkdtemp(prefix="nearline-refresh-"))
    try:
        size = LakeSize(arguments.events, arguments.users, arguments.items)
        print(json.dumps(measure(home, size, arguments.touched, arguments.repeat)))
    finally:
        if arguments.home is None:
            shutil.rmtree(home, ignore_errors=True)


def measure(home: Path, size: LakeSize, touched: list[int], n_repeats: int) -> dict[str, Any]:
    """Seconds of every size, by stage; ``index_write_counted`` says that the index's own write is left out."""
    resources = LakeResources(load_settings(home=home))
    generated = None if (home / "warehouse").exists() else _seconds(lambda: generate_lake(resources, size))
    rng = np.random.default_rng(1)
    first = _refresh(resources, size, rng, touched[0])
    sizes = {}
    for n_users in touched:
        turns = [_refresh(resources, size, rng, n_users) for _ in range(n_repeats)]
        sizes[str(n_users)] = _summary(turns)
        print(f"{n_users:>6} users: {sizes[str(n_users)]}")
    idle = statistics.median(_seconds(lambda: refresh(resources, now=datetime.now(UTC))) for _ in range(5))
    return {
        "benchmark": "refresh",
        "data": GENERATOR,
        **asdict(size),
        "generated_seconds": generated,
        "lake_bytes": sum(path.stat().st_size for path in home.rglob("*") if path.is_file()),
        "index_write_counted": False,
        "first_refresh_seconds": first["total"],
        "seconds_by_touched_users": sizes,
        "idle_seconds": round(idle, 4),
        "peak_memory_mb": round(peak_bytes() / 1e6),
    }


def _refresh(resources: LakeResources, size: LakeSize, rng: np.random.Generator, n_users: int) -> dict[str, float]:
    """Commit one event of each of ``n_users`` random users, then refresh; seconds by stage, and in all."""
    users = rng.choice(size.n_users, n_users, replace=False)
    with resources.warehouse() as warehouse:
        for start in range(0, n_users, COMMIT_ROWS):
            name = f"{time.time_ns()}"
            rows = new_events(size, users[start : start + COMMIT_ROWS], datetime.now(UTC), name=name)
            warehouse.commit(lambda transaction, rows=rows: transaction.append("raw_events", rows))
    began = time.perf_counter()
    run = refresh(resources, now=datetime.now(UTC))
    total = time.perf_counter() - began
    if run is None or run.n_users != n_users:
        raise AssertionError(f"{n_users} users have new events, and the refresh found {run and run.n_users}")
    return {**run.stage_seconds, "total": round(total, 4)}


def _summary(turns: list[dict[str, float]]) -> dict[str, Any]:
    middle = sorted(turns, key=lambda turn: turn["total"])[len(turns) // 2]
    return {"total": middle["total"], "totals": [turn["total"] for turn in turns], "stages": middle}


def _seconds(function: Any) -> float:
    began = time.perf_counter()
    function()
    return round(time.perf_counter() - began, 4)


if __name__ == "__main__":
    main()
