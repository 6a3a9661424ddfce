"""From the columns that a file has to the columns that Nearline reads. It knows nothing of files or rows.

A mapping is ``{canonical column: column of the file}``. A value that begins with ``=`` is a constant for every row
(``event_type: "=rating"``); ``attributes: "*"`` packs every column that is not mapped. Two options say how categories
are written: ``categories.separator`` (default ``|``; a JSON list is understood too) and ``categories.none`` (a value
that means "no categories").
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tasks.domain.errors import InputError

SourceKind = Literal["items", "users", "events"]

CANONICAL: Mapping[SourceKind, tuple[str, ...]] = {
    "items": ("item_id", "title", "description", "categories", "attributes", "available", "updated_at"),
    "users": ("user_id", "attributes"),
    "events": ("event_id", "user_id", "item_id", "event_type", "occurred_at", "value", "text"),
}
"""Columns that Nearline reads, by kind."""

REQUIRED: Mapping[SourceKind, tuple[str, ...]] = {
    "items": ("item_id", "title"),
    "users": ("user_id",),
    "events": ("user_id", "event_type", "occurred_at"),
}
"""Columns that must be there. Events also need ``item_id``, or ``text`` where all of them are textual."""

OPTIONS = ("categories.separator", "categories.none")
ALL_OTHERS = "*"

_SYNONYMS: Mapping[str, str] = {
    "item_id": "itemid item movieid filmid bookid productid songid trackid artistid articleid newsid asin parentasin"
    " sku gtin isbn isbn13 goodsid venueid locationid poiid contentid docid documentid iid videoid gameid id",
    "user_id": "userid user customerid customer memberid visitorid reviewerid accountid uid personid clientid profileid"
    " sessionid id",
    "title": "title name itemname productname movietitle booktitle producttitle headline artistname label",
    "description": "description desc summary overview abstract plot synopsis body content details about longtext",
    "categories": "categories category genres genre tags labels topics topic class productcategory maincategory",
    "attributes": "attributes properties metadata features extra",
    "available": "available isavailable instock active isactive enabled published",
    "updated_at": "updatedat lastmodified modifiedat lastupdated updated",
    "event_id": "eventid interactionid id",
    "event_type": "eventtype event type action behavior behaviortype interactiontype",
    "occurred_at": "occurredat timestamp time datetime date ts eventtime createdat unixreviewtime reviewtime"
    " ratedat clickedat viewedat eventdate unixtime",
    "value": "value rating score stars overall playcount weight count",
    "text": "text query searchquery searchterm search tag review comment reviewtext keyword keywords",
}


def propose_mapping(kind: SourceKind, header: Sequence[str]) -> dict[str, str]:
    """A mapping from the names that files of this kind often have; canonical names come first.

    It holds what could be recognised, and may lack required columns. Events without a type get one as a constant:
    ``=rating`` beside ratings, ``=tag`` or ``=search`` beside such a text, else ``=view``. What is left over of items
    and users goes into their attributes.
    """
    by_form = {_form(name): name for name in reversed(header)}
    proposal: dict[str, str] = {}
    for column in CANONICAL[kind]:
        free = {form: name for form, name in by_form.items() if name not in proposal.values()}
        match = next((free[word] for word in (_form(column), *_SYNONYMS[column].split()) if word in free), None)
        if match is not None:
            proposal[column] = match
    if kind == "events" and "event_type" not in proposal and proposal:
        proposal["event_type"] = _constant_type(proposal)
    if kind != "events" and "attributes" not in proposal and set(header) - set(proposal.values()):
        proposal["attributes"] = ALL_OTHERS
    return {column: proposal[column] for column in CANONICAL[kind] if column in proposal}


def resolve_mapping(
    kind: SourceKind, header: Sequence[str], mapping: Mapping[str, str] | None, source: str
) -> dict[str, str]:
    """The mapping that is used: the one given, and every canonical column that the file has under its own name.

    Raises InputError, with a proposal to copy, for a name that is not known or a required column that is missing.
    """
    given = dict(mapping or {})
    _check_names(kind, header, given, source)
    resolved = {column: column for column in CANONICAL[kind] if column in header} | given
    missing = [column for column in REQUIRED[kind] if column not in resolved]
    if kind == "events" and not {"item_id", "text"} & resolved.keys():
        missing.append("item_id")
    if missing:
        raise InputError(_missing_message(kind, header, missing, given, source))
    return resolved


def unused_columns(header: Sequence[str], resolved: Mapping[str, str]) -> list[str]:
    """Columns of the file that a mapping leaves out; none if it packs all others into the attributes."""
    if resolved.get("attributes") == ALL_OTHERS:
        return []
    return [name for name in header if name not in resolved.values()]


def _check_names(kind: SourceKind, header: Sequence[str], given: Mapping[str, str], source: str) -> None:
    allowed = (*CANONICAL[kind], *(OPTIONS if kind == "items" else ()))
    foreign = [name for name in given if name not in allowed]
    if foreign:
        raise InputError(
            f"The mapping for {source} names {', '.join(foreign)}, which {kind} do not have. "
            f"Left of the colon stands one of: {', '.join(allowed)}."
        )
    unwritten = [name for name, value in given.items() if not isinstance(value, str) or not value]
    if unwritten:
        raise InputError(
            f"The mapping for {source} gives {', '.join(unwritten)} no text. Right of the colon stands the name of a "
            'column, or a constant such as "=rating"; put quotes around it.'
        )
    wanted = {name: value for name, value in given.items() if name not in OPTIONS and not _is_special(name, value)}
    absent = [f"{name}: {value}" for name, value in wanted.items() if value not in header]
    if absent:
        raise InputError(
            f"The mapping for {source} takes {'; '.join(absent)}, but the file has no such column. "
            f'Its columns: {", ".join(header)}. A constant is written with an equals sign: "=rating".'
        )


def _is_special(name: str, value: str) -> bool:
    return value.startswith("=") or (name == "attributes" and value == ALL_OTHERS)


def _missing_message(
    kind: SourceKind, header: Sequence[str], missing: Iterable[str], given: Mapping[str, str], source: str
) -> str:
    proposal = propose_mapping(kind, header) | dict(given)
    lines = [f"{column}: {_yaml(proposal[column])}" for column in CANONICAL[kind] if column in proposal]
    lines += [f"{column}: ???  # which column is it?" for column in missing if column not in proposal]
    return (
        f"{source} cannot be read as {kind}: it has no column {', '.join(missing)}. "
        f"Its columns: {', '.join(header)}.\nIf this mapping is right, save it as mapping.yml and import again with "
        "--mapping mapping.yml (docs/import.md says more):\n\n  " + "\n  ".join(lines) + "\n"
    )


def _yaml(value: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w ./-]*(?<! )", value)
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _form(name: str) -> str:
    """A name without case, spaces and marks: ``User-ID`` and ``user_id`` are the same."""
    return re.sub(r"[\W_]+", "", name.lower())


def _constant_type(proposal: Mapping[str, str]) -> str:
    value, text = (_form(proposal.get(column, "")) for column in ("value", "text"))
    if text in ("query", "searchquery", "searchterm", "search"):
        return "=search"
    if text == "tag" and "value" not in proposal:
        return "=tag"
    return "=rating" if value in ("rating", "stars", "overall", "score") else "=view"
