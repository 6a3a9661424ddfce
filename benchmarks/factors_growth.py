"""How time and memory of a factor fit grow with the interactions and with the number of factors.

    python -m benchmarks.factors_growth --json
    python -m benchmarks.factors_growth --full --json        (up to 30 million interactions)

Interactions are generated. Every case runs in a process of its own, whose memory is counted from before the fit; a
sweep takes the same work each time, so the fastest one counts. Exponents are slopes of a least-squares line in
logarithms. One case runs on one thread as well, and must give the same factors. The last line printed is one JSON
object.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.support.generated_data import GENERATOR, generate_interactions
from benchmarks.support.ids_only import IDS_ONLY, factor_megabytes, fit_ids, sweep_seconds, warm_up
from benchmarks.support.measured_process import (
    MB,
    MemoryGrowth,
    describe_machine,
    in_child,
    peak_bytes,
    pinned_blas,
    usable_cores,
)
from tasks.domain.errors import NearlineError
from tasks.domain.fold_in import FixedItems, fold_in

SIZES = (1_000_000, 3_000_000, 10_000_000)
MOST = 30_000_000
DIMENSIONS = (64, 128, 256, 512)
N_SWEEPS = 3
FOLDED = 10_000


@dataclass(frozen=True)
class Case:
    """One fit. ``growth_ratio`` is how far memory grew over the size of the factors and the interactions;
    ``memory_ratio`` counts the interactions as given, which were there before, to what grew. ``fold_in`` solves up to
    10,000 users from their whole histories; ``digest`` is of the factors."""

    n_interactions: int
    n_users: int
    n_items: int
    factors: int
    threads: int
    seconds_per_sweep: float
    fit_seconds: float
    fold_in_seconds: float
    users_folded_per_second: float
    fit_mb: float
    factors_and_interactions_mb: float
    growth_ratio: float
    memory_ratio: float
    peak_mb: float
    digest: str


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, nargs="+", default=SIZES, metavar="N", help="sizes, ascending")
    parser.add_argument("--full", action="store_true", help=f"go on to {MOST:,} interactions")
    parser.add_argument("--factors", type=int, nargs="+", default=DIMENSIONS, metavar="D", help="dimensions, ascending")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads (default: one for each core)")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    arguments = parser.parse_args(argv)
    sizes = (*arguments.interactions, MOST) if arguments.full else tuple(arguments.interactions)
    try:
        result = measure(sizes, tuple(arguments.factors), arguments.threads)
    except NearlineError as problem:
        sys.exit(f"benchmarks.factors_growth: {problem}")
    if not arguments.json:
        for case in result["cases"]:
            print(case)
    print(json.dumps(result))


def measure(sizes: Sequence[int], dimensions: Sequence[int], n_threads: int) -> dict[str, Any]:
    """All cases: every size at the first dimension, every dimension at the first size, and that on one thread."""
    machine = describe_machine()
    wanted = [(size, dimensions[0], n_threads) for size in sizes]
    wanted += [(sizes[0], dimension, n_threads) for dimension in dimensions[1:]]
    cases = [_show(in_child(run_case, *case)) for case in wanted]
    alone = _show(in_child(run_case, sizes[0], dimensions[0], 1)) if n_threads > 1 else cases[0]
    by_size, by_dimension = cases[: len(sizes)], [cases[0], *cases[len(sizes) :]]
    return {
        "benchmark": "factors_growth",
        "data": GENERATOR,
        "exponents_in_interactions": _exponents(by_size, "n_interactions"),
        "exponents_in_factors": _exponents(by_dimension, "factors"),
        "speedup_of_threads": round(alone.seconds_per_sweep / cases[0].seconds_per_sweep, 3),
        "same_factors_on_one_thread": alone.digest == cases[0].digest,
        "sweeps_timed": N_SWEEPS,
        "parameters": IDS_ONLY.to_dict(),
        "cases": [asdict(case) for case in (*cases, *([alone] if n_threads > 1 else []))],
        "threads": n_threads,
        "machine": machine,
    }


def run_case(n_interactions: int, n_factors: int, n_threads: int) -> Case:
    """Generate, fit, fold in; to be called in a process of its own."""
    matrix = generate_interactions(n_interactions)
    warm_up(n_threads)
    parameters = replace(IDS_ONLY, n_factors=n_factors, n_sweeps=N_SWEEPS)
    with pinned_blas():
        with MemoryGrowth() as memory:
            began = time.perf_counter()
            model = fit_ids(matrix, parameters, n_threads=n_threads)
            fit_seconds = time.perf_counter() - began
        some = matrix[:FOLDED]
        began = time.perf_counter()
        fold_in(some, FixedItems(model.items, model.weights, parameters), n_threads=n_threads)
        fold_in_seconds = time.perf_counter() - began
    factors_mb, interactions_mb = factor_megabytes(matrix, n_factors)
    return Case(
        n_interactions=int(matrix.nnz),
        n_users=int(matrix.shape[0]),
        n_items=int(matrix.shape[1]),
        factors=n_factors,
        threads=n_threads,
        seconds_per_sweep=round(sweep_seconds(model.sweeps), 4),
        fit_seconds=round(fit_seconds, 3),
        fold_in_seconds=round(fold_in_seconds, 4),
        users_folded_per_second=round(some.shape[0] / fold_in_seconds, 1),
        fit_mb=round(memory.mb, 1),
        factors_and_interactions_mb=round(factors_mb + interactions_mb, 1),
        growth_ratio=round(memory.mb / (factors_mb + interactions_mb), 3),
        memory_ratio=round((memory.mb + interactions_mb) / (factors_mb + interactions_mb), 3),
        peak_mb=round(peak_bytes() / MB, 1),
        digest=hashlib.sha256(model.users.tobytes() + model.items.tobytes()).hexdigest()[:16],
    )


def _exponents(cases: Sequence[Case], by: str) -> dict[str, float]:
    """Slopes of time and memory against ``by``; none from a single case."""
    if len({getattr(case, by) for case in cases}) < 2:
        return {}
    size = np.log([getattr(case, by) for case in cases])
    names = ("seconds_per_sweep", "fit_seconds", "fold_in_seconds", "fit_mb")
    values = {name: np.array([getattr(case, name) for case in cases]) for name in names}
    return {
        name: round(float(np.polyfit(size, np.log(np.maximum(value, 1e-9)), 1)[0]), 3) for name, value in values.items()
    }


def _show(case: Case) -> Case:
    line = f"{case.n_interactions:,} interactions, {case.factors} factors, {case.threads} threads:"
    print(line, f"{case.seconds_per_sweep} s per sweep, {case.fit_mb} MB", file=sys.stderr, flush=True)
    return case


if __name__ == "__main__":
    main()
