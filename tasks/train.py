"""Trains a model version: plans it, learns its weights on the past, and fits it on everything.

All reads of a training happen at one snapshot. It knows nothing of evaluation, gates or publication.
"""

import logging
import time
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from tasks.domain.histories import build_histories
from tasks.domain.learning import UNLEARNED, fit_items, learn_fusion
from tasks.domain.ports import Resources, Transaction, Warehouse
from tasks.domain.profiles import ItemSpace, Profiles, Recipe, compute_profiles
from tasks.domain.records import Receipt
from tasks.domain.splits import split_user_tail
from tasks.domain.vectors import lists_from_matrix
from tasks.model_state import load_version
from tasks.refresh import profile_rows
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
        fusion = learn_fusion(split.train, split.texts, inputs.catalog, draft, solver=solver, n_threads=n_threads)
        row = _version_row(plan, inputs, replace(draft, fusion=fusion), encoder.encoder_id, now)
        warehouse.commit(lambda transaction: transaction.replace("model_versions", row, {"version": plan.version}))
    seconds = time.perf_counter() - started
    n_in, n_buckets = len(inputs.log.user), len(fusion.buckets)
    logger.info("learn_version version=%s interactions=%d seconds=%.2f", plan.version, n_in, seconds)
    return Receipt("learn", n_in, n_buckets, "model_versions", seconds, plan.version, note=_missing_note(inputs))


def refit_version(resources: Resources, plan: VersionPlan, *, now: datetime) -> Receipt:
    """Fit on everything with the learned weights frozen, and write items, users, profiles and watermark in one commit.

    Every user has a profile, also those without events. The watermark is the training snapshot: nearline goes on from
    there. Running it again replaces the rows. Raises NotFoundError if the version was not learned, TrainingError if the
    fit diverges; nothing is written then.
    """
    started = time.perf_counter()
    with resources.warehouse() as warehouse, fixed_threads() as n_threads, resources.factor_solver(n_threads) as solver:
        model = load_version(warehouse, plan.version)
        inputs = load_inputs(warehouse, model.recipe, plan.snapshot, model.encoder_id, model.text_width)
        parameters = model.recipe.factor_parameters
        items = fit_items(inputs.log, inputs.catalog, parameters, solver=solver, n_threads=n_threads)
        histories = build_histories(inputs.log, inputs.texts, inputs.user_ids)
        profiles = compute_profiles(histories, items, model.recipe, n_threads=n_threads)
        _write_fit(warehouse, plan, inputs, items, profiles, now)
    seconds = time.perf_counter() - started
    n_items, n_users = len(items.item_ids), len(profiles.user_ids)
    logger.info("refit_version version=%s items=%d users=%d seconds=%.2f", plan.version, n_items, n_users, seconds)
    location = "item_factors, user_factors, user_profiles, watermarks"
    note = _missing_note(inputs)
    return Receipt("refit", len(inputs.log.user), n_items + n_users, location, seconds, plan.version, note=note)


def _write_fit(
    warehouse: Warehouse,
    plan: VersionPlan,
    inputs: TrainingInputs,
    items: ItemSpace,
    profiles: Profiles,
    now: datetime,
) -> None:
    mine = {"version": plan.version}
    item_rows, user_rows = _item_rows(plan, inputs, items), _user_rows(plan, profiles)
    profile_table = profile_rows(profiles, plan.version, plan.snapshot, now)
    stamp = pa.array([now], pa.timestamp("us", tz="UTC"))
    watermark = pa.table({"version": [plan.version], "snapshot": [plan.snapshot], "updated_at": stamp})
    text_map = items.text_map.ravel().tolist()

    def write(transaction: Transaction) -> None:
        transaction.replace("item_factors", item_rows, mine)
        transaction.replace("user_factors", user_rows, mine)
        transaction.replace("user_profiles", profile_table, mine)
        transaction.replace("watermarks", watermark, mine)
        transaction.execute(query_sql("write_version_fit"), {**mine, "text_map": text_map})

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


def _free_name(now: datetime, taken: set[str]) -> str:
    name = "v" + now.strftime("%Y%m%dT%H%M%SZ")
    number = 2
    while name in taken:
        name, number = f"v{now.strftime('%Y%m%dT%H%M%SZ')}-{number}", number + 1
    return name


def _missing_note(inputs: TrainingInputs) -> str:
    return f"{inputs.n_missing_texts} user texts have no embedding yet" if inputs.n_missing_texts else ""
