"""Half-steps of the factor model on many workers: each solves blocks of rows, against the other side, which all read.

What is large travels in files, in a folder that the workers see too: the blocks of a side once, at its first half-step;
the fixed factors and the start rows at each half-step; the solved rows of each block. The workers map them into memory,
so those of one machine share one copy of the fixed side. Messages hold names. A block runs the kernel that threads run,
and rows are independent, so the result has the same bits on processors of the same kind, and a block whose worker was
lost is done again. It knows nothing of Dask.
"""

import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.errors import TerminalError
from tasks.domain.half_steps import (
    Basis,
    Doubles,
    Features,
    Floats,
    Side,
    find_basis,
    rotate,
    rotated_map,
    solve_side,
    threads,
)
from tasks.domain.ports import Compute

_LEAST_WORK = 20_000_000
"""Entries times factors of a block: about a tenth of a second."""


@contextmanager
def open_distributed_solver(compute: Compute, staging: Path, n_threads: int = 1) -> Iterator["DistributedSolver"]:
    """A solver with a folder of its own in ``staging``, which the workers must see under the same name."""
    staging.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="fit-", dir=staging, ignore_cleanup_errors=True) as folder:
        yield DistributedSolver(compute, Path(folder), n_threads)


class DistributedSolver:
    """Implements ``tasks.domain.half_steps.RowSolver`` over workers. The rest, the Gram matrix of the fixed side and
    the rotations, runs on ``n_threads`` threads of this process. ``folder`` is empty and belongs to the solver."""

    def __init__(self, compute: Compute, folder: Path, n_threads: int = 1) -> None:
        self._compute, self._folder, self._n_threads = compute, folder, n_threads
        self._sides: dict[int, Path] = {}
        self._n_sides = self._n_turns = 0

    def __call__(
        self, side: Side, fixed: Floats, rows: Floats, feature_map: Floats | None, *, exact: bool = False
    ) -> Basis:
        """As ``RowSolver`` says. Raises ComputeLostError if workers are lost for good, TerminalError if they do not
        see the folder."""
        with threads(self._n_threads) as run:
            basis = find_basis(fixed, side.column_weight, run)
            for factors in (fixed, rows):
                rotate(factors, basis.rotation, run)
        side_folder, turn = self._place(side), self._folder / f"turn-{self._n_turns}"
        self._n_turns += 1
        order, ends = _order(side), _block_ends(side, fixed.shape[1])
        _write_turn(turn, fixed, rows[order], basis.spectrum, rotated_map(feature_map, basis))
        for block in self._compute.map(solve_block, (RowBlock(side_folder, turn, some, exact) for some in ends)):
            rows[order[block.rows]] = np.load(block.solved)
        shutil.rmtree(turn, ignore_errors=True)
        return basis

    def _place(self, side: Side) -> Path:
        if id(side) not in self._sides:
            folder = self._folder / f"side-{self._n_sides}"
            self._n_sides += 1
            _write_side(folder, side)
            self._sides[id(side)] = folder
            weakref.finalize(side, self._forget, id(side))
        return self._sides[id(side)]

    def _forget(self, side: int) -> None:
        shutil.rmtree(self._sides.pop(side), ignore_errors=True)


@dataclass(frozen=True)
class RowBlock:
    """Rows of a side to be solved in one turn, a half-step. ``ends`` are the first row of each of their chunks and the
    end of the last one, where rows are numbered in the order of the chunks."""

    side: Path
    turn: Path
    ends: tuple[int, ...]
    exact: bool

    @property
    def rows(self) -> slice:
        """The rows, in that order."""
        return slice(self.ends[0], self.ends[-1])

    @property
    def solved(self) -> Path:
        """The file they go to."""
        return self.turn / f"solved-{self.ends[0]}.npy"


