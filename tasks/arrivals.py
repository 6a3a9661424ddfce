"""New and changed items, and what users wrote, brought to a model version as they come: the part of the nearline loop
before the refresh. ``docs/items.md`` says what becomes of an item.

It knows nothing of schedules, and nothing of profiles: whom an item concerns is named in ``refresh_requests``.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.arrival_feed import ArrivalFeed, CatalogPart, load_catalog_part, load_unembedded, read_arrivals
from tasks.domain.arrivals import ArrivedItem, check_arrivals, choose_texts, text_hash
from tasks.domain.features import encode_items
from tasks.domain.fusion import fuse_items
from tasks.domain.item_fit import NEW_PRIOR, fit_without_history
from tasks.domain.ports import Resources, Transaction, VectorIndex, Warehouse
from tasks.domain.records import NearlineRun, Receipt
from tasks.domain.vectors import lists_from_matrix
from tasks.embed import embed_here
from tasks.model_state import ModelVersion, load_version, text_matrix
from tasks.projection import item_payload
from tasks.refresh import serving_version
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]

MOST_TEXTS = 512
"""Texts that one call encodes. The others wait for the next one."""
_ITEM_TEXTS = pa.schema([(name, pa.string()) for name in ("content_hash", "template_version", "text", "used_by")])

logger = logging.getLogger(__name__)


def bring_items(
    resources: Resources, *, now: datetime, version: str | None = None, most_texts: int = MOST_TEXTS
) -> Receipt | None:
    """Bring new and changed items to ``version`` (None: the serving one), and embed what users wrote; None if nothing
    came.

    A new item gets its embedding and the factors of an item that nobody has met; a changed one is shown as it is now.
    Texts are encoded in this process, at most ``most_texts`` of them, and the note says how many items wait for the
    next call. The index is written first, then everything else in one commit: a kill between them repeats harmlessly.
    Raises NotFoundError if nothing is published or the version has no watermark, GateError if a vector is not sound
    (the items stay as they are then), and ModelMissingError.
    """
    began = time.perf_counter()
    if version is None:
        with resources.index() as index:
            version = serving_version(index)
    with resources.warehouse() as warehouse:
        feed = read_arrivals(warehouse, version, most_texts)
        if feed.is_empty:
            return None
        with resources.index() as index:
            call = _Call(resources, warehouse, index, load_version(warehouse, version), now, began)
            return _bring(call, feed, most_texts)


@dataclass(frozen=True)
class _Call:
    """What the steps of one call share; ``seconds`` are those of the stages so far."""

    resources: Resources
    warehouse: Warehouse
    index: VectorIndex
    model: ModelVersion
    now: datetime
    began: float
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def lap(self, stage: str) -> None:
        """The time since the last lap was that of ``stage``."""
        self.seconds[stage] = round(self.elapsed - sum(self.seconds.values()), 4)


class _Encoded(NamedTuple):
    """How many texts of users got a vector, the hashes of all texts that cannot, and whether no text of a user waits
    any more."""

    n_user_texts: int
    failed: frozenset[str]
    is_complete: bool
    note: str = ""


class _Added(NamedTuple):
    """Items that get a vector now: ``hashes`` of the texts in it, ``factors`` (n, n_factors), ``vectors`` fused."""

    items: list[ArrivedItem]
    hashes: list[str]
    factors: Floats
    vectors: Floats

    @property
    def n_new(self) -> int:
        return sum(item.is_new for item in self.items)


def _bring(call: _Call, feed: ArrivalFeed, most: int) -> Receipt | None:
    warehouse, version = call.warehouse, call.model.version
    texts = load_unembedded(warehouse, call.model, feed.spoken)
    part = load_catalog_part(warehouse, version, feed.item_ids)
    call.lap("feed")
    encoded = _encode(call, part.items, texts, most)
    call.lap("embed")
    added = _build_items(call, part.items, encoded.failed)
    n_changed = _write_index(call, part.items, added)
    call.lap("index")
    n_waiting = sum(item.wants_vector for item in part.items) - len(added.items) + feed.n_more
    run = _run_record(call, feed, added, _note(encoded, n_waiting))
    n_out = len(added.items) + n_changed + encoded.n_user_texts
    if not (feed.n_received or n_out or encoded.failed):
        _leave(call, feed, run)
        return None
    warehouse.commit(_writer(call, feed, part, added, run, encoded.is_complete))
    return _receipt(call, run, len(feed.item_ids) + texts.num_rows, n_out)


def _encode(call: _Call, items: Sequence[ArrivedItem], texts: pa.Table, most: int) -> _Encoded:
    """Encode what waits. The language model is asked for only if something does."""
    chosen, n_users = choose_texts(items, texts.num_rows, most)
    if not chosen and not n_users:
        return _Encoded(0, frozenset(), True)
    model, encoder = call.model, call.resources.encoder()
    if encoder.encoder_id != model.encoder_id or any(i.template_version != model.template_version for i in chosen):
        note = (
            f"{model.version} was made with {model.encoder_id} and template {model.template_version}, and the settings"
            f" name {encoder.encoder_id}: new texts wait for the next training (nearline run daily_batch)"
        )
        return _Encoded(0, frozenset(), True, note)
    rows = [(item.content_hash, item.template_version, item.text, item.item_id) for item in chosen]
    item_rows = pa.Table.from_pylist([dict(zip(_ITEM_TEXTS.names, row, strict=True)) for row in rows], _ITEM_TEXTS)
    failures = embed_here(call.warehouse, encoder, item_rows, texts.slice(0, n_users), now=call.now)
    note = f"{len(failures)} texts cannot be embedded ({failures[0].reason})" if failures else ""
    failed = frozenset(failure.content_hash for failure in failures)
    n_stored = sum(content_hash not in failed for content_hash in texts["content_hash"].slice(0, n_users).to_pylist())
    return _Encoded(n_stored, failed, n_users == texts.num_rows, note)


def _build_items(call: _Call, items: Sequence[ArrivedItem], failed: frozenset[str]) -> _Added:
    """Vectors of the items that want one and whose text is there, or never will be; checked."""
    wanting, model = [item for item in items if item.wants_vector], call.model
    wanted = pa.table({"content_hash": pa.array([item.content_hash for item in wanting], pa.string())})
    shadows = {"wanted_texts": wanted}
    rows = call.warehouse.read(query_sql("item_embeddings_of"), {"version": model.version}, shadows)
    place = {content_hash: row for row, content_hash in enumerate(rows["content_hash"].to_pylist())}
    found = ((item, text_hash(item, place, failed)) for item in wanting)
    ready = [(item, content_hash) for item, content_hash in found if content_hash is not None]
    text = text_matrix(rows["embedding"].take(pa.array([place.get(h) for _, h in ready], pa.int64())), model.text_width)
    told = [
        {"attributes": item.attributes, "categories": item.categories, "has_text": content_hash in place}
        for item, content_hash in ready
    ]
    features = None if model.item_map is None else encode_items(model.item_space, told)
    parameters = model.recipe.factor_parameters
    factors = fit_without_history(text, features, model.text_map, model.item_map, parameters)
    _check(call, text, factors)
    vectors = fuse_items(text, factors, np.full(len(ready), NEW_PRIOR, np.float32), model.recipe.fusion)
    return _Added([item for item, _ in ready], [content_hash for _, content_hash in ready], factors, vectors)


def _check(call: _Call, text: Floats, factors: Floats) -> None:
    from tasks.quality import record_checks

    if len(text):
        model = call.model
        checks = check_arrivals(text, factors, model.text_width, model.n_factors)
        record_checks(call.resources, "nearline", checks, run_id=call.run_id, now=call.now, version=model.version)


def _write_index(call: _Call, items: Sequence[ArrivedItem], added: _Added) -> int:
    """Upsert what was added and what is shown differently now; returns the number of the latter.

    A version without collections is written by its publication.
    """
    version = call.model.version
    if version not in call.index.versions():
        return 0
    made = {item.item_id for item in added.items}
    held = call.index.items(version, [i.item_id for i in items if not i.is_new and i.item_id not in made])
    payloads = {item.item_id: item_payload(asdict(item)) for item in items}
    changed = [item_id for item_id, (payload, _) in held.items() if payload != payloads[item_id]]
    if made or changed:
        vectors = np.stack([*added.vectors, *(held[item_id][1] for item_id in changed)])
        written = [*(item.item_id for item in added.items), *changed]
        call.index.upsert_items(version, vectors, [payloads[item_id] for item_id in written])
    return len(changed)


def _leave(call: _Call, feed: ArrivalFeed, run: NearlineRun) -> None:
    """Nothing could be brought: texts that are known already, or items that wait for another language model."""
    if feed.spoken.num_rows:
        call.warehouse.commit(lambda transaction: _move(transaction, call, feed, False, True))
    if run.note:
        logger.warning("bring_items version=%s nothing was brought: %s", run.version, run.note)


def _writer(
    call: _Call, feed: ArrivalFeed, part: CatalogPart, added: _Added, run: NearlineRun, is_complete: bool
) -> Callable[[Transaction], None]:
    """One commit: the catalog's rows, the version's, whose profiles they concern, the run and the watermarks.

    Another process may have filled ``stg_items`` from newer rows meanwhile: those are in the feed of the next call.
    """
    received = {"item_id": [item.item_id for item in part.items]}
    item_ids = [item.item_id for item in added.items]

    def write(transaction: Transaction) -> None:
        transaction.replace("stg_items", part.stg_items, received)
        transaction.replace("int_item_texts", part.int_item_texts, received)
        if item_ids:
            transaction.replace(
                "item_factors", _factor_rows(call, added), {"version": run.version, "item_id": item_ids}
            )
            met = transaction.read(query_sql("users_of_items"), {"item_ids": item_ids})
            requests = {"reason": ["new_item"] * met.num_rows, "requested_at": [call.now] * met.num_rows}
            transaction.append("refresh_requests", pa.table({"user_id": met["user_id"], **requests}))
        row = {**asdict(run), "run_id": call.run_id, "stage_seconds": json.dumps(dict(run.stage_seconds))}
        transaction.append("nearline_runs", pa.Table.from_pylist([row]))
        _move(transaction, call, feed, bool(received["item_id"]), is_complete)

    return write


def _factor_rows(call: _Call, added: _Added) -> pa.Table:
    """Rows of ``item_factors``: of items that nobody had met, and that have no part in anybody's factors yet."""
    n = len(added.items)
    return pa.table(
        {
            "version": pa.array([call.model.version] * n, pa.string()),
            "item_id": pa.array([item.item_id for item in added.items], pa.string()),
            "content_hash": pa.array(added.hashes, pa.string()),
            "factors": lists_from_matrix(added.factors),
            "prior": pa.array([NEW_PRIOR] * n, pa.float64()),
            "n_interactions": pa.array([0] * n, pa.int64()),
            "exposure": pa.array([0.0] * n, pa.float64()),
            "added_at": pa.array([call.now] * n, pa.timestamp("us", tz="UTC")),
        }
    )


