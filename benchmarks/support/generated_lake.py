"""A warehouse of any size with one model version that serves, all of it generated and written straight into the tables.

Users have histories of equal length, items a popularity after Zipf's law, and vectors are random: what is measured on
it says how fast something is, never how good. It knows nothing of what is measured.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.resources import LocalResources
from tasks.domain.factor_model import FactorParameters
from tasks.domain.fusion import Bucket, Fusion
from tasks.domain.ports import Resources, Transaction, VectorIndex, Warehouse
from tasks.domain.profiles import Recipe
from tasks.domain.records import UserPayload
from tasks.domain.vectors import lists_from_matrix, unit_rows
from warehouse.catalog import contracts, model_sql

GENERATOR = "generated lake (Zipf popularity, histories of equal length, random vectors)"
VERSION = "generated"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_ENCODER, _TEMPLATE = "random@1", "v1"
_EVENTS_AT_ONCE = 2_500_000
_EVENTS = """
insert into raw_events by name
select
    md5(cast(range as varchar)) as event_id,
    'user-' || lpad(cast(range % $n_users as varchar), 7, '0') as user_id,
    'item-' || lpad(cast(cast(floor($n_items * power(hash(range) / 18446744073709551616.0, 5)) as bigint) as varchar),
        6, '0') as item_id,
    case when hash(range, 1) % 10 < 7 then 'view' else 'like' end as event_type,
    cast($begin as timestamptz) + to_microseconds(range * 1000000 + cast(hash(range, 2) % 1000000 as bigint))
        as occurred_at,
    'batch-' || lpad(cast(range // 1000 as varchar), 9, '0') as batch_id,
    'generated' as source,
    range % 1000 + 1 as source_row,
    cast($begin as timestamptz) + to_seconds(range) as ingested_at
from range($first, $last)
"""


@dataclass(frozen=True)
class LakeSize:
    """How much is generated; ``n_users`` each have ``n_events / n_users`` events."""

    n_events: int = 10_000_000
    n_users: int = 100_000
    n_items: int = 20_000
    n_factors: int = 64
    text_width: int = 384


@dataclass
class CountingIndex:
    """Stands in the place of the vector index: serves ``VERSION``, and counts the users it is given instead of
    writing them."""

    n_upserted: int = field(default=0)

    def serving_version(self) -> str:
        """Always the generated one."""
        return VERSION

    def versions(self) -> list[str]:
        """The generated one alone."""
        return [VERSION]

    def upsert_users(self, version: str, vectors: npt.NDArray[np.float32], payloads: Sequence[UserPayload]) -> None:
        """Count them."""
        assert len(vectors) == len(payloads)
        self.n_upserted += len(payloads)


@dataclass(frozen=True)
class LakeResources(LocalResources):
    """The real adapters, with an index that writes nothing."""

    @contextmanager
    def index(self) -> Iterator[VectorIndex]:
        """An index whose writes take no time."""
        yield cast(VectorIndex, CountingIndex())


def generate_lake(resources: Resources, size: LakeSize, *, seed: int = 0) -> None:
    """Fill an empty warehouse: catalog, events, and a version trained at the last snapshot, whose watermark says so."""
    rng = np.random.default_rng(seed)
    with resources.warehouse() as warehouse:
        generate_events(warehouse, size)
        snapshot = warehouse.latest_snapshot()
        recipe = _recipe(resources, size)
        warehouse.commit(lambda transaction: _write_version(transaction, size, recipe, snapshot, rng))
        warehouse.commit(lambda transaction: _write_profiles(transaction, size, snapshot, rng))


def generate_events(warehouse: Warehouse, size: LakeSize) -> None:
    """Fill an empty warehouse with the catalog and the events, and with no version."""
    warehouse.commit(lambda transaction: _write_items(transaction, size))
    for first in range(0, size.n_events, _EVENTS_AT_ONCE):
        bounds = {"first": first, "last": min(first + _EVENTS_AT_ONCE, size.n_events)}
        given = {"n_users": size.n_users, "n_items": size.n_items, "begin": BEGIN, **bounds}
        warehouse.commit(lambda transaction, given=given: transaction.execute(_EVENTS, given))


def new_events(size: LakeSize, user_numbers: npt.NDArray[np.int64], now: datetime, *, name: str) -> pa.Table:
    """One new event of each of these users, as rows of ``raw_events``; ``name`` makes their ids and batch."""
    n = len(user_numbers)
    when = pa.array([now] * n, pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "event_id": [hashlib.md5(f"{name}/{k}".encode()).hexdigest() for k in range(n)],
            "user_id": [f"user-{user:07}" for user in user_numbers],
            "item_id": [f"item-{(user * 7919) % size.n_items:06}" for user in user_numbers],
            "event_type": ["like"] * n,
            "occurred_at": when,
            "batch_id": [name] * n,
            "source": ["generated"] * n,
            "source_row": np.arange(1, n + 1),
            "ingested_at": when,
        }
    )


def _write_items(transaction: Transaction, size: LakeSize) -> None:
    n = size.n_items
    rows = {
        "item_id": [f"item-{item:06}" for item in range(n)],
        "title": [f"Generated item {item}" for item in range(n)],
        "categories": pa.array([[f"category-{item % 20}"] for item in range(n)], pa.list_(pa.string())),
        "available": [True] * n,
        "batch_id": ["items"] * n,
        "source": ["generated"] * n,
        "source_row": np.arange(1, n + 1),
        "ingested_at": pa.array([BEGIN] * n, pa.timestamp("us", tz="UTC")),
    }
    transaction.append("raw_items", pa.table(rows))
    names = ", ".join(column.name for column in contracts()["stg_items"].columns)
    transaction.execute(f"insert into stg_items ({names}) select {names} from ({model_sql('stg_items')})")  # noqa: S608


def _recipe(resources: Resources, size: LakeSize) -> Recipe:
    fusion = Fusion(
        scale=1.5,
        buckets=(Bucket(0, 0.5, 0.1), Bucket(10, 0.3, 0.05)),
        text_request=Bucket(0, 0.8, 0.05),
        factor_block=1.0,
        prior_block=0.5,
    )
    parameters = FactorParameters(n_factors=size.n_factors)
    return Recipe(parameters, fusion, 8.0, 200.0, 3650.0, tuple(resources.event_types.values()))


def _write_version(
    transaction: Transaction, size: LakeSize, recipe: Recipe, snapshot: int, rng: np.random.Generator
) -> None:
    n, width = size.n_items, size.text_width
    hashes = [hashlib.sha256(f"{item}".encode()).hexdigest() for item in range(n)]
    stamp = pa.array([BEGIN] * n, pa.timestamp("us", tz="UTC"))
    likes = np.maximum(size.n_events // 5 * (np.arange(1, n + 1) / n) ** -0.8 / n, 1).astype(np.int64)
    transaction.append(
        "item_embeddings",
        pa.table(
            {
                "content_hash": hashes,
                "encoder_id": [_ENCODER] * n,
                "template_version": [_TEMPLATE] * n,
                "embedding": _random_units(rng, n, width),
                "embedded_at": stamp,
            }
        ),
    )
    transaction.append(
        "item_factors",
        pa.table(
            {
                "version": [VERSION] * n,
                "item_id": [f"item-{item:06}" for item in range(n)],
                "content_hash": hashes,
                "factors": _random_units(rng, n, size.n_factors),
                "prior": np.log1p(likes),
                "n_interactions": likes,
            }
        ),
    )
    transaction.append("model_versions", _version_row(size, recipe, snapshot, rng))


def _version_row(size: LakeSize, recipe: Recipe, snapshot: int, rng: np.random.Generator) -> pa.Table:
    row = {
        "version": VERSION,
        "state": "published",
        "created_at": BEGIN,
        "encoder_id": _ENCODER,
        "template_version": _TEMPLATE,
        "text_width": size.text_width,
        "n_factors": size.n_factors,
        "training_snapshot": snapshot,
        "inputs_hash": "",
        "seed": 0,
        "n_items": size.n_items,
        "n_users": size.n_users,
        "recipe": recipe.to_json(),
        "fusion": recipe.fusion.to_json(),
        "text_map": (0.05 * rng.standard_normal(size.text_width * size.n_factors)).tolist(),
        "metrics": "{}",
    }
    return pa.Table.from_pylist([row])


def _write_profiles(transaction: Transaction, size: LakeSize, snapshot: int, rng: np.random.Generator) -> None:
    for first in range(0, size.n_users, 25_000):
        n = min(25_000, size.n_users - first)
        transaction.append(
            "user_profiles",
            pa.table(
                {
                    "version": [VERSION] * n,
                    "user_id": [f"user-{user:07}" for user in range(first, first + n)],
                    "text_embedding": _random_units(rng, n, size.text_width),
                    "factors": _random_units(rng, n, size.n_factors),
                    "n_history": np.full(n, size.n_events // size.n_users),
                    "alpha": np.full(n, 0.3),
                    "beta": np.full(n, 0.05),
                    "drift": np.full(n, 0.1),
                    "seen_items": _random_items(rng, n, size),
                    "as_of_snapshot": np.full(n, snapshot),
                    "refreshed_at": pa.array([BEGIN] * n, pa.timestamp("us", tz="UTC")),
                }
            ),
        )
    mark = {"version": [VERSION], "snapshot": [snapshot], "updated_at": [BEGIN + timedelta(days=365)]}
    transaction.append("watermarks", pa.table(mark))


def _random_units(rng: np.random.Generator, n: int, width: int) -> pa.ListArray:
    return lists_from_matrix(unit_rows(rng.standard_normal((n, width), np.float32)))


def _random_items(rng: np.random.Generator, n: int, size: LakeSize) -> pa.ListArray:
    """(n,) lists of as many items as a history has events."""
    names = pa.array([f"item-{item:06}" for item in range(size.n_items)], pa.string())
    length = size.n_events // size.n_users
    drawn = (size.n_items * rng.random(n * length) ** 5).astype(np.int64)
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * length), names.take(pa.array(drawn)))
