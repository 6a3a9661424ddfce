"""Which texts go into one batch of a model, by their lengths alone. It knows nothing of models and tensors."""

from bisect import bisect_right
from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions of texts in batches of similar length, the longest first, for a model that pads.

    A batch costs its longest text times its number of texts; that stays within ``batch_tokens`` unless one text alone
    is longer. Ties keep their order.
    """
    batches: list[list[int]] = []
    room = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            batches.append([])
            room = max(1, batch_tokens // max(1, lengths[position]))
        batches[-1].append(position)
        room -= 1
    return batches


def pack_rows(lengths: Sequence[int], batch_tokens: int, row_tokens: int) -> list[list[list[int]]]:
    """Positions of texts in batches of rows, for a model that takes several texts in a row.

    The rows of a batch have room for ``row_tokens`` tokens, or for its longest text if that is longer, and a batch has
    as many as fit into ``batch_tokens``, at least one. A row takes the longest text that is left, and then the longest
    that still fits, until none does. Texts have at least one token.
    """
    waiting: dict[int, list[int]] = {}
    for position in range(len(lengths) - 1, -1, -1):
        waiting.setdefault(lengths[position], []).append(position)
    sizes = sorted(waiting)
    batches: list[list[list[int]]] = []
    while sizes:
        room_of_row = max(row_tokens, sizes[-1])
        batch: list[list[int]] = []
        while sizes and len(batch) < max(1, batch_tokens // room_of_row):
            batch.append(_fill_row(waiting, sizes, room_of_row))
        batches.append(batch)
    return batches


def halves(batch: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """A batch of rows as two of about half its size; of a single row, the texts are parted."""
    if len(batch) == 1:
        middle = len(batch[0]) // 2
        return [batch[0][:middle]], [batch[0][middle:]]
    return batch[: len(batch) // 2], batch[len(batch) // 2 :]


def _fill_row(waiting: dict[int, list[int]], sizes: list[int], room: int) -> list[int]:
    """Take texts out of ``waiting``; ``sizes`` are the lengths that are left in it, in order."""
    row: list[int] = []
    while (place := bisect_right(sizes, room)) > 0:
        size = sizes[place - 1]
        row.append(waiting[size].pop())
        room -= size
        if not waiting[size]:
            del sizes[place - 1]
    return row
