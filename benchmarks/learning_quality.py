"""Ranking quality of the choices in docs/decisions, on the newest model version of a home.

    python -m benchmarks.learning_quality --json        (of NEARLINE_HOME; `make demo` fills the default one)

Choices are measured on the validation part of the training part alone (each user's last fifth of what lies before the
test part); the test parts are measured once, with the choices as they are. Prints markdown, and one JSON object as its
last line.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import sparse

from benchmarks.support.quality_rows import collect_rows, mean_text, no_texts
from infra.resources import build_resources
from tasks.domain.evaluation import evaluate_split, summarize_split
from tasks.domain.factor_model import FactorParameters
from tasks.domain.fold_in import fold_in
from tasks.domain.histories import InteractionLog, build_histories
from tasks.domain.item_fit import Catalog, fit_items
from tasks.domain.learning import UNLEARNED, learn_recipe
from tasks.domain.metrics import rank_users
from tasks.domain.profiles import Recipe, weigh_recency
from tasks.domain.splits import SPLITS, Split, split_user_tail
from tasks.training_inputs import TrainingInputs, build_draft, fixed_threads, load_inputs

SEEDS = (0, 1, 2)


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="Ranking quality of the choices in docs/decisions.")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    show = not parser.parse_args().json
    resources = build_resources()
    encoder = resources.encoder()
    draft = build_draft(resources, UNLEARNED)
    with resources.warehouse(read_only=True) as warehouse, fixed_threads() as n_threads:
        inputs = load_inputs(warehouse, draft, warehouse.latest_snapshot(), encoder.encoder_id, encoder.width)
        before_test = split_user_tail(inputs.log, inputs.texts)
        validation = split_user_tail(before_test.train, before_test.texts)
        sections = {
            "Factors alone, validation part": factor_choices(validation, inputs.catalog, draft, n_threads),
            "New items among themselves": cold_items(inputs.log, inputs.catalog, draft, n_threads),
            "Test parts": test_parts(inputs, draft, n_threads),
        }
        measured = {title: collect_rows(title, rows, show) for title, rows in sections.items()}
    print(json.dumps({"benchmark": "learning_quality", **measured}))


def factor_choices(split: Split, catalog: Catalog, draft: Recipe, n_threads: int) -> Iterator[tuple[str, str]]:
    """NDCG@10 of factors alone with one choice changed at a time, the mean of three seeds."""
    p = draft.factor_parameters
    choices: list[tuple[str, FactorParameters, dict[str, float]]] = [
        ("as chosen", p, {}),
        *((f"text_prior {x}", replace(p, text_prior=x), {}) for x in (0.0, 0.5)),
        *((f"text_ridge {x}", replace(p, text_ridge=x), {}) for x in (1.0, 100.0)),
        *((f"n_factors {x}", replace(p, n_factors=x), {}) for x in (32, 128)),
        *((f"n_sweeps {x}", replace(p, n_sweeps=x), {}) for x in (6, 24)),
        *((f"regularization {x}", replace(p, regularization=x), {}) for x in (0.15, 0.4)),
        *((f"unobserved_weight {x}", replace(p, unobserved_weight=x), {}) for x in (0.1, 0.4)),
        *((f"popularity_discount {x}", replace(p, popularity_discount=x), {}) for x in (0.15, 0.3)),
        ("no recency", p, {"fast_share": 0.0, "slow_half_life": 1e9, "fast_half_life": 1e9}),
        *((f"fast_share {x}", p, {"fast_share": x}) for x in (0.5, 1.0)),
        *((f"fast_half_life {x}", p, {"fast_half_life": x}) for x in (4.0, 16.0)),
    ]
    for name, parameters, decay in choices:
        recipe = replace(draft, **decay)  # type: ignore[arg-type]
        found = [
            evaluate_split(
                split, catalog, replace(recipe, factor_parameters=replace(parameters, seed=seed)), ("factors",),
                n_threads=n_threads,
            )
            for seed in SEEDS
        ]  # fmt: skip
        values = [result.rankings["factors"].ndcg_at_10.mean() for result in found if result]
        yield name, f"{np.mean(values):.4f}"


def cold_items(log: InteractionLog, catalog: Catalog, draft: Recipe, n_threads: int) -> Iterator[tuple[str, str]]:
    """A fifth of the items loses every interaction; they are ranked among themselves for those who liked them."""
    is_cold = np.random.default_rng(0).random(log.n_items) < 0.2
    warm, hidden = log.select(~is_cold[log.item]), log.select(is_cold[log.item] & (log.weight > 0))
    nothing = sparse.csr_matrix((log.n_users, log.n_items), dtype=np.float32)
    relevant = hidden.matrix()
    blocked = sparse.csr_matrix(np.broadcast_to(~is_cold, nothing.shape))
    known = np.unique(warm.item[warm.weight > 0])
    for name, prior in (("text prior", 1.0), ("what the text predicts", 1.0), ("ridge afterwards", 0.0)):
        parameters = replace(draft.factor_parameters, text_prior=prior)
        items = fit_items(warm, catalog, parameters, n_threads=n_threads).items
        factors = {
            "text prior": items.factors,
            "what the text predicts": catalog.text @ items.text_map,
            "ridge afterwards": _ridge(items.factors, catalog.text, warm),
        }[name]
        histories = build_histories(warm, no_texts(catalog), [""] * log.n_users)
        recent, _ = weigh_recency(histories, items, draft)
        users = fold_in(recent.interactions, items.fixed(parameters), n_threads=n_threads)
        scores = users @ factors.T
        yield name, mean_text(rank_users(scores, blocked, relevant).ndcg_at_10)
        level = f"{scores[:, is_cold].mean():.4f} against {(users @ items.factors[known].T).mean():.4f}"
        yield f"{name}: mean score of new items against the others", level
    text = sparse.csr_matrix(np.maximum(recent.interactions.toarray(), 0)) @ catalog.text @ catalog.text.T
    yield "text alone", mean_text(rank_users(text, blocked, relevant).ndcg_at_10)
    chance = np.random.default_rng(1).random(nothing.shape).astype(np.float32)
    yield "chance", mean_text(rank_users(chance, blocked, relevant).ndcg_at_10)


def test_parts(inputs: TrainingInputs, draft: Recipe, n_threads: int) -> Iterator[tuple[str, str]]:
    """Every policy on both test parts, with the weights that were learned before them."""
    for name, cut in SPLITS.items():
        split, started = cut(inputs.log, inputs.texts), time.perf_counter()
        recipe = learn_recipe(split.train, split.texts, inputs.catalog, draft, n_threads=n_threads).recipe
        fusion = recipe.fusion
        yield f"{name}: seconds to learn", f"{time.perf_counter() - started:.1f}"
        buckets = ", ".join(f"{b.min_history}+: {b.alpha:g} / {b.beta:.3f}" for b in fusion.buckets)
        yield f"{name}: scale {fusion.scale:.2f}; alpha / beta by bucket", buckets
        yield f"{name}: text request", f"{fusion.text_request.alpha:g} / {fusion.text_request.beta:.3f}"
        started = time.perf_counter()
        result = evaluate_split(split, inputs.catalog, recipe, n_threads=n_threads)
        yield f"{name}: seconds to evaluate", f"{time.perf_counter() - started:.1f}"
        for row in summarize_split(name, result) if result else ():
            if row.segment == "all":
                interval = f"{row.value:.4f} ({row.ci_low:.4f} to {row.ci_high:.4f}), {row.n_users} users"
                yield f"{name} {row.policy} {row.metric}", interval


def _ridge(factors: np.ndarray, text: np.ndarray, warm: InteractionLog) -> np.ndarray:
    known = np.unique(warm.item[warm.weight > 0])
    system = text[known].T @ text[known] + np.eye(text.shape[1])
    return text @ np.linalg.solve(system, text[known].T @ factors[known])


if __name__ == "__main__":
    main()
