"""What the lake's layout costs: looking users up by Parquet layout, small commits, and SQL models inside and outside.

    python -m benchmarks.lake_layout [--events 10000000] [--json]
    python -m benchmarks.lake_layout --layouts v2/lz4/122880 v2/uncompressed/1000000

Every layout (Parquet version, compression, rows of a group) gets a lake of its own with the same generated events, 100
of each user. They take turns: in each, the rows of random users are read whole (*rows*), then it is looked up whether
others share one of their events (*ids*), by the queries of a refresh. Medians count, and a ratio is *rows* and *ids*
together over those of the layout that the platform writes, which is always among them. In the lake of that layout

- *threads*: the rows of one user and of many, as the service reads them, with one thread of DuckDB and with all cores;
- *fold*: the SQL models over the rows of 25 users that are in memory, through the lake and in an engine of its own;
- *commits*: new events are written in groups, alone and as one request to the intake (judged, durable, answered).

The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.support.generated_lake import GENERATOR, LakeSize, generate_events, new_events
from benchmarks.support.measured_process import MB, describe_machine, usable_cores
from flows.clock import utc_now
from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.domain.ports import Reader, Resources, Warehouse
from tasks.intake import Intake
from tasks.model_state import build_history_rows, load_raw_rows
from warehouse.catalog import query_sql

COMMIT_ROWS = (25, 250)
FOLDED_USERS = 25
MANY_USERS = 1000


class Layout(NamedTuple):
    """How Parquet files of events are written."""

    parquet: int
    compression: str
    group_rows: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From its name, such as ``v2/uncompressed/500000``. Raises ValueError."""
        parquet, compression, group_rows = text.split("/")
        return cls(int(parquet.removeprefix("v")), compression, int(group_rows))

    def __str__(self) -> str:
        return f"v{self.parquet}/{self.compression}/{self.group_rows}"


