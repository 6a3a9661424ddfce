"""New and rarely met items in one list with all others: what each way to give them factors makes of them.

    python -m benchmarks.mixed_items [--part validation] [--exposures] [--nothing-cut] [--json]

Works on the warehouse of ``NEARLINE_HOME``. Of the items with at least 20 likes in the training part, two fifths are
cut, as if they had just arrived: a tenth keeps none of its interactions, a tenth those since its newest like, a tenth
those since its third newest, and a tenth those since its tenth newest. Everybody's test part is then ranked over the
whole catalog by factors alone. ``--exposures`` adds other ways to say how much an item could have been met, all with
the text prior, and ``--nothing-cut`` leaves every item its interactions. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from infra.resources import build_resources
from tasks.domain.factor_model import FactorModel, FactorParameters
from tasks.domain.factors import fit_factors
from tasks.domain.histories import InteractionLog
from tasks.domain.item_fit import compute_opportunity
from tasks.domain.learning import UNLEARNED
from tasks.domain.metrics import Interval, mean_interval, rank_users
from tasks.domain.ranking import top_items
from tasks.domain.splits import Split, split_user_tail
from tasks.training_inputs import build_draft, fixed_threads, load_inputs

Floats = npt.NDArray[np.float32]
SEEDS = (0, 1, 2)
KEPT = (0, 1, 3, 10)
MANY = 20
DEPTH = 50
WAYS = ("plain", "ridge afterwards", "text prior", "text prior, opportunity")
GROUPS = (*(f"{kept} likes" for kept in KEPT), "uncut")
EXPOSURES: dict[str, Callable[[InteractionLog], npt.NDArray[np.floating]]] = {
    "n / (n + 3)": lambda log: _likes(log) / (_likes(log) + 3),
    "n / (n + 10)": lambda log: _likes(log) / (_likes(log) + 10),
    "(1 + n) ** 0.5, of its largest": lambda log: np.sqrt((1 + _likes(log)) / (1 + _likes(log).max())),
    "share since its first interaction": lambda log: _share_since_first(log),
    "the square root of that": lambda log: np.sqrt(_share_since_first(log)),
}
"""What was tried in the place of the opportunity, by name: from the log, (n_items,) in [0, 1]."""


class Outcome(NamedTuple):
    """One way: NDCG@10 of each user, and by group the recall at 50, the share of the slots up to 50, and the score."""

    ndcg: npt.NDArray[np.float64]
    recall: list[float]
    slots: list[float]
    score: list[float]


class Summary(NamedTuple):
    """One way over all cuts; lists have a value for each group."""

    ndcg_at_10: Interval
    minus: dict[str, Interval]
    recall_at_50: list[float]
    share_of_slots: list[float]
    mean_score: list[float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--part", choices=("test", "validation"), default="test", help="what is ranked")
    parser.add_argument("--exposures", action="store_true", help="other ways to weigh what was not met, too")
    parser.add_argument("--nothing-cut", action="store_true", help="every item keeps its interactions")
    arguments = parser.parse_args()
    resources = build_resources()
    encoder, draft = resources.encoder(), build_draft(resources, UNLEARNED)
    ways, kept = (*WAYS, *(EXPOSURES if arguments.exposures else ())), () if arguments.nothing_cut else KEPT
    with resources.warehouse(read_only=True) as warehouse, fixed_threads() as n_threads:
        inputs = load_inputs(warehouse, draft, warehouse.latest_snapshot(), encoder.encoder_id, encoder.width)
        split = split_user_tail(inputs.log, inputs.texts)
        if arguments.part == "validation":
            split = split_user_tail(split.train, split.texts)
        found = {
            way: [
                measure(split, inputs.catalog.text, replace(draft.factor_parameters, seed=seed), way, kept, n_threads)
                for seed in SEEDS
            ]
            for way in ways
        }
    report = {way: summarize(outcomes, found) for way, outcomes in found.items()}
    if not arguments.json:
        show(report)
    rows = {way: summary._asdict() for way, summary in report.items()}
    print(
        json.dumps(
            {"benchmark": "mixed_items", "part": arguments.part, "kept": kept, "groups": GROUPS, "seeds": SEEDS, **rows}
        )
    )


def measure(
    split: Split, text: Floats, given: FactorParameters, way: str, kept: tuple[int, ...], n_threads: int
) -> Outcome:
    """Cut, fit and rank once."""
    train, group, opportunity = cut(split.train, given.seed, kept)
    parameters = replace(given, text_prior=0.0) if way in ("plain", "ridge afterwards") else given
    told = opportunity if way == "text prior, opportunity" else None
    if way in EXPOSURES:
        told = EXPOSURES[way](train).astype(np.float32)
    matrix = train.matrix()
    matrix.eliminate_zeros()
    fit = fit_factors(matrix, text, parameters, opportunity=told, n_threads=n_threads)
    items = ridge_afterwards(fit, text, train, parameters) if way == "ridge afterwards" else fit.items
    return judge(fit.users @ items.T, split, group)


def cut(
    log: InteractionLog, seed: int, likes_kept: tuple[int, ...]
) -> tuple[InteractionLog, npt.NDArray[np.int64], Floats | None]:
    """The log without what the cut items lose, a tenth of the items for each number of likes that they keep; the group
    of each item, 4 for uncut ones and -1 for rarely liked ones; and the share of the log since the arrival of a cut
    item, 1 for the others."""
    liked = np.bincount(log.item[log.weight > 0], minlength=log.n_items)
    busy = np.random.default_rng(seed).permutation(np.flatnonzero(liked >= MANY))
    group = np.where(liked >= MANY, len(KEPT), -1)
    newest_first = np.argsort(-log.last_at, kind="stable")
    kept = np.ones(len(log.item), bool)
    for number, n_likes in enumerate(likes_kept):
        chosen = busy[number * len(busy) // 10 : (number + 1) * len(busy) // 10]
        group[chosen] = number
        for item in chosen:
            rows = newest_first[log.item[newest_first] == item]
            n_rows = np.flatnonzero(log.weight[rows] > 0)[n_likes - 1] + 1 if n_likes else 0
            kept[rows[n_rows:]] = False
    short, times = log.select(kept), np.iinfo(np.int64)
    arrived_at = np.where((group >= 0) & (group < len(KEPT)), times.max, times.min)
    return short, group, compute_opportunity(short, arrived_at)


def ridge_afterwards(fit: FactorModel, text: Floats, train: InteractionLog, parameters: FactorParameters) -> Floats:
    """Plain factors, and for items without any like what a ridge regression from text to the others predicts."""
    known = np.bincount(train.item[train.weight > 0], minlength=train.n_items) > 0
    system = text[known].T @ text[known] + parameters.text_ridge * np.eye(text.shape[1])
    predicted = text @ np.linalg.solve(system, text[known].T @ fit.items[known])
    return np.where(known[:, None], fit.items, predicted).astype(np.float32)


def judge(scores: Floats, split: Split, group: npt.NDArray[np.int64]) -> Outcome:
    """Rank everybody's test part over the whole catalog."""
    seen, wanted = split.train.matrix(), split.test.select(split.test.weight > 0).matrix()
    ndcg = rank_users(scores, seen, wanted).ndcg_at_10
    blocked = dense(seen)
    relevant = dense(wanted) & ~blocked
    users = np.flatnonzero(relevant.any(axis=1))
    listed = np.zeros(scores.shape, bool)
    rows = top_items(scores, DEPTH, blocked).rows
    np.put_along_axis(listed, rows.clip(0), True, axis=1)
    members = [group == number for number in range(len(GROUPS))]
    return Outcome(
        ndcg=ndcg,
        recall=[float((listed & relevant)[:, m].sum() / max(relevant[:, m].sum(), 1)) for m in members],
        slots=[float(listed[users][:, m].sum() / (DEPTH * len(users))) for m in members],
        score=[float(scores[users][:, m].mean()) if m.any() else 0.0 for m in members],
    )


