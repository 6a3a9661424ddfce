"""What small vectors cost: memory, search time and recall@10 of Qdrant's ways to store and search fused vectors.

    NEARLINE_HOME=... python -m benchmarks.small_vectors [--items 100000] [--json]

Needs a home with a published version (make demo) and ``qdrant-edge-py``, Qdrant's engine within one process: local mode
searches exactly and would show nothing. Two sets of items are searched for every user of that version:

- *real*: the fused vectors as they are published;
- *generated*: as many as ``--items``, each a real one with noise in every column of half its standard deviation, text
  blocks brought back to unit length. A real catalog of that size may be easier or harder.

Each variant is built in a process of its own (indexed whole, in one segment, however few the items are), and searched
in another one, with the filter on available items that every search of the platform has. Recall is the share of the ten
items that exact search over the float32 vectors finds. Where vectors are float16, so are the queries, because the index
keeps them too. The first three columns of megabytes are files; *memory* is how far the resident memory of the process
rises from before the shard is opened to after the last search. With quantization, the vectors themselves are read from
disk where candidates are scored again; what the system keeps of them in memory counts too.

*level* appends the column sqrt(M^2 - |x|^2) to items, M the largest norm, and 0 to queries: products stay what they are
and all norms become M (Bachrach et al. 2014, "Speeding up the Xbox recommender system using a Euclidean transformation
for inner-product spaces"). Without it a graph is bad: norms differ, so that few items are near any other by product.

The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.support.measured_process import MB, MemoryGrowth, describe_machine, in_child
from infra.resources import build_resources
from infra.settings import load_settings
from tasks.domain.errors import NotFoundError
from tasks.domain.projections import TOP_K, Projection
from tasks.projection import load_projection

Floats = npt.NDArray[np.float32]
NAME, STATE = "fused", "state"
UPSERT_BATCH = 1000
NOISE = 0.5
SCALAR_QUANTILE = 0.99


class Search(NamedTuple):
    """How a built variant is searched. ``oversampling`` 0: what quantized search finds is not scored again."""

    ef: int | None = None
    oversampling: float | None = None


@dataclass(frozen=True)
class Variant:
    """How vectors are stored. ``m`` 0: no graph. ``quantization``: none, scalar (int8), binary, turbo (4 bits)."""

    datatype: str
    m: int = 0
    ef_construct: int = 100
    level: bool = False
    quantization: str = "none"
    searches: tuple[Search, ...] = (Search(),)

    def name(self, search: Search) -> str:
        """As the table calls it."""
        level = " level" if self.level else ""
        parts = [self.datatype, f"HNSW{level} m={self.m} ef={search.ef}" if self.m else "scan"]
        if self.quantization != "none":
            again = f"x{search.oversampling:g}" if search.oversampling else "not scored again"
            parts.append(f"{self.quantization} {again}")
        return ", ".join(parts)


class Data(NamedTuple):
    """One set: ``items`` (n, width), ``is_available`` (n,), ``queries`` (n_users, width), ``best`` (n_users, 10)."""

    items: Floats
    is_available: npt.NDArray[np.bool_]
    queries: Floats
    best: npt.NDArray[np.int64]


VARIANTS = (
    Variant("float32"),
    Variant("float16"),
    Variant("turbo8"),
    Variant("uint8"),
    Variant("float32", m=16, searches=(Search(ef=128), Search(ef=512))),
    Variant("float16", m=64, ef_construct=400, searches=(Search(ef=512),)),
    Variant("float16", m=16, level=True, searches=(Search(ef=128), Search(ef=256))),
    Variant("float32", m=32, ef_construct=200, level=True, searches=(Search(ef=256),)),
    Variant("float16", m=32, ef_construct=200, level=True, searches=(Search(ef=128), Search(ef=256), Search(ef=512))),
    *(
        Variant("float16", quantization=name, searches=tuple(Search(oversampling=times) for times in (0, 1, 4, 16)))
        for name in ("scalar", "binary", "turbo")
    ),
    Variant("float16", 32, 200, True, "scalar", searches=(Search(256, 16),)),
    Variant("float16", 32, 200, True, "turbo", searches=(Search(256, 4),)),
)


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--items", type=int, default=100_000, help="items of the generated set")
    parser.add_argument("--repeat", type=int, default=3, help="times that every user's search is timed")
    parser.add_argument("--users", type=int, default=1000, help="most users whose searches are measured")
    arguments = parser.parse_args()
    projection = load_published()
    real = make_data(projection.items, projection.available, projection.users[: arguments.users])
    sets = {
        "real": real,
        "generated": make_data(*more_items(projection, arguments.items), projection.users[: arguments.users]),
    }
    report: dict[str, Any] = {"users": len(real.queries), "width": projection.width, "sets": {}}
    for name, data in sets.items():
        with tempfile.TemporaryDirectory(prefix="nearline-small-vectors-") as folder:
            rows = list(measure(Path(folder), data, VARIANTS, arguments.repeat))
        report["sets"][name] = {"items": len(data.items), "variants": rows}
        if not arguments.json:
            _show(name, len(data.items), rows)
    print(json.dumps({"benchmark": "small_vectors", "machine": describe_machine("qdrant-edge-py"), **report}))


def load_published() -> Projection:
    """The version that serves, from the warehouse of the settings' home. Raises NotFoundError where none does."""
    resources = build_resources(load_settings())
    with resources.index() as index:
        version = index.serving_version()
    if version is None:
        raise NotFoundError("Nothing is published in this home. Run make demo, or name another one: NEARLINE_HOME.")
    with resources.warehouse(read_only=True) as warehouse, warehouse.at(warehouse.latest_snapshot()) as view:
        return load_projection(view, version)


