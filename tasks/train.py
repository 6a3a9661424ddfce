"""Trains a model version: plans it, learns its weights on the past, and fits it on everything.

All reads of a training happen at one snapshot. It knows nothing of evaluation, gates or publication.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.factor_model import Sweep
from tasks.domain.histories import build_histories, select_users
from tasks.domain.item_fit import fit_items
from tasks.domain.learning import UNLEARNED, learn_recipe
from tasks.domain.ports import Resources, Transaction, Warehouse
from tasks.domain.profiles import Histories, ItemSpace, Profiles, Recipe, compute_profiles, join_profiles
from tasks.domain.records import Receipt
from tasks.domain.splits import split_user_tail
from tasks.domain.vectors import lists_from_matrix, matrix_from_lists
from tasks.model_state import ModelVersion, load_version
from tasks.profile_rows import profile_rows
from tasks.progress import StageEvent, tell
from tasks.training_inputs import (
    FactorChoice,
    TrainingInputs,
    build_draft,
    fixed_threads,
    hash_inputs,
    load_choice,
    load_inputs,
)
from warehouse.catalog import query_sql

CHUNK_USERS = 8192
"""Users whose profiles are computed at one time."""
WARM_SWEEPS = 2
"""Sweeps of a fit that goes on from the serving version: ``docs/benchmarks.md``."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionPlan:
    """What a training is about to do.

    ``snapshot`` is the one it reads at. ``unchanged`` names the serving version if that was trained from equal inputs:
    the same rows, embeddings, settings and code. ``choice`` are parameters that a study chose, if there are some.
    """

    version: str
    snapshot: int
    inputs_hash: str
    unchanged: str | None
    choice: FactorChoice | None = None


def plan_version(
    resources: Resources, *, now: datetime, choice: str | None = None, use_tuned: bool = True
) -> VersionPlan:
    """Name a new version, fix its snapshot, and find out whether there is anything to learn since the serving one.

    It is trained with the parameters of ``choice``, or with those in force; without ``use_tuned``, with those of the
    settings alone. Raises NotFoundError for an unknown choice.
    """
    with resources.warehouse(read_only=True) as warehouse:
        chosen = load_choice(warehouse, choice) if use_tuned else None
        snapshot = warehouse.latest_snapshot()
        inputs_hash = hash_inputs(warehouse, build_draft(resources, UNLEARNED, chosen), snapshot, resources.encoder())
        serving = warehouse.read(query_sql("serving_model")).to_pylist()
        taken = set(warehouse.read(query_sql("model_version_names"))["version"].to_pylist())
    unchanged = serving[0]["version"] if serving and serving[0]["inputs_hash"] == inputs_hash else None
    return VersionPlan(_free_name(now, taken), snapshot, inputs_hash, unchanged, chosen)


def learn_version(resources: Resources, plan: VersionPlan, *, now: datetime) -> Receipt:
    """Fit before the validation cut and learn the fusion, then write the version's row, as a candidate.

    The weights are learned on the training part of the split ``user_tail`` alone, so that the evaluation tests them on
    events that they have not seen. Running it again replaces the row. Raises TrainingError if the catalog is empty or
    the fit diverges; nothing is written then.
    """
    started = time.perf_counter()
    encoder = resources.encoder()
    draft = build_draft(resources, UNLEARNED, plan.choice)
    with resources.warehouse() as warehouse, fixed_threads() as n_threads, resources.factor_solver(n_threads) as solver:
        inputs = load_inputs(warehouse, draft, plan.snapshot, encoder.encoder_id, encoder.width)
        split = split_user_tail(inputs.log, inputs.texts)
        known = split.train, split.texts, inputs.catalog
        told = _tell_sweeps("learn_version", draft.factor_parameters.n_sweeps)
        recipe, sweeps = learn_recipe(*known, draft, on_sweep=told, solver=solver, n_threads=n_threads)
        row = _version_row(plan, inputs, recipe, encoder.encoder_id, now)

        def write(transaction: Transaction) -> None:
            transaction.replace("model_versions", row, {"version": plan.version})
            transaction.replace("factor_sweeps", *_sweep_rows(plan.version, "learn", sweeps, None))

        warehouse.commit(write)
    seconds = time.perf_counter() - started
    n_in, n_buckets = len(inputs.log.user), len(recipe.fusion.buckets)
    logger.info("learn_version version=%s interactions=%d seconds=%.2f", plan.version, n_in, seconds)
    note = _notes(f"{recipe.factor_parameters.n_sweeps} sweeps are best", _missing_note(inputs))
    return Receipt("learn", n_in, n_buckets, "model_versions, factor_sweeps", seconds, plan.version, note=note)


