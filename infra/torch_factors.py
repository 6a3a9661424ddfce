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

from infra.torch_blocks import Entries, PlacedSide, place_side
from tasks.domain.errors import SettingsError, TrainingError
from tasks.domain.half_steps import CG_STEPS, EXACT_STEPS, EXACT_TOLERANCE, Basis, Floats, Side, rotated_map

if TYPE_CHECKING:
    from torch import Tensor

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
        self._placed: dict[tuple[int, int], PlacedSide] = {}

    def __call__(
        self, side: Side, fixed: Floats, rows: Floats, feature_map: Floats | None, *, exact: bool = False
    ) -> Basis:
        """As ``RowSolver`` says. Raises SettingsError if the device's memory is too small."""
        import torch

        with torch.inference_mode(), _full_precision(), _enough_memory(self._device):
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

    def _place(self, side: Side, n_factors: int) -> PlacedSide:
        key = id(side), n_factors
        if key not in self._placed:
            self._placed[key] = place_side(side, n_factors, self._device)
            weakref.finalize(side, self._placed.pop, key, None)
        return self._placed[key]


def _solve_rows(
    side: Side,
    placed: PlacedSide,
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
        entries = Entries(fixed, block.columns, block.weights, precise.dtype, placed.room)
        some = block.rows
        m = torch.outer(placed.unobserved[some].to(precise.dtype), precise) + placed.penalty[some, None]
        target = _target(side, placed, some, feature_map, here).to(precise.dtype)
        wanted = (block.weights > 0).flatten(1).any(dim=1) | (target != 0).any(dim=1)
        x = torch.where(wanted[:, None], rows[some], 0).to(precise.dtype)  # a row that nothing asks for is zero
        if exact:
            x, n_left = _solve_exactly(entries, m, target, x)
            n_open += n_left
        else:
            x = _improve(entries, m, target, x)
        rows[some] = x.float()
    return n_open


def _improve(entries: Entries, m: "Tensor", target: "Tensor", x: "Tensor") -> "Tensor":
    """``CG_STEPS`` steps of preconditioned conjugate gradients from x, without a word to the host."""
    state = _begin(entries, m, target, x)
    for _ in range(CG_STEPS):
        state = _step(state, entries, m, ~(state.size <= 1e-30))
    return state.x


def _solve_exactly(entries: Entries, m: "Tensor", target: "Tensor", x: "Tensor") -> "tuple[Tensor, int]":
    """Steps until nothing is left, and the number of rows with which that failed. When half of the rows are done, the
    others go on alone."""
    import torch

    right = entries.add_up(entries.weights.clamp(min=0)) + target
    limits = EXACT_TOLERANCE * (right * right / m).sum(dim=1)
    solved, left = torch.empty_like(x), torch.empty_like(limits)
    place, limit = torch.arange(len(x), device=x.device), limits
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
    return solved, int(((left > limits) & (left > 1e-30)).sum())


class _State(NamedTuple):
    """Solution, residual and direction (n, d), and the squared residual in the norm of the preconditioner (n,)."""

    x: "Tensor"
    r: "Tensor"
    p: "Tensor"
    size: "Tensor"


def _begin(entries: Entries, m: "Tensor", target: "Tensor", x: "Tensor") -> _State:
    r = entries.add_up(entries.weights.clamp(min=0), -entries.weights.abs(), x).addcmul_(m, x, value=-1).add_(target)
    p = r / m
    return _State(x, r, p, (r * p).sum(dim=1))


def _step(state: _State, entries: Entries, m: "Tensor", going: "Tensor") -> _State:
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


def _target(
    side: Side, placed: PlacedSide, rows: "Tensor", feature_map: Floats | None, here: "Tensor | None"
) -> "Tensor":
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


@contextmanager
def _enough_memory(device: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingsError(
            f"The factors do not fit into the memory of {device} ({error}). It must hold the interactions and the"
            " factors of users and items: lower NEARLINE_FACTORS__N_FACTORS, end other programs on it, or fit by"
            " threads or workers (NEARLINE_COMPUTE__FACTOR_SOLVER)."
        ) from error
