"""The rows of a factor model on a device of torch: blocks of rows of about equal length, padded to the longest.

Where a block is worked on, the factors of its entries are gathered into one array, so that every sum over a row's
entries is a product in a batch of matrix products. It knows nothing of what is solved with them.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.half_steps import Floats, Side

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Integers = npt.NDArray[np.int64]
BLOCK_CELLS = {"cpu": 2**22, "cuda": 2**26}
"""Numbers that a block of gathered factors may have."""
PIECE = 1024
"""Most entries of a row in one matrix product; a longer row is several, whose results are added up."""
_FREE_SHARE = 1 / 32
_SIMILAR = 0.75
_ROW_CELLS = 8


class RowBlock(NamedTuple):
    """Rows (n,) with their columns and signed weights (n, n_pieces, length); what is padded weighs 0."""

    rows: "Tensor"
    columns: "Tensor"
    weights: "Tensor"


class PlacedSide(NamedTuple):
    """A side on the device. ``features`` are there if they are dense; ``room`` is the number of entries at once."""

    blocks: list[RowBlock]
    unobserved: "Tensor"
    penalty: "Tensor"
    features: "Tensor | None"
    pull: "Tensor | None"
    room: int


class Entries:
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
        sums = []
        for part in self._parts:
            factors = self._gather(part) if self._kept is None else self._kept
            n_pieces, length = shift[:, part].shape[1:]
            share = shift[:, part]
            if scale is not None and x is not None:
                each = x[:, None].expand(n_rows, n_pieces, d).reshape(n_rows * n_pieces, d, 1)
                inner = torch.bmm(factors, each).view(n_rows, n_pieces, length)
                share = torch.addcmul(share, scale[:, part], inner)
            summed = torch.bmm(share.reshape(n_rows * n_pieces, 1, length), factors).view(n_rows, n_pieces, d)
            sums.append(summed[:, 0] if n_pieces == 1 else summed.sum(dim=1))
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)

    def select(self, rows: "Tensor") -> "Entries":
        """The entries of some of the rows."""
        return Entries(self._fixed, self._columns[rows], self.weights[rows], self._dtype, self._room)

    def _gather(self, part: slice) -> "Tensor":
        columns = self._columns[:, part]
        gathered = self._fixed.index_select(0, columns.reshape(-1)).to(self._dtype)
        return gathered.view(columns.shape[0] * columns.shape[1], columns.shape[2], self._fixed.shape[1])


def place_side(side: Side, n_factors: int, device: str) -> PlacedSide:
    """Send a side to the device, in blocks that suit the number of factors."""
    import torch

    room = max(1, _block_cells(device) // n_factors)

    def there(values: Floats) -> "Tensor":
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    lengths = np.diff(side.interactions.indptr).astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    blocks = [_block(side, order[some], lengths, device) for some in plan_blocks(lengths[order], room)]
    dense = side.features if isinstance(side.features, np.ndarray) else None
    return PlacedSide(
        blocks,
        there(side.unobserved),
        there(side.penalty),
        None if dense is None else there(dense),
        None if side.pull is None else there(side.pull),
        room,
    )


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


def _block(side: Side, rows: Integers, lengths: Integers, device: str) -> RowBlock:
    import torch

    entries, longest = side.interactions, int(lengths[rows[0]])
    n_pieces = max(1, -(-longest // PIECE))
    at = np.arange(n_pieces * -(-longest // n_pieces))
    inside = at < lengths[rows, None]
    place = np.where(inside, entries.indptr[rows].astype(np.int64)[:, None] + at, 0)
    shape = len(rows), n_pieces, len(at) // n_pieces
    columns = np.where(inside, entries.indices[place], 0).astype(np.int32).reshape(shape)
    weights = np.where(inside, entries.data[place], 0).astype(np.float32).reshape(shape)
    return RowBlock(*(torch.from_numpy(part).to(device) for part in (rows, columns, weights)))


def _block_cells(device: str) -> int:
    """Numbers that a block may have: a fixed number, so that it changes no result, unless memory is short."""
    import torch

    cells = BLOCK_CELLS["cuda" if device.startswith("cuda") else "cpu"]
    if device.startswith("cuda"):
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        while cells > _FREE_SHARE * free:
            cells //= 2
    return cells
