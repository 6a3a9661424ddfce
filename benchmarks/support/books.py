"""The books of a home: whether they are right by themselves, and whether they are those of another home.

It knows nothing of how a home came to be as it is.
"""

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from tasks.change_feed import read_feed
from tasks.domain.ports import Resources, VectorIndex, Warehouse
from tasks.domain.profiles import compute_profiles
from tasks.model_state import load_histories, load_item_space, load_profiles, load_version
from tasks.projection import load_projection
from tasks.publish import load_history
from tasks.refresh import read_watermark
from warehouse.catalog import contracts, query_sql

Rows = list[dict[str, Any]]
Books = Mapping[str, Rows]

TOLERANCE = 1e-4
DATA_TIMES = ("occurred_at", "first_at", "last_at")
"""Times that are data; the others say when something was done."""
BY_RUN = frozenset({"run_id", "publication_id", "snapshot", "training_snapshot", "as_of_snapshot", "reason"})
"""Columns that differ between two runs that did the same. ``reason`` repeats the scores as text."""
OF_SERVING = (
    "item_factors", "item_neighbours", "user_factors", "user_profiles", "mart_recommendations", "eval_metrics",
)  # fmt: skip
WHOLE = (
    "raw_items", "raw_users", "raw_events", "quarantine", "import_batches", "stg_items", "stg_users", "stg_events",
    "int_item_texts", "int_user_texts", "fct_interactions", "item_embeddings", "text_embeddings",
)  # fmt: skip
_CHECKS = """
select distinct gate, table_name, expectation, column_name, passed from gate_results
where gate = 'ingest' or version = $version or (version is null and gate in ('transform', 'embed'))
"""


def read_books(resources: Resources) -> Books:
    """What two homes must have in common: raw and staged rows, embeddings, gates, switches, and all of the serving
    version. Names of versions, times and snapshots are left out."""
    with resources.warehouse(read_only=True) as warehouse:
        history = load_history(warehouse)
        version = history[-1].version if history else ""
        books = {table: _rows(warehouse, table, None) for table in WHOLE}
        books |= {table: _rows(warehouse, table, version) for table in OF_SERVING}
        books["gates"] = _sorted(warehouse.read(_CHECKS, {"version": version}).to_pylist())
    names = {name: f"version {n}" for n, name in enumerate(dict.fromkeys(entry.version for entry in history))}
    books["publications"] = [
        {"version": names[entry.version], "before": names.get(entry.previous_version or "")} for entry in history
    ]
    return books


def compare_books(books: Books, expected: Books) -> Iterator[str]:
    """How these books differ from the expected ones, in sentences."""
    for table, rows in expected.items():
        found = books[table]
        if len(found) != len(rows):
            yield f"{table} has {len(found)} rows, and {len(rows)} are expected"
            continue
        wrong = [(one, other) for one, other in zip(found, rows, strict=True) if not _equal(one, other)]
        if wrong:
            yield f"{table}: {len(wrong)} of {len(rows)} rows differ, such as {wrong[0][0]} for {wrong[0][1]}"


def check_books(resources: Resources) -> Iterator[str]:
    """What is wrong in a home by itself, once the loop has nothing to do, in sentences."""
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        yield from _doubled(warehouse)
        yield from _never_sent(warehouse)
        history = load_history(warehouse)
        serving = index.serving_version()
        if serving != (history[-1].version if history else None):
            yield f"{serving} serves, and the record says {history[-1].version if history else 'nothing'}"
        if serving is not None:
            yield from _serving(warehouse, index, serving)


def check_leftovers(resources: Resources) -> Iterator[str]:
    """What lies about in a home after ``maintenance``, once everything is past its time, in sentences."""
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        kept = warehouse.read(query_sql("stored_versions"))["version"].to_pylist()
        if index.versions() != sorted(kept):
            yield f"the index has the versions {index.versions()}, and the warehouse {sorted(kept)}"
        for version in index.versions():
            yield from _whole(warehouse, index, version)
    known, there = _known_files(resources.home), _files(resources.home / "warehouse" / "data", "*.parquet")
    for what, names in (("is an orphan", there - known), ("is missing", known - there)):
        yield from (f"the file {name} of the warehouse {what}" for name in sorted(names))
    collections = resources.home / "index" / "qdrant"
    if collections.exists():
        named = set(json.loads((collections / "meta.json").read_text())["collections"])
        for name in sorted({folder.name for folder in collections.glob("collection/*")} ^ named):
            yield f"the collection {name} has a folder or a name, and not both"
    halves = ("staging/**/*", "**/*.partial*", "**/*.unfinished*", "**/*.tmp", "**/adopted-*.parquet.*")
    for pattern in halves:
        yield from (f"{path.relative_to(resources.home)} lies about" for path in resources.home.glob(pattern))


def _rows(warehouse: Warehouse, table: str, version: str | None) -> Rows:
    times = [c.name for c in contracts()[table].columns if c.type == "TIMESTAMPTZ" and c.name not in DATA_TIMES]
    left_out = {*times, *BY_RUN, *(("version", "note") if version is not None else ())}
    names = ", ".join(c.name for c in contracts()[table].columns if c.name not in left_out)
    condition = "" if version is None else "where version = $version"
    sql = f"select {names} from {table} {condition}"  # noqa: S608 -- names of contracts
    key = [name for name in contracts()[table].key if name not in left_out]
    return _sorted(warehouse.read(sql, {"version": version} if condition else None).to_pylist(), key)


