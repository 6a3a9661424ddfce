"""Rows that were taken lately, so that a repeated one is known. It knows nothing of where rows are stored."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RowKey(NamedTuple):
    """What a row is known by: a digest of all it says, and for states the id of what they are the state of.

    ``is_dated``: the same content can only be the same fact again (an event, an item with the time of its change). A
    state without a time may come back: available, not available, available again.
    """

    content: bytes
    state_of: str | None = None
    is_dated: bool = True


def row_digest(values: Sequence[object]) -> bytes:
    """16 bytes that differ where the values do; they must print as what they are (text, numbers, lists, None)."""
    return blake2b(repr(values).encode(), digest_size=16).digest()


class RecentRows:
    """The last ``limit`` rows. Not for several threads at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._contents: OrderedDict[bytes, None] = OrderedDict()
        self._newest: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contents)

    def find_repeats(self, rows: Iterable[RowKey]) -> list[bool]:
        """For each row whether it repeats one of the window, or one of these before it.

        A dated row repeats any earlier one of the same content: first A, then its correction B, then A again is a late
        retry of A, and B stays. One without a date repeats only the newest state.
        """
        contents: set[bytes] = set()
        newest: dict[str, bytes] = {}
        repeats = []
        for row in rows:
            is_repeat = row.is_dated and (row.content in contents or row.content in self._contents)
            if row.state_of is not None:
                state = newest.get(row.state_of) or self._newest.get(row.state_of)
                is_repeat = is_repeat or state == row.content
                if not is_repeat:
                    newest[row.state_of] = row.content
            contents.add(row.content)
            repeats.append(is_repeat)
        return repeats

    def remember(self, rows: Iterable[RowKey]) -> None:
        """Take rows into the window, in their order; the oldest leave it."""
        for row in rows:
            _put_last(self._contents, row.content, None, self._limit)
            if row.state_of is not None:
                _put_last(self._newest, row.state_of, row.content, self._limit)


def _put_last(entries: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > limit:
        entries.popitem(last=False)
