"""Profiles of some users from their raw rows in memory, as a refresh would make them from the warehouse.

It knows nothing of who is folded when, or of requests.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.fusion import fuse_queries
from tasks.domain.histories import build_histories
from tasks.domain.ports import Reader, TextEncoder, Warehouse
from tasks.domain.profiles import Histories, compute_profiles
from tasks.model_state import (
    HistoryRows,
    ModelVersion,
    attributes_of,
    build_history_rows,
    encode_rows,
    load_text_embeddings,
)
from tasks.online.histories import HistoryCache, RawRows
from tasks.online.state import ServingState

Floats = npt.NDArray[np.float32]
MAX_TEXTS = 32
"""Texts that one fold embeds by itself; more are left to the resident worker."""
MAX_KEPT_TEXTS = 20_000


@dataclass(frozen=True)
class FoldedUser:
    """One user's vector (width,) with everything that is known of them. ``missing_since`` (seconds since 1970) is when
    the oldest of their texts that have no embedding yet arrived."""

    query: Floats
    alpha: float
    beta: float
    n_history: int
    seen: frozenset[str]
    missing_since: float | None


class Folder:
    """Reads, models and solves users; shared by whatever versions are in memory. Threads may share it.

    ``loaded_encoder`` gives the encoder if this process has loaded it already: texts are then embedded here, and else
    they count as missing until the resident worker has stored them.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        engine: Reader,
        histories: HistoryCache,
        loaded_encoder: Callable[[], TextEncoder | None],
    ) -> None:
        self.histories = histories
        self._warehouse = warehouse
        self._engine = engine
        self._texts = _TextVectors(warehouse, loaded_encoder)

    def fold(self, state: ServingState, catalog: Collection[str], user_ids: Sequence[str]) -> dict[str, FoldedUser]:
        """Users by id, each as if they were alone; those whose profile is not finite are left out.

        ``catalog`` are the ids of ``stg_items``.
        """
        since = self._texts.n_cleared  # read before the rows: their texts may be cleared while they are folded
        raw = self.histories.load(user_ids)
        rows = self._model(state.model, catalog, raw, user_ids)
        embeddings = self._texts.load(state.model, rows.texts, since)
        histories = _encode(rows, state, user_ids, embeddings)
        profiles = compute_profiles(histories, state.items, state.model.recipe)
        fusion = state.model.recipe.fusion
        queries = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, fusion)
        seen, missing = _seen_items(rows), _missing_since(rows, raw, embeddings)
        numbers = zip(profiles.alpha.tolist(), profiles.beta.tolist(), profiles.n_history.tolist(), strict=True)
        return {
            user_id: FoldedUser(query, alpha, beta, n, frozenset(seen.get(user_id, ())), missing.get(user_id))
            for user_id, query, (alpha, beta, n) in zip(user_ids, queries, numbers, strict=True)
            if np.isfinite(query).all()
        }

    def history(self, model: ModelVersion, catalog: Collection[str], user_id: str) -> HistoryRows:
        """Everything one user did, with what no refresh has covered yet."""
        return self._model(model, catalog, self.histories.load([user_id]), [user_id])

    def embeddings(self, model: ModelVersion, content_hashes: pa.ChunkedArray) -> dict[str, Floats]:
        """Vectors (text_width,) of users' texts by content hash, as a fold takes them; the others are left out."""
        return self._texts.known(model, content_hashes, self._texts.n_cleared)

    def forget_missing_texts(self) -> None:
        """Ask the warehouse again for texts that had no embedding."""
        self._texts.missing.clear()

    def forget_texts(self) -> None:
        """Ask the warehouse again for every text."""
        self._texts.clear()

    def _model(
        self, model: ModelVersion, catalog: Collection[str], raw: RawRows, user_ids: Sequence[str]
    ) -> HistoryRows:
        met = [item_id for item_id in pc.unique(raw.events["item_id"]).to_pylist() if item_id in catalog]
        items = pa.table({"item_id": pa.array(met, pa.string())})
        shadows = {"raw_events": raw.events, "raw_users": raw.users, "stg_items": items}
        recipe = model.recipe
        days = recipe.interaction_half_life_days
        return build_history_rows(self._engine, shadows, recipe.event_types, days, user_ids)


