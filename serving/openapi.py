"""The description of the API for programs: bodies, errors, keys, examples. It knows nothing of how it is answered."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from serving import models

REFERENCE = "#/components/schemas/{model}"
BODIES = (models.EventRow, models.ItemRow, models.UserRow, models.SlateBody)
EXAMPLES: dict[str, Any] = {
    "EventRow": {
        "event_id": "web-2041",
        "user_id": "42",
        "item_id": "50",
        "event_type": "click",
        "occurred_at": "2026-03-01T12:00:00Z",
    },
    "ItemRow": {
        "item_id": "i900",
        "title": "The Quiet Sea (2026)",
        "description": "Two brothers keep a lighthouse.",
        "categories": ["Drama"],
        "attributes": {"language": "en"},
        "available": True,
    },
    "UserRow": {"user_id": "42", "attributes": {"age": 31, "occupation": "student"}},
    "SlateBody": {
        "user_id": "42",
        "text": "a quiet film about the sea",
        "liked": ["50"],
        "k": 5,
        "categories": ["Drama"],
        "attributes": {"language": ["en", "fr"]},
        "diversity": 0.3,
        "boosts": [{"kind": "category", "value": "Drama", "weight": 0.2}],
        "explain": True,
    },
}
ABOUT = {
    400: "The body is not JSON.",
    401: "No key, or one that is unknown, revoked or past its time.",
    403: "The key lacks the scope.",
    404: "Something is named that does not exist.",
    413: "The body, or the number of rows, is too large.",
    415: "The body is compressed.",
    422: "A parameter or the body cannot be used.",
    429: "Too many requests, or more than can be kept up with. Retry-After says when to come again.",
    500: "Something went wrong in the service.",
    503: "A part of the platform is away, or the time is over. Retry-After says when to come again.",
}
TEXT = """Events in, recommendations out: the next request already shows what was sent.

Every error has one shape, `{"error": {"type", "message", "advice", "request_id"}}`."""


def errors(*codes: int, refused: bool = False) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route: those named and those that every route may give."""
    found: dict[int | str, dict[str, Any]] = {
        code: {"model": models.ErrorAnswer, "description": ABOUT[code]}
        for code in sorted({400, 401, 403, 422, 429, 500, 503, *codes})
    }
    if refused:
        found[422] = {
            "model": models.RefusedAnswer | models.ErrorAnswer,
            "description": "The body cannot be used, or no row of it could be taken; then it is a receipt, too.",
        }
    return found


def asked(model: str, *, rows: bool = False) -> dict[str, Any]:
    """The body of a route that reads it itself."""
    one = {"$ref": REFERENCE.format(model=model)}
    schema = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}]} if rows else one
    example = EXAMPLES[model]
    examples = {"one": {"value": example}, "several": {"value": [example]}} if rows else {"all": {"value": example}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=TEXT, routes=app.routes)
        _, bodies = models_json_schema([(model, "validation") for model in BODIES], ref_template=REFERENCE)
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(bodies["$defs"])
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
