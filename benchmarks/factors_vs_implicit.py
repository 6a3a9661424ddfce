"""The factor engine beside ``implicit`` (AlternatingLeastSquares): quality against seconds, memory, fold-in.

    python -m benchmarks.factors_vs_implicit --json
    python -m benchmarks.factors_vs_implicit --tune --json          (tunes both again, first)

Both get the same data and threads, and linear algebra on one thread. They take turns, every turn in a process of its
own; seconds are medians over the turns. Each library was tuned on a held-out part of the training data, with the same
search, over as many trials of two parameters, at one dimension; the values are constants here, for the Gowalla split.
``implicit`` makes 15 sweeps, its default. The quality is measured on the test part after each sweep, on a sample of
users (``--test-users 0`` takes all), and takes no part in the seconds. The target is the quality at which ``implicit``
ends; where it was better before, its best is a second target. Ratios are ours over ``implicit``'s: below 1 is faster,
or smaller. The last line printed is one JSON object.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.support.ids_only import factor_megabytes, sample_users, warm_up
from benchmarks.support.interaction_files import InteractionData, add_data_arguments, load_data
from benchmarks.support.measured_process import describe_machine, in_child, pinned_blas
from benchmarks.support.parameter_search import Values
from benchmarks.support.peer_tuning import our_parameters, tune_libraries
from benchmarks.support.peer_turns import (
    ImplicitParameters,
    Turn,
    fold_in_turns,
    save_data,
    take_implicit_turn,
    take_our_turn,
)
from tasks.domain.errors import NearlineError

GENERATED = 300_000
TUNED_OURS: Values = {"regularization": 0.00356, "unobserved_weight": 0.0128}
TUNED_IMPLICIT: Values = {"regularization": 0.0885, "alpha": 53.65}
TUNED_AT = 64
"""The dimension at which ``--tune`` tunes both."""
SWEEPS = 15


class Plan(NamedTuple):
    """What is measured: ``ours`` and ``theirs`` are tuned values."""

    dimensions: tuple[int, ...]
    n_sweeps: int
    n_repeats: int
    n_threads: int
    fold_in_users: int
    fold_in_factors: int
    ours: Values
    theirs: Values


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    arguments = _parser().parse_args(argv)
    tuned, theirs_tuned, tuning = TUNED_OURS, TUNED_IMPLICIT, {}
    try:
        data = load_data(arguments.train, arguments.test, arguments.generate, n_default=GENERATED)
        machine = describe_machine("implicit")
        if arguments.tune:
            tuning = tune(data, arguments.trials, arguments.sweeps, arguments.threads)
            tuned, theirs_tuned = tuning["ours"], tuning["implicit"]
        plan = Plan(
            tuple(arguments.factors), arguments.sweeps, arguments.repeat, arguments.threads,
            arguments.fold_in_users, arguments.fold_in_factors, tuned, theirs_tuned,
        )  # fmt: skip
        result = measure(data, plan, arguments.test_users)
    except NearlineError as problem:
        sys.exit(f"benchmarks.factors_vs_implicit: {problem}")
    result = {"benchmark": "factors_vs_implicit", **result, "tuning": tuning, "machine": machine}
    if not arguments.json:
        for comparison in result["dimensions"]:
            print(comparison)
        print(result["fold_in"])
    print(json.dumps(result))


def tune(data: InteractionData, n_trials: int, n_sweeps: int, n_threads: int) -> dict[str, Any]:
    """Tuned values of both, with their NDCG@20 on the held-out part."""
    warm_up(n_threads)
    with pinned_blas():
        ours, theirs = tune_libraries(data.train, TUNED_AT, n_sweeps=n_sweeps, n_trials=n_trials, n_threads=n_threads)
    return {
        "factors": TUNED_AT,
        "n_trials": n_trials,
        "ours": ours.values,
        "implicit": theirs.values,
        "ours_validation_ndcg_at_20": round(ours.ndcg_at_20, 5),
        "implicit_validation_ndcg_at_20": round(theirs.ndcg_at_20, 5),
    }


def measure(data: InteractionData, plan: Plan, n_test_users: int) -> dict[str, Any]:
    """Every dimension, then the fold-in."""
    test = sample_users(data.test, n_test_users) if n_test_users else data.test
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_data(folder, data.train, test)
        dimensions = [_compare(folder, data, n_factors, plan) for n_factors in plan.dimensions]
        fold_in = _fold_in(folder, plan)
    return {
        **data.describe(),
        "n_ranked_users": int(np.count_nonzero(np.diff(test.indptr))),
        "threads": plan.n_threads,
        "repeats": plan.n_repeats,
        "parameters": {
            "ours": our_parameters(plan.ours, 0, plan.n_sweeps).to_dict() | {"n_factors": plan.dimensions},
            "implicit": plan.theirs | {"iterations": plan.n_sweeps},
        },
        "dimensions": dimensions,
        "fold_in": fold_in,
    }


def _compare(folder: Path, data: InteractionData, n_factors: int, plan: Plan) -> dict[str, Any]:
    ours, theirs = _take_turns(folder, n_factors, plan)
    our_seconds, their_seconds = (np.median([turn.seconds for turn in turns], axis=0) for turns in (ours, theirs))
    our_sweep, their_sweep = (_seconds_per_sweep(turns) for turns in (ours, theirs))
    sizes = factor_megabytes(data.train, n_factors)
    result: dict[str, Any] = {"factors": n_factors}
    for metric in ("ndcg_at_20", "recall_at_20"):
        our_curve, their_curve = ([getattr(q, metric) for q in turns[0].qualities] for turns in (ours, theirs))
        for name, target in ((f"to_{metric}", their_curve[-1]), (f"to_best_{metric}", max(their_curve))):
            result[name] = _race(target, (our_curve, our_seconds), (their_curve, their_seconds))
    result |= {
        "ratio_per_sweep": round(our_sweep / their_sweep, 3),
        "ratio_of_memory": round(_least_mb(ours) / max(_least_mb(theirs), 1e-9), 3),
        "factors_and_interactions_mb": round(sum(sizes), 1),
        "ours": _describe(ours, our_seconds, our_sweep),
        "implicit": _describe(theirs, their_seconds, their_sweep),
    }
    print(f"{n_factors} factors: {result['to_ndcg_at_20']}", file=sys.stderr, flush=True)
    return result


def _take_turns(folder: Path, n_factors: int, plan: Plan) -> tuple[list[Turn], list[Turn]]:
    """Turns of both, in changing order. The first of each measures quality; that takes memory, so there is always a
    second one."""
    parameters = our_parameters(plan.ours, n_factors, plan.n_sweeps)
    theirs = ImplicitParameters(**plan.theirs)
    turns: tuple[list[Turn], list[Turn]] = [], []
    for number in range(max(plan.n_repeats, 2)):
        options: dict[str, Any] = {"n_threads": plan.n_threads, "with_quality": number == 0}
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            if side == 0:
                turn = in_child(take_our_turn, folder, parameters, **options)
            else:
                turn = in_child(take_implicit_turn, folder, theirs, n_factors, plan.n_sweeps, **options)
            turns[side].append(turn)
    return turns


def _fold_in(folder: Path, plan: Plan) -> dict[str, Any]:
    """Users folded in per second by both, with the factors of the largest dimension up to that asked for."""
    n_factors = max((d for d in plan.dimensions if d <= plan.fold_in_factors), default=plan.dimensions[0])
    found = in_child(
        fold_in_turns,
        folder,
        our_parameters(plan.ours, n_factors, plan.n_sweeps),
        ImplicitParameters(**plan.theirs),
        n_users=plan.fold_in_users,
        n_interactions_each=100,
        n_repeats=5,
        n_threads=plan.n_threads,
    )
    return {
        "factors": n_factors,
        "n_users": found.n_users,
        "n_interactions_each": found.n_interactions_each,
        "ours_seconds": round(found.ours, 4),
        "ours_seconds_first_call": round(found.ours_first, 4),
        "implicit_seconds": round(found.implicit, 4),
        "ours_users_per_second": round(found.n_users / found.ours),
        "implicit_users_per_second": round(found.n_users / found.implicit),
        "ratio": round(found.ours / found.implicit, 3),
    }


def _describe(turns: Sequence[Turn], seconds: Any, sweep: float) -> dict[str, Any]:
    return {
        "seconds": [round(value, 3) for value in seconds.tolist()],
        "ndcg_at_20": [round(quality.ndcg_at_20, 5) for quality in turns[0].qualities],
        "recall_at_20": [round(quality.recall_at_20, 5) for quality in turns[0].qualities],
        "seconds_per_sweep": round(sweep, 4),
        "fit_mb": round(_least_mb(turns), 1),
    }


def _seconds_per_sweep(turns: Sequence[Turn]) -> float:
    """The median over all sweeps but the first of each turn, which comes with the preparations."""
    return float(np.median([np.diff(turn.seconds) if len(turn.seconds) > 1 else turn.seconds for turn in turns]))


def _least_mb(turns: Sequence[Turn]) -> float:
    """Of the turns that measured no quality, which takes memory too."""
    return min(turn.fit_mb for turn in turns[1:])


def _race(target: float, ours: tuple[list[float], Any], theirs: tuple[list[float], Any]) -> dict[str, float | None]:
    """Seconds to a target, and their ratios: to the time in which ``implicit`` reaches it first, and to its whole
    fit, since who uses it does not know when that is."""
    our_seconds, their_seconds = _first_reaching(target, *ours), _first_reaching(target, *theirs)
    whole = float(theirs[1][-1])
    return {
        "target": round(target, 5),
        "ours_seconds": _rounded(our_seconds),
        "implicit_seconds": _rounded(their_seconds),
        "ratio": _rounded(our_seconds / their_seconds) if our_seconds and their_seconds else None,
        "ratio_to_whole_fit": _rounded(our_seconds / whole) if our_seconds else None,
    }


def _first_reaching(target: float, curve: Sequence[float], seconds: Any) -> float | None:
    """Seconds of the shortest fit whose quality is at least the target; None if none is."""
    return next((float(at) for value, at in zip(curve, seconds, strict=True) if value >= target), None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--factors", type=int, nargs="+", default=(64, 128, 256), metavar="D", help="dimensions")
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: 2)")
    parser.add_argument("--sweeps", type=int, default=SWEEPS, help=f"sweeps of each (default: {SWEEPS})")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each (default: 3, at least 2)")
    parser.add_argument("--test-users", type=int, default=10_000, metavar="N", help="rank so many, 0 for all")
    parser.add_argument("--fold-in-users", type=int, default=10_000, metavar="N")
    parser.add_argument("--fold-in-factors", type=int, default=128, metavar="D")
    parser.add_argument("--tune", action="store_true", help="tune both first")
    parser.add_argument("--trials", type=int, default=30, help="trials of each (default: 30)")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser


if __name__ == "__main__":
    main()
