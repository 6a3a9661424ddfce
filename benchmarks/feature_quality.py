"""What attributes and categories add, on the newest events of a home: the tables of docs/decisions/0007-features.md.

    python -m benchmarks.feature_quality --json         (of NEARLINE_HOME; `make demo` fills the default one)

Everything is measured on what lies before the test part. Prints markdown, and one JSON object as its last line.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.support.quality_rows import collect_rows, mean_text, no_texts
from infra.resources import build_resources
from tasks.domain.factor_model import FactorParameters
from tasks.domain.features import learn_features, parse_attributes
from tasks.domain.fusion import fuse_items, fuse_queries
from tasks.domain.histories import InteractionLog, build_histories, select_users
from tasks.domain.item_fit import Catalog, fit_items
from tasks.domain.learning import UNLEARNED, learn_recipe
from tasks.domain.metrics import rank_users
from tasks.domain.ports import TextEncoder
from tasks.domain.profiles import ItemSpace, Recipe, compute_profiles
from tasks.domain.splits import Split, split_user_tail
from tasks.training_inputs import ITEM_VALUES, TrainingInputs, build_draft, fixed_threads, load_inputs

SEEDS = (0, 1)
WEIGHTS = (0.3, 0.5, 1.0)
"""Lengths of the features beside a text of length 1."""
KEPT = (0, 1, 3, 10)
"""Likes of a newcomer that are known; all later ones are to be found."""
N_FOLDS = 5


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="What attributes and categories add.")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    show = not parser.parse_args().json
    resources = build_resources()
    encoder = resources.encoder()
    draft = replace(build_draft(resources, UNLEARNED), fusion=UNLEARNED)
    with resources.warehouse(read_only=True) as warehouse, fixed_threads():
        inputs = load_inputs(warehouse, draft, warehouse.latest_snapshot(), encoder.encoder_id, encoder.width)
        known = warehouse.read("select title, categories, attributes from stg_items order by item_id").to_pylist()
        sections = {"Items": item_features(inputs, known, draft, encoder)}
        if inputs.log.user_features is not None:
            sections["Newcomers"] = newcomers(inputs, draft)
        measured = {title: collect_rows(title, rows, show) for title, rows in sections.items()}
    print(json.dumps({"benchmark": "feature_quality", **measured}))


def item_features(
    inputs: TrainingInputs, known: Sequence[dict[str, Any]], draft: Recipe, encoder: TextEncoder
) -> Iterator[tuple[str, str]]:
    """Factors on the validation part, and new items among themselves, for catalogs that say more or less in words."""
    before_test = split_user_tail(inputs.log, inputs.texts)
    split = split_user_tail(replace(before_test.train, user_features=None), before_test.texts)
    titles = encoder.encode([re.sub(r"\s*\(\d{4}\)\s*$", "", item["title"]) for item in known])
    texts = {"title, year, genres": inputs.catalog.text, "title": titles, "no text": np.zeros_like(titles)}
    for text_name, text in texts.items():
        plain = None
        for name, weight in (("alone", 0.0), *((f"and features at {w:g}", w) for w in WEIGHTS)):
            catalog = inputs.catalog._replace(text=text, features=_features(known, weight) if weight else None)
            found = [_measure_items(split, catalog, draft, seed) for seed in SEEDS]
            values = [np.mean(column, axis=0) for column in zip(*found, strict=True)]
            plain = plain or values
            for what, value, before in zip(("factors", "new items"), values, plain, strict=True):
                difference = "" if value is before else f", {mean_text(value - before)} against alone"
                yield f"{text_name} {name}: {what}", f"{mean_text(value)}{difference}"


def newcomers(inputs: TrainingInputs, draft: Recipe) -> Iterator[tuple[str, str]]:
    """Users of whom the training knows nothing, a fifth of all at a time, with their attributes and first likes."""
    log = split_user_tail(inputs.log, inputs.texts).train
    shares = (0.0, 0.25, 0.5, 1.0)
    measured = {share: _measure_newcomers(log, inputs.catalog, draft, share) for share in shares}
    for kept in KEPT:
        prior, *_ = measured[0.0][kept]
        yield f"{kept} likes, the prior alone", mean_text(prior)
        for share in shares:
            pairs = zip(("factors", "fused"), measured[share][kept][1:], measured[0.0][kept][1:], strict=True)
            for name, values, before in pairs:
                difference = f", {mean_text(values - before)} against none" if share else ""
                yield f"{kept} likes, share {share:g}, {name}", f"{mean_text(values)}{difference}"
    split = split_user_tail(log, no_texts(inputs.catalog))
    plain = _measure_tail(split, inputs.catalog, draft, 0.0)
    for share in shares:
        values = _measure_tail(split, inputs.catalog, draft, share)
        yield f"all users, share {share:g}, factors", f"{mean_text(values)}, {mean_text(values - plain)} against none"


def _features(known: Sequence[dict[str, Any]], weight: float) -> sparse.csr_matrix:
    rows = [{**parse_attributes(item["attributes"]), "category": item["categories"]} for item in known]
    return learn_features(rows, max_values=ITEM_VALUES).encode(rows) * np.float32(weight)


def _measure_items(split: Split, catalog: Catalog, draft: Recipe, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 of the validation users by factors; and, where a fifth of the items lost every interaction, of these
    items among themselves. Items that score alike are in a random order."""
    parameters = replace(draft.factor_parameters, seed=seed)
    users = np.unique(split.test.user[split.test.weight > 0])
    seen, wanted = split.train.matrix()[users], split.test.select(split.test.weight > 0).matrix()[users]
    items, scores = _score(split.train, catalog, draft, parameters)
    warm = rank_users(scores[users], seen, wanted).ndcg_at_10
    is_cold = np.random.default_rng(0).random(len(items.item_ids)) < 0.2
    hidden = split.train.select(is_cold[split.train.item] & (split.train.weight > 0)).matrix()
    _, scores = _score(split.train.select(~is_cold[split.train.item]), catalog, draft, parameters)
    order = np.random.default_rng(seed).permutation(len(is_cold))
    blocked = sparse.csr_matrix(np.broadcast_to(~is_cold[order], scores.shape))
    return warm, rank_users(scores[:, order], blocked, hidden[:, order]).ndcg_at_10


