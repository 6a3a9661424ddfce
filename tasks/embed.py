"""Embeds texts by content: a text whose hash has a vector under the same encoder is never encoded again.

Workers write each finished partition as a Parquet file into a staging folder; one process moves those files into the
warehouse. A run that was killed leaves files there, and the next run begins with them. It knows nothing of torch, Dask
or DuckDB.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from tasks.domain.errors import NearlineError, TerminalError
from tasks.domain.ports import Compute, Floats, Resources, TextEncoder, Transaction, Warehouse
from tasks.domain.records import Receipt
from tasks.domain.vectors import lists_from_matrix
from tasks.progress import step
from warehouse.catalog import query_sql

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]

_PARTITIONS_IN_A_COMMIT = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A text that could not be encoded: its hash, one item or event that uses it, and why."""

    content_hash: str
    used_by: str
    reason: str


def embed_items(resources: Resources, *, now: datetime, on_progress: Progress | None = None) -> Receipt:
    """Bring ``item_embeddings`` up to date with ``int_item_texts``; ``on_progress`` gets texts done and to do.

    ``n_in`` counts the distinct texts that had no vector, ``n_out`` the vectors stored. If there was none, no worker
    is started and the receipt says ``reused``. A text that cannot be encoded is left out and named in the note; the
    others go on. Raises ModelMissingError, and TerminalError if every text of a partition fails.
    """
    return _embed(_ITEMS, resources, now, on_progress)


def embed_texts(resources: Resources, *, now: datetime) -> Receipt:
    """Bring ``text_embeddings`` up to date with ``int_user_texts``; as ``embed_items``."""
    return _embed(_TEXTS, resources, now, None)


def embed_here(
    warehouse: Warehouse, encoder: TextEncoder, items: pa.Table, texts: pa.Table, *, now: datetime
) -> tuple[Failure, ...]:
    """Encode a few texts in this process and store their vectors in one commit, each content once.

    ``items`` has the columns content_hash, template_version, text and used_by, and goes to ``item_embeddings``;
    ``texts`` has them without the template, and goes to ``text_embeddings``. Returns the texts that could not be
    encoded. Raises TerminalError if none could, and a plain word cannot be either.
    """
    items, texts = (rows.take(pa.array(_first_of_each(rows), pa.int64())) for rows in (items, texts))
    asked = [*items["text"].to_pylist(), *texts["text"].to_pylist()]
    vectors, reasons = _encode(encoder, asked)
    if asked and None not in reasons:
        _check_encoder(encoder, reasons[-1])
    parts = ((_ITEMS, items, 0), (_TEXTS, texts, items.num_rows))
    failures: list[Failure] = []
    stored = []
    for kind, rows, start in parts:
        end = start + rows.num_rows
        kept, failed = _stored_rows(rows, encoder.encoder_id, vectors[start:end], reasons[start:end])
        failures += failed
        stored.append(_append_new(kind, encoder.encoder_id, _stamped(kept, now)))

    def work(transaction: Transaction) -> None:
        for append in stored:
            append(transaction)

    if len(failures) < len(asked):
        warehouse.commit(work)
    return tuple(failures)


def count_pending(resources: Resources) -> int:
    """Distinct item texts that have no vector under the current encoder."""
    encoder_id = resources.encoder().encoder_id
    with resources.warehouse(read_only=True) as warehouse:
        return _n_pending(_pending(warehouse, _ITEMS, encoder_id, [], 1))


@dataclass(frozen=True)
class Partition:
    """One unit of work. ``rows`` has the columns content_hash, text, used_by and (for items) template_version."""

    resources: Resources
    encoder_id: str
    rows: pa.Table
    folder: Path


@dataclass(frozen=True)
class PartitionResult:
    """A finished partition: the file with its vectors, how many texts it had, and those that failed."""

    path: Path
    n_texts: int
    failures: tuple[Failure, ...]


def embed_partition(partition: Partition) -> PartitionResult:
    """Encode one partition on a worker and write it to a Parquet file that appears whole or not at all.

    The name of the file is that of its content, so that doing a partition twice makes one file.
    """
    encoder = partition.resources.encoder()
    if encoder.encoder_id != partition.encoder_id:
        raise TerminalError(
            f"A worker was to encode with {partition.encoder_id} and has {encoder.encoder_id}. All machines must have "
            "the same model files and settings; with NEARLINE_ENCODER__PRECISION=auto they must also be of one kind."
        )
    rows = partition.rows
    vectors, reasons = _encode(encoder, rows["text"].to_pylist())
    if None not in reasons:
        _check_encoder(encoder, reasons[-1])
    kept, failures = _stored_rows(rows, partition.encoder_id, vectors, reasons)
    digest = hashlib.sha256("".join(rows["content_hash"].to_pylist()).encode()).hexdigest()
    path = partition.folder / f"{digest[:32]}.parquet"
    _write_whole(kept, path)
    return PartitionResult(path, rows.num_rows, tuple(failures))


