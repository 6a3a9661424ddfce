"""The half-step of the factor model on torch: a GPU, or the CPU to check it there.

The algorithm is that of ``tasks.domain.half_steps``, for a block of rows at once: rows of about equal length are padded
to the longest, the factors of their entries are gathered once, and each step of conjugate gradients is two batched
matrix products with them. Nothing is added up in an order that may change, so every run on one device gives the same
bits; beside another device, or the threads, the sums are rounded in another order. It knows nothing of sweeps.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.errors import SettingsError, TrainingError
from tasks.domain.half_steps import CG_STEPS, EXACT_STEPS, EXACT_TOLERANCE, Basis, Floats, Side, rotated_map

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Integers = npt.NDArray[np.int64]
_BLOCK_CELLS = {"cpu": 2**22, "cuda": 2**26}
_FREE_SHARE = 1 / 32
_SIMILAR = 0.75
_ROW_CELLS = 8
_PIECE = 1024
_GRAM_ROWS = 2048
_ROTATED_ROWS = 65_536


def open_gpu_solver() -> "TorchSolver":
    """A solver on the GPU that torch finds. Raises SettingsError if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            "The factors were to be fitted on a GPU (NEARLINE_COMPUTE__FACTOR_SOLVER=gpu), but torch"
            f" {torch.__version__} finds none. Look at the driver and at the build of torch, or use threads or workers."
        )
    return TorchSolver("cuda")