def _score(log: InteractionLog, catalog: Catalog, draft: Recipe, p: FactorParameters) -> tuple[ItemSpace, np.ndarray]:
    items = fit_items(log, catalog, p).items
    histories = build_histories(log, no_texts(catalog), [""] * log.n_users)
    profiles = compute_profiles(histories, items, replace(draft, factor_parameters=p))
    return items, profiles.factors @ items.factors.T


def _measure_newcomers(
    log: InteractionLog, catalog: Catalog, draft: Recipe, share: float
) -> dict[int, tuple[np.ndarray, ...]]:
    """NDCG@10 by the prior, the factors and the fused score, for each number of likes that are kept."""
    log = replace(log, user_features=log.user_features if share else None)
    draft = replace(draft, factor_parameters=replace(draft.factor_parameters, user_prior=share))
    fold, n_before = np.random.default_rng(1).integers(0, N_FOLDS, log.n_users), _likes_before(log)
    found: dict[int, list[tuple[np.ndarray, ...]]] = {kept: [] for kept in KEPT}
    for number in range(N_FOLDS):
        mine = fold[log.user] == number
        train = log.select(~mine)
        recipe = learn_recipe(train, no_texts(catalog), catalog, draft).recipe
        items = fit_items(train, catalog, recipe.factor_parameters).items
        stored = fuse_items(items.text, items.factors, items.prior, recipe.fusion)
        for kept in KEPT:
            early, late = log.select(mine & (n_before < kept)), log.select(mine & (n_before >= kept) & (log.weight > 0))
            users = np.unique(late.user)
            histories = select_users(build_histories(early, no_texts(catalog), [""] * log.n_users), users)
            p = compute_profiles(histories, items, recipe)
            fused = fuse_queries(p.text, p.factors, p.alpha, p.beta, recipe.fusion) @ stored.T
            seen, wanted = early.matrix()[users], late.matrix()[users]
            scores = np.broadcast_to(items.prior, fused.shape), p.factors @ items.factors.T, fused
            found[kept].append(tuple(rank_users(some, seen, wanted).ndcg_at_10 for some in scores))
    return {kept: tuple(map(np.concatenate, zip(*parts, strict=True))) for kept, parts in found.items()}


def _measure_tail(split: Split, catalog: Catalog, draft: Recipe, share: float) -> np.ndarray:
    """NDCG@10 by factors of users with their full histories, the mean over the seeds."""
    train = replace(split.train, user_features=split.train.user_features if share else None)
    users = np.unique(split.test.user[split.test.weight > 0])
    seen, wanted = train.matrix()[users], split.test.select(split.test.weight > 0).matrix()[users]
    values = []
    for seed in SEEDS:
        parameters = replace(draft.factor_parameters, user_prior=share, seed=seed)
        _, scores = _score(train, catalog, draft, parameters)
        values.append(rank_users(scores[users], seen, wanted).ndcg_at_10)
    mean: np.ndarray = np.mean(values, axis=0)
    return mean


def _likes_before(log: InteractionLog) -> np.ndarray:
    """How many things the user of each interaction had liked before it."""
    order = np.lexsort((log.item, log.last_at, log.user))
    user, liked = log.user[order], (log.weight > 0)[order]
    count: np.ndarray = np.cumsum(liked) - liked
    before = np.empty(len(user), np.int64)
    before[order] = count - count[np.searchsorted(user, user)]
    return before


if __name__ == "__main__":
    main()