@dataclass(frozen=True)
class _Kind:
    """What is embedded: the queries that find it, the table it goes to and that table's key beside the encoder."""

    stage: str
    table: str
    pending_query: str
    known_query: str
    key: tuple[str, ...]


_ITEMS = _Kind(
    "embed_items",
    "item_embeddings",
    "pending_item_texts",
    "known_item_embeddings",
    ("content_hash", "template_version"),
)
_TEXTS = _Kind("embed_texts", "text_embeddings", "pending_user_texts", "known_text_embeddings", ("content_hash",))


@dataclass(frozen=True)
class _Job:
    """One call: what is embedded, with which encoder, where partitions are staged, and the time that is stamped."""

    kind: _Kind
    resources: Resources
    warehouse: Warehouse
    encoder_id: str
    folder: Path
    now: datetime


def _embed(kind: _Kind, resources: Resources, now: datetime, on_progress: Progress | None) -> Receipt:
    started = time.perf_counter()
    encoder_id = resources.encoder().encoder_id
    folder = resources.home / "staging" / kind.table / hashlib.sha256(encoder_id.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), resources.warehouse() as warehouse:
        job = _Job(kind, resources, warehouse, encoder_id, folder, now)
        n_found = _store(job, _left_behind(folder))
        n_pending = _n_pending(_pending(warehouse, kind, encoder_id, [], 1))
        n_new, failures = _embed_pending(job, n_pending, on_progress) if n_pending else (0, [])
    seconds = time.perf_counter() - started
    logger.info("%s n=%d found=%d failed=%d seconds=%.1f", kind.stage, n_new, n_found, len(failures), seconds)
    return Receipt(
        stage=kind.stage,
        n_in=n_found + n_pending,
        n_out=n_found + n_new,
        location=kind.table,
        seconds=seconds,
        reused=n_found + n_pending == 0,
        note=_note(n_found, failures),
    )


def _embed_pending(job: _Job, n_pending: int, on_progress: Progress | None) -> tuple[int, list[Failure]]:
    """Rounds of a bounded number of texts, each stored in one commit, so that memory does not grow with the catalog.

    Returns the number of vectors stored and what failed.
    """
    size = job.resources.partition_items
    failures: list[Failure] = []
    n_done = n_stored = 0
    with _workers(job.resources, n_pending) as workers:
        while True:
            skipped = [failure.content_hash for failure in failures]
            most = size * _PARTITIONS_IN_A_COMMIT
            rows = _pending(job.warehouse, job.kind, job.encoder_id, skipped, most).drop_columns(["n_pending"])
            if rows.num_rows == 0:
                return n_stored, failures
            slices = (rows.slice(start, size) for start in range(0, rows.num_rows, size))
            partitions = (Partition(job.resources, job.encoder_id, part, job.folder) for part in slices)
            paths = []
            for result in workers.map(embed_partition, partitions):
                paths.append(result.path)
                failures.extend(result.failures)
                n_done += result.n_texts
                if on_progress:
                    on_progress(n_done, n_pending)
            n_stored += _store(job, paths)


def _pending(warehouse: Warehouse, kind: _Kind, encoder_id: str, skipped: Sequence[str], most: int) -> pa.Table:
    parameters = {"encoder_id": encoder_id, "skipped": list(skipped), "most": most}
    return warehouse.read(query_sql(kind.pending_query), parameters)


def _n_pending(rows: pa.Table) -> int:
    return int(rows["n_pending"][0].as_py()) if rows.num_rows else 0


class _ThisProcess:
    """Stands in the place of a cluster where there is too little to share."""

    def map(self, function: Callable[[T], R], partitions: Iterable[T], *, in_flight: int = 2) -> Iterator[R]:
        return map(function, partitions)


def _workers(resources: Resources, n_pending: int) -> AbstractContextManager[Compute]:
    return resources.compute() if n_pending > resources.partition_items else nullcontext(_ThisProcess())


