"""Nightly training on a stream: a fit that goes on from the night before, beside one that starts anew.

    python -m benchmarks.factors_warm_start [--json]

Works on the warehouse of ``NEARLINE_HOME``. The newest 30 % of the interactions, by time, are ten nights. Every night
trains on all that came before it, and is measured by factors alone on what its users like in the night after: from the
start with all sweeps, with few sweeps, and with few sweeps from the items of the night before (which itself went on
from the night before). New users and items enter on their night. The last line is one JSON object.
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import sparse

from infra.resources import build_resources
from tasks.domain.factor_model import FactorModel, FactorParameters
from tasks.domain.factors import fit_factors
from tasks.domain.histories import InteractionLog
from tasks.domain.learning import UNLEARNED
from tasks.domain.metrics import mean_interval, rank_users
from tasks.training_inputs import build_draft, fixed_threads, load_inputs

Floats = npt.NDArray[np.float32]
N_NIGHTS = 10
STREAM_SHARE = 0.3
WARM_SWEEPS = (1, 2, 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    show = not parser.parse_args().json
    resources = build_resources()
    encoder, draft = resources.encoder(), build_draft(resources, UNLEARNED)
    with resources.warehouse(read_only=True) as warehouse, fixed_threads() as n_threads:
        inputs = load_inputs(warehouse, draft, warehouse.latest_snapshot(), encoder.encoder_id, encoder.width)
        report = run(inputs.log, inputs.catalog.text, draft.factor_parameters, n_threads)
    if show:
        print(
            "| training | sweeps | NDCG@10 of the next night | minus all sweeps | loss / loss of all sweeps | seconds |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for name, row in report.items():
            shown = ["{:.4f} ({:.4f} to {:.4f})".format(*row[key]) for key in ("ndcg_at_10", "minus_cold")]
            print(
                f"| {name} | {row['sweeps']} | {' | '.join(shown)} | {row['loss_ratio']:.4f} | {row['seconds']:.2f} |"
            )
    print(json.dumps({"benchmark": "factors_warm_start", "n_nights": N_NIGHTS, **report}))


def run(
    log: InteractionLog, text: Floats, parameters: FactorParameters, n_threads: int
) -> dict[str, dict[str, object]]:
    """All nights; values are over all users of all nights."""
    cuts = np.quantile(log.last_at, np.linspace(1 - STREAM_SHARE, 1, N_NIGHTS + 1)).astype(np.int64)
    ways = {"all sweeps": parameters.n_sweeps} | {f"few sweeps, {n}": n for n in WARM_SWEEPS}
    ways |= {f"warm, {n}": n for n in WARM_SWEEPS}
    values: dict[str, list[npt.NDArray[np.float64]]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    eve = fit(log.select(log.last_at <= cuts[0]), text, parameters, None, n_threads)
    before = {way: eve.items for way in ways}
    for start, end in pairwise(cuts[1:]):
        known, after = log.select(log.last_at <= start), log.select((log.last_at > start) & (log.last_at <= end))
        for way, n_sweeps in ways.items():
            began = time.perf_counter()
            warm = before[way] if way.startswith("warm") else None
            model = fit(known, text, replace(parameters, n_sweeps=n_sweeps), warm, n_threads)
            seconds[way].append(time.perf_counter() - began)
            before[way] = model.items
            losses[way].append(model.sweeps[-1].loss)
            values[way].append(rank(model, known, after))
    cold = np.concatenate(values["all sweeps"])
    return {
        way: {
            "sweeps": n_sweeps,
            "ndcg_at_10": mean_interval(np.concatenate(values[way])),
            "minus_cold": mean_interval(np.concatenate(values[way]) - cold),
            "loss_ratio": float(np.mean(np.divide(losses[way], losses["all sweeps"]))),
            "seconds": float(np.mean(seconds[way])),
            "by_night": [round(float(np.nanmean(night)), 4) for night in values[way]],
        }
        for way, n_sweeps in ways.items()
    }


def fit(
    log: InteractionLog, text: Floats, parameters: FactorParameters, start: Floats | None, n_threads: int
) -> FactorModel:
    """Items that nobody has met yet have no start values."""
    if start is not None:
        met = np.bincount(log.item, minlength=log.n_items) > 0
        start = np.where(met[:, None], start, np.float32(0))
    matrix = log.matrix()
    matrix.eliminate_zeros()
    return fit_factors(matrix, text, parameters, start=start, n_threads=n_threads)


def rank(model: FactorModel, known: InteractionLog, after: InteractionLog) -> npt.NDArray[np.float64]:
    """NDCG@10 of those with some history who like something new in the night after."""
    wanted = after.select(after.weight > 0).matrix()
    has_history = np.bincount(known.user[known.weight > 0], minlength=known.n_users) > 0
    users = np.flatnonzero(has_history & (np.diff(wanted.indptr) > 0))
    scores = model.users[users] @ model.items.T
    seen: sparse.csr_matrix = known.matrix()[users]
    return rank_users(scores, seen, wanted[users]).ndcg_at_10


if __name__ == "__main__":
    main()