def more_items(projection: Projection, n_items: int, *, seed: int = 0) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Generated items (n_items, width) and whether each is available: see the module's docstring."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(projection.items), size=n_items)
    spread = NOISE * projection.items.std(axis=0)
    items = projection.items[chosen] + (rng.standard_normal((n_items, projection.width)) * spread).astype(np.float32)
    text = items[:, : projection.text_width]
    text /= np.maximum(np.linalg.norm(text, axis=1, keepdims=True), 1e-12)
    return items, projection.available[chosen]


def make_data(items: Floats, is_available: npt.NDArray[np.bool_], queries: Floats) -> Data:
    """A set with its exact answers; equal scores are in the order of the items."""
    best = [np.argsort(np.where(is_available, -(items @ query), np.inf), kind="stable")[:TOP_K] for query in queries]
    return Data(items, is_available, queries, np.stack(best))


def measure(folder: Path, data: Data, variants: tuple[Variant, ...], n_turns: int) -> Iterator[dict[str, Any]]:
    """One row for each search of each variant; shards are made below ``folder`` and removed."""
    for number, variant in enumerate(variants):
        shard = folder / str(number)
        seconds = in_child(build, shard, variant, data.items, data.is_available)
        sizes = _megabytes(shard)
        queries = _as_asked(variant, data.queries)
        for search in variant.searches:
            found = in_child(search_all, shard, search, queries, data.best, n_turns)
            yield {"variant": variant.name(search), "build_seconds": round(seconds, 1), **sizes, **found}


