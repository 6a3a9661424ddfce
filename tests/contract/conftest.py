"""A stand-in for Qdrant's HTTP interface."""

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import jsonschema
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from infra.qdrant_index import QdrantIndex
from infra.settings import IndexSettings


class QdrantOverHttp:
    """Qdrant's HTTP interface, as far as the adapter uses it, in front of an index in memory.

    Every request is written down in ``requests`` as method, path and body, and checked against Qdrant's OpenAPI
    description where NEARLINE_QDRANT_OPENAPI names its file. Collections in half precision round vectors and queries,
    as Qdrant does.
    """

    def __init__(self, version: str = "1.20.0", key: str | None = None) -> None:
        self.requests: list[tuple[str, str, object]] = []
        self._version, self._key = version, key
        self._store = QdrantClient(":memory:")
        self._halved: set[str] = set()
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
            case "GET", ["collections", name]:
                return store.get_collection(name)
            case "PUT", ["collections", name]:
                vectors = {key: models.VectorParams(**value) for key, value in body["vectors"].items()}
                if any(about.datatype == models.Datatype.FLOAT16 for about in vectors.values()):
                    self._halved.add(name)
                return store.create_collection(name, vectors_config=vectors)
            case "DELETE", ["collections", name]:
                return store.delete_collection(name)
            case "PUT", ["collections", _, "index"]:
                return models.UpdateResult(operation_id=0, status="completed")
            case "PUT", ["collections", name, "points"]:
                fence = models.Filter(**body["update_filter"]) if body.get("update_filter") else None
                points = [models.PointStruct(**point) for point in body["points"]]
                for point in points if name in self._halved else []:
                    point.vector = {key: _rounded(vector) for key, vector in point.vector.items()}
                return store.upsert(name, points, update_filter=fence)
            case "POST", ["collections", name, "points"]:
                ids, payload, vector = body["ids"], body["with_payload"], body["with_vector"]
                return store.retrieve(name, ids, with_payload=payload, with_vectors=vector)
            case "POST", ["collections", name, "points", "scroll"]:
                limit, payload, vector = body["limit"], body["with_payload"], body["with_vector"]
                points, _ = store.scroll(name, limit=limit, with_payload=payload, with_vectors=vector)
                return models.ScrollResult(points=points)
            case "POST", ["collections", name, "points", "count"]:
                restrict = models.Filter(**body["filter"]) if body.get("filter") else None
                return store.count(name, count_filter=restrict, exact=body["exact"])
            case "POST", ["collections", name, "points", "delete"]:
                return store.delete(name, models.PointIdsList(points=body["points"]))
            case "POST", ["collections", name, "points", "query"]:
                query = models.QueryRequest(**body)
                return store.query_points(
                    name,
                    query=_rounded(query.query.nearest) if name in self._halved else query.query,
                    using=query.using,
                    limit=query.limit,
                    query_filter=query.filter,
                    with_vectors=query.with_vector,
                )
        raise AssertionError(f"the adapter asked for {method} {path}, which this stand-in does not know")


def _rounded(vector: list[float]) -> list[float]:
    return np.asarray(vector, np.float16).astype(float).tolist()


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
def make_index(qdrant_over_http: QdrantOverHttp) -> Iterator[Callable[..., QdrantIndex]]:
    """Opens the stand-in under settings of the index."""
    opened: list[QdrantIndex] = []

    def make(**settings: object) -> QdrantIndex:
        transport, address = httpx.MockTransport(qdrant_over_http), "http://qdrant.test:6333"
        client = QdrantClient(url=address, transport=transport, check_compatibility=False)
        opened.append(QdrantIndex(client, address, IndexSettings(**settings)))
        return opened[-1]

    yield make
    for index in opened:
        index.close()


@pytest.fixture
def index_over_http(make_index: Callable[..., QdrantIndex]) -> QdrantIndex:
    """With vectors to the bit."""
    return make_index(vector_type="float32")