def _encode(encoder: TextEncoder, texts: list[str]) -> tuple[Floats, list[str | None]]:
    """Vectors, and for each text why it has none (or None). A batch that fails is halved until the culprit is alone."""
    try:
        vectors = encoder.encode(texts)
    except NearlineError:
        raise
    except Exception as error:
        if len(texts) == 1:
            return np.zeros((1, encoder.width), np.float32), [f"{type(error).__name__}: {error}"[:200]]
        half = len(texts) // 2
        first, second = _encode(encoder, texts[:half]), _encode(encoder, texts[half:])
        return np.concatenate([first[0], second[0]]), first[1] + second[1]
    unit = np.isclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    return vectors, [None if is_unit else "its vector is not of unit length" for is_unit in unit]


def _stored_rows(
    rows: pa.Table, encoder_id: str, vectors: Floats, reasons: Sequence[str | None]
) -> tuple[pa.Table, list[Failure]]:
    """The rows that have a vector, with it and without their text, and the failures of the others."""
    good = [row for row, reason in enumerate(reasons) if reason is None]
    kept = rows.drop_columns(["text", "used_by"]).take(pa.array(good, pa.int64()))
    kept = kept.append_column("encoder_id", pa.array([encoder_id] * len(good), pa.string()))
    kept = kept.append_column("embedding", lists_from_matrix(vectors[good]))
    names = zip(rows["content_hash"].to_pylist(), rows["used_by"].to_pylist(), reasons, strict=True)
    return kept, [Failure(content_hash, used_by, reason) for content_hash, used_by, reason in names if reason]


def _stamped(rows: pa.Table, now: datetime) -> pa.Table:
    return rows.append_column("embedded_at", pa.array([now] * rows.num_rows, pa.timestamp("us", "UTC")))


def _first_of_each(rows: pa.Table) -> list[int]:
    """Positions of the first row of each content."""
    hashes = rows["content_hash"].to_pylist()
    return sorted({content_hash: len(hashes) - 1 - row for row, content_hash in enumerate(reversed(hashes))}.values())


def _check_encoder(encoder: TextEncoder, reason: str | None) -> None:
    """Raises TerminalError if even a plain word cannot be encoded: then the texts are not at fault."""
    if _encode(encoder, ["film"])[1] != [None]:
        raise TerminalError(
            f"The encoder {encoder.encoder_id} cannot encode anything ({reason}). Check its files and settings; "
            "docs/models.md shows how to try it on one text."
        )


def _write_whole(rows: pa.Table, path: Path) -> None:
    partial = path.with_suffix(f".partial-{os.getpid()}")
    pq.write_table(rows, partial, compression="zstd")
    with step("keep a partition"):
        partial.replace(path)


def _left_behind(folder: Path) -> list[Path]:
    """Finished partitions of a run that was killed. What is not a whole file is deleted."""
    for partial in folder.glob("*.partial-*"):
        partial.unlink(missing_ok=True)
    whole = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            pq.read_metadata(path)
            whole.append(path)
        except (pa.ArrowInvalid, OSError):
            logger.warning("%s is damaged; its texts are embedded again.", path)
            path.unlink(missing_ok=True)
    return whole


def _store(job: _Job, paths: Sequence[Path]) -> int:
    """Move files into the table, a bounded number in one commit; texts that are there already are left out."""
    n_stored = 0
    for start in range(0, len(paths), _PARTITIONS_IN_A_COMMIT):
        group = paths[start : start + _PARTITIONS_IN_A_COMMIT]
        rows = pa.concat_tables([pq.read_table(path) for path in group])
        n_stored += job.warehouse.commit(_append_new(job.kind, job.encoder_id, _stamped(rows, job.now)))
        for path in group:
            path.unlink(missing_ok=True)
    return n_stored


def _append_new(kind: _Kind, encoder_id: str, rows: pa.Table) -> Callable[[Transaction], int]:
    """What is new among the rows, each content once."""

    def work(transaction: Transaction) -> int:
        parameters = {"encoder_id": encoder_id, "hashes": rows["content_hash"].to_pylist()}
        seen = set(_keys(transaction.read(query_sql(kind.known_query), parameters), kind))
        new = []
        for row, key in enumerate(_keys(rows, kind)):
            if key not in seen:
                seen.add(key)
                new.append(row)
        return transaction.append(kind.table, rows.take(pa.array(new, pa.int64())))

    return work


def _keys(rows: pa.Table, kind: _Kind) -> Iterator[tuple[str, ...]]:
    return zip(*(rows[name].to_pylist() for name in kind.key), strict=True)


def _note(n_found: int, failures: Sequence[Failure]) -> str:
    notes = []
    if n_found:
        notes.append(f"{n_found} vectors were left by an earlier run that did not finish")
    if failures:
        named = "; ".join(f"{failure.used_by}: {failure.reason}" for failure in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        notes.append(f"{len(failures)} texts could not be embedded and are served without text ({named}{more})")
    return ". ".join(notes)