def build(folder: Path, variant: Variant, items: Floats, is_available: npt.NDArray[np.bool_]) -> float:
    """Seconds to write, index and flush a shard in ``folder``."""
    import qdrant_edge as edge

    stored = _level(items) if variant.level else items
    folder.mkdir(parents=True)
    shard = edge.EdgeShard.create(str(folder), _config(variant, stored.shape[1]))
    began = time.perf_counter()
    # Through these bindings (0.9.0) a condition on a boolean finds nothing, hence a word.
    shard.update(edge.UpdateOperation.create_field_index(STATE, edge.PayloadSchemaType.Keyword))
    for start in range(0, len(stored), UPSERT_BATCH):
        rows = zip(stored[start : start + UPSERT_BATCH].tolist(), is_available[start:].tolist(), strict=False)
        points = [
            edge.Point(start + row, {NAME: vector}, {STATE: "available" if shown else "hidden"})
            for row, (vector, shown) in enumerate(rows)
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    while shard.optimize():
        pass
    shard.flush()
    seconds = time.perf_counter() - began
    shard.close()
    return seconds


def search_all(
    folder: Path, search: Search, queries: Floats, best: npt.NDArray[np.int64], n_turns: int
) -> dict[str, float]:
    """Recall, milliseconds of one search (medians over turns of each turn's quantiles) and memory."""
    import qdrant_edge as edge

    asked = queries.tolist()
    with MemoryGrowth() as memory:
        shard = edge.EdgeShard.load(str(folder))
        turns = [[_timed(shard, search, query) for query in asked] for _ in range(n_turns + 1)]
    shares = [
        len(set(ids) & set(wanted)) / len(wanted) for (_, ids), wanted in zip(turns[0], best.tolist(), strict=True)
    ]
    shard.close()
    times = np.array([[seconds for seconds, _ in turn] for turn in turns[1:]]) * 1000  # the first turn warms up
    p50, p99 = np.median(np.percentile(times, [50, 99], axis=1), axis=1).tolist()
    return {
        "recall_at_10": round(float(np.mean(shares)), 4),
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
        "memory_megabytes": round(memory.mb, 1),
    }


def _timed(shard: Any, search: Search, query: list[float]) -> tuple[float, list[int]]:
    import qdrant_edge as edge

    again = search.oversampling
    quantized = None if again is None else edge.QuantizationSearchParams(rescore=again > 0, oversampling=again or None)
    request = edge.QueryRequest(
        limit=TOP_K,
        query=edge.Query.Nearest(query, using=NAME),
        filter=edge.Filter(must=[edge.FieldCondition(key=STATE, match=edge.MatchValue(value="available"))]),
        params=edge.SearchParams(hnsw_ef=search.ef, quantization=quantized),
    )
    began = time.perf_counter()
    hits = shard.query(request)
    return time.perf_counter() - began, [hit.id for hit in hits]


def _config(variant: Variant, width: int) -> Any:
    """Everything is indexed, in one segment, and no search falls back to a scan because items are few."""
    import qdrant_edge as edge

    graph = edge.HnswIndexConfig(m=variant.m, ef_construct=variant.ef_construct, full_scan_threshold=1)
    vectors = edge.EdgeVectorParams(
        size=width,
        distance=edge.Distance.Dot,
        datatype=getattr(edge.VectorStorageDatatype, variant.datatype.capitalize()),
        quantization_config=_quantization(variant.quantization),
        hnsw_config=graph,
        on_disk=variant.quantization != "none",
    )
    one_segment = edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1, max_segment_size=10**9)
    return edge.EdgeConfig(vectors={NAME: vectors}, hnsw_config=graph, optimizers=one_segment)


def _quantization(name: str) -> Any:
    import qdrant_edge as edge

    if name == "scalar":
        return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, SCALAR_QUANTILE, always_ram=True)
    if name == "binary":
        return edge.BinaryQuantizationConfig(always_ram=True)
    if name == "turbo":
        return edge.TurboQuantQuantizationConfig(always_ram=True, bits=edge.TurboQuantBitSize.Bits4)
    return None


def _level(items: Floats) -> Floats:
    squares = (items.astype(np.float64) ** 2).sum(axis=1)
    return np.column_stack([items, np.sqrt(squares.max() - squares)]).astype(np.float32)


def _as_asked(variant: Variant, queries: Floats) -> Floats:
    """Rounded as the index would keep them, and with the 0 for the column that levels."""
    kept = queries.astype(np.float16).astype(np.float32) if variant.datatype == "float16" else queries
    return np.pad(kept, ((0, 0), (0, int(variant.level))))


def _megabytes(shard: Path) -> dict[str, float]:
    """Files of vectors, of quantized ones and of the graph; the log of writes and the like are not theirs."""
    sizes = {"vector_storage": 0, "quantized": 0, "vector_index": 0}
    for path in (path for path in shard.rglob("*") if path.is_file()):
        inner = str(path.relative_to(shard))
        kind = "quantized" if "quantized" in inner else next((name for name in sizes if name in inner), None)
        if kind is not None:
            sizes[kind] += path.stat().st_size
    names = {
        "vector_storage": "vectors_megabytes",
        "quantized": "quantized_megabytes",
        "vector_index": "graph_megabytes",
    }
    return {names[kind]: round(size / MB, 2) for kind, size in sizes.items()}


def _show(name: str, n_items: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}: {n_items} items\n")
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in columns) + " |")


if __name__ == "__main__":
    main()
