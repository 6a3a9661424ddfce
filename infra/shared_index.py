"""The index as another process owns it: every method of the port is asked for over a connection.

It knows nothing of Qdrant, so that a process that only asks starts fast.
"""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tasks.domain.errors import IndexUnavailableError
from tasks.domain.records import Hit, IndexFilter, ItemPayload, UserPayload

Floats = npt.NDArray[np.float32]

PORT_METHODS = (
    "serving_version",
    "versions",
    "create_version",
    "upsert_items",
    "upsert_users",
    "count",
    "items",
    "users",
    "search",
    "switch",
    "delete_users",
    "drop_version",
)


class SharedIndex:
    """The ``VectorIndex`` port over a connection to the owner. Threads may share it; they take turns.

    Every method raises IndexUnavailableError when the owner goes away or is silent for ``timeout_seconds``, and
    beside that what the port says.
    """

    def __init__(self, connection: Connection, owner_pid: int, timeout_seconds: float) -> None:
        self.owner_pid = owner_pid
        self._connection = connection
        self._timeout_seconds = timeout_seconds
        self._turn = Lock()

    def serving_version(self) -> str | None:
        """See the port."""
        return cast("str | None", self._ask("serving_version"))

    def versions(self) -> list[str]:
        """See the port."""
        return cast("list[str]", self._ask("versions"))

    def create_version(self, version: str, width: int) -> None:
        """See the port."""
        self._ask("create_version", version, width)

    def upsert_items(self, version: str, vectors: Floats, payloads: Sequence[ItemPayload]) -> None:
        """See the port; sent in parts, so that the time limit is for a part."""
        for part in _parts(len(payloads)):
            self._ask("upsert_items", version, vectors[part], list(payloads[part]))

    def upsert_users(self, version: str, vectors: Floats, payloads: Sequence[UserPayload]) -> None:
        """See the port; sent in parts, so that the time limit is for a part."""
        for part in _parts(len(payloads)):
            self._ask("upsert_users", version, vectors[part], list(payloads[part]))

    def count(self, version: str) -> tuple[int, int]:
        """See the port."""
        return cast("tuple[int, int]", self._ask("count", version))

    def items(self, version: str, item_ids: Sequence[str]) -> dict[str, tuple[ItemPayload, Floats]]:
        """See the port."""
        return cast("dict[str, tuple[ItemPayload, Floats]]", self._ask("items", version, list(item_ids)))

    def users(self, version: str, user_ids: Sequence[str]) -> dict[str, tuple[UserPayload, Floats]]:
        """See the port."""
        return cast("dict[str, tuple[UserPayload, Floats]]", self._ask("users", version, list(user_ids)))

    def search(
        self, version: str, query: Floats, k: int, restrict: IndexFilter, *, with_vectors: bool = False
    ) -> list[Hit]:
        """See the port."""
        return cast("list[Hit]", self._ask("search", version, query, k, restrict, with_vectors=with_vectors))

    def switch(self, version: str) -> None:
        """See the port."""
        self._ask("switch", version)

    def delete_users(self, user_ids: Sequence[str]) -> int:
        """See the port."""
        return cast("int", self._ask("delete_users", list(user_ids)))

    def drop_version(self, version: str) -> None:
        """See the port."""
        self._ask("drop_version", version)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        with self._turn:
            try:
                self._connection.send((method, arguments, options))
                if not self._connection.poll(self._timeout_seconds):
                    self._connection.close()  # a late answer must not be taken for that of the next request
                    raise self._lost(method, f"did not answer within {self._timeout_seconds:g} seconds")
                succeeded, answer = self._connection.recv()
            except (EOFError, OSError) as error:
                raise self._lost(method, "went away") from error
        if not succeeded:
            raise answer
        return answer

    def _lost(self, method: str, what: str) -> IndexUnavailableError:
        return IndexUnavailableError(
            f"Asking process {self.owner_pid}, which owns the index, for {method} failed: it {what}. "
            "It may have been done or not; run it again. If it keeps failing, restart `nearline up`."
        )


def _parts(n_rows: int, size: int = 2048) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n_rows, size)]