def refit_version(resources: Resources, plan: VersionPlan, *, now: datetime) -> Receipt:
    """Fit on everything with the learned weights frozen, and write items, users, profiles and watermark in one commit.

    Every user has a profile, also those without events. The watermark is the training snapshot: nearline goes on from
    there. Where the serving version has the same parameters, the fit goes on from its items, with ``WARM_SWEEPS``.
    Running it again replaces the rows. Raises NotFoundError if the version was not learned, TrainingError if the fit
    diverges; nothing is written then.
    """
    started = time.perf_counter()
    with resources.warehouse() as warehouse, fixed_threads() as n_threads, resources.factor_solver(n_threads) as solver:
        model = load_version(warehouse, plan.version)
        inputs = load_inputs(warehouse, model.recipe, plan.snapshot, model.encoder_id, model.text_width)
        parameters = model.recipe.factor_parameters
        warm = _warm_start(warehouse, plan.version, model, inputs) if resources.warm_start else None
        if warm is not None:
            parameters = replace(parameters, n_sweeps=min(parameters.n_sweeps, WARM_SWEEPS))
        items, sweeps = fit_items(
            inputs.log,
            inputs.catalog,
            parameters,
            start=warm.items if warm else None,
            on_sweep=_tell_sweeps("refit_version", parameters.n_sweeps),
            solver=solver,
            n_threads=n_threads,
        )
        histories = build_histories(inputs.log, inputs.texts, inputs.user_ids)
        profiles = _profiles(histories, items, model.recipe, n_threads)
        sweep_rows = _sweep_rows(plan.version, "refit", sweeps, warm.version if warm else None)
        _write_fit(warehouse, plan, inputs, items, profiles, sweep_rows, now)
    seconds = time.perf_counter() - started
    n_items, n_users = len(items.item_ids), len(profiles.user_ids)
    logger.info("refit_version version=%s items=%d users=%d seconds=%.2f", plan.version, n_items, n_users, seconds)
    location = "item_factors, user_factors, user_profiles, factor_sweeps, watermarks"
    note = _notes(f"{len(sweeps)} sweeps from {warm.version}" if warm else "", _missing_note(inputs))
    return Receipt("refit", len(inputs.log.user), n_items + n_users, location, seconds, plan.version, note=note)


def _profiles(histories: Histories, items: ItemSpace, recipe: Recipe, n_threads: int) -> Profiles:
    """Everybody's, made for some users at a time: the means of the texts would take more than all else."""
    n_users = len(histories.user_ids)
    starts = range(0, max(n_users, 1), CHUNK_USERS)
    chunks = (np.arange(start, min(start + CHUNK_USERS, n_users)) for start in starts)
    return join_profiles(
        [compute_profiles(select_users(histories, rows), items, recipe, n_threads=n_threads) for rows in chunks]
    )


def _write_fit(
    warehouse: Warehouse,
    plan: VersionPlan,
    inputs: TrainingInputs,
    items: ItemSpace,
    profiles: Profiles,
    sweep_rows: tuple[pa.Table, dict[str, str]],
    now: datetime,
) -> None:
    mine = {"version": plan.version}
    item_rows, user_rows = _item_rows(plan, inputs, items), _user_rows(plan, profiles)
    profile_table = profile_rows(profiles, plan.version, plan.snapshot, now)
    stamp = pa.array([now], pa.timestamp("us", tz="UTC"))
    watermark = pa.table({"version": [plan.version], "snapshot": [plan.snapshot], "updated_at": stamp})
    fitted = {
        "text_map": items.text_map.ravel().tolist(),
        "user_map": None if items.user_map is None else items.user_map.ravel().tolist(),
        "user_features": None if items.user_map is None else inputs.user_space.to_json(),
        "item_map": None if items.item_map is None else items.item_map.ravel().tolist(),
        "item_features": None if items.item_map is None else inputs.item_space.to_json(),
    }

    def write(transaction: Transaction) -> None:
        transaction.replace("item_factors", item_rows, mine)
        transaction.replace("user_factors", user_rows, mine)
        transaction.replace("user_profiles", profile_table, mine)
        transaction.replace("watermarks", watermark, mine)
        transaction.replace("factor_sweeps", *sweep_rows)
        transaction.execute(query_sql("write_version_fit"), {**mine, **fitted})

    warehouse.commit(write)


def _version_row(plan: VersionPlan, inputs: TrainingInputs, recipe: Recipe, encoder_id: str, now: datetime) -> pa.Table:
    row = {
        "version": plan.version,
        "state": "candidate",
        "created_at": now,
        "encoder_id": encoder_id,
        "template_version": inputs.template_version,
        "text_width": inputs.catalog.text.shape[1],
        "n_factors": recipe.factor_parameters.n_factors,
        "training_snapshot": plan.snapshot,
        "inputs_hash": plan.inputs_hash,
        "seed": recipe.factor_parameters.seed,
        "n_items": len(inputs.catalog.item_ids),
        "n_users": len(inputs.user_ids),
        "recipe": recipe.to_json(),
        "fusion": recipe.fusion.to_json(),
        "metrics": "{}",
        "choice": plan.choice.choice if plan.choice else None,
    }
    return pa.Table.from_pylist([row])


