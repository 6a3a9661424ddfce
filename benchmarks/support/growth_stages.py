"""Runs every stage of the main job once over one size, in this process, and prints one JSON line for each.

    python -m benchmarks.support.growth_stages 1000x100000 --home FOLDER

Started by ``benchmarks.growth`` in a process of its own, so that memory is that of the stages. The stages are the plain
functions that the flows call, in their order; Prefect is imported, as in a flow, and has no part in the seconds. It
knows nothing of exponents.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar, cast, get_args

import numpy as np
import pyarrow as pa

from benchmarks.support.generated_catalog import Size, SourceFolders
from benchmarks.support.memory_peaks import MemoryPeaks
from benchmarks.support.simulated_encoder import SimulatedEncoder
from flows.clock import utc_now
from infra.memory_index import MemoryIndex
from infra.resources import LocalResources
from infra.settings import Settings, load_settings
from tasks.domain.mappings import SourceKind
from tasks.domain.ports import Compute, TextEncoder, VectorIndex
from tasks.domain.records import NearlineRun, Receipt

T = TypeVar("T")
STAGES = (
    "import", "transform", "gates", "embed", "plan", "learn", "evaluate", "refit", "neighbours", "publish", "slates",
    "refresh", "maintenance",
)  # fmt: skip
"""In the order in which they begin; ``gates`` adds up those of all stages but publish and slates, which have theirs
within."""
TOUCHED_SHARE = 0.01
"""Share of the users who have a new event before the refresh; at least 100 of them."""
DEMO = "demo"


class _HereInParts:
    """Stands in the place of Dask workers for an encoder that they cannot import."""

    def map(self, function: Callable[[Any], T], partitions: Any, *, in_flight: int = 2) -> Iterator[T]:
        return map(function, partitions)


@dataclass(frozen=True)
class GrowthResources(LocalResources):
    """The real adapters; where asked for, with a cheap encoder instead of the language model, and with vectors in
    memory instead of Qdrant's local mode."""

    simulated_encoder: bool = False
    memory_index: MemoryIndex | None = None

    def encoder(self) -> TextEncoder:
        """The language model, or what stands in its place."""
        return SimulatedEncoder() if self.simulated_encoder else super().encoder()

    def __reduce__(self) -> tuple[type[Self], tuple[Settings, bool]]:
        """For a worker, which has no use for the index in this process's memory."""
        return type(self), (self.settings, self.simulated_encoder)

    def compute(self) -> AbstractContextManager[Compute]:
        """Dask workers; this process for the cheap encoder."""
        return nullcontext(cast(Compute, _HereInParts())) if self.simulated_encoder else super().compute()

    @contextmanager
    def index(self) -> Iterator[VectorIndex]:
        """Qdrant's local mode, or the index in memory."""
        if self.memory_index is not None:
            yield self.memory_index
        else:
            with super().index() as index:
                yield index