def _sorted(rows: Rows, key: list[str] | None = None) -> Rows:
    return sorted(rows, key=lambda row: [str(row[name]) for name in key or row])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def _doubled(warehouse: Warehouse) -> Iterator[str]:
    """Rows whose key stands more than once in a table."""
    keys = {table: ", ".join(contract.key) for table, contract in contracts().items() if contract.key}
    counts = [
        f"select '{table}' as name, count(*) - count(distinct ({key})) as n from {table}"  # noqa: S608 -- of contracts
        for table, key in keys.items()
    ]
    for row in warehouse.read(" union all ".join(counts)).to_pylist():
        if row["n"]:
            yield f"{row['name']} has {row['n']} rows whose key ({keys[row['name']]}) stands there already"


def _never_sent(warehouse: Warehouse) -> Iterator[str]:
    """Batches whose rows are not those that their record counts."""
    for kind in ("items", "users", "events"):
        sql = f"""
            select batch.source, batch.n_accepted, count(raw.batch_id) as n
            from import_batches as batch left join raw_{kind} as raw on raw.batch_id = batch.batch_id
            where batch.table_name = 'raw_{kind}' group by all having n != batch.n_accepted
        """  # noqa: S608 -- one of three names
        for row in warehouse.read(sql).to_pylist():
            yield f"raw_{kind} has {row['n']} rows of {row['source']}, and {row['n_accepted']} were accepted"


def _serving(warehouse: Warehouse, index: VectorIndex, version: str) -> Iterator[str]:
    model = load_version(warehouse, version)
    if model.state != "published":
        yield f"{version} serves, and is {model.state}"
    yield from _whole(warehouse, index, version)
    if read_watermark(warehouse, version) > warehouse.latest_snapshot():
        yield f"the watermark of {version} lies in the future"
    if read_feed(warehouse, version) is not None:
        yield f"{version} has news, though the loop has seen everything"
    items, stored = load_item_space(warehouse, version), load_profiles(warehouse, version)
    anew = compute_profiles(
        load_histories(warehouse, model, items, read_watermark(warehouse, version))[0], items, model.recipe
    )
    place = {user_id: row for row, user_id in enumerate(anew.user_ids)}
    if missing := set(anew.user_ids) - set(stored.user_ids):
        yield f"{len(missing)} users have a history and no profile"
    rows = [place[user_id] for user_id in stored.user_ids if user_id in place]
    mine = [row for row, user_id in enumerate(stored.user_ids) if user_id in place]
    for name, one, other in (("factors", stored.factors, anew.factors), ("texts", stored.text, anew.text)):
        difference = float(np.abs(one[mine] - other[rows]).max(initial=0))
        if difference > TOLERANCE:
            yield f"the {name} of profiles differ from those of their histories by {difference:.2g}"
    slates = warehouse.read(
        "select count(distinct user_id) as n from mart_recommendations where version = $v", {"v": version}
    )
    if slates["n"][0].as_py() == 0:
        yield f"{version} serves, and nobody has a slate of it"


def _whole(warehouse: Warehouse, index: VectorIndex, version: str) -> Iterator[str]:
    """Every point of a version against the warehouse."""
    with warehouse.at(warehouse.latest_snapshot()) as view:
        projection = load_projection(view, version)
    if index.count(version) != (len(projection.items), len(projection.users)):
        expected = len(projection.items), len(projection.users)
        yield f"the index has {index.count(version)} items and users of {version}, and the warehouse {expected}"
        return
    items = index.items(version, [payload.item_id for payload in projection.item_payloads])
    users = index.users(version, [payload.user_id for payload in projection.user_payloads])
    parts: tuple[tuple[str, Any, Any, list[str]], ...] = (
        ("items", items, projection.items, [payload.item_id for payload in projection.item_payloads]),
        ("users", users, projection.users, [payload.user_id for payload in projection.user_payloads]),
    )
    for what, found, vectors, ids in parts:
        stored = zip(ids, vectors, strict=True)
        n = sum(name not in found or not np.allclose(found[name][1], row, atol=1e-5) for name, row in stored)
        if n:
            yield f"{n} {what} of {version} are not in the index as in the warehouse"
    if version != index.serving_version():
        return  # what is shown of its items is brought up to date by a rollback
    n = sum(p.user_id in users and users[p.user_id][0] != p for p in projection.user_payloads)
    n += sum(p.item_id in items and items[p.item_id][0] != p for p in projection.item_payloads)
    if n:
        yield f"{n} payloads of {version} differ from the warehouse"


def _known_files(home: Path) -> set[str]:
    """Names of the files that the catalog knows, those that wait for their deletion among them."""
    with closing(sqlite3.connect(home / "warehouse" / "catalog.sqlite")) as catalog:
        found = [
            catalog.execute(f"select path from {table}").fetchall()  # noqa: S608 -- names of DuckLake's own tables
            for table in ("ducklake_data_file", "ducklake_delete_file", "ducklake_files_scheduled_for_deletion")
        ]
    return {Path(path).name for rows in found for (path,) in rows}


def _files(folder: Path, pattern: str) -> set[str]:
    return {path.name for path in folder.rglob(pattern)}