@dataclass
class _TextVectors:
    """Embeddings of users' texts by encoder and content hash, the last ones used.

    What was looked up ``since`` a state that is cleared by now is given out and not kept: it may be of an erased user.
    """

    warehouse: Warehouse
    loaded_encoder: Callable[[], TextEncoder | None]
    vectors: dict[tuple[str, str], Floats] = field(default_factory=dict)
    missing: set[tuple[str, str]] = field(default_factory=set)
    n_cleared: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, model: ModelVersion, texts: pa.Table, since: int) -> dict[str, Floats]:
        found = self.known(model, texts["content_hash"], since)
        words = dict(zip(texts["content_hash"].to_pylist(), texts["text"].to_pylist(), strict=True))
        wanted = [content_hash for content_hash in words if content_hash not in found][:MAX_TEXTS]
        encoder = self.loaded_encoder() if wanted else None
        if encoder is not None and encoder.encoder_id == model.encoder_id:
            vectors = encoder.encode([words[content_hash] for content_hash in wanted])
            embedded = {h: np.array(v, np.float32) for h, v in zip(wanted, vectors, strict=True)}
            self._keep(model, embedded, since)
            found |= embedded
        return found

    def known(self, model: ModelVersion, content_hashes: pa.ChunkedArray, since: int) -> dict[str, Floats]:
        """Those in memory or in the warehouse."""
        encoder_id = model.encoder_id
        hashes = pc.unique(content_hashes).to_pylist()
        kept = {h: self.vectors.get((encoder_id, h)) for h in hashes}
        found = {h: vector for h, vector in kept.items() if vector is not None}
        new = [h for h in hashes if h not in found and (encoder_id, h) not in self.missing]
        if new:
            column = pa.chunked_array([pa.array(new, pa.string())])
            stored = load_text_embeddings(self.warehouse, column, encoder_id, model.text_width)
            self._keep(model, stored, since)
            self.missing.update((encoder_id, h) for h in new if h not in stored)
            found |= stored
        return found

    def clear(self) -> None:
        with self.lock:
            self.vectors.clear()
            self.missing.clear()
            self.n_cleared += 1

    def _keep(self, model: ModelVersion, vectors: Mapping[str, Floats], since: int) -> None:
        with self.lock:
            if self.n_cleared != since:
                return
            if len(self.vectors) + len(vectors) > MAX_KEPT_TEXTS:
                self.vectors.clear()
            self.vectors.update({(model.encoder_id, h): np.array(v, np.float32) for h, v in vectors.items()})


def _encode(
    rows: HistoryRows, state: ServingState, user_ids: Sequence[str], embeddings: dict[str, Floats]
) -> Histories:
    """As ``tasks.model_state.encode_histories``, without looking at every item."""
    model, index = state.model, state.items.index
    met = sorted({item_id for item_id in rows.interactions["item_id"].to_pylist() if item_id in index})
    log, texts, _ = encode_rows(rows, met, user_ids, embeddings, model.text_width)
    places = np.array([index[item_id] for item_id in met], np.int64)
    log = replace(log, item=places[log.item], n_items=len(index))
    if model.user_map is not None:
        log = replace(log, user_features=model.user_space.encode(attributes_of(rows, user_ids)))
    return build_histories(log, texts, user_ids)


def _seen_items(rows: HistoryRows) -> dict[str, list[str]]:
    """Items that each user has met."""
    seen: dict[str, list[str]] = {}
    columns = (rows.interactions[name].to_pylist() for name in ("user_id", "item_id"))
    for user_id, item_id in zip(*columns, strict=True):
        seen.setdefault(user_id, []).append(item_id)
    return seen


def _missing_since(rows: HistoryRows, raw: RawRows, embeddings: dict[str, Floats]) -> dict[str, float]:
    """When the oldest text without an embedding arrived, by user."""
    texts = rows.texts.select(["event_id", "user_id", "content_hash"]).to_pylist()
    users = {text["event_id"]: text["user_id"] for text in texts if text["content_hash"] not in embeddings}
    if not users:
        return {}
    events = raw.events.filter(pc.is_in(raw.events["event_id"], value_set=pa.array(list(users), pa.string())))
    arrived = zip(events["event_id"].to_pylist(), events["ingested_at"].cast(pa.int64()).to_pylist(), strict=True)
    since: dict[str, float] = {}
    for event_id, at in arrived:
        user_id = users[event_id]
        since[user_id] = min(since.get(user_id, at / 1e6), at / 1e6)
    return since
