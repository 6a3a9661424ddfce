"""Published versions in Qdrant, on a server or in local mode. It knows nothing of how vectors are made.

A version is two collections, ``items__<version>`` and ``users__<version>``, behind the aliases ``items`` and ``users``.
Qdrant's ids are UUIDs: version 5 of the outside id, which stays in the payload.
"""

import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.local.local_collection import LocalCollection
from qdrant_client.local.qdrant_local import QdrantLocal

from infra.index_vectors import check_vectors
from infra.qdrant_points import (
    ITEMS,
    USERS,
    collection_name,
    item_fields,
    item_payload,
    not_newer,
    point_id,
    search_filter,
    user_fields,
    user_payload,
    version_of,
    with_ids,
)
from infra.qdrant_vectors import (
    ITEM_VECTOR,
    LEVEL_VECTOR,
    USER_VECTOR,
    item_vectors,
    level,
    plain_vectors,
    search_params,
    user_vectors,
)
from infra.settings import IndexSettings
from tasks.domain.errors import IndexUnavailableError, NotFoundError, SettingsError, TerminalError
from tasks.domain.records import Hit, IndexFilter, ItemPayload, UserPayload
from tasks.progress import step

Floats = npt.NDArray[np.float32]

UPSERT_BATCH = 256
RETRIEVE_BATCH = 1000
OLDEST_SERVER = (1, 16)  # the first one that obeys update_filter; an older one would ignore it and unfence the users


