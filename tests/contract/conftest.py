"""Stand-ins: an index in memory that must behave as the real ones do, and Qdrant's HTTP interface."""

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import httpx
import jsonschema
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from infra.qdrant_index import QdrantIndex
from tasks.domain.errors import InputError, NotFoundError, TerminalError
from tasks.domain.records import Hit, IndexFilter, ItemPayload, UserPayload


class MemoryIndex:
    """Exact search over dictionaries."""

    def __init__(self) -> None:
        self._versions: dict[str, tuple[int, dict, dict]] = {}
        self._serving: str | None = None

    def serving_version(self) -> str | None:
        return self._serving

    def versions(self) -> list[str]:
        return sorted(self._versions)

    def create_version(self, version: str, width: int) -> None:
        self._refuse_serving(version)
        self._versions[version] = (width, {}, {})

    def upsert_items(self, version: str, vectors: np.ndarray, payloads: Sequence[ItemPayload]) -> None:
        self._check(version, vectors, len(payloads))
        for vector, payload in zip(vectors, payloads, strict=True):
            self._get(version)[1][payload.item_id] = (payload, np.array(vector, dtype=np.float32))

    def upsert_users(self, version: str, vectors: np.ndarray, payloads: Sequence[UserPayload]) -> None:
        self._check(version, vectors, len(payloads))
        users = self._get(version)[2]
        for vector, payload in zip(vectors, payloads, strict=True):
            stored = users.get(payload.user_id)
            if stored is None or stored[0].as_of_snapshot <= payload.as_of_snapshot:
                users[payload.user_id] = (payload, np.array(vector, dtype=np.float32))

    def count(self, version: str) -> tuple[int, int]:
        _, items, users = self._get(version)
        return len(items), len(users)

    def items(self, version: str, item_ids: Sequence[str]) -> dict:
        return {i: self._get(version)[1][i] for i in item_ids if i in self._get(version)[1]}

    def users(self, version: str, user_ids: Sequence[str]) -> dict:
        return {u: self._get(version)[2][u] for u in user_ids if u in self._get(version)[2]}

    def delete_users(self, user_ids: Sequence[str]) -> int:
        return sum(users.pop(u, None) is not None for _, _, users in self._versions.values() for u in user_ids)

    def search(
        self, version: str, query: np.ndarray, k: int, restrict: IndexFilter, *, with_vectors: bool = False
    ) -> list[Hit]:
        hits = [
            Hit(item_id, float(vector @ query), payload, vector if with_vectors else None)
            for item_id, (payload, vector) in self._get(version)[1].items()
            if (payload.available or not restrict.only_available)
            and (not restrict.categories or set(restrict.categories) & set(payload.categories))
            and all(set(terms) & set(payload.attributes) for terms in restrict.attributes)
            and item_id not in restrict.exclude_items
            and (not restrict.only_items or item_id in restrict.only_items)
        ]
        return sorted(hits, key=lambda hit: -hit.score)[: max(k, 0)]

    def switch(self, version: str) -> None:
        self._get(version)
        self._serving = version

    def drop_version(self, version: str) -> None:
        self._refuse_serving(version)
        self._versions.pop(version, None)

    def _get(self, version: str) -> tuple[int, dict, dict]:
        if version not in self._versions:
            raise NotFoundError(f"version {version!r} is not there. Versions in the index: {self.versions()}")
        return self._versions[version]

    def _check(self, version: str, vectors: np.ndarray, n_payloads: int) -> None:
        if vectors.ndim != 2 or len(vectors) != n_payloads or not np.isfinite(vectors).all():
            raise InputError("one finite row for each payload")
        if vectors.shape[1] != self._get(version)[0]:
            raise TerminalError("width")

    def _refuse_serving(self, version: str) -> None:
        if version == self._serving:
            raise TerminalError(f"{version!r} is serving")


@pytest.fixture
def memory_index() -> MemoryIndex:
    return MemoryIndex()


