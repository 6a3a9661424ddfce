"""Published versions in the memory of this process, for requests. It knows nothing of where they come from.

Readers take no lock: a table of items is replaced whole, and a stored user is an immutable entry of a dictionary, which
is replaced whole too. Writers take turns.
"""

from array import array
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infra.index_vectors import check_vectors
from infra.memory_items import ItemTable
from tasks.domain.errors import InputError, NotFoundError, TerminalError
from tasks.domain.records import Hit, IndexFilter, ItemPayload, UserPayload

Floats = npt.NDArray[np.float32]
ADDRESS = "memory"


class _StoredUser(NamedTuple):
    """A user as kept: ``seen`` are 32-bit codes of items, ``vector`` is float32."""

    n_history: int
    alpha: float
    beta: float
    as_of_snapshot: int
    seen: bytes
    vector: bytes


class _Version:
    """What one version holds. Items and users are read without a lock and written under that of the index."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.items = ItemTable.empty(width)
        self.users: dict[str, _StoredUser] = {}


class MemoryIndex:
    """The ``VectorIndex`` port in memory. Search is exact. Threads may share it: many readers, and writers in turn.

    100,000 users of width 449 are about 190 MB, and 4 bytes for each item that a user has seen.
    """

    def __init__(self) -> None:
        self._versions: dict[str, _Version] = {}
        self._serving: str | None = None
        self._writing = Lock()
        self._codes: dict[str, int] = {}
        self._coded: list[str] = []

    def serving_version(self) -> str | None:
        """The version of the last switch, or None."""
        return self._serving

    def versions(self) -> list[str]:
        """Versions that were created, whole or not, sorted."""
        return sorted(self._versions.copy())

    def create_version(self, version: str, width: int) -> None:
        """An empty version; see the port."""
        with self._writing:
            self._refuse_serving(version, "Writing")
            self._versions[version] = _Version(width)

    def upsert_items(self, version: str, vectors: Floats, payloads: Sequence[ItemPayload]) -> None:
        """Write item vectors, (n, width) float32, all at once: a reader sees all of them or none.

        Into an empty version, vectors that cannot be written to (``setflags(write=False)``) are taken without a copy.
        """
        with self._writing:
            stored = self._checked(version, vectors, len(payloads))
            if len(payloads):
                stored.items = stored.items.with_items(np.asarray(vectors, np.float32), payloads)

    def upsert_users(self, version: str, vectors: Floats, payloads: Sequence[UserPayload]) -> None:
        """Write query vectors, (n, width) float32, each only over one that is not newer."""
        with self._writing:
            stored = self._checked(version, vectors, len(payloads))
            for vector, payload in zip(np.asarray(vectors, np.float32), payloads, strict=True):
                known = stored.users.get(payload.user_id)
                if known is None or known.as_of_snapshot <= payload.as_of_snapshot:
                    stored.users[payload.user_id] = self._packed(payload, vector)

    def count(self, version: str) -> tuple[int, int]:
        """Exact numbers of items and users."""
        stored = self._get(version, "Counting")
        return len(stored.items.payloads), len(stored.users)

    def items(self, version: str, item_ids: Sequence[str]) -> dict[str, tuple[ItemPayload, Floats]]:
        """Stored items by id; unknown ids are left out."""
        table = self._get(version, "Reading items of").items
        rows = {item_id: table.rows[item_id] for item_id in item_ids if item_id in table.rows}
        return {item_id: (table.payloads[row], table.vectors[row].copy()) for item_id, row in rows.items()}

    def users(self, version: str, user_ids: Sequence[str]) -> dict[str, tuple[UserPayload, Floats]]:
        """Stored users by id; unknown ids are left out. The vectors cannot be written to."""
        stored = self._get(version, "Reading users of").users
        found = ((user_id, stored.get(user_id)) for user_id in user_ids)
        return {user_id: self._unpacked(user_id, user) for user_id, user in found if user is not None}

    def search(
        self, version: str, query: Floats, k: int, restrict: IndexFilter, *, with_vectors: bool = False
    ) -> list[Hit]:
        """The ``k`` items with the highest dot product, best first; equal ones by id. Raises InputError for a query of
        another width, or with values that are not finite."""
        stored = self._get(version, "Searching")
        query = np.asarray(query, np.float32)
        if query.shape != (stored.width,) or not np.isfinite(query).all():
            raise InputError(
                f"Searching version {version!r} with a query of shape {query.shape} was refused: it takes "
                f"{stored.width} finite numbers. Make the query with the model of this version."
            )
        return stored.items.search(query, k, restrict, with_vectors=with_vectors)

    def switch(self, version: str) -> None:
        """Let ``version`` serve."""
        with self._writing:
            self._get(version, "Switching to")
            self._serving = version

    def delete_users(self, user_ids: Sequence[str]) -> int:
        """Remove users from every version there is. Returns how many there were."""
        with self._writing:
            all_users = [stored.users for stored in self._versions.values()]
            return sum(users.pop(user_id, None) is not None for users in all_users for user_id in user_ids)

    def drop_version(self, version: str) -> None:
        """Forget a version; nothing happens where there is none. A reader in the middle of it ends undisturbed."""
        with self._writing:
            self._refuse_serving(version, "Dropping")
            self._versions.pop(version, None)

    def _packed(self, payload: UserPayload, vector: Floats) -> _StoredUser:
        try:
            seen = array("i", map(self._codes.__getitem__, payload.seen))
        except KeyError:
            seen = array("i", [self._code(item_id) for item_id in payload.seen])
        numbers = (payload.n_history, payload.alpha, payload.beta, payload.as_of_snapshot)
        return _StoredUser(*numbers, seen.tobytes(), vector.tobytes())

    def _code(self, item_id: str) -> int:
        if item_id not in self._codes:
            self._coded.append(item_id)  # before its code is known, so that no reader misses it
            self._codes[item_id] = len(self._coded) - 1
        return self._codes[item_id]

    def _unpacked(self, user_id: str, user: _StoredUser) -> tuple[UserPayload, Floats]:
        seen = tuple(map(self._coded.__getitem__, memoryview(user.seen).cast("i")))
        payload = UserPayload(user_id, user.n_history, user.alpha, user.beta, user.as_of_snapshot, seen)
        return payload, np.frombuffer(user.vector, np.float32)

    def _get(self, version: str, attempt: str) -> _Version:
        stored = self._versions.get(version)
        if stored is None:
            raise NotFoundError(
                f"{attempt} version {version!r} of the index in {ADDRESS} failed: it is not there. Versions there: "
                f"{', '.join(self.versions()) or 'none'}. Name one of them, or load this one first."
            )
        return stored

    def _checked(self, version: str, vectors: Floats, n_payloads: int) -> _Version:
        stored = self._get(version, "Writing")
        check_vectors(vectors, n_payloads)
        if vectors.shape[1] != stored.width:
            raise TerminalError(
                f"Writing vectors of width {vectors.shape[1]} to version {version!r} of the index in {ADDRESS} was "
                f"refused: it takes {stored.width}. Create the version with the width of its model."
            )
        return stored

    def _refuse_serving(self, version: str, verb: str) -> None:
        if version == self._serving:
            raise TerminalError(
                f"{verb} version {version!r} in the index in {ADDRESS} was refused: it is serving. Switch to another "
                "version first."
            )
