"""Item neighbours beside factors, the fused score and popularity: when do they win?

    python -m benchmarks.neighbours --json
    python -m benchmarks.neighbours --home var --home OTHER_HOME --train FILE --test FILE --factors 64 512 --json
    python -m benchmarks.neighbours --choices --json         (what the parameters were chosen by)

Homes are folders that were filled by `nearline run daily_batch` or `make demo` (default: NEARLINE_HOME). On each, every
policy ranks the test parts of both splits, with weights learned before them; NDCG@10 and recall@10 with 95 % intervals,
differences paired by user. Files are Parquet with integer columns ``user`` and ``item`` (default: the Gowalla split
beside the repository): full ranking without the training items, Recall@20 and NDCG@20 by length of history, beside
factors on ids alone. With ``--choices`` only validation parts are ranked: each user's last fifth of what lies before
the test part, or a random tenth of the training file. Prints markdown, and one JSON object as its last line.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from benchmarks.support.full_ranking import CUTOFF, rank_items
from benchmarks.support.ids_only import IDS_ONLY, fit_ids
from benchmarks.support.ids_only_tuning import Tuner
from benchmarks.support.interaction_files import add_data_arguments, hold_out, load_data
from benchmarks.support.measured_process import describe_machine
from benchmarks.support.neighbour_rankings import (
    cosine_strengths,
    ease_strengths,
    measure_gains,
    rank_by_neighbours,
    rank_by_popularity,
    segments,
)
from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.domain.errors import NearlineError
from tasks.domain.evaluation import Policy, evaluate_split
from tasks.domain.histories import build_histories
from tasks.domain.item_fit import fit_items
from tasks.domain.learning import UNLEARNED, learn_recipe
from tasks.domain.metrics import Ranking, mean_interval, rank_users
from tasks.domain.neighbours import NeighbourParameters, fit_neighbours, liked_only
from tasks.domain.profiles import Recipe, weigh_recency
from tasks.domain.ranking import mean_block_cosine
from tasks.domain.splits import SPLITS, Split, SplitName, split_user_tail
from tasks.training_inputs import TrainingInputs, build_draft, fixed_threads, load_inputs

DEFAULT = NeighbourParameters()
CHOICES = {
    "as chosen": DEFAULT,
    **{f"n_neighbours {n}": replace(DEFAULT, n_neighbours=n) for n in (20, 100)},
    **{f"regularization {x:g}": replace(DEFAULT, regularization=x) for x in (10.0, 100.0)},
    "frequency_exponent 0, regularization 100": replace(DEFAULT, frequency_exponent=0.0, regularization=100.0),
    "frequency_exponent 1, regularization 5": replace(DEFAULT, frequency_exponent=1.0, regularization=5.0),
    **{f"shrinkage {x:g}": replace(DEFAULT, shrinkage=x) for x in (0.0, 20.0)},
}
COSINES, EASE = "cosines instead", "all items on all others (EASE^R), regularization"
EASE_ITEMS, EASE_STRENGTHS = 3000, (100.0, 200.0, 500.0)
"""The largest catalog for which a matrix of items times items is made, and its regularizations."""
GENERATED = 100_000
MAX_VALIDATION_USERS = 4000


class Measured(NamedTuple):
    """A mean over users with its 95 % interval."""

    value: float
    low: float
    high: float
    n_users: int


Row = tuple[str, Measured | float]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything that was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, action="append", help="a folder of state; may be given several times")
    add_data_arguments(parser)
    parser.add_argument("--factors", type=int, nargs="*", default=[64], help="lengths of the factors beside them")
    parser.add_argument("--choices", action="store_true", help="measure the choices, on validation parts alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    arguments = parser.parse_args(argv)
    try:
        with fixed_threads():
            sections = {title: _collect(title, rows, arguments.json) for title, rows in _sections(arguments)}
    except NearlineError as problem:
        sys.exit(f"benchmarks.neighbours: {problem}")
    about = {"machine": describe_machine(), "threads": arguments.threads, "parameters": asdict(DEFAULT)}
    print(json.dumps({"benchmark": "neighbours", **about, **sections}))


def _sections(arguments: argparse.Namespace) -> Iterator[tuple[str, Iterator[Row]]]:
    """What is to be measured, by its title."""
    n_threads = arguments.threads
    for home in arguments.home or [load_settings().home]:
        inputs, draft = _load_home(home)
        if arguments.choices:
            before_test = split_user_tail(inputs.log, inputs.texts)
            validation = split_user_tail(before_test.train, before_test.texts)
            yield f"{home.name}: choices", home_choices(validation, inputs, draft)
            yield f"{home.name}: similar items", likeness(validation, inputs, draft)
        else:
            for name in SPLITS:
                yield f"{home.name}: {name}", measure_split(inputs, draft, name, n_threads)
    data = load_data(arguments.train, arguments.test, arguments.generate, n_default=GENERATED)
    if arguments.choices:
        yield f"{data.name}: choices", file_choices(*hold_out(data.train, 0.1, seed=0), n_threads)
    else:
        yield data.name, measure_files(data.train, data.test, arguments.factors, n_threads)


def _load_home(home: Path) -> tuple[TrainingInputs, Recipe]:
    resources = LocalResources(load_settings(home=home))
    draft, encoder = build_draft(resources, UNLEARNED), resources.encoder()
    with resources.warehouse(read_only=True) as warehouse:
        snapshot = warehouse.latest_snapshot()
        return load_inputs(warehouse, draft, snapshot, encoder.encoder_id, encoder.width), draft


def measure_split(inputs: TrainingInputs, draft: Recipe, name: SplitName, n_threads: int) -> Iterator[Row]:
    """Every policy on the test part of one split of a home, and the differences of neighbours to the others."""
    split = SPLITS[name](inputs.log, inputs.texts)
    recipe = learn_recipe(split.train, split.texts, inputs.catalog, draft, n_threads=n_threads).recipe
    fit_neighbours(split.train.matrix()[:10])
    started = time.perf_counter()
    fit_neighbours(split.train.matrix(), n_threads=n_threads)
    yield "seconds of fit_neighbours", time.perf_counter() - started
    others: tuple[Policy, ...] = ("fused", "factors", "popularity")
    result = evaluate_split(split, inputs.catalog, recipe, (*others, "neighbours"), n_threads=n_threads)
    if result is None:
        return
    mine = result.rankings["neighbours"]
    for metric in ("ndcg_at_10", "recall_at_10"):
        for policy, ranking in result.rankings.items():
            yield f"{policy}, {metric}", _mean(getattr(ranking, metric))
        for policy in others:
            yield f"neighbours minus {policy}, {metric}", _difference(mine, result.rankings[policy], metric)
    for segment, members in segments(result.lengths):
        for policy, ranking in result.rankings.items():
            yield f"{segment}: {policy}, ndcg_at_10", _mean(ranking.ndcg_at_10[members])
        difference = mine.ndcg_at_10 - result.rankings["factors"].ndcg_at_10
        yield f"{segment}: neighbours minus factors, ndcg_at_10", _mean(difference[members])


def home_choices(split: Split, inputs: TrainingInputs, draft: Recipe) -> Iterator[Row]:
    """NDCG@10 on a validation part, one choice changed at a time, and with other strengths."""
    users = np.unique(split.test.user[split.test.weight > 0])
    items, _ = fit_items(split.train, inputs.catalog, draft.factor_parameters)
    histories = build_histories(split.train, split.texts, [""] * split.train.n_users)
    recent = liked_only(weigh_recency(histories, items, draft)[0].interactions)[users]
    likes, wanted = split.train.matrix(), split.test.select(split.test.weight > 0).matrix()[users]

    def ndcg(strengths: Any, history: sparse.csr_matrix = recent) -> Measured:
        scores = history @ strengths
        dense = np.asarray(scores.toarray() if sparse.issparse(scores) else scores, np.float32)
        return _mean(rank_users(dense, likes[users], wanted).ndcg_at_10)

    for name, parameters in CHOICES.items():
        yield name, ndcg(fit_neighbours(likes, parameters).strengths)
    yield "histories without recency", ndcg(fit_neighbours(likes).strengths, liked_only(likes)[users])
    yield COSINES, ndcg(cosine_strengths(likes, DEFAULT))
    for regularization in EASE_STRENGTHS if likes.shape[1] <= EASE_ITEMS else ():
        yield f"{EASE} {regularization:g}", ndcg(ease_strengths(likes, regularization))


def likeness(split: Split, inputs: TrainingInputs, draft: Recipe) -> Iterator[Row]:
    """NDCG@10 of what users like next, among the items most like the one they liked last."""
    items, _ = fit_items(split.train, inputs.catalog, draft.factor_parameters)
    liked = split.train.select(split.train.weight > 0)
    order = np.lexsort((liked.item, liked.last_at, liked.user))
    last = order[np.append(np.diff(liked.user[order]) > 0, True)]
    users = liked.user[last]
    seen, wanted = split.train.matrix()[users], split.test.select(split.test.weight > 0).matrix()[users]
    vectors = np.concatenate([items.text, items.factors, np.zeros((len(items.prior), 1), np.float32)], axis=1)
    width = items.text.shape[1]
    ways: dict[str, npt.NDArray[Any]] = {
        "factors": np.concatenate([np.zeros_like(items.text), items.factors], axis=1),
        "text": np.concatenate([items.text, np.zeros_like(items.factors)], axis=1),
        "both": vectors[:, :-1],
    }
    found = {}
    for way, blocks in ways.items():
        queries = np.concatenate([blocks, vectors[:, -1:]], axis=1)[liked.item[last]]
        scores = np.stack([np.add(*mean_block_cosine(query, vectors, width)) for query in queries])
        found[way] = rank_users(scores, seen, wanted).ndcg_at_10
        yield way, _mean(found[way])
    for way in ("text", "both"):
        yield f"{way} minus factors", _mean(found[way] - found["factors"])


def measure_files(
    train: sparse.csr_matrix, test: sparse.csr_matrix, lengths: Sequence[int], n_threads: int
) -> Iterator[Row]:
    """Neighbours, cosines, popularity and factors of some lengths on the test file, by length of history."""
    users = np.flatnonzero(np.diff(test.indptr))
    fit_neighbours(train[:10])
    started = time.perf_counter()
    found = fit_neighbours(train, n_threads=n_threads)
    yield "seconds of fit_neighbours", time.perf_counter() - started
    yield "number of strengths", float(found.strengths.nnz)
    gains = {
        "neighbours": measure_gains(rank_by_neighbours(train, found.strengths, users), test[users]),
        "cosines": measure_gains(rank_by_neighbours(train, cosine_strengths(train, DEFAULT), users), test[users]),
        "popularity": measure_gains(rank_by_popularity(train, users), test[users]),
    }
    for n_factors in lengths:
        chosen = Tuner(train, n_threads=n_threads).try_parameters(replace(IDS_ONLY, n_factors=n_factors))
        started = time.perf_counter()
        model = fit_ids(train, chosen.parameters, n_threads=n_threads)
        yield f"seconds of {n_factors} factors", time.perf_counter() - started
        best = rank_items(model.users[users], model.items, train[users], CUTOFF, n_threads=n_threads)
        gains[f"{n_factors} factors"] = measure_gains(best, test[users])
    everybody = np.ones(len(users), bool)
    for segment, members in (("all", everybody), *segments(np.diff(train.indptr)[users])):
        for metric in ("recall", "ndcg"):
            mine = getattr(gains["neighbours"], metric)
            for name, of in gains.items():
                yield f"{segment}: {name}, {metric}_at_20", _mean(getattr(of, metric)[members])
                if "factors" in name:
                    difference = (mine - getattr(of, metric))[members]
                    yield f"{segment}: neighbours minus {name}, {metric}_at_20", _mean(difference)


def file_choices(train: sparse.csr_matrix, held: sparse.csr_matrix, n_threads: int) -> Iterator[Row]:
    """Recall@20 and NDCG@20 on the held-out part, over a sample of its users, one choice changed at a time."""
    users = np.flatnonzero(np.diff(held.indptr))
    if len(users) > MAX_VALIDATION_USERS:
        users = np.sort(np.random.default_rng(0).choice(users, MAX_VALIDATION_USERS, replace=False))

    def rows(name: str, make: Callable[[], sparse.csr_matrix]) -> Iterator[Row]:
        started = time.perf_counter()
        strengths = make()
        yield f"{name}, seconds", time.perf_counter() - started
        gains = measure_gains(rank_by_neighbours(train, strengths, users), held[users])
        yield f"{name}, recall_at_20", _mean(gains.recall)
        yield f"{name}, ndcg_at_20", _mean(gains.ndcg)

    for name, parameters in CHOICES.items():
        yield from rows(name, lambda p=parameters: fit_neighbours(train, p, n_threads=n_threads).strengths)  # type: ignore[misc]
    yield from rows(COSINES, lambda: cosine_strengths(train, DEFAULT))


def _mean(values: npt.NDArray[np.float64]) -> Measured:
    return Measured(*mean_interval(values), int((~np.isnan(values)).sum()))


def _difference(mine: Ranking, other: Ranking, metric: str) -> Measured:
    return _mean(getattr(mine, metric) - getattr(other, metric))


def _collect(title: str, rows: Iterator[Row], quiet: bool) -> dict[str, Any]:
    """The rows by name; shown as markdown, row by row as they are measured, unless ``quiet``."""
    if not quiet:
        print(f"\n### {title}\n\n| what | value |\n| --- | --- |")
    found: dict[str, Any] = {}
    for what, value in rows:
        if isinstance(value, Measured):
            shown = f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f}), {value.n_users} users"
            found[what] = {name: round(number, 5) for name, number in value._asdict().items()}
        else:
            shown, found[what] = f"{value:,.2f}", round(value, 3)
        if not quiet:
            print(f"| {what} | {shown} |", flush=True)
    return found


if __name__ == "__main__":
    main()
