"""JSON objects as columns of text, for the checks that files go through. It knows nothing of which values are good."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.domain.mappings import CANONICAL, SourceKind

_ID, _NUMBER = "text or a whole number", "a number, or text that holds one"
_TIME, _TEXT = "ISO 8601 text, or Unix seconds", "text"
_TAKEN: Mapping[str, tuple[frozenset[type], str]] = {
    **dict.fromkeys(("event_id", "user_id", "item_id", "event_type"), (frozenset({str, int}), _ID)),
    **dict.fromkeys(("occurred_at", "updated_at"), (frozenset({str, int, float}), _TIME)),
    **dict.fromkeys(("title", "description", "text"), (frozenset({str, int, float}), _TEXT)),
    "value": (frozenset({str, int, float}), _NUMBER),
    "available": (frozenset({str, bool, int}), "true or false"),
    "categories": (frozenset({str, list}), "a list of texts"),
    "attributes": (frozenset({str, dict}), "an object"),
}
_NAMED: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with decimals",
    str: "text",
    list: "a list",
    dict: "an object",
}
_SCALARS = frozenset({str, int, float, bool})


@dataclass
class TextRows:
    """Rows of one request: every canonical column as text (null where nothing stands), and for each row why it cannot
    even be read as such (null: it can). A row with a fault is null in every column."""

    columns: dict[str, list[str | None]]
    faults: list[str | None] = field(default_factory=list)


def rows_as_columns(kind: SourceKind, rows: Sequence[object]) -> TextRows:
    """The canonical columns of JSON objects; fields that Nearline does not read are passed over.

    Numbers, truth values and lists become the text that the same value has in a file. A fault is a row that is no
    object, a list or an object where a single value is wanted, an id with decimals (7 would become "7.0"), text that is
    not Unicode, and an item without the field ``title``: a row replaces the whole item, so leaving it out is a slip.
    """
    names = CANONICAL[kind]
    found = TextRows({name: [] for name in names})
    for row in rows:
        values, fault = _row_as_text(kind, names, row)
        found.faults.append(fault)
        for name, value in zip(names, values, strict=True):
            found.columns[name].append(value)
    return found


def type_fault(name: str, kind: type) -> str | None:
    """Why a JSON value of this Python type cannot stand in a canonical column; None if it can."""
    taken, wanted = _TAKEN[name]
    return None if kind in taken else f"{name} is {_NAMED.get(kind, f'a {kind.__name__}')}; give {wanted}"


def row_json(row: object) -> str:
    """A refused row as one JSON object, whatever it was; half characters and NUL are escaped."""
    document = row if type(row) is dict else {"unreadable": row}
    try:
        text = json.dumps(document, ensure_ascii=False, default=str)
        return text if _is_unicode(text) else json.dumps(document, default=str)
    except (ValueError, TypeError, RecursionError):
        return '{"unreadable": "a value that cannot be written as JSON"}'


def _row_as_text(kind: SourceKind, names: Sequence[str], row: object) -> tuple[list[str | None], str | None]:
    nothing: list[str | None] = [None] * len(names)
    if not isinstance(row, Mapping):
        return nothing, f"the row is {_name_of(row)}; give an object with the fields of {kind}"
    if kind == "items" and "title" not in row:
        return nothing, "title is missing: a row replaces the whole item, so give its title again (null if it has none)"
    values: list[str | None] = []
    for name in names:
        value, fault = _value_as_text(name, row.get(name))
        if fault is not None:
            return nothing, fault
        values.append(value)
    return values, None


def _value_as_text(name: str, value: object) -> tuple[str | None, str | None]:
    """The text of one value, or why it has none."""
    if value is None:
        return None, None
    if (fault := type_fault(name, type(value))) is not None:
        return None, fault
    if isinstance(value, list) and not all(type(element) in _SCALARS for element in value):
        return None, f"{name} hold a list, an object or null; give {_TAKEN[name][1]}"
    try:
        text = value if isinstance(value, str) else _written(value)
    except (ValueError, TypeError, RecursionError):
        return None, f"{name} is too large or nested too deeply"
    return (text, None) if _is_unicode(text) else (None, f"{name} holds half a character (a lone surrogate)")


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name_of(value: object) -> str:
    return "null" if value is None else _NAMED.get(type(value), f"a {type(value).__name__}")
