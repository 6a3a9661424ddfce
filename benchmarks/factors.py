"""Ranking quality, time and memory of matrix factorization on ids alone, for any pair of files.

    python -m benchmarks.factors --train FILE --test FILE --factors 512 --json
    python -m benchmarks.factors --train FILE --test FILE --factors 1024 --minutes 20 --json

Files are Parquet with integer columns ``user`` and ``item``. Each test user's training items are masked, all other
items are ranked; Recall@20 is the hits over the number of test items, NDCG@20 is binary, both are means over all test
users. Parameters are those for ids alone, and the number of sweeps the best one for a held-out tenth of the training
part; with ``--minutes`` all are tuned on that tenth, in that time with the last fit. Trials go to standard error.

``fit_seconds`` are those of the last fit, without what chose its parameters. ``fit_mb`` is how far resident memory grew
in it, ``growth_ratio`` that over the size of all factors and the interactions, and ``memory_ratio`` the same with the
interactions as given, which were there before, added to what grew. The last line printed is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.support.full_ranking import measure_ranking
from benchmarks.support.ids_only import IDS_ONLY, factor_megabytes, fit_ids, warm_up
from benchmarks.support.ids_only_tuning import Trial, Tuner
from benchmarks.support.interaction_files import InteractionData, add_data_arguments, load_data
from benchmarks.support.measured_process import (
    MB,
    MemoryGrowth,
    describe_machine,
    peak_bytes,
    pinned_blas,
    usable_cores,
)
from tasks.domain.errors import NearlineError

GENERATED = 500_000
"""Interactions that are generated where the default files are missing."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--factors", type=int, default=64, help="length of a factor (default: 64)")
    parser.add_argument("--minutes", type=float, help="tune all parameters, for so long with the last fit")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads (default: one for each core)")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    arguments = parser.parse_args(argv)
    began = time.perf_counter()
    try:
        data = load_data(arguments.train, arguments.test, arguments.generate, n_default=GENERATED)
        deadline = None if arguments.minutes is None else began + 60 * arguments.minutes
        with pinned_blas():
            result = measure(data, arguments.factors, deadline, arguments.threads)
    except NearlineError as problem:
        sys.exit(f"benchmarks.factors: {problem}")
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:32} {value}")
    print(json.dumps(result))


def measure(data: InteractionData, n_factors: int, deadline: float | None, n_threads: int) -> dict[str, Any]:
    """Choose, fit and rank. ``deadline`` of ``time.perf_counter`` is the end of the last fit; without one, only the
    number of sweeps is chosen."""
    machine = describe_machine()
    warm_up(n_threads)
    began = time.perf_counter()
    tuner = Tuner(data.train, n_threads=n_threads)
    start = replace(IDS_ONLY, n_factors=n_factors)
    chosen = tuner.try_parameters(start) if deadline is None else tuner.tune(start, deadline)
    n_trials = len(tuner.trials)
    del tuner
    tuned = time.perf_counter()
    with MemoryGrowth() as memory:
        fit_began = time.perf_counter()
        model = fit_ids(data.train, chosen.parameters, n_threads=n_threads)
        fitted = time.perf_counter()
    quality = measure_ranking(model.users, model.items, data.train, data.test, n_threads=n_threads)
    factors_mb, interactions_mb = factor_megabytes(data.train, n_factors)
    return {
        "benchmark": "factors",
        **data.describe(),
        "factors": n_factors,
        "recall_at_20": round(quality.recall_at_20, 5),
        "ndcg_at_20": round(quality.ndcg_at_20, 5),
        "fit_seconds": round(fitted - fit_began, 3),
        "tuning_seconds": round(tuned - began, 3),
        "ranking_seconds": round(time.perf_counter() - fitted, 3),
        "seconds_per_sweep": round(min(sweep.seconds for sweep in model.sweeps), 4),
        "sweeps": len(model.sweeps),
        "n_trials": n_trials,
        "validation": _describe_validation(chosen),
        "parameters": chosen.parameters.to_dict(),
        "peak_mb": round(peak_bytes() / MB, 1),
        "fit_mb": round(memory.mb, 1),
        "factors_and_interactions_mb": round(factors_mb + interactions_mb, 1),
        "growth_ratio": round(memory.mb / (factors_mb + interactions_mb), 3),
        "memory_ratio": round((memory.mb + interactions_mb) / (factors_mb + interactions_mb), 3),
        "threads": n_threads,
        "machine": machine,
    }


def _describe_validation(chosen: Trial) -> dict[str, float]:
    quality = chosen.quality
    return {
        "recall_at_20": round(quality.recall_at_20, 5),
        "ndcg_at_20": round(quality.ndcg_at_20, 5),
        "n_users": quality.n_users,
    }


if __name__ == "__main__":
    main()
