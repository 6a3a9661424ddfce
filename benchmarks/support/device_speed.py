"""What a device of torch can do, what a call took of it, and what a sweep of the factor model asks of it.

It knows nothing of data sets.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.half_steps import CG_STEPS, Basis, RowSolver, Side

Floats = npt.NDArray[np.float32]
_FACTOR_PASSES = 2 + 2 * (1 + CG_STEPS)
_ROW_PASSES = 22 + 26 * CG_STEPS
_SHOWN = 12


class Ceilings(NamedTuple):
    """Rates that were reached: bytes read and written by a copy, and operations of square matrix products."""

    copy_bytes_per_second: float
    fp32_flops: float
    tf32_flops: float
    fp64_flops: float


class Demand(NamedTuple):
    """What one sweep asks for.

    ``n_bytes``: the factors of all entries, gathered once (read and written) and read for each of two products at the
    start and in every step; and the vectors of the rows, as often as ``infra/torch_factors.py`` reads and writes them.
    Padding is not in it. ``n_flops``: the products with entries, the Gram matrices and the rotations, without the
    eigenvectors.
    """

    n_bytes: float
    n_flops: float


class DeviceTime(NamedTuple):
    """Seconds of a call by the clock, those in which the device computed, and those in which data went to and fro.
    ``top`` has what took longest: name, times, seconds."""

    wall: float
    computing: float
    copying: float
    top: list[tuple[str, int, float]]


class TimedSolver:
    """A row solver that writes down the seconds of each of its half-steps: ``sweeping`` and ``exact``."""

    def __init__(self, solver: RowSolver) -> None:
        self._solver = solver
        self.sweeping: list[float] = []
        self.exact: list[float] = []

    def __call__(
        self, side: Side, fixed: Floats, rows: Floats, feature_map: Floats | None, *, exact: bool = False
    ) -> Basis:
        """As the solver does it. Its result is in the memory of the host, so the device is done."""
        began = time.perf_counter()
        basis = self._solver(side, fixed, rows, feature_map, exact=exact)
        (self.exact if exact else self.sweeping).append(time.perf_counter() - began)
        return basis

    @property
    def best_sweep(self) -> float:
        """Seconds of the fastest two half-steps of one sweep."""
        users, items = self.sweeping[0::2], self.sweeping[1::2]
        return min(user + item for user, item in zip(users, items, strict=True))


def measure_ceilings(device: str, n_copied: int, n_rows: int) -> Ceilings:
    """Copy ``n_copied`` bytes and multiply matrices of ``n_rows`` on random data; the best of several counts."""
    import torch

    def copy() -> float:
        source = torch.empty(n_copied // 4, device=device).normal_()
        target = torch.empty_like(source)
        return 2 * n_copied / _best_seconds(device, lambda: target.copy_(source))

    def product(dtype: "torch.dtype", size: int) -> float:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / _best_seconds(device, lambda: left @ right)

    with _matmul_precision("highest"):
        fp32, fp64 = product(torch.float32, n_rows), product(torch.float64, n_rows // 2)
    with _matmul_precision("high"):
        tf32 = product(torch.float32, n_rows)
    return Ceilings(copy(), fp32, tf32, fp64)


def sweep_demand(n_users: int, n_items: int, n_entries: int, d: int) -> Demand:
    """Bytes and operations of a sweep over users and items."""
    n_rows = n_users + n_items
    n_bytes = 4 * d * (2 * n_entries * _FACTOR_PASSES + n_rows * _ROW_PASSES)
    n_flops = 2 * n_entries * 4 * d * (1 + CG_STEPS) + 2 * n_rows * d * d + 2 * 2 * n_rows * d * d
    return Demand(float(n_bytes), float(n_flops))


def profile_call(device: str, call: Callable[[], Any]) -> DeviceTime:
    """Run a call under torch's profiler. On a CPU, what torch's functions took stands for the device."""
    from torch.profiler import ProfilerActivity, profile

    is_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    began = time.perf_counter()
    with profile(activities=activities) as profiler:
        call()
    wall = time.perf_counter() - began
    rows: list[tuple[str, int, float]] = []
    for event in profiler.key_averages():
        micros = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        if (event.device_type.name == "CUDA") == is_gpu:
            rows.append((event.key[:80], int(event.count), micros / 1e6))
    copying = sum(
        seconds for name, _, seconds in rows if name.startswith("Memcpy HtoD") or name.startswith("Memcpy Dto")
    )
    computing = sum(seconds for _, _, seconds in rows) - copying
    top = [(name, n, round(seconds, 6)) for name, n, seconds in sorted(rows, key=lambda row: -row[2])[:_SHOWN]]
    return DeviceTime(wall, computing, copying, top)


def _best_seconds(device: str, work: Callable[[], Any], n_times: int = 8) -> float:
    import torch

    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    seconds = []
    for _ in range(n_times):
        wait()
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
