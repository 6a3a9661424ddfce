"""One trial of a tuning on a worker, and the files that workers read.

The task that tunes writes them once: the events that trials fit on, whose weights every trial computes anew through the
SQL of ``fct_interactions``, and the arrays that no parameter changes. Users and items are places in the training's
logs; their ids stay out of the files. It knows nothing of studies, or of how parameters are proposed.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from tasks.domain.errors import TransientError
from tasks.domain.histories import InteractionLog, TextLog
from tasks.domain.item_fit import Catalog
from tasks.domain.ports import Resources, Warehouse
from tasks.domain.profiles import Recipe
from tasks.domain.splits import Split
from tasks.domain.tuning import Origin, Trial, TuningSplit, measure_recipe
from tasks.model_state import event_type_rows
from tasks.training_inputs import TrainingInputs, fixed_threads
from warehouse.catalog import model_sql, query_sql

Floats = npt.NDArray[np.float32]
_EVENTS, _ARRAYS = "events.parquet", "arrays.npz"


@dataclass(frozen=True)
class TrialWork:
    """What a worker is handed: the trial, its recipe, and where the files lie."""

    resources: Resources
    folder: Path
    number: int
    origin: Origin
    parameters: Mapping[str, float]
    recipe: Recipe


def load_fit_events(warehouse: Warehouse, recipe: Recipe, inputs: TrainingInputs, log: InteractionLog) -> pa.Table:
    """The events behind the interactions of ``log``, as ``stg_events`` with places in the place of ids. The warehouse
    is a view at the snapshot of the inputs."""
    kept = pa.table(
        {
            "user_id": pa.array(inputs.user_ids, pa.string()).take(pa.array(log.user)),
            "item_id": pa.array(inputs.catalog.item_ids, pa.string()).take(pa.array(log.item)),
            "user_place": pa.array(log.user).cast(pa.string()),
            "item_place": pa.array(log.item).cast(pa.string()),
        }
    )
    shadows = {"event_types": event_type_rows(recipe.event_types)}
    shadows["stg_events"] = warehouse.read(model_sql("stg_events"), shadows=shadows)
    return warehouse.read(query_sql("tuning_events"), shadows={**shadows, "kept_interactions": kept})


def count_events(events: pa.Table) -> dict[str, int]:
    """Events of each type."""
    counts = pc.value_counts(events["event_type"].combine_chunks())
    return {row["values"]: row["counts"] for row in counts.to_pylist()}


def write_trial_files(folder: Path, events: pa.Table, inputs: TrainingInputs, split: TuningSplit) -> None:
    """Write what ``run_trial`` reads; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, test = split.split.texts, split.split.test
    partial = folder / f"{_EVENTS}.partial-{os.getpid()}"
    pq.write_table(events, partial, compression="zstd")
    partial.replace(folder / _EVENTS)
    partial = folder / f"partial-{os.getpid()}-{_ARRAYS}"  # numpy insists on the end of the name
    arrays = {
        "shape": np.array([test.n_users, test.n_items]),
        "item_text": inputs.catalog.text,
        "text_vectors": texts.vectors,
        "text_user": texts.user,
        "text_weight": texts.weight,
        "text_at": texts.written_at,
        "wanted_user": test.user,
        "wanted_item": test.item,
        **_parts("item_features", inputs.catalog.features),
        **_parts("user_features", test.user_features),
    }
    if inputs.catalog.arrived_at is not None:
        arrays["arrived_at"] = inputs.catalog.arrived_at
    np.savez(partial, allow_pickle=False, **arrays)
    partial.replace(folder / _ARRAYS)


def run_trial(work: TrialWork) -> Trial:
    """Fit and measure one set of parameters. A fit that fails is a trial with its reason; only a TransientError, which
    says nothing of the parameters, is raised."""
    began = time.perf_counter()
    values, error = None, ""
    try:
        values = _measure(work)
    except TransientError:
        raise
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return Trial(work.number, work.origin, work.parameters, values, time.perf_counter() - began, error)


class _Files(NamedTuple):
    """What no parameter changes. ``split`` has an empty training part, which ``events`` fill under each recipe."""

    events: pa.Table
    split: Split
    catalog: Catalog


@lru_cache(maxsize=1)
def _load(folder: Path) -> _Files:
    """Read once by each worker; a study's folder never changes."""
    with np.load(folder / _ARRAYS, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    n_users, n_items = (int(n) for n in arrays["shape"])
    user, item = arrays["wanted_user"], arrays["wanted_item"]
    features = _matrix("user_features", arrays)
    once, never = np.ones(len(user), np.float32), np.zeros(len(user), np.int64)
    test = InteractionLog(user, item, once, never, n_users, n_items, features)
    texts = TextLog(arrays["text_vectors"], arrays["text_user"], arrays["text_weight"], arrays["text_at"])
    ids = tuple(str(place) for place in range(n_items))
    catalog = Catalog(ids, arrays["item_text"], _matrix("item_features", arrays), arrays.get("arrived_at"))
    split = Split(test.select(np.zeros(len(user), bool)), texts, test)
    return _Files(pq.read_table(folder / _EVENTS), split, catalog)


def _parts(name: str, matrix: sparse.csr_matrix | None) -> dict[str, npt.NDArray[Any]]:
    """A sparse matrix as arrays; nothing for None."""
    if matrix is None:
        return {}
    parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": np.array(matrix.shape)}
    return {f"{name}_{part}": values for part, values in parts.items()}


def _matrix(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> sparse.csr_matrix | None:
    """The inverse of ``_parts``."""
    if f"{name}_shape" not in arrays:
        return None
    data, indices, indptr, shape = (arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr", "shape"))
    return sparse.csr_matrix((data, indices, indptr), shape=tuple(int(n) for n in shape))


def _measure(work: TrialWork) -> Floats:
    events, split, catalog = _load(work.folder)
    with fixed_threads():
        with work.resources.warehouse(read_only=True) as warehouse:
            train = _weigh(warehouse, work.recipe, events, split.train)
        return measure_recipe(split._replace(train=train), catalog, work.recipe)


def _weigh(warehouse: Warehouse, recipe: Recipe, events: pa.Table, empty: InteractionLog) -> InteractionLog:
    """The interactions under a recipe's half-life and weights, by the SQL of every training."""
    places = pa.table({"item_id": pa.array(np.arange(empty.n_items)).cast(pa.string())})
    shadows = {"stg_events": events, "stg_items": places, "event_types": event_type_rows(recipe.event_types)}
    parameters = {"half_life_days": recipe.interaction_half_life_days}
    rows = warehouse.read(model_sql("fct_interactions"), parameters, shadows)
    user, item = (rows[name].cast(pa.int64()).to_numpy() for name in ("user_id", "item_id"))
    order = np.lexsort((item, user))
    weight, last_at = rows["weight"].to_numpy().astype(np.float32), rows["last_at"].cast(pa.int64()).to_numpy()
    return replace(empty, user=user[order], item=item[order], weight=weight[order], last_at=last_at[order])