class StageRunner:
    """Runs stages over one home, one after the other, and tells of each by ``tell``."""

    def __init__(self, resources: GrowthResources, tell: Callable[[dict[str, Any]], None]) -> None:
        self._resources = resources
        self._tell = tell
        self._version = ""

    def run(self, sources: SourceFolders) -> None:
        """Import ``sources`` and go on to maintenance; a stage that raises ends it."""
        from tasks import embed, evaluate, neighbours, publish, slates, train, transform

        r = self._resources
        self._measure("import", lambda: self._import(sources))
        self._measure("transform", lambda: transform.build_models(r, now=utc_now()))
        self._gate("transform")
        self._measure("embed", lambda: embed.embed_items(r, now=utc_now()))
        self._gate("embed")
        plan = self._measure("plan", lambda: train.plan_version(r, now=utc_now()), self._count("raw_events"))
        self._version = plan.version
        self._measure("learn", lambda: train.learn_version(r, plan, now=utc_now()))
        n_interactions = self._count("fct_interactions")
        self._measure("evaluate", lambda: evaluate.evaluate_version(r, plan, now=utc_now()), n_interactions)
        self._measure("refit", lambda: train.refit_version(r, plan, now=utc_now()))
        self._measure("neighbours", lambda: neighbours.write_neighbours(r, plan.version), n_interactions)
        self._gate("train")
        self._measure("publish", lambda: publish.publish_version(r, plan.version, now=utc_now()))
        self._measure("slates", lambda: slates.write_slates(r, plan.version, now=utc_now()))
        self._refresh()
        self._maintain()

    def _import(self, sources: SourceFolders) -> list[Receipt]:
        from tasks.ingest import import_files

        receipts = []
        for kind in get_args(SourceKind):
            receipts += import_files(self._resources, kind, [getattr(sources, kind)], now=utc_now())
        return receipts

    def _gate(self, gate: str) -> None:
        from tasks.quality import check_gate
        from warehouse.catalog import contracts

        tables = [name for name, contract in contracts().items() if contract.gate_checks(gate)]
        n_rows = sum(self._count(table) for table in tables)
        version = self._version or None

        def check() -> None:
            check_gate(self._resources, gate, run_id="growth", now=utc_now(), version=version)

        self._measure("gates", check, n_rows, part=gate)

    def _refresh(self) -> None:
        from tasks.refresh import refresh

        n_users = self._append_events()
        run = self._measure("refresh", lambda: refresh(self._resources, now=utc_now()), n_users)
        if not isinstance(run, NearlineRun) or run.n_users != n_users:
            raise AssertionError(f"{n_users} users have new events, and the refresh found {run}")

    def _append_events(self) -> int:
        with self._resources.warehouse() as warehouse:
            users = warehouse.read("select distinct user_id from raw_users order by user_id")["user_id"]
            items = warehouse.read("select distinct item_id from stg_items order by item_id")["item_id"]
            n = min(len(users), max(100, round(TOUCHED_SHARE * len(users))))
            rng, now = np.random.default_rng(1), utc_now()
            rows = {
                "event_id": [f"new-{number}" for number in range(n)],
                "user_id": users.take(pa.array(np.sort(rng.choice(len(users), n, replace=False)))),
                "item_id": items.take(pa.array(rng.integers(0, len(items), n))),
                "event_type": ["rating"] * n,
                "value": np.full(n, 5.0),
                "occurred_at": pa.array([now] * n, pa.timestamp("us", tz="UTC")),
                "batch_id": ["new"] * n,
                "source": ["growth"] * n,
                "source_row": np.arange(1, n + 1),
                "ingested_at": pa.array([now] * n, pa.timestamp("us", tz="UTC")),
            }
            warehouse.commit(lambda transaction: transaction.append("raw_events", pa.table(rows)))
        return n

    def _maintain(self) -> None:
        """A week later, so that all old snapshots are past their time."""
        from tasks.maintain import run_maintenance

        tables = ("raw_items", "raw_events", "stg_events", "fct_interactions", "user_profiles", "mart_recommendations")
        n_rows = sum(self._count(table) for table in tables)
        later = utc_now() + timedelta(days=8)
        self._measure("maintenance", lambda: run_maintenance(self._resources, now=later), n_rows)

    def _count(self, table: str) -> int:
        with self._resources.warehouse(read_only=True) as warehouse:
            return int(warehouse.read(f"select count(*) as n from {table}")["n"][0].as_py())  # noqa: S608

    def _measure(self, stage: str, call: Callable[[], T], n_rows: int | None = None, part: str = "") -> T:
        """Tell of one stage; ``n_rows`` are those of its receipts unless given."""
        self._tell({"begins": stage, "part": part})
        began, worked = time.perf_counter(), time.process_time()
        with MemoryPeaks() as peaks:
            result = call()
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        receipts = [part for part in (result if isinstance(result, list) else [result]) if isinstance(part, Receipt)]
        n = sum(receipt.n_in for receipt in receipts) if n_rows is None else n_rows
        if stage == "publish":
            n = receipts[0].n_out
        row: dict[str, Any] = {"stage": stage, "part": part, "seconds": round(seconds, 3), "rows": n}
        row["cpu_seconds"] = round(worked, 3)
        row |= {"rows_per_second": round(n / seconds, 1), **peaks.megabytes()}
        self._tell(row)
        return result


def stage_resources(home: Path, *, simulated_encoder: bool, memory_index: bool) -> GrowthResources:
    """Resources over ``home`` with the default settings, whatever the environment says of other homes."""
    settings: Settings = load_settings(home=home)
    return GrowthResources(settings, simulated_encoder, MemoryIndex() if memory_index else None)


def demo_sources() -> SourceFolders:
    """MovieLens 100K, as the demo imports it."""
    from infra.demo_data import prepare_movielens

    data = prepare_movielens(load_settings().cache)
    return SourceFolders(data.items, data.users, data.events)


def parse_size(text: str) -> Size:
    """From ``ITEMSxEVENTS``. Raises ValueError for anything else, or less than 50 items or 1,000 events."""
    n_items, _, n_events = text.replace("_", "").partition("x")
    size = Size(int(n_items), int(n_events))
    if size.n_items < 50 or size.n_events < 1000:
        raise ValueError(f"{text} is too small: at least 50 items and 1,000 events")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all stages over sources that lie in ``HOME/sources`` (or the demo's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help=f"ITEMSxEVENTS, or {DEMO}")
    parser.add_argument("--home", type=Path, required=True, help="folder for the state; sources lie in it")
    parser.add_argument("--simulated-encoder", action="store_true", help="no language model")
    parser.add_argument("--memory-index", action="store_true", help="vectors in memory instead of Qdrant's local mode")
    given = parser.parse_args(arguments)
    os.environ["NEARLINE_HOME"] = str(given.home / "state")  # what is imported below reads it
    import flows.daily_batch  # noqa: F401 - a flow's process holds Prefect

    folder = given.home / "sources"
    sources = (
        demo_sources() if given.size == DEMO else SourceFolders(folder / "items", folder / "users", folder / "events")
    )
    resources = stage_resources(
        given.home / "state", simulated_encoder=given.simulated_encoder, memory_index=given.memory_index
    )
    StageRunner(resources, _print_line).run(sources)


def _print_line(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