def solve_block(block: RowBlock) -> RowBlock:
    """Solve a block on a worker. The file with its rows appears whole or not at all.

    Raises TrainingError where an exact solution fails, TerminalError if the files cannot be seen from here.
    """
    from threadpoolctl import threadpool_limits

    if not block.turn.is_dir():
        raise TerminalError(
            f"A worker was to solve rows of the factor model and does not see {block.turn}. All machines must share"
            " NEARLINE_HOME under one name; with NEARLINE_COMPUTE__FACTOR_SOLVER=threads one machine does it all."
        )
    side, rows = _read_part(block), np.array(_read(block.turn, "rows")[block.rows])
    feature_map = _read(block.turn, "map") if (block.turn / "map.npy").exists() else None
    with threadpool_limits(1), threads(1) as run:
        fixed, spectrum = _read(block.turn, "fixed"), np.array(_read(block.turn, "spectrum"))
        solve_side(side, fixed, spectrum, rows, feature_map, run, exact=block.exact)
    partial = block.solved.with_suffix(f".partial-{os.getpid()}")
    with partial.open("wb") as stream:
        np.save(stream, rows)
    partial.replace(block.solved)
    return block


@dataclass(frozen=True)
class _Part(Side):
    """Some chunks of a side, as they are there: the last bits of a product depend on the rows that share it."""

    ends: tuple[int, ...] = (0,)

    @cached_property
    def chunks(self) -> tuple[npt.NDArray[np.int64], ...]:
        return tuple(np.arange(start, end) - self.ends[0] for start, end in pairwise(self.ends))


def _block_ends(side: Side, n_factors: int) -> list[tuple[int, ...]]:
    """Chunks in groups of equal numbers, and as many groups as are worth a message each."""
    ends = np.cumsum([0, *map(len, side.chunks)]).tolist()
    n_chunks = len(ends) - 1
    n_blocks = min(n_chunks, 1 + side.interactions.nnz * n_factors // _LEAST_WORK)
    cuts = [number * n_chunks // n_blocks for number in range(n_blocks + 1)] if n_chunks else []
    return [tuple(ends[start : end + 1]) for start, end in pairwise(cuts)]


def _order(side: Side) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *side.chunks])


def _write_turn(folder: Path, fixed: Floats, rows: Floats, spectrum: Doubles, feature_map: Floats | None) -> None:
    folder.mkdir()
    np.save(folder / "fixed.npy", fixed)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "spectrum.npy", spectrum)
    if feature_map is not None:
        np.save(folder / "map.npy", feature_map)


def _write_side(folder: Path, side: Side) -> None:
    """The rows in the order of the chunks, so that a block is one piece of every file."""
    folder.mkdir()
    order = _order(side)
    _write_matrix(folder, "interactions", side.interactions[order])
    np.save(folder / "unobserved.npy", side.unobserved[order])
    np.save(folder / "penalty.npy", side.penalty[order])
    np.save(folder / "column_weight.npy", side.column_weight)
    if side.features is not None and side.pull is not None:
        _write_matrix(folder, "features", side.features[order])
        np.save(folder / "pull.npy", side.pull[order])


def _read_part(block: RowBlock) -> _Part:
    rows, folder = block.rows, block.side
    has_features = (folder / "pull.npy").exists()
    return _Part(
        _read_matrix(folder, "interactions", rows),
        _read(folder, "unobserved")[rows],
        _read(folder, "column_weight"),
        _read(folder, "penalty")[rows],
        _read_matrix(folder, "features", rows) if has_features else None,
        _read(folder, "pull")[rows] if has_features else None,
        block.ends,
    )


def _write_matrix(folder: Path, name: str, matrix: Features) -> None:
    if isinstance(matrix, np.ndarray):
        np.save(folder / f"{name}.npy", matrix)
        return
    for part in ("data", "indices", "indptr"):
        np.save(folder / f"{name}-{part}.npy", getattr(matrix, part))
    np.save(folder / f"{name}-shape.npy", matrix.shape)


def _read_matrix(folder: Path, name: str, rows: slice) -> Any:
    """Some rows of a matrix: a view of the file, whatever its form."""
    if (folder / f"{name}.npy").exists():
        return _read(folder, name)[rows]
    indptr = np.array(_read(folder, f"{name}-indptr")[rows.start : rows.stop + 1])
    entries = slice(indptr[0], indptr[-1])
    parts = (_read(folder, f"{name}-{part}")[entries] for part in ("data", "indices"))
    shape = rows.stop - rows.start, int(_read(folder, f"{name}-shape")[1])
    return sparse.csr_matrix((*parts, indptr - indptr[0]), shape=shape)


def _read(folder: Path, name: str) -> Any:
    """The array in a file, mapped into memory and never written back; writable, as the kernels were compiled for."""
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c"))
