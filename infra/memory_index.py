"""Published versions in the memory of this process, for requests. It knows nothing of where they come from.

Readers take no lock: a table of items is replaced whole, and a stored user is an immutable entry of a dictionary, which
is replaced whole too. Writers take turns.
"""

from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

from infra.index_vectors import check_vectors
from infra.memory_items import ItemTable
from tasks.domain.errors import InputError, NotFoundError, TerminalError
from tasks.domain.records import Hit, IndexFilter, ItemPayload, UserPayload

Floats = npt.NDArray[np.float32]
ADDRESS = "memory"


class _Version:
    """What one version holds. Items and users are read without a lock and written under that of the index."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.items = ItemTable.empty(width)
        self.users: dict[str, tuple[UserPayload, bytes]] = {}  # vectors as float32 bytes, which nobody can change


class MemoryIndex:
    """The ``VectorIndex`` port in memory. Search is exact. Threads may share it: many readers, and writers in turn.

    100,000 users of width 449 are about 220 MB, and 8 bytes for each item that a user has seen.
    """

    def __init__(self) -> None:
        self._versions: dict[str, _Version] = {}
        self._serving: str | None = None
        self._writing = Lock()

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
        """Write query vectors, (n, width) float32, each only over one that is not newer.

        Payloads are kept as they are: what users have seen is small if equal ids are one object
        (``tasks.projection.shared_texts``).
        """
        with self._writing:
            stored = self._checked(version, vectors, len(payloads))
            for vector, payload in zip(np.asarray(vectors, np.float32), payloads, strict=True):
                known = stored.users.get(payload.user_id)
                if known is None or known[0].as_of_snapshot <= payload.as_of_snapshot:
                    stored.users[payload.user_id] = (payload, vector.tobytes())

    def count(self, version: str) -> tuple[int, int]:
        """Exact numbers of items and users."""
        stored = self._get(version, "Counting")
        return len(stored.items.payloads), len(stored.users)

    def items(self, version: str, item_ids: Sequence[str]) -> dict[str, tuple[ItemPayload, Floats]]:
        """Stored items by id; unknown ids are left out."""
        table = self._get(version, "Reading items of").items
        known = table.terms.rows
        rows = {item_id: known[item_id] for item_id in item_ids if item_id in known}
        return {item_id: (table.payloads[row], table.vectors[row].copy()) for item_id, row in rows.items()}

    def users(self, version: str, user_ids: Sequence[str]) -> dict[str, tuple[UserPayload, Floats]]:
        """Stored users by id; unknown ids are left out. The vectors cannot be written to."""
        stored = self._get(version, "Reading users of").users
        found = ((user_id, stored.get(user_id)) for user_id in user_ids)
        return {user_id: (user[0], np.frombuffer(user[1], np.float32)) for user_id, user in found if user is not None}

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