WRITTEN = Layout(2, "uncompressed", 500_000)
"""What the platform writes (a test compares it with a new warehouse)."""
LAYOUTS = (
    *(Layout(parquet, compression, 122_880) for parquet in (1, 2) for compression in ("snappy", "uncompressed")),
    Layout(2, "lz4", 122_880),
    Layout(2, "zstd", 122_880),
    WRITTEN,
)


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--events", type=int, default=10_000_000, help="events in each lake, 100 of each user")
    parser.add_argument("--repeat", type=int, default=9, help="turns of each layout, and looks of each kind")
    parser.add_argument("--commits", type=int, default=200, help="commits of each size and kind")
    parser.add_argument("--layouts", type=Layout.parse, nargs="+", default=list(LAYOUTS), help="vVERSION/CODEC/ROWS")
    arguments = parser.parse_args()
    size = LakeSize(arguments.events, max(arguments.events // 100, 1))
    with tempfile.TemporaryDirectory(prefix="nearline-layout-") as folder:
        report = measure(Path(folder), size, arguments.layouts, arguments.repeat, arguments.commits)
    if not arguments.json:
        _show(report)
    print(json.dumps({"benchmark": "lake_layout", "machine": describe_machine("duckdb"), **report}))


def measure(folder: Path, size: LakeSize, layouts: Sequence[Layout], n_turns: int, n_commits: int) -> dict[str, Any]:
    """Everything, in lakes below ``folder``."""
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        lakes = {}
        for layout in dict.fromkeys([*layouts, WRITTEN]):
            resources = LocalResources(load_settings(home=folder / str(layout).replace("/", "-")))
            warehouse = stack.enter_context(resources.warehouse())
            _write_as(warehouse, layout)
            generate_events(warehouse, size)
            lakes[layout] = resources, warehouse
        resources, warehouse = lakes[WRITTEN]
        return {
            "data": GENERATOR,
            **asdict(size),
            "looked_up_users": _many(size),
            "layouts": _measure_layouts(lakes, size, n_turns, rng),
            "threads": _measure_threads(warehouse, size, n_turns, rng),
            "fold": _measure_fold(resources, warehouse, size, n_turns, rng),
            "commits": {str(n): _measure_commits(resources, warehouse, size, n, n_commits, rng) for n in COMMIT_ROWS},
        }


def _write_as(warehouse: Warehouse, layout: Layout) -> None:
    """Have everything that is committed from now on written so."""
    everywhere = "call lake.set_option($name, $value)"
    _execute(warehouse, everywhere, {"name": "parquet_version", "value": str(layout.parquet)})
    _execute(warehouse, everywhere, {"name": "parquet_compression", "value": layout.compression})
    groups = "call lake.set_option('parquet_row_group_size', $rows, table_name => 'raw_events')"
    _execute(warehouse, groups, {"rows": str(layout.group_rows)})


def _measure_layouts(
    lakes: dict[Layout, tuple[LocalResources, Warehouse]], size: LakeSize, n_turns: int, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Megabytes and median seconds; the first turn of each warms up and does not count."""
    turns: dict[Layout, list[tuple[float, float]]] = {layout: [] for layout in lakes}
    for _ in range(n_turns + 1):
        users = _some_users(size, _many(size), rng)
        for layout, (_, warehouse) in lakes.items():
            turns[layout].append(_look_up(warehouse, users))
    medians = {layout: np.median(seconds[1:], axis=0).tolist() for layout, seconds in turns.items()}
    return {
        str(layout): {
            "megabytes": round(_event_bytes(resources.home) / MB, 1),
            "rows_seconds": round(medians[layout][0], 4),
            "ids_seconds": round(medians[layout][1], 4),
            "ratio": round(sum(medians[layout]) / sum(medians[WRITTEN]), 2),
        }
        for layout, (resources, _) in lakes.items()
    }


def _look_up(warehouse: Warehouse, users: pa.Table) -> tuple[float, float]:
    """Seconds to read the users' rows, and to look for their events among those of others."""
    began = time.perf_counter()
    events = warehouse.read(query_sql("raw_events_of_users"), shadows={"wanted_users": users})
    read = time.perf_counter()
    own = events.select(["event_id"])
    shared = warehouse.read(query_sql("shared_events"), shadows={"wanted_users": users, "own_events": own})
    if not events.num_rows or shared.num_rows:
        raise AssertionError(f"{events.num_rows} events were found, of which {shared.num_rows} are shared: none may be")
    return read - began, time.perf_counter() - read


def _measure_threads(
    warehouse: Warehouse, size: LakeSize, n_turns: int, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Median milliseconds of one read by the number of DuckDB's threads, for one user and for many."""
    found: dict[str, dict[str, float]] = {}
    for n_threads in sorted({1, usable_cores()}):
        _execute(warehouse, f"set threads = {n_threads}")
        for n_users in (1, _many(size)):
            spent = [_receive(warehouse, _some_users(size, n_users, rng)) for _ in range(n_turns + 1)]
            found.setdefault(f"{n_users} users", {})[f"{n_threads} threads"] = _milliseconds(spent[1:], 50)
    return found


def _receive(warehouse: Warehouse, users: pa.Table) -> float:
    query = query_sql("received_events_of_users")
    return _seconds(lambda: warehouse.read(query, shadows={"wanted_users": users}))


def _measure_fold(
    resources: Resources, warehouse: Warehouse, size: LakeSize, n_turns: int, rng: np.random.Generator
) -> dict[str, float]:
    """Median milliseconds of the SQL models over the same rows in memory, through either engine in turn."""
    user_ids = _some_users(size, min(FOLDED_USERS, size.n_users), rng)["user_id"].to_pylist()
    raw = load_raw_rows(warehouse, user_ids)
    raw["stg_items"] = pa.table({"item_id": pc.unique(raw["raw_events"]["item_id"])})
    with resources.engine() as engine:
        turns = [(_fold(resources, warehouse, raw), _fold(resources, engine, raw)) for _ in range(n_turns + 1)]
    lake, alone = zip(*turns[1:], strict=True)
    medians = {"lake_ms": _milliseconds(lake, 50), "engine_ms": _milliseconds(alone, 50)}
    return {"users": len(user_ids), "rows": raw["raw_events"].num_rows, **medians}


def _fold(resources: Resources, reader: Reader, raw: dict[str, pa.Table]) -> float:
    event_types, half_life = resources.event_types.values(), resources.interaction_half_life_days
    return _seconds(lambda: build_history_rows(reader, raw, event_types, half_life))


def _measure_commits(
    resources: Resources, warehouse: Warehouse, size: LakeSize, n_rows: int, n_commits: int, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Milliseconds of a commit alone, and of a request from its rows to its answer."""
    commits = [_commit(warehouse, _some_events(size, n_rows, rng)) for _ in range(n_commits)]
    warehouse.flush("raw_events")
    with Intake(resources, clock=utc_now, commit_seconds=0.0, max_waiting_rows=n_rows) as intake:
        requests = [_send(intake, _some_events(size, n_rows, rng)) for _ in range(n_commits)]
    return {"commit": _quantiles(commits), "request": _quantiles(requests)}


def _commit(warehouse: Warehouse, rows: pa.Table) -> float:
    return _seconds(lambda: warehouse.commit(lambda work: work.append("raw_events", rows)))


def _send(intake: Intake, rows: pa.Table) -> float:
    told = rows.select(["event_id", "user_id", "item_id", "event_type", "occurred_at"]).to_pylist()
    sent = [{**row, "occurred_at": row["occurred_at"].isoformat()} for row in told]
    return _seconds(lambda: intake.accept("events", sent, source="benchmark", timeout_seconds=60.0))


def _some_events(size: LakeSize, n_rows: int, rng: np.random.Generator) -> pa.Table:
    return new_events(size, rng.integers(size.n_users, size=n_rows), utc_now(), name=uuid.uuid4().hex)


def _some_users(size: LakeSize, n_users: int, rng: np.random.Generator) -> pa.Table:
    numbers = np.sort(rng.choice(size.n_users, n_users, replace=False))
    return pa.table({"user_id": [f"user-{number:07}" for number in numbers]})


def _many(size: LakeSize) -> int:
    return min(MANY_USERS, size.n_users)


def _event_bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in (home / "warehouse" / "data" / "main" / "raw_events").rglob("*.parquet"))


def _execute(warehouse: Warehouse, sql: str, parameters: Mapping[str, object] | None = None) -> None:
    warehouse.commit(lambda work: work.execute(sql, parameters))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": _milliseconds(seconds, 50), "p99_ms": _milliseconds(seconds, 99)}


def _milliseconds(seconds: Sequence[float], percentile: float) -> float:
    return round(float(np.percentile(seconds, percentile)) * 1000, 1)


def _show(report: dict[str, Any]) -> None:
    print("| Parquet | MB | rows (s) | ids (s) | ratio |\n| --- | --- | --- | --- | --- |")
    for name, row in report["layouts"].items():
        print(f"| {name} | {row['megabytes']} | {row['rows_seconds']} | {row['ids_seconds']} | {row['ratio']} |")
    for name in ("threads", "fold", "commits"):
        print(f"{name}: {json.dumps(report[name])}")


if __name__ == "__main__":
    main()
