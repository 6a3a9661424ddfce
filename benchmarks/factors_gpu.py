"""Factor fits on a GPU beside the threads of the same machine: time, quality, growth, fold-in, and shares of what the
device can do.

    python -m benchmarks.factors_gpu --json
    python -m benchmarks.factors_gpu --train FILE --test FILE --json
    python -m benchmarks.factors_gpu --device cpu --tiny --json        (tries every line, measures nothing)

The data are those files, or the Gowalla split beside the repository, or as many generated interactions. In the same
run, the bandwidth of a copy and the rates of matrix products in fp32, TF32 and fp64 are measured; what a sweep asks for
is counted from its algorithm (``benchmarks/support/device_speed.py``) and set against the seconds in which the device
computed, by torch's profiler. ``seconds_per_sweep`` holds all of a sweep, the loss on the host too, and
``half_steps_seconds`` what the solver does, transfers included; the fastest sweep counts. No case is begun after
``--minutes``. Without a GPU the JSON object, which is the last line printed, says so.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.support.device_speed import (
    Ceilings,
    Demand,
    DeviceTime,
    TimedSolver,
    measure_ceilings,
    profile_call,
    sweep_demand,
)
from benchmarks.support.full_ranking import measure_ranking
from benchmarks.support.generated_data import generate_interactions
from benchmarks.support.ids_only import IDS_ONLY, fit_ids, sweep_seconds, warm_up
from benchmarks.support.interaction_files import InteractionData, add_data_arguments, load_data
from benchmarks.support.measured_process import MB, describe_machine, pinned_blas, usable_cores
from infra.torch_factors import TorchSolver
from tasks.domain.errors import NearlineError
from tasks.domain.factor_model import FactorModel, FactorParameters, user_side
from tasks.domain.half_steps import RowSolver, Side, ThreadedSolver

N_COMPARED = 2
"""Sweeps after which the two must have the same factors."""


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    default_interactions: int
    dimensions: tuple[int, ...]
    sizes: tuple[int, ...]
    growth_dimension: int
    n_sweeps: int
    folded: int
    history: int
    fold_in_items: int
    fold_in_dimension: int
    copied_bytes: int
    matrix_rows: int


FULL = Scale(
    1_000_000, (64, 128, 256, 512, 1024), (1_000_000, 3_000_000, 10_000_000, 30_000_000), 64, 12, 10_000, 100, 40_000,
    128, 2**31, 8192,
)  # fmt: skip
TINY = Scale(3000, (8, 16), (1000, 3000), 8, 3, 50, 10, 200, 8, 2**20, 128)


@dataclass(frozen=True)
class Case:
    """One fit on the device, and the same sweeps on threads. Shares are of the demand of a sweep over the seconds in
    which the device computed; ``difference`` is the largest one after two sweeps, over the largest factor."""

    n_interactions: int
    n_users: int
    n_items: int
    factors: int
    seconds_per_sweep: float
    half_steps_seconds: float
    device_seconds: float
    copy_seconds: float
    threads_seconds_per_sweep: float
    threads_half_steps_seconds: float
    speedup_of_half_steps: float
    share_of_bandwidth: float
    share_of_fp32: float
    share_of_tf32: float
    peak_device_mb: float | None
    difference: float
    same_bits_again: bool
    sweeps: int
    recall_at_20: float | None
    ndcg_at_20: float | None
    fit_seconds: float
    longest: list[tuple[str, int, float]]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--device", default="cuda", help="device of torch (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to try the program")
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing after so long (default: 8)")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    arguments = parser.parse_args(argv)
    deadline = time.perf_counter() + 60 * arguments.minutes
    scale = TINY if arguments.tiny else FULL
    missing = _why_not(arguments.device)
    if missing:
        print(json.dumps({"benchmark": "factors_gpu", "gpu": None, "note": missing}))
        return
    try:
        given, test, generate = arguments.train, arguments.test, arguments.generate
        generate = scale.default_interactions if arguments.tiny and not given else generate
        data = load_data(given, test, generate, n_default=scale.default_interactions)
        with pinned_blas():
            result = Measurement(arguments.device, scale, deadline).run(data)
    except NearlineError as problem:
        sys.exit(f"benchmarks.factors_gpu: {problem}")
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:24} {value}")
    print(json.dumps(result))


class Measurement:
    """All cases on one device, as far as there is time."""

    def __init__(self, device: str, scale: Scale, deadline: float) -> None:
        self._device, self._scale, self._deadline = device, scale, deadline
        self._n_threads = usable_cores()
        self._skipped: list[str] = []

    def run(self, data: InteractionData) -> dict[str, Any]:
        """The object that is printed."""
        scale = self._scale
        warm_up(self._n_threads)
        fit_ids(sparse.csr_matrix(np.eye(4, 6, dtype=np.float32)), IDS_ONLY, solver=TorchSolver(self._device))
        self._ceilings = measure_ceilings(self._device, scale.copied_bytes, scale.matrix_rows)
        by_dimension = [self._measure(data.train, data.test, d) for d in scale.dimensions if self._has_time(f"{d=}")]
        folded = self._fold_in() if self._has_time("fold-in") else {}
        by_size = [
            self._measure(generate_interactions(size), None, scale.growth_dimension)
            for size in scale.sizes
            if self._has_time(f"{size} interactions")
        ]
        return {
            "benchmark": "factors_gpu",
            **data.describe(),
            "gpu": _describe_device(self._device),
            "ceilings": {name: float(f"{value:.4g}") for name, value in self._ceilings._asdict().items()},
            "cases": [asdict(case) for case in by_dimension],
            "growth": [asdict(case) for case in by_size],
            "exponent_in_interactions": _exponent(by_size),
            "fold_in": folded,
            "skipped": self._skipped,
            "parameters": IDS_ONLY.to_dict(),
            "threads": self._n_threads,
            "machine": describe_machine("torch"),
        }

    def _has_time(self, what: str) -> bool:
        if time.perf_counter() < self._deadline:
            return True
        self._skipped.append(what)
        return False

    def _measure(self, train: sparse.csr_matrix, test: sparse.csr_matrix | None, d: int) -> Case:
        few = replace(IDS_ONLY, n_factors=d, n_sweeps=N_COMPARED)
        threads, threaded = self._fit(train, few, ThreadedSolver(self._n_threads))
        _reset_peak(self._device)
        first, _ = self._fit(train, few, TorchSolver(self._device))
        again, _ = self._fit(train, few, TorchSolver(self._device))
        began = time.perf_counter()
        model, timed = self._fit(train, replace(few, n_sweeps=self._scale.n_sweeps), TorchSolver(self._device))
        fit_seconds, peak = time.perf_counter() - began, _peak_mb(self._device)
        demand, device = sweep_demand(train.shape[0], train.shape[1], train.nnz, d), self._profile(train, few)
        quality = None
        if test is not None and test.nnz:
            quality = measure_ranking(model.users, model.items, train, test, n_threads=self._n_threads)
        case = Case(
            n_interactions=int(train.nnz),
            n_users=int(train.shape[0]),
            n_items=int(train.shape[1]),
            factors=d,
            seconds_per_sweep=round(sweep_seconds(model.sweeps), 4),
            half_steps_seconds=round(timed.best_sweep, 4),
            device_seconds=round(device.computing, 5),
            copy_seconds=round(device.copying, 5),
            threads_seconds_per_sweep=round(sweep_seconds(threads.sweeps), 4),
            threads_half_steps_seconds=round(threaded.best_sweep, 4),
            speedup_of_half_steps=round(threaded.best_sweep / timed.best_sweep, 2),
            **_shares(demand, device, self._ceilings),
            peak_device_mb=peak,
            difference=_difference(threads, first),
            same_bits_again=np.array_equal(first.users, again.users) and np.array_equal(first.items, again.items),
            sweeps=len(model.sweeps),
            recall_at_20=round(quality.recall_at_20, 5) if quality else None,
            ndcg_at_20=round(quality.ndcg_at_20, 5) if quality else None,
            fit_seconds=round(fit_seconds, 3),
            longest=device.top,
        )
        line = f"{case.n_interactions:,} interactions, {d} factors: {case.seconds_per_sweep} s per sweep, half-steps"
        print(line, f"{case.half_steps_seconds} s, {case.threads_half_steps_seconds} s on threads", file=sys.stderr)
        return case

    def _fit(
        self, train: sparse.csr_matrix, parameters: FactorParameters, solver: RowSolver
    ) -> tuple[FactorModel, TimedSolver]:
        timed = TimedSolver(solver)
        return fit_ids(train, parameters, solver=timed, n_threads=self._n_threads), timed

    def _profile(self, train: sparse.csr_matrix, parameters: FactorParameters) -> DeviceTime:
        """One sweep, after another one that placed the sides; made of half-steps on random factors."""
        rng, solver = np.random.default_rng(0), TorchSolver(self._device)
        users, items = (rng.standard_normal((n, parameters.n_factors), np.float32) for n in train.shape)
        sides = [
            user_side(matrix, np.ones(matrix.shape[1], np.float32), parameters) for matrix in (train, train.T.tocsr())
        ]

        def sweep() -> None:
            solver(sides[0], items, users, None)
            solver(sides[1], users, items, None)

        sweep()
        return profile_call(self._device, sweep)

    def _fold_in(self) -> dict[str, Any]:
        """Users with histories of equal length, all at once, exactly: the user half-step."""
        scale, rng = self._scale, np.random.default_rng(0)
        chosen = [rng.choice(scale.fold_in_items, scale.history, replace=False) for _ in range(scale.folded)]
        indptr = np.arange(0, scale.folded * scale.history + 1, scale.history)
        ones = np.ones(indptr[-1], np.float32)
        histories = sparse.csr_matrix((ones, np.concatenate(chosen), indptr), (scale.folded, scale.fold_in_items))
        items = 0.3 * rng.standard_normal((scale.fold_in_items, scale.fold_in_dimension), np.float32)
        side = user_side(histories, np.ones(scale.fold_in_items, np.float32), IDS_ONLY)
        solvers: dict[str, RowSolver] = {
            "device": TorchSolver(self._device),
            "threads": ThreadedSolver(self._n_threads),
        }
        seconds = {name: _fold(solver, side, items) for name, solver in solvers.items()}
        return {
            "n_users": scale.folded,
            "history": scale.history,
            "factors": scale.fold_in_dimension,
            **{f"users_per_second_{name}": round(scale.folded / taken, 1) for name, taken in seconds.items()},
        }


def _fold(solver: RowSolver, side: Side, items: Any) -> float:
    """Seconds of the faster of two turns, with the transfers and the Gram matrix."""
    seconds = []
    for _ in range(2):
        fixed, rows = items.copy(), np.zeros((side.n_rows, items.shape[1]), np.float32)
        began = time.perf_counter()
        solver(side, fixed, rows, None, exact=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _shares(demand: Demand, device: DeviceTime, ceilings: Ceilings) -> dict[str, float]:
    bytes_per_second, flops = demand.n_bytes / device.computing, demand.n_flops / device.computing
    return {
        "share_of_bandwidth": round(bytes_per_second / ceilings.copy_bytes_per_second, 4),
        "share_of_fp32": round(flops / ceilings.fp32_flops, 4),
        "share_of_tf32": round(flops / ceilings.tf32_flops, 4),
    }


def _difference(one: FactorModel, other: FactorModel) -> float:
    pairs = (one.users, other.users), (one.items, other.items)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def _exponent(cases: Sequence[Case]) -> float | None:
    """Slope of the seconds of the half-steps against the interactions, in logarithms."""
    if len(cases) < 2:
        return None
    size, seconds = np.log([[case.n_interactions, case.half_steps_seconds] for case in cases]).T
    return round(float(np.polyfit(size, seconds, 1)[0]), 3)


def _why_not(device: str) -> str | None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU here; nothing was measured."
    return None


def _describe_device(device: str) -> dict[str, Any]:
    import torch

    if not device.startswith("cuda"):
        return {"name": device}
    about = torch.cuda.get_device_properties(device)
    memory, cores = about.total_memory, about.multi_processor_count
    return {"name": about.name, "memory_mb": round(memory / MB), "multiprocessors": cores, "cuda": torch.version.cuda}


def _reset_peak(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_mb(device: str) -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated(device) / MB, 1) if device.startswith("cuda") else None


if __name__ == "__main__":
    main()