class TorchSolver:
    """Implements ``tasks.domain.half_steps.RowSolver`` on one device of torch.

    The interactions of a side go there at its first half-step and stay for as long as the side lives. Beside them the
    device holds the factors of both sides and a block of gathered ones, of at most ``2**26`` numbers (less where a
    thirty-second of the free memory is less); one row with more entries is taken in pieces.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._placed: dict[tuple[int, int], _Placed] = {}

    def __call__(
        self, side: Side, fixed: Floats, rows: Floats, feature_map: Floats | None, *, exact: bool = False
    ) -> Basis:
        """As ``RowSolver`` says."""
        import torch

        with torch.inference_mode(), _full_precision():
            fixed_here, rows_here = (torch.from_numpy(part).to(self._device) for part in (fixed, rows))
            placed = self._place(side, fixed.shape[1])
            weight = torch.from_numpy(side.column_weight).to(self._device)
            spectrum, rotation = _diagonalise(_gram(fixed_here, weight))
            for factors in (fixed_here, rows_here):
                _rotate(factors, rotation.float())
            basis = Basis(rotation.cpu().numpy(), spectrum.cpu().numpy())
            turned = rotated_map(feature_map, basis)
            n_open = _solve_rows(side, placed, fixed_here, spectrum, rows_here, turned, exact)
            torch.from_numpy(fixed).copy_(fixed_here)
            torch.from_numpy(rows).copy_(rows_here)
        if exact and (n_open or not np.isfinite(rows).all()):
            raise TrainingError(
                f"{n_open or 'Some'} of {side.n_rows} rows of the factor model could not be solved exactly: their"
                " matrices are not finite and positive definite. Raise the regularization or the unobserved weight, and"
                " look at the weights of the interactions."
            )
        return basis

    def _place(self, side: Side, n_factors: int) -> "_Placed":
        key = id(side), n_factors
        if key not in self._placed:
            self._placed[key] = _place(side, _room(self._device) // n_factors, self._device)
            weakref.finalize(side, self._placed.pop, key, None)
        return self._placed[key]


def plan_blocks(lengths: Integers, n_cells: int) -> list[slice]:
    """Runs of rows of about equal length; ``lengths`` descend. A run, padded to its longest row, has at most
    ``n_cells`` entries (with some for each row's own vectors), or one row."""
    blocks, start = [], 0
    while start < len(lengths):
        similar = int(np.searchsorted(-lengths, -_SIMILAR * lengths[start], side="right"))
        room = max(1, n_cells // (int(lengths[start]) + _ROW_CELLS))
        blocks.append(slice(start, min(similar, start + room)))
        start = blocks[-1].stop
    return blocks


class _Block(NamedTuple):
    """Rows (n,) with their columns and signed weights (n, n_pieces, length); what is padded weighs 0."""

    rows: "Tensor"
    columns: "Tensor"
    weights: "Tensor"


class _Placed(NamedTuple):
    """A side on the device. ``features`` are there if they are dense; ``room`` is the number of entries at once."""

    blocks: list[_Block]
    unobserved: "Tensor"
    penalty: "Tensor"
    features: "Tensor | None"
    pull: "Tensor | None"
    room: int


class _Entries:
    """Entries of some rows and the fixed factors of their columns, which are kept if they all have room."""

    def __init__(self, fixed: "Tensor", columns: "Tensor", weights: "Tensor", dtype: "torch.dtype", room: int) -> None:
        self._fixed, self._columns, self._dtype, self._room = fixed, columns, dtype, room
        self.weights = weights.to(dtype)
        n_rows, n_pieces, length = columns.shape
        step = max(1, room // max(1, n_rows * length))
        self._parts = [slice(start, start + step) for start in range(0, n_pieces, step)]
        self._kept = self._gather(self._parts[0]) if len(self._parts) == 1 else None

    def add_up(self, shift: "Tensor", scale: "Tensor | None" = None, x: "Tensor | None" = None) -> "Tensor":
        """``sum f (shift + scale <f, x>)`` over the entries of each row: (n_rows, d)."""
        import torch

        n_rows, d = len(self._columns), self._fixed.shape[1]
        total = self._fixed.new_zeros((n_rows, d), dtype=self._dtype)
        for part in self._parts:
            factors = self._gather(part) if self._kept is None else self._kept
            n_pieces, length = shift[:, part].shape[1:]
            share = shift[:, part]
            if scale is not None and x is not None:
                each = x[:, None].expand(n_rows, n_pieces, d).reshape(n_rows * n_pieces, d, 1)
                inner = torch.bmm(factors, each).view(n_rows, n_pieces, length)
                share = torch.addcmul(share, scale[:, part], inner)
            summed = torch.bmm(share.reshape(n_rows * n_pieces, 1, length), factors)
            total += summed.view(n_rows, n_pieces, d).sum(dim=1)
        return total

    def select(self, rows: "Tensor") -> "_Entries":
        """The entries of some of the rows."""
        return _Entries(self._fixed, self._columns[rows], self.weights[rows], self._dtype, self._room)

    def _gather(self, part: slice) -> "Tensor":
        columns = self._columns[:, part]
        gathered = self._fixed.index_select(0, columns.reshape(-1)).to(self._dtype)
        return gathered.view(columns.shape[0] * columns.shape[1], columns.shape[2], self._fixed.shape[1])


def _solve_rows(
    side: Side,
    placed: _Placed,
    fixed: "Tensor",
    spectrum: "Tensor",
    rows: "Tensor",
    feature_map: Floats | None,
    exact: bool,
) -> int:
    """Improve ``rows`` in place; returns how many an exact solution left open."""
    import torch

    precise = spectrum if exact else spectrum.float()
    here = None if feature_map is None else torch.from_numpy(feature_map).to(rows.device)
    n_open = 0
    for block in placed.blocks:
        entries = _Entries(fixed, block.columns, block.weights, precise.dtype, placed.room)
        some = block.rows
        m = torch.outer(placed.unobserved[some].to(precise.dtype), precise) + placed.penalty[some, None]
        target = _target(side, placed, some, feature_map, here).to(precise.dtype)
        x = rows[some].to(precise.dtype)
        if exact:
            x, n_left = _solve_exactly(entries, m, target, x)
            n_open += n_left
        else:
            x = _improve(entries, m, target, x)
        rows[some] = x.float()
    return n_open


def _improve(entries: _Entries, m: "Tensor", target: "Tensor", x: "Tensor") -> "Tensor":
    """``CG_STEPS`` steps of preconditioned conjugate gradients from x, without a word to the host."""
    state = _begin(entries, m, target, x)
    for _ in range(CG_STEPS):
        state = _step(state, entries, m, ~(state.size <= 1e-30))
    return state.x


def _solve_exactly(entries: _Entries, m: "Tensor", target: "Tensor", x: "Tensor") -> "tuple[Tensor, int]":
    """Steps until nothing is left, and the number of rows with which that failed. When half of the rows are done, the
    others go on alone."""
    import torch

    right = entries.add_up(entries.weights.clamp(min=0)) + target
    limits = EXACT_TOLERANCE * (right * right / m).sum(dim=1)
    solved, left, place, limit = (
        torch.empty_like(x),
        torch.empty_like(limits),
        torch.arange(len(x)).to(x.device),
        limits,
    )
    state = _begin(entries, m, target, x)
    for _ in range(EXACT_STEPS):
        going = ~((state.size <= limit) | (state.size <= 1e-30))
        n_going = int(going.sum())
        if n_going == 0:
            break
        if 2 * n_going <= len(place):
            solved[place], left[place] = state.x, state.size
            keep = going.nonzero().squeeze(1)
            place, m, limit, entries = place[keep], m[keep], limit[keep], entries.select(keep)
            state, going = _State(*(part[keep] for part in state)), going[keep]
        state = _step(state, entries, m, going)
    solved[place], left[place] = state.x, state.size
    return solved, int((left > limits).sum())


class _State(NamedTuple):
    """Solution, residual and direction (n, d), and the squared residual in the norm of the preconditioner (n,)."""

    x: "Tensor"
    r: "Tensor"
    p: "Tensor"
    size: "Tensor"


def _begin(entries: _Entries, m: "Tensor", target: "Tensor", x: "Tensor") -> _State:
    r = entries.add_up(entries.weights.clamp(min=0), -entries.weights.abs(), x) + target - m * x
    p = r / m
    return _State(x, r, p, (r * p).sum(dim=1))


def _step(state: _State, entries: _Entries, m: "Tensor", going: "Tensor") -> _State:
    """One step of the rows that are ``going``; one whose matrix is not positive definite gets NaN."""
    import torch

    x, r, p, size = state
    strength = entries.weights.abs()
    q = entries.add_up(torch.zeros_like(strength), strength, p).addcmul_(m, p)
    curvature = (p * q).sum(dim=1)
    failed = going & ~(curvature > 0)
    length = torch.where(failed, math.nan, torch.where(going, size / curvature, 0))[:, None]
    x, r = torch.addcmul(x, length, p), torch.addcmul(r, length, q, value=-1)
    z = r / m
    new = torch.where(failed, 0, torch.where(going, (r * z).sum(dim=1), size))
    ratio = torch.where(going, new / size, 0)[:, None]
    return _State(x, r, torch.addcmul(z, ratio, p), new)


def _target(side: Side, placed: _Placed, rows: "Tensor", feature_map: Floats | None, here: "Tensor | None") -> "Tensor":
    """What rows are pulled toward, times its strength; one zero for nothing. Sparse features are the host's work."""
    import torch

    if placed.features is not None and placed.pull is not None and here is not None:
        return (placed.features[rows] @ here) * placed.pull[rows, None]
    target = side.target(rows.cpu().numpy(), feature_map) if side.features is not None else np.zeros((0, 0), np.float32)
    return torch.from_numpy(target if len(target) else np.zeros((1, 1), np.float32)).to(rows.device)


def _gram(fixed: "Tensor", column_weight: "Tensor") -> "Tensor":
    """``fixed' diag(column_weight) fixed``: blocks of rows in single precision, their sum in double."""
    import torch

    total = fixed.new_zeros((fixed.shape[1],) * 2, dtype=torch.float64)
    for start in range(0, len(fixed), _GRAM_ROWS):
        part = fixed[start : start + _GRAM_ROWS]
        total += part.T @ (part * column_weight[start : start + _GRAM_ROWS, None])
    return total


def _diagonalise(gram: "Tensor") -> "tuple[Tensor, Tensor]":
    """Eigenvalues, ascending, and eigenvectors. Raises TrainingError if the factors were not finite."""
    import torch

    if not bool(torch.isfinite(gram).all()):
        raise TrainingError(
            "The factor fit diverged: its factors are no longer finite numbers. Raise the regularization or the"
            " unobserved weight, and look at the weights of the interactions."
        )
    spectrum, rotation = torch.linalg.eigh((gram + gram.T) / 2)
    return spectrum.clamp(min=0), rotation


def _rotate(factors: "Tensor", rotation: "Tensor") -> None:
    for start in range(0, len(factors), _ROTATED_ROWS):
        factors[start : start + _ROTATED_ROWS] = factors[start : start + _ROTATED_ROWS] @ rotation


def _place(side: Side, room: int, device: str) -> _Placed:
    import torch

    def there(values: Floats) -> "Tensor":
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    lengths = np.diff(side.interactions.indptr).astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    blocks = [_block(side, order[some], lengths, device) for some in plan_blocks(lengths[order], room)]
    dense = side.features if isinstance(side.features, np.ndarray) else None
    return _Placed(
        blocks,
        there(side.unobserved),
        there(side.penalty),
        None if dense is None else there(dense),
        None if side.pull is None else there(side.pull),
        room,
    )


def _block(side: Side, rows: Integers, lengths: Integers, device: str) -> _Block:
    import torch

    entries, longest = side.interactions, int(lengths[rows[0]])
    n_pieces = max(1, -(-longest // _PIECE))
    at = np.arange(n_pieces * -(-longest // n_pieces))
    inside = at < lengths[rows, None]
    place = np.where(inside, entries.indptr[rows].astype(np.int64)[:, None] + at, 0)
    shape = len(rows), n_pieces, len(at) // n_pieces
    columns = np.where(inside, entries.indices[place], 0).astype(np.int32).reshape(shape)
    weights = np.where(inside, entries.data[place], 0).astype(np.float32).reshape(shape)
    return _Block(*(torch.from_numpy(part).to(device) for part in (rows, columns, weights)))


def _room(device: str) -> int:
    """Numbers that a block may have: a fixed number, so that it changes no result, unless memory is short."""
    import torch

    cells = _BLOCK_CELLS["cuda" if device.startswith("cuda") else "cpu"]
    if device.startswith("cuda"):
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        while cells > _FREE_SHARE * free:
            cells //= 2
    return cells


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in true float32: neither TF32 nor bf16, whatever was set before."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
