"""Reads everything a training learns from, at one snapshot. It knows nothing of models.

Training and evaluation also share the one place that sets the number of threads.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from tasks.domain.errors import NotFoundError, TrainingError
from tasks.domain.features import NO_FEATURES, FeatureSpace, encode_items, item_facts, learn_features
from tasks.domain.fusion import Fusion
from tasks.domain.histories import InteractionLog, TextLog
from tasks.domain.item_fit import Catalog
from tasks.domain.parameter_space import Values, apply_values
from tasks.domain.ports import Resources, TextEncoder, Warehouse
from tasks.domain.profiles import FAST_HALF_LIFE, FAST_SHARE, SLOW_HALF_LIFE, Recipe
from tasks.model_state import attributes_of, encode_rows, load_history_rows, load_text_embeddings, text_matrix
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
ITEM_VALUES = 256
"""Values of item attributes that have a column of their own; they lie beside the text, in a dense matrix
(``docs/decisions``)."""
N_THREADS = min(os.cpu_count() or 1, 8)
_CODE = (
    "factor_model", "factors", "feature_maps", "features", "fold_in", "fusion", "half_steps", "histories", "item_fit",
    "learning", "least_squares", "nearest_items", "neighbours", "profiles", "splits", "weight_search",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingInputs:
    """What is known at one snapshot: items with their texts' hashes and vectors, users, and what they did.

    ``item_ids`` and ``user_ids`` ascend; the logs hold their positions. ``n_missing_texts`` counts user texts without
    an embedding, which are left out. ``user_space`` are the columns of the users' attributes in the log, and
    ``item_space`` those of the features in the catalog.
    """

    catalog: Catalog
    content_hashes: tuple[str, ...]
    template_version: str
    user_ids: tuple[str, ...]
    log: InteractionLog
    texts: TextLog
    n_missing_texts: int
    user_space: FeatureSpace
    item_space: FeatureSpace = NO_FEATURES


@dataclass(frozen=True)
class FactorChoice:
    """Parameters that a study chose (a row of ``factor_choices``): its id, and their values by name."""

    choice: str
    parameters: Values


def load_choice(warehouse: Warehouse, choice: str | None = None) -> FactorChoice | None:
    """The named choice, or the one in force: what the version that serves was trained with, if a study chose it.

    Raises NotFoundError for a name that does not exist.
    """
    if choice is None:
        rows = warehouse.read(query_sql("choice_in_force")).to_pylist()
        return _as_choice(rows[0]) if rows else None
    rows = warehouse.read(query_sql("factor_choice"), {"choice": choice}).to_pylist()
    if not rows:
        raise NotFoundError(
            f"A training was asked for with the choice {choice!r}, which does not exist. Those there are: "
            'nearline sql "from factor_choices". Run tune_factors to make one.'
        )
    return _as_choice(rows[0])


def build_draft(resources: Resources, unlearned: Fusion, choice: FactorChoice | None = None) -> Recipe:
    """The recipe of a new version before its fusion is learned: the defaults, over them what a study chose, and over
    that what the settings name."""
    draft = Recipe(
        factor_parameters=resources.factor_parameters,
        fusion=unlearned,
        fast_half_life=FAST_HALF_LIFE,
        slow_half_life=SLOW_HALF_LIFE,
        interaction_half_life_days=resources.interaction_half_life_days,
        event_types=tuple(resources.event_types[name] for name in sorted(resources.event_types)),
        fast_share=FAST_SHARE,
    )
    return apply_values(draft, choice.parameters, resources.fixed_parameters) if choice else draft


def load_inputs(
    warehouse: Warehouse, recipe: Recipe, snapshot: int, encoder_id: str, text_width: int
) -> TrainingInputs:
    """Read the inputs AT ``snapshot``; interactions and texts come from ``raw_events`` through the SQL models.

    Raises TrainingError if the catalog is empty.
    """
    rows = load_history_rows(warehouse, recipe.event_types, recipe.interaction_half_life_days, snapshot)
    with warehouse.at(snapshot) as past:
        items = past.read(query_sql("training_items"), {"encoder_id": encoder_id})
        embeddings = load_text_embeddings(past, rows.texts["content_hash"], encoder_id, text_width)
    if items.num_rows == 0:
        raise TrainingError(
            f"A training was asked for at snapshot {snapshot}, but the catalog has no items. It needs at least one:"
            " import items, run the transform, and train again."
        )
    item_ids = tuple(items["item_id"].to_pylist())
    user_ids = tuple(rows.known_users())
    log, texts, n_missing = encode_rows(rows, item_ids, user_ids, embeddings, text_width)
    attributes = attributes_of(rows, user_ids)
    user_space = learn_features(attributes)
    if user_space.width:
        log = replace(log, user_features=user_space.encode(attributes))
    item_space, item_features = _item_features(items)
    text = text_matrix(items["embedding"], text_width)
    return TrainingInputs(
        catalog=Catalog(item_ids, text, item_features, _arrivals(items["arrived_at"])),
        content_hashes=tuple(items["content_hash"].to_pylist()),
        template_version=str(items["template_version"][0].as_py()),
        user_ids=user_ids,
        log=log,
        texts=texts,
        n_missing_texts=n_missing,
        user_space=user_space,
        item_space=item_space,
    )


def hash_inputs(warehouse: Warehouse, draft: Recipe, snapshot: int, encoder: TextEncoder) -> str:
    """SHA-256 over everything that goes into a model: rows, embeddings, parameters and the code that learns."""
    rows = load_history_rows(warehouse, draft.event_types, draft.interaction_half_life_days, snapshot)
    shadows = {"fct_interactions": rows.interactions, "int_user_texts": rows.texts, "stg_users": rows.users}
    with warehouse.at(snapshot) as past:
        parts = past.read(query_sql("training_digest"), {"encoder_id": encoder.encoder_id}, shadows).to_pylist()
    document = {
        "rows": parts,
        "recipe": draft.to_json(),
        "encoder": encoder.encoder_id,
        "code": [_source(module) for module in _CODE],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@contextmanager
def fixed_threads() -> Iterator[int]:
    """Linear algebra on one thread, and the number of threads that our own loops may use.

    The loops split by rows, so the machine's number of cores does not change a result.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield N_THREADS


def _as_choice(row: dict[str, Any]) -> FactorChoice:
    return FactorChoice(row["choice"], json.loads(row["parameters"]))


def _source(module: str) -> str:
    """The text of a module of ``tasks.domain``, read and not imported: some of them import a compiler."""
    return (files("tasks.domain") / f"{module}.py").read_text()


def _item_features(items: pa.Table) -> tuple[FeatureSpace, sparse.csr_matrix | None]:
    """What is known of the items beside their text, (n_items, width), and its columns; None where nothing is."""
    told = items.select(["attributes", "categories", "has_text"]).to_pylist()
    space = learn_features([item_facts(**item) for item in told], max_values=ITEM_VALUES)
    return space, encode_items(space, told) if space.width else None


def _arrivals(column: pa.ChunkedArray) -> npt.NDArray[np.int64] | None:
    """Microseconds, the lowest value for items that were always there; None where all were."""
    if column.null_count == len(column):
        return None
    always = pa.scalar(np.iinfo(np.int64).min, pa.int64())
    arrived = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).fill_null(always)
    return np.asarray(arrived.to_numpy(), np.int64)
