"""One fit by either library, timed sweep by sweep, and the rates at which they fold users in.

A turn is meant for a process of its own, which reads the matrices from a folder: then its memory is its own. Linear
algebra runs on one thread in both, and row loops on as many as are given. It knows nothing of tuning or reports.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from benchmarks.support.full_ranking import Quality, measure_ranking
from benchmarks.support.ids_only import FinishedQuality, fit_ids, warm_up
from benchmarks.support.measured_process import MemoryGrowth, pinned_blas
from tasks.domain.factor_model import FactorParameters, weigh_items
from tasks.domain.fold_in import FixedItems, fold_in

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImplicitParameters:
    """What ``implicit``'s AlternatingLeastSquares is tuned over; everything else is its default."""

    regularization: float
    alpha: float


class Turn(NamedTuple):
    """``seconds[k]`` is how long a fit of k + 1 sweeps takes, with all it does before the first sweep and after the
    last; ``qualities[k]`` what it ranks, where that was measured; ``fit_mb`` how far memory grew."""

    seconds: tuple[float, ...]
    qualities: tuple[Quality, ...]
    fit_mb: float


class FoldInRates(NamedTuple):
    """Seconds for the same users by either library, the medians of several turns. ``ours_first`` counts what is done
    once for a model, too."""

    n_users: int
    n_interactions_each: int
    ours: float
    ours_first: float
    implicit: float


def save_data(folder: Path, train: sparse.csr_matrix, test: sparse.csr_matrix) -> None:
    """Write what turns read."""
    sparse.save_npz(folder / "train.npz", train, compressed=False)
    sparse.save_npz(folder / "test.npz", test, compressed=False)


def take_our_turn(folder: Path, parameters: FactorParameters, *, n_threads: int, with_quality: bool) -> Turn:
    """Our fit. The quality is that of the fit if it ended after this sweep: its exact last half-step is part of both
    the quality and the seconds."""
    train, test = (sparse.load_npz(folder / f"{part}.npz") for part in ("train", "test"))
    warm_up(n_threads)
    finished = FinishedQuality(train, test, parameters, n_threads=n_threads)
    with pinned_blas(), MemoryGrowth() as memory:
        clock = _Clock()

        def measure(users: Floats, items: Floats) -> float:
            clock.mark((lambda: finished(users, items)) if with_quality else None)
            return 0.0

        model = fit_ids(train, parameters, measure=measure, patience=parameters.n_sweeps, n_threads=n_threads)
        last = clock.total() - clock.marks[-1]
    np.save(folder / f"ours-{parameters.n_factors}.npy", model.items)
    return Turn(tuple(mark + last for mark in clock.marks), tuple(finished.qualities), memory.mb)


def take_implicit_turn(
    folder: Path, parameters: ImplicitParameters, n_factors: int, n_sweeps: int, *, n_threads: int, with_quality: bool
) -> Turn:
    """The fit of ``implicit``: conjugate gradients, three steps, as is its default."""
    train, test = (sparse.load_npz(folder / f"{part}.npz") for part in ("train", "test"))
    model = build_implicit(parameters, n_factors, n_sweeps, n_threads)
    qualities: list[Quality] = []

    def rank() -> None:
        quality = measure_ranking(model.user_factors, model.item_factors, train, test, n_threads=n_threads)
        qualities.append(quality)

    with pinned_blas(), MemoryGrowth() as memory:
        clock = _Clock()
        model.fit(train, show_progress=False, callback=lambda *_: clock.mark(rank if with_quality else None))
    np.save(folder / f"implicit-{n_factors}.npy", model.item_factors)
    return Turn(tuple(clock.marks), tuple(qualities), memory.mb)


def build_implicit(parameters: ImplicitParameters, n_factors: int, n_sweeps: int, n_threads: int) -> Any:
    """A model of ``implicit`` on the CPU, not fitted."""
    from implicit.cpu.als import AlternatingLeastSquares

    with pinned_blas():  # it looks at the number of threads, and warns
        return AlternatingLeastSquares(
            factors=n_factors,
            regularization=parameters.regularization,
            alpha=parameters.alpha,
            iterations=n_sweeps,
            num_threads=n_threads,
            random_state=0,
        )


def fold_in_turns(
    folder: Path,
    ours: FactorParameters,
    theirs: ImplicitParameters,
    *,
    n_users: int,
    n_interactions_each: int,
    n_repeats: int,
    n_threads: int,
) -> FoldInRates:
    """Solve the same new users with the factors that earlier turns left in ``folder``, in turn, each in one call."""
    train = sparse.load_npz(folder / "train.npz")
    likes = np.bincount(train.indices, minlength=train.shape[1])
    histories = draw_histories(likes, n_users, n_interactions_each)
    warm_up(n_threads)
    model = build_implicit(theirs, ours.n_factors, 1, n_threads)
    model.item_factors = np.load(folder / f"implicit-{ours.n_factors}.npy")
    factors, everybody = np.load(folder / f"ours-{ours.n_factors}.npy"), np.arange(n_users)
    turns = []
    with pinned_blas():
        model.recalculate_user(everybody[:1], histories[:1])  # computes its Gram matrix, once
        for _ in range(n_repeats):
            items = FixedItems(factors, weigh_items(likes, ours), ours)
            solve_ours = lambda: fold_in(histories, items, n_threads=n_threads)  # noqa: B023, E731
            solve_theirs = lambda: model.recalculate_user(everybody, histories)  # noqa: E731
            turns.append([_seconds(call) for call in (solve_ours, solve_ours, solve_theirs)])
    first, again, implicit = np.median(turns, axis=0).tolist()
    return FoldInRates(n_users, int(histories.indptr[1]), again, first, implicit)


def draw_histories(likes: npt.NDArray[Any], n_users: int, n_each: int, *, seed: int = 0) -> sparse.csr_matrix:
    """Users with ``n_each`` distinct items, at most half of all, drawn by popularity: (n_users, n_items) CSR."""
    rng, n_items = np.random.default_rng(seed), len(likes)
    n_each = min(n_each, n_items // 2)
    reach = np.cumsum(likes + 1.0)
    drawn = np.searchsorted(reach, rng.random((n_users, 4 * n_each)) * reach[-1], side="right")
    rows = []
    for line in drawn:
        spare = rng.permutation(n_items)[: 2 * n_each]  # for a user who keeps drawing the same items
        found, at = np.unique(np.concatenate([line, spare]), return_index=True)
        rows.append(np.sort(found[np.argsort(at)[:n_each]]))
    indices = np.concatenate(rows).astype(np.int32)
    indptr = (np.arange(n_users + 1) * n_each).astype(np.int32)
    return sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=(n_users, n_items))


class _Clock:
    """Seconds since it was made, without those of what is measured meanwhile."""

    def __init__(self) -> None:
        self._began, self._left_out = time.perf_counter(), 0.0
        self.marks: list[float] = []

    def mark(self, measure: Callable[[], object] | None) -> None:
        """Note the time, then measure."""
        self.marks.append(self.total())
        if measure is not None:
            self._left_out += _seconds(measure)

    def total(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began - self._left_out


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