class QdrantIndex:
    """The ``VectorIndex`` port over a client. Threads may share it. ``address`` is named in error messages.

    ``settings`` say how a server keeps vectors; local mode keeps them as they are.
    """

    def __init__(self, client: QdrantClient, address: str, settings: IndexSettings | None = None) -> None:
        self._client = client
        self._address = address
        self._settings = settings or IndexSettings()
        self._item_names: dict[str, str] = {}  # of the items' vectors, by version
        self._local = client._client if isinstance(client._client, QdrantLocal) else None  # noqa: SLF001 -- local mode has no other door to its storage
        self._lock = RLock()  # local mode is not thread-safe
        for collection in self._local.collections.values() if self._local else ():
            _commit_by_batch(collection)

    def serving_version(self) -> str | None:
        """The version that both aliases point to, or None."""
        aliases = self._aliases()
        items, users = aliases.get(ITEMS), aliases.get(USERS)
        if items is None or users is None or version_of(items) != version_of(users):
            return None
        return version_of(items)

    def versions(self) -> list[str]:
        """Versions that have a collection, whole or not, sorted."""
        with self._asking("Listing the versions"):
            names = [collection.name for collection in self._client.get_collections().collections]
        return sorted({version_of(name) for name in names if name.startswith((f"{ITEMS}__", f"{USERS}__"))})

    def create_version(self, version: str, width: int) -> None:
        """Make both collections; see the port."""
        self._refuse_serving(version, "Writing")
        self._drop(version)
        with self._asking(f"Creating version {version!r}"):
            if self._local is None:
                self._create(collection_name(ITEMS, version), item_vectors(self._settings, width))
                self._create(collection_name(USERS, version), user_vectors(self._settings, width))
                self._index_payload(version)
            else:
                self._create(collection_name(ITEMS, version), plain_vectors(ITEM_VECTOR, width))
                self._create(collection_name(USERS, version), plain_vectors(USER_VECTOR, width))

    def upsert_items(self, version: str, vectors: Floats, payloads: Sequence[ItemPayload]) -> None:
        """Write item vectors, (n, width) float32, in batches. The first call should hold the longest: see ``level``."""
        check_vectors(vectors, len(payloads))
        name = self._item_name(version)
        if name == LEVEL_VECTOR:
            vectors = level(vectors, self._level_norm(version))
        for start in range(0, len(payloads), UPSERT_BATCH):
            batch = payloads[start : start + UPSERT_BATCH]
            points = [
                models.PointStruct(id=point_id(p.item_id), vector={name: row}, payload=item_fields(p))
                for p, row in zip(batch, vectors[start : start + UPSERT_BATCH].tolist(), strict=True)
            ]
            self._upsert(ITEMS, version, points, None)

    def upsert_users(self, version: str, vectors: Floats, payloads: Sequence[UserPayload]) -> None:
        """Write query vectors, (n, width) float32, each only over one that is not newer."""
        check_vectors(vectors, len(payloads))
        rows_at: dict[int, list[int]] = {}
        for row, payload in enumerate(payloads):
            rows_at.setdefault(payload.as_of_snapshot, []).append(row)
        for snapshot, rows in sorted(rows_at.items()):
            fence = not_newer(snapshot)
            for start in range(0, len(rows), UPSERT_BATCH):
                batch = rows[start : start + UPSERT_BATCH]
                points = [
                    models.PointStruct(
                        id=point_id(payloads[row].user_id),
                        vector={USER_VECTOR: vector},
                        payload=user_fields(payloads[row]),
                    )
                    for row, vector in zip(batch, vectors[batch].tolist(), strict=True)
                ]
                self._upsert(USERS, version, points, fence)

    def count(self, version: str) -> tuple[int, int]:
        """Exact numbers of items and users."""
        with self._asking(f"Counting version {version!r}", version):
            n_items = self._client.count(collection_name(ITEMS, version), exact=True).count
            n_users = self._client.count(collection_name(USERS, version), exact=True).count
        return n_items, n_users

    def items(self, version: str, item_ids: Sequence[str]) -> dict[str, tuple[ItemPayload, Floats]]:
        """Stored items by id; unknown ids are left out."""
        name = self._item_name(version)
        found = self._retrieve(ITEMS, version, item_ids, name)
        return {p["item_id"]: (item_payload(p), _as_given(name, vector)) for p, vector in found}

    def users(self, version: str, user_ids: Sequence[str]) -> dict[str, tuple[UserPayload, Floats]]:
        """Stored users by id; unknown ids are left out."""
        found = self._retrieve(USERS, version, user_ids, USER_VECTOR)
        return {p["user_id"]: (user_payload(p), vector) for p, vector in found}

    def search(
        self, version: str, query: Floats, k: int, restrict: IndexFilter, *, with_vectors: bool = False
    ) -> list[Hit]:
        """The ``k`` items with the highest dot product, best first. Local mode is exact; a server may approximate."""
        if k < 1:
            return []
        name = self._item_name(version)
        sought = np.append(query, 0) if name == LEVEL_VECTOR else query
        with self._asking(f"Searching version {version!r}", version):
            answer = self._client.query_points(
                collection_name(ITEMS, version),
                query=np.asarray(sought, dtype=np.float32).tolist(),
                using=name,
                limit=k,
                query_filter=search_filter(restrict),
                with_payload=True,
                search_params=search_params(self._settings) if self._local is None else None,
                with_vectors=[name] if with_vectors else False,
            )
        return [_hit(point, name) for point in answer.points]

    def switch(self, version: str) -> None:
        """Point both aliases to ``version`` in one request, which Qdrant does whole or not at all."""
        for kind in (ITEMS, USERS):
            with self._asking(f"Switching to version {version!r}", version):
                if not self._client.collection_exists(collection_name(kind, version)):
                    raise self._not_found(version, f"Switching to version {version!r}")
        operations: list[models.AliasOperations] = [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
            for alias in self._aliases()
            if alias in (ITEMS, USERS)
        ]
        for kind in (ITEMS, USERS):
            target = models.CreateAlias(collection_name=collection_name(kind, version), alias_name=kind)
            operations.append(models.CreateAliasOperation(create_alias=target))
        with self._asking(f"Switching to version {version!r}", version), step("switch"):
            self._client.update_collection_aliases(operations)

    def delete_users(self, user_ids: Sequence[str]) -> int:
        """Remove users from every version there is, one that does not serve too. Returns how many points there were."""
        with self._asking("Listing the versions"):
            names = [collection.name for collection in self._client.get_collections().collections]
        collections = [name for name in names if name.startswith(f"{USERS}__")]
        return sum(self._delete_users(name, user_ids) for name in collections)

    def drop_version(self, version: str) -> None:
        """Delete both collections; nothing happens where there are none."""
        self._refuse_serving(version, "Dropping")
        self._drop(version)

    def close(self) -> None:
        """Close the connection or the folder."""
        with self._lock:
            self._client.close()

    def _aliases(self) -> dict[str, str]:
        with self._asking("Reading the serving version"):
            return {alias.alias_name: alias.collection_name for alias in self._client.get_aliases().aliases}

    def _refuse_serving(self, version: str, verb: str) -> None:
        if version in {version_of(name) for alias, name in self._aliases().items() if alias in (ITEMS, USERS)}:
            raise TerminalError(
                f"{verb} version {version!r} in the index at {self._address} was refused: it is serving. "
                "Publish or roll back to another version first."
            )

    def _item_name(self, version: str) -> str:
        """Which vector the items of a version have: the settings may have changed since it was made."""
        if self._local is not None:
            return ITEM_VECTOR
        if version not in self._item_names:
            with self._asking(f"Describing version {version!r}", version):
                about = self._client.get_collection(collection_name(ITEMS, version)).config.params.vectors
            is_level = isinstance(about, dict) and LEVEL_VECTOR in about
            self._item_names[version] = LEVEL_VECTOR if is_level else ITEM_VECTOR
        return self._item_names[version]

    def _level_norm(self, version: str) -> float | None:
        """The norm that the items of a version have, or None before there are any; longer ones may have come since."""
        with self._asking(f"Reading items of version {version!r}", version):
            points, _ = self._client.scroll(
                collection_name(ITEMS, version), limit=16, with_payload=False, with_vectors=[LEVEL_VECTOR]
            )
        rows = [point.vector[LEVEL_VECTOR] for point in points if isinstance(point.vector, dict)]
        return float(np.median(np.linalg.norm(np.asarray(rows, np.float64), axis=1))) if rows else None

    def _drop(self, version: str) -> None:
        self._item_names.pop(version, None)
        for name in (collection_name(ITEMS, version), collection_name(USERS, version)):
            with self._asking(f"Dropping version {version!r}"):
                if self._client.collection_exists(name):
                    if self._local is not None:
                        self._local.collections[name].close()
                    with step("delete a collection"):
                        self._client.delete_collection(name)

    def _create(self, name: str, parameters: dict[str, models.VectorParams]) -> None:
        with step("create a collection"):
            self._client.create_collection(name, vectors_config=parameters)
        if self._local is not None:
            _commit_by_batch(self._local.collections[name])

    def _index_payload(self, version: str) -> None:
        fields = (
            (ITEMS, "available", models.PayloadSchemaType.BOOL),
            (ITEMS, "categories", models.PayloadSchemaType.KEYWORD),
            (ITEMS, "attributes", models.PayloadSchemaType.KEYWORD),
            (USERS, "as_of_snapshot", models.PayloadSchemaType.INTEGER),
        )
        for kind, field, schema in fields:
            self._client.create_payload_index(collection_name(kind, version), field, field_schema=schema, wait=True)

    def _upsert(self, kind: str, version: str, points: list[models.PointStruct], fence: models.Filter | None) -> None:
        name = collection_name(kind, version)
        with self._asking(f"Writing {len(points)} {kind} of version {version!r}", version), step("upsert"):
            self._client.upsert(name, points, wait=True, update_filter=fence)
            if self._local is not None:
                _sync(self._local.collections[name])

    def _delete_users(self, collection: str, user_ids: Sequence[str]) -> int:
        n_found, version = 0, version_of(collection)
        for start in range(0, len(user_ids), RETRIEVE_BATCH):
            batch = user_ids[start : start + RETRIEVE_BATCH]
            points: list[models.ExtendedPointId] = [point_id(user_id) for user_id in batch]
            with suppress(NotFoundError), self._asking(f"Deleting users of version {version!r}", version):
                n_found += self._client.count(collection, count_filter=with_ids(batch), exact=True).count
                with step("delete users"):
                    self._client.delete(collection, models.PointIdsList(points=points), wait=True)
                if self._local is not None:
                    _forget(self._local.collections[collection], points)
        return n_found

    def _retrieve(
        self, kind: str, version: str, ids: Sequence[str], vector: str
    ) -> Iterator[tuple[Mapping[str, Any], Floats]]:
        for start in range(0, len(ids), RETRIEVE_BATCH):
            points = [point_id(outside) for outside in ids[start : start + RETRIEVE_BATCH]]
            with self._asking(f"Reading {kind} of version {version!r}", version):
                records = self._client.retrieve(
                    collection_name(kind, version), points, with_payload=True, with_vectors=[vector]
                )
            for record in records:
                vectors = record.vector if isinstance(record.vector, dict) else {}
                yield record.payload or {}, np.asarray(vectors[vector], dtype=np.float32)

    @contextmanager
    def _asking(self, attempt: str, version: str | None = None) -> Iterator[None]:
        """One conversation with Qdrant: held by one thread in local mode, its errors translated to ours."""
        attempt = f"{attempt} in the index at {self._address}"
        with self._lock if self._local is not None else _no_lock():
            try:
                yield
            except UnexpectedResponse as error:
                raise self._refusal(error, attempt, version) from error
            except (ResponseHandlingException, ResourceExhaustedResponse) as error:
                raise _unavailable(attempt, getattr(error, "source", error)) from error
            except ValueError as error:  # local mode's refusals
                if version is not None and version not in self.versions():
                    raise self._not_found(version, attempt) from error
                raise TerminalError(f"{attempt} was refused: {error}") from error
            except (sqlite3.Error, OSError) as error:
                raise IndexUnavailableError(
                    f"{attempt} failed: {error}. Look whether the disk is full and the folder can be written, "
                    "then run it again."
                ) from error

    def _refusal(self, error: UnexpectedResponse, attempt: str, version: str | None) -> Exception:
        status = error.status_code or 0
        if version is not None:
            self._item_names.pop(version, None)  # another process may have made it anew
        if status in (401, 403):
            return TerminalError(
                f"{attempt} was refused: the server does not accept the key (HTTP {status}). Set "
                "NEARLINE_INDEX__API_KEY to a key of that server which may write."
            )
        if status == 404 and version is not None:
            return self._not_found(version, attempt)
        if status >= 500 or status in (408, 429):
            return _unavailable(attempt, f"HTTP {status} {_reason(error)}")
        return TerminalError(f"{attempt} was refused (HTTP {status}): {_reason(error)}")

    def _not_found(self, version: str, attempt: str) -> NotFoundError:
        known = ", ".join(self.versions()) or "none"
        return NotFoundError(
            f"{attempt} failed: version {version!r} is not there. Versions in the index: {known}. "
            "Name one of them, or make the serving one again from the warehouse with `nearline rebuild-index`."
        )


