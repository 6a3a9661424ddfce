"""Resources of a process that does many short runs: the warehouse stays open between them.

Opening it costs some tens of milliseconds, and attaching a DuckLake leaves about 0.4 MB behind each time (DuckDB
1.5.5), which a process that lives for weeks would feel. It knows nothing of runs.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from infra.resources import LocalResources
from tasks.domain.ports import Warehouse

_OPEN: dict[Path, tuple[ExitStack, Warehouse]] = {}


class KeptOpenResources(LocalResources):
    """As ``LocalResources``, for one thread at a time; another process that receives it gets an ordinary one."""

    def warehouse(self, *, read_only: bool = False) -> AbstractContextManager[Warehouse]:
        """The one opening of this process; it can write, also for who asks only to read."""
        return self._kept()

    @contextmanager
    def _kept(self) -> Iterator[Warehouse]:
        if self.home not in _OPEN:
            stack = ExitStack()
            _OPEN[self.home] = stack, stack.enter_context(super().warehouse())
        yield _OPEN[self.home][1]

    def close(self) -> None:
        """Close it; the next use opens it anew."""
        stack, _ = _OPEN.pop(self.home, (ExitStack(), None))
        stack.close()

    def __reduce__(self) -> tuple[type[LocalResources], tuple[object]]:
        return LocalResources, (self.settings,)