def _item_rows(plan: VersionPlan, inputs: TrainingInputs, items: ItemSpace) -> pa.Table:
    n_liked = np.bincount(inputs.log.item[inputs.log.weight > 0], minlength=len(items.item_ids))
    return pa.table(
        {
            "version": pa.array([plan.version] * len(items.item_ids), pa.string()),
            "item_id": pa.array(items.item_ids, pa.string()),
            "content_hash": pa.array(inputs.content_hashes, pa.string()),
            "factors": lists_from_matrix(items.factors),
            "prior": pa.array(items.prior, pa.float64()),
            "n_interactions": pa.array(n_liked, pa.int64()),
            "exposure": pa.array(items.weights.exposure, pa.float64()),
        }
    )


def _user_rows(plan: VersionPlan, profiles: Profiles) -> pa.Table:
    return pa.table(
        {
            "version": pa.array([plan.version] * len(profiles.user_ids), pa.string()),
            "user_id": pa.array(profiles.user_ids, pa.string()),
            "factors": lists_from_matrix(profiles.factors),
        }
    )


class _WarmStart(NamedTuple):
    version: str
    items: npt.NDArray[np.float32]


def _warm_start(warehouse: Warehouse, version: str, model: ModelVersion, inputs: TrainingInputs) -> _WarmStart | None:
    """The factors of the serving version in the order of this catalog, zero for new items; None if it has none, or if
    its factors are of another kind: another encoder, or parameters that differ in more than the number of sweeps."""
    rows = warehouse.read(query_sql("serving_model")).to_pylist()
    if not rows or rows[0]["version"] == version:
        return None
    serving = load_version(warehouse, rows[0]["version"])
    mine, theirs = model.recipe.factor_parameters, serving.recipe.factor_parameters
    if serving.encoder_id != model.encoder_id or replace(theirs, n_sweeps=mine.n_sweeps) != mine:
        return None
    stored = warehouse.read(query_sql("items_of_version"), {"version": serving.version})
    place = {item_id: row for row, item_id in enumerate(inputs.catalog.item_ids)}
    target = np.array([place.get(item_id, -1) for item_id in stored["item_id"].to_pylist()], np.int64)
    items = np.zeros((len(place), mine.n_factors), np.float32)
    items[target[target >= 0]] = matrix_from_lists(stored["factors"], mine.n_factors)[target >= 0]
    return _WarmStart(serving.version, items)


def _sweep_rows(
    version: str, fit: str, sweeps: tuple[Sweep, ...], started_from: str | None
) -> tuple[pa.Table, dict[str, str]]:
    """Rows of ``factor_sweeps``, and which ones they replace."""
    table = pa.table(
        {
            "version": pa.array([version] * len(sweeps), pa.string()),
            "fit": pa.array([fit] * len(sweeps), pa.string()),
            "sweep": pa.array([sweep.number for sweep in sweeps], pa.int64()),
            "loss": pa.array([sweep.loss for sweep in sweeps], pa.float64()),
            "ndcg_at_10": pa.array([sweep.metric for sweep in sweeps], pa.float64()),
            "seconds": pa.array([sweep.seconds for sweep in sweeps], pa.float64()),
            "started_from": pa.array([started_from] * len(sweeps), pa.string()),
        }
    )
    return table, {"version": version, "fit": fit}


def _tell_sweeps(stage: str, n_sweeps: int) -> Callable[[Sweep], None]:
    """Tell whoever watches what each sweep came to, in a line of its own where it was measured."""

    def say(sweep: Sweep) -> None:
        quality = f"NDCG@10 {sweep.metric or 0:.4f} on the validation part"
        note = "" if sweep.metric is None else f"sweep {sweep.number}: loss {sweep.loss:,.0f}, {quality}"
        tell(StageEvent(stage, "progress", done=sweep.number, total=n_sweeps, note=note))

    return say


def _notes(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _free_name(now: datetime, taken: set[str]) -> str:
    name = "v" + now.strftime("%Y%m%dT%H%M%SZ")
    number = 2
    while name in taken:
        name, number = f"v{now.strftime('%Y%m%dT%H%M%SZ')}-{number}", number + 1
    return name


def _missing_note(inputs: TrainingInputs) -> str:
    return f"{inputs.n_missing_texts} user texts have no embedding yet" if inputs.n_missing_texts else ""