def open_folder(folder: Path) -> QdrantIndex:
    """Qdrant's local mode over ``folder``, which one process at a time may open (``index_owner`` sees to that).

    Raises IndexUnavailableError if another process has it open, TerminalError if its files cannot be read.
    """
    meta = folder / "meta.json"
    if meta.exists() and meta.stat().st_size == 0:
        meta.unlink()  # a kill while the folder was first made; nothing is in it
    try:
        client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    except RuntimeError as error:
        raise IndexUnavailableError(
            f"Opening the index folder {folder} failed: another process has it open. Wait for it to end, or set "
            "NEARLINE_INDEX__URL to a Qdrant server."
        ) from error
    except (ValueError, KeyError, EOFError, json.JSONDecodeError, sqlite3.DatabaseError) as error:
        raise TerminalError(
            f"Opening the index folder {folder} failed: its files cannot be read ({error}). It is only a copy: move "
            "the folder away and run `nearline rebuild-index`, which makes it again from the warehouse."
        ) from error
    return QdrantIndex(client, str(folder))


def open_server(settings: IndexSettings) -> QdrantIndex:
    """A client of the server at ``settings.url``.

    Raises IndexUnavailableError if it does not answer, TerminalError if it refuses the key or is too old, SettingsError
    for an address that is none.
    """
    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        client = QdrantClient(
            url=settings.url, api_key=key, timeout=math.ceil(settings.timeout_seconds), check_compatibility=False
        )
    except ValueError as error:
        raise SettingsError(
            f"index.url is {settings.url!r}, which is no address of a Qdrant server: {error}. Give one such as "
            "http://localhost:6333, or leave it empty for Qdrant's local mode."
        ) from error
    index = QdrantIndex(client, str(settings.url), settings)
    try:
        _check_server(index, client)
    except BaseException:
        index.close()
        raise
    return index