def summarize(outcomes: list[Outcome], found: dict[str, list[Outcome]]) -> Summary:
    """Means over the cuts; intervals are over users, whose values are first averaged over the cuts."""
    mine = np.mean([outcome.ndcg for outcome in outcomes], axis=0)
    others = {way: np.mean([outcome.ndcg for outcome in found[way]], axis=0) for way in WAYS[:3]}
    return Summary(
        ndcg_at_10=mean_interval(mine),
        minus={way: mean_interval(mine - values) for way, values in others.items()},
        recall_at_50=_column_means([o.recall for o in outcomes]),
        share_of_slots=_column_means([o.slots for o in outcomes]),
        mean_score=_column_means([o.score for o in outcomes]),
    )


def _column_means(rows: list[list[float]]) -> list[float]:
    return [round(float(value), 4) for value in np.array(rows).mean(axis=0)]


def show(report: dict[str, Summary]) -> None:
    """A table in markdown."""
    print(f"| way | NDCG@10 | recall@50 of {', '.join(GROUPS)} | share of slots | mean score |")
    print("| --- | --- | --- | --- | --- |")
    for way, row in report.items():
        columns = row.recall_at_50, row.share_of_slots, row.mean_score
        lists = (" ".join(f"{x:.3f}" for x in values) for values in columns)
        value, low, high = row.ndcg_at_10
        print(f"| {way} | {value:.4f} ({low:.4f} to {high:.4f}) | {' | '.join(lists)} |")


def _likes(log: InteractionLog) -> npt.NDArray[np.float64]:
    return np.bincount(log.item[log.weight > 0], minlength=log.n_items).astype(np.float64)


def _share_since_first(log: InteractionLog) -> Floats:
    shares = compute_opportunity(log, np.full(log.n_items, np.iinfo(np.int64).max))
    assert shares is not None
    return shares


def dense(entries: sparse.csr_matrix) -> npt.NDArray[np.bool_]:
    """True where an entry is stored."""
    flags = np.zeros(entries.shape, bool)
    flags[np.repeat(np.arange(entries.shape[0]), np.diff(entries.indptr)), entries.indices] = True
    return flags


if __name__ == "__main__":
    main()
