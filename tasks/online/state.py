"""One model version as requests see it. It knows nothing of requests, of pending events or of when it is replaced."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.fusion import fuse_items
from tasks.domain.item_terms import ItemTerms
from tasks.domain.ports import VectorIndex, Warehouse
from tasks.domain.profiles import ItemSpace
from tasks.domain.records import ItemPayload
from tasks.model_state import HistoryRows, ModelVersion, load_item_space, load_version
from tasks.projection import load_item_payloads
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ServingState:
    """Replaced whole when another version serves or its items change; a request takes it once.

    ``payloads`` and ``first_seen_at`` (n_items,), in microseconds, go with the rows of ``items``; ``vectors``
    (n_items, width) are fused and cannot be written to. ``index`` is searched: it is in memory or a server.
    """

    model: ModelVersion
    items: ItemSpace
    payloads: tuple[ItemPayload, ...]
    vectors: Floats
    first_seen_at: Integers
    index: VectorIndex

    @cached_property
    def terms(self) -> ItemTerms:
        """Which items have what a filter can name."""
        return ItemTerms.of(self.payloads, self.items.index)

    def prepare(self) -> None:
        """Make what all requests share: the terms, and the items that users are solved against. It takes 0.1 s
        for 100,000 items, which no request should wait for."""
        _ = self.terms, self.items.fixed(self.model.recipe.factor_parameters).rotated


@dataclass(frozen=True)
class UserView:
    """What a request knows of a user: the fused query (width,), whom they met, and how fresh that is.

    ``load_history`` gives everything the user did, pending events too, when the request needs more than the vector;
    ``load_embeddings`` the vectors (text_width,) of what they wrote, by content hash, as
    ``tasks.model_state.load_text_embeddings`` does: texts that are not embedded are left out.
    """

    user_id: str
    query: Floats
    alpha: float
    beta: float
    n_history: int
    seen: frozenset[str]
    as_of_snapshot: int
    n_pending_events: int
    stale_seconds: float
    load_history: Callable[[], HistoryRows]
    load_embeddings: Callable[[pa.ChunkedArray], dict[str, Floats]] = lambda content_hashes: {}


def load_state(warehouse: Warehouse, version: str, index: VectorIndex) -> ServingState:
    """One version from the warehouse, ready for requests, with the index that is searched for it.

    ``warehouse`` should be a view of one snapshot. Raises NotFoundError for an unknown version.
    """
    model, items = load_version(warehouse, version), load_item_space(warehouse, version)
    vectors = fuse_items(items.text, items.factors, items.prior, model.recipe.fusion)
    vectors.setflags(write=False)
    seen = warehouse.read(query_sql("item_arrivals_of_version"), {"version": version})["first_seen_at"]
    state = ServingState(
        model=model,
        items=items,
        payloads=load_item_payloads(warehouse, version, items.item_ids),
        vectors=vectors,
        first_seen_at=np.asarray(seen.cast(pa.int64()).fill_null(0).to_numpy(), np.int64),
        index=index,
    )
    state.prepare()
    return state
