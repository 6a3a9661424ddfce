"""Bodies of requests: JSON to rows, or to what a slate is asked for with. It knows nothing of what becomes of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from serving.errors import HttpError
from serving.models import SlateBody
from tasks.domain.errors import InputError

MAX_DEPTH = 20


def parse_rows(body: bytes, max_rows: int) -> Sequence[Mapping[str, object]]:
    """One row, or a list of rows. Raises HttpError (400, 413) and InputError."""
    document = _parse(body)
    rows = document if isinstance(document, list) else [document]
    if not rows:
        raise InputError("The body is an empty list. Send one row as an object, or a list of rows.")
    if len(rows) > max_rows:
        raise HttpError(
            413,
            "too_many_rows",
            f"{len(rows):,} rows were sent; {max_rows:,} may be.",
            "Send them in several requests.",
        )
    if any(not isinstance(row, dict) for row in rows):
        raise InputError("The body is neither an object nor a list of objects. A row is an object.")
    return rows


def parse_slate(body: bytes) -> SlateBody:
    """What a slate is asked for with. Raises HttpError (400) and InputError."""
    try:
        return SlateBody.model_validate(_parse(body), strict=True)
    except ValidationError as error:
        raise InputError(told(error.errors(include_url=False, include_context=False))) from None


def told(errors: Sequence[Mapping[str, Any]]) -> str:
    """Where a request is wrong and why, without what was sent."""
    named = [f"{'.'.join(str(part) for part in error['loc']) or 'body'}: {error['msg']}" for error in errors[:10]]
    return "The request cannot be used. " + "; ".join(named)


def _parse(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
        document = json.loads(text)
    except UnicodeDecodeError:
        raise HttpError(400, "json", "The body is not UTF-8.", "Send JSON in UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        reason = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise HttpError(400, "json", f"The body is not JSON{reason}.", "Send JSON in UTF-8.") from None
    if _is_deeper(document, MAX_DEPTH):
        raise _too_deep()
    return _well_formed(document) if "\\ud" in text.lower() else document


def _well_formed(document: Any) -> Any:
    """Halves of surrogate pairs, which programs that cut texts leave behind, become U+FFFD: UTF-8 cannot hold them."""
    text = json.dumps(document, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inside)


def _too_deep() -> HttpError:
    return HttpError(400, "json", f"The body is nested deeper than {MAX_DEPTH} levels.", "Send it flatter.")