def _move(transaction: Transaction, call: _Call, feed: ArrivalFeed, items: bool, texts: bool) -> None:
    marks = {"version": call.model.version, "seen_items": feed.seen_items, "began_at": feed.began_at}
    to = feed.to_snapshot
    marks |= {"items_snapshot": to if items else None, "texts_snapshot": to if texts else None}
    transaction.execute(query_sql("move_arrival_watermarks"), marks)


def _note(encoded: _Encoded, n_waiting: int) -> str:
    waiting = f"{n_waiting} items wait for their embedding" if n_waiting else ""
    texts = "" if encoded.is_complete else "more texts of users wait for theirs"
    return "; ".join(note for note in (encoded.note, waiting, texts) if note)


def _run_record(call: _Call, feed: ArrivalFeed, added: _Added, note: str) -> NearlineRun:
    """A run without events. Its lag is that of new items, from their arrival in the warehouse to the index."""
    finished_at = call.now + timedelta(seconds=call.elapsed)
    lags = [max((finished_at - item.first_seen_at).total_seconds(), 0) for item in added.items if item.is_new]
    p50, p95, p99 = np.percentile(lags, [50, 95, 99]).tolist() if lags else (None, None, None)
    return NearlineRun(
        version=call.model.version,
        from_snapshot=feed.began_at,
        to_snapshot=feed.to_snapshot,
        n_events=0,
        n_users=0,
        n_missing_texts=0,
        started_at=call.now,
        finished_at=finished_at,
        lag_p50_seconds=p50,
        lag_p95_seconds=p95,
        lag_p99_seconds=p99,
        n_new_items=added.n_new,
        stage_seconds=dict(call.seconds),
        note=note,
    )


def _receipt(call: _Call, run: NearlineRun, n_in: int, n_out: int) -> Receipt:
    version, seconds = run.version, call.elapsed
    logger.info(
        "bring_items version=%s snapshots=%d-%d received=%d new=%d written=%d seconds=%.2f",
        version, run.from_snapshot, run.to_snapshot, n_in, run.n_new_items, n_out, seconds,
    )  # fmt: skip
    location = f"item_factors, items__{version}"
    return Receipt("bring_items", n_in, n_out, location, seconds, version, note=run.note)