class QdrantOverHttp:
    """Qdrant's HTTP interface, as far as the adapter uses it, in front of an index in memory.

    Every request is written down in ``requests`` as method, path and body, and checked against Qdrant's OpenAPI
    description where NEARLINE_QDRANT_OPENAPI names its file.
    """

    def __init__(self, version: str = "1.20.0", key: str | None = None) -> None:
        self.requests: list[tuple[str, str, object]] = []
        self._version, self._key = version, key
        self._store = QdrantClient(":memory:")
        self._description = _openapi()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = unquote(request.url.path)
        body = json.loads(request.content) if request.content else None
        self.requests.append((request.method, path, body))
        if self._key is not None and request.headers.get("api-key") != self._key:
            return httpx.Response(403, json={"status": {"error": "forbidden"}})
        if self._description:
            _check_request(self._description, request.method, path, body)
        try:
            result = self._answer(request.method, path, body)
        except ValueError as error:
            status = 404 if "not found" in str(error) else 400
            return httpx.Response(status, json={"status": {"error": str(error)}, "time": 0.0})
        if path == "/":
            return httpx.Response(200, json=result)
        return httpx.Response(200, json={"result": _plain(result), "status": "ok", "time": 0.0})

    def _answer(self, method: str, path: str, body: dict | None) -> object:
        store, parts = self._store, path.strip("/").split("/")
        match method, parts:
            case "GET", [""]:
                return {"title": "qdrant", "version": self._version, "commit": None}
            case "GET", ["collections"]:
                return store.get_collections()
            case "GET", ["aliases"]:
                return store.get_aliases()
            case "POST", ["collections", "aliases"]:
                return store.update_collection_aliases(models.ChangeAliasesOperation(**body).actions)
            case "GET", ["collections", name, "exists"]:
                return {"exists": store.collection_exists(name)}
            case "PUT", ["collections", name]:
                vectors = {key: models.VectorParams(**value) for key, value in body["vectors"].items()}
                return store.create_collection(name, vectors_config=vectors)
            case "DELETE", ["collections", name]:
                return store.delete_collection(name)
            case "PUT", ["collections", _, "index"]:
                return models.UpdateResult(operation_id=0, status="completed")
            case "PUT", ["collections", name, "points"]:
                fence = models.Filter(**body["update_filter"]) if body.get("update_filter") else None
                return store.upsert(
                    name, [models.PointStruct(**point) for point in body["points"]], update_filter=fence
                )
            case "POST", ["collections", name, "points"]:
                ids, payload, vector = body["ids"], body["with_payload"], body["with_vector"]
                return store.retrieve(name, ids, with_payload=payload, with_vectors=vector)
            case "POST", ["collections", name, "points", "count"]:
                restrict = models.Filter(**body["filter"]) if body.get("filter") else None
                return store.count(name, count_filter=restrict, exact=body["exact"])
            case "POST", ["collections", name, "points", "delete"]:
                return store.delete(name, models.PointIdsList(points=body["points"]))
            case "POST", ["collections", name, "points", "query"]:
                query = models.QueryRequest(**body)
                return store.query_points(
                    name,
                    query=query.query,
                    using=query.using,
                    limit=query.limit,
                    query_filter=query.filter,
                    with_vectors=query.with_vector,
                )
        raise AssertionError(f"the adapter asked for {method} {path}, which this stand-in does not know")


def _plain(result: object) -> object:
    if isinstance(result, list):
        return [_plain(entry) for entry in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result


@functools.cache
def _openapi() -> dict | None:
    path = os.environ.get("NEARLINE_QDRANT_OPENAPI")
    return _strict(json.loads(Path(path).read_text())) if path else None


def _strict(node: object, inside_all_of: bool = False) -> object:
    """OpenAPI 3.0 as JSON schema: ``nullable`` becomes a type, and names that are not described are errors."""
    if isinstance(node, list):
        return [_strict(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    node = {key: _strict(value) for key, value in node.items()}
    if node.pop("nullable", False) is True:
        if "type" in node:
            node["type"] = [node["type"], "null"]
            if "enum" in node:
                node["enum"] = [*node["enum"], None]
        elif not node.keys() - {"description", "default"}:
            node["type"] = "null"
        else:
            node = {"anyOf": [node, {"type": "null"}]}
    if node.get("type") == "object" and isinstance(node.get("properties"), dict):
        node.setdefault("additionalProperties", False)
    return node


def _check_request(description: dict, method: str, path: str, body: object) -> None:
    for template, operations in description["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", template)
        operation = operations.get(method.lower())
        if operation and re.fullmatch(pattern, path):
            break
    else:
        raise AssertionError(f"Qdrant's description has no {method} {path}")
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, {**schema, "components": description["components"]})


@pytest.fixture
def qdrant_over_http() -> QdrantOverHttp:
    return QdrantOverHttp()


@pytest.fixture
def index_over_http(qdrant_over_http: QdrantOverHttp) -> Iterator[QdrantIndex]:
    client = QdrantClient(
        url="http://qdrant.test:6333", transport=httpx.MockTransport(qdrant_over_http), check_compatibility=False
    )
    index = QdrantIndex(client, "http://qdrant.test:6333")
    yield index
    index.close()
