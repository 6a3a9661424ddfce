"""Attributes of items as terms that a filter can name, such as ``language=en``.

Values are read as ``tasks.domain.features`` reads them: a text that is a number is that number, and equal numbers are
written alike. It knows nothing of where terms are stored.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_TERM_LENGTH = 200
"""Characters of a term. A longer one is a description that nobody filters by; it is left out, for cut it would stand
for other values too."""
MAX_TERMS = 100
"""Terms of one item. Where there are more, the attributes with the most values lose some of theirs."""
_LONGEST_NUMBER = 30
_LARGEST_WHOLE = 2.0**53
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII)


def attribute_terms(attributes: str | Mapping[str, Any] | None) -> tuple[str, ...]:
    """Terms ``name=value`` of an item's attributes, sorted and distinct; at most ``MAX_TERMS``.

    ``attributes`` are a JSON object, as text or parsed; anything else has no terms. A list gives a term for each
    member. Nested objects, nulls, empty texts and numbers that are not finite are left out, and so is a term of more
    than ``MAX_TERM_LENGTH`` characters.
    """
    names = (sorted({*_terms(name, value)}) for name, value in _parse(attributes).items())
    shortest_first = (term for terms in sorted(names, key=lambda terms: (len(terms), terms)) for term in terms)
    return tuple(sorted([*dict.fromkeys(shortest_first)][:MAX_TERMS]))


def terms_of(name: str, values: Iterable[Any]) -> tuple[str, ...]:
    """The terms that a request for any of ``values`` of the attribute ``name`` means, sorted and distinct.

    ``1995``, ``"1995"`` and ``1995.0`` mean the same. A value that no item can have gives no term.
    """
    return tuple(sorted({term for value in values for term in _terms(name, value)}))


def _parse(attributes: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not isinstance(attributes, str):
        return attributes or {}
    try:
        found = json.loads(attributes)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _terms(name: str, value: Any) -> Iterator[str]:
    for member in value if isinstance(value, list | tuple) else (value,):
        written = _written(member)
        if written and len(name) + 1 + len(written) <= MAX_TERM_LENGTH:
            term = f"{name}={written}"
            if _is_text(term):
                yield term


def _written(value: Any) -> str | None:
    """A value as a text, or None for what is no value."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = value.strip()
            if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
                return text
            return _written(float(text) if "." in text else int(text))
        case int():
            return str(value) if abs(value) < 10**_LONGEST_NUMBER else None
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < _LARGEST_WHOLE else repr(value)
    return None


def _is_text(term: str) -> bool:
    """False for half of a surrogate pair, which JSON may hold and no store takes."""
    if term.isascii():
        return True
    try:
        term.encode()
    except UnicodeEncodeError:
        return False
    return True