def _check_server(index: QdrantIndex, client: QdrantClient) -> None:
    with index._asking("Asking for the server's version"):  # noqa: SLF001
        found = client.info().version
    numbers = re.match(r"v?(\d+)\.(\d+)", found)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_SERVER:
        raise TerminalError(
            f"The Qdrant server at {index._address} has version {found}; Nearline needs "  # noqa: SLF001
            f"{OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or later, because an older one ignores the condition under which "
            "a user's vector may be replaced. Update the server."
        )


def _hit(point: models.ScoredPoint, name: str) -> Hit:
    payload = item_payload(point.payload or {})
    vectors = point.vector if isinstance(point.vector, dict) else {}
    vector = _as_given(name, np.asarray(vectors[name], dtype=np.float32)) if name in vectors else None
    return Hit(payload.item_id, float(point.score), payload, vector)


def _as_given(name: str, vector: Floats) -> Floats:
    """Without the column that levels."""
    return vector[:-1] if name == LEVEL_VECTOR else vector


def _unavailable(attempt: str, reason: object) -> IndexUnavailableError:
    return IndexUnavailableError(
        f"{attempt} got no answer: {reason}. Look whether the server runs and NEARLINE_INDEX__URL is its address; "
        "it is tried again."
    )


def _reason(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return error.content[:200].decode(errors="replace")


@contextmanager
def _no_lock() -> Iterator[None]:
    yield


def _commit_by_batch(collection: LocalCollection) -> None:
    """Local mode commits every point with a sync of its own, 1.2 ms each; keep the commits, and sync once a batch."""
    if collection.storage is not None:
        collection.storage.storage.execute("pragma journal_mode = wal").fetchone()
        collection.storage.storage.execute("pragma synchronous = normal")
        collection.storage.storage.execute("pragma secure_delete = on")  # what is deleted is no longer in the file


def _forget(collection: LocalCollection, points: Sequence[models.ExtendedPointId]) -> None:
    """Local mode only hides what is deleted until the folder is opened again; overwrite it."""
    for row in (collection.ids[point] for point in points if point in collection.ids):
        collection.payload[row] = {}
        for vectors in collection.vectors.values():
            vectors[row] = 0
    _sync(collection)


def _sync(collection: LocalCollection) -> None:
    if collection.storage is not None:
        collection.storage.storage.execute("pragma wal_checkpoint(truncate)").fetchone()
