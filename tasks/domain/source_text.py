"""Source columns as text, under the names that Nearline reads. It knows nothing of which values are good."""

import json
from collections.abc import Mapping

import pyarrow as pa

from tasks.domain.errors import InputError
from tasks.domain.mappings import ALL_OTHERS, CANONICAL, OPTIONS, SourceKind


def check_id_types(rows: pa.Table, mapping: Mapping[str, str], source: str) -> None:
    """Raises InputError for an id column of fractions: 7 would become "7.0", and ids stay as they came."""
    for name in ("item_id", "user_id", "event_id"):
        column = mapping.get(name)
        if column in rows.column_names and pa.types.is_floating(rows.schema.field(column).type):
            raise InputError(
                f"The column {column} of {source} holds {name} as {rows.schema.field(column).type}, a number with "
                "decimals. Write ids as text or as integers; in pandas: frame[column].astype('Int64')."
            )


def rows_as_text(rows: pa.Table) -> pa.Table:
    """Every column as text: lists and objects as JSON, times in ISO 8601. Raises InputError for bytes."""
    columns = {name: _text_column(name, rows[name]) for name in rows.column_names}
    return pa.table(columns) if columns else rows


def _text_column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_nested(kind):
        return pa.chunked_array([pa.array([json_text(value) for value in column.to_pylist()], pa.string())])
    if pa.types.is_dictionary(kind):
        return _text_column(name, column.cast(kind.value_type))
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"The column {name} is {kind} and cannot be read as text. Write it as text.") from error


def json_text(value: object) -> str | None:
    """A value as JSON; null stays null."""
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)


def canonical_rows(kind: SourceKind, text: pa.Table, positions: pa.Array, mapping: Mapping[str, str]) -> pa.Table:
    """The canonical columns of a kind, all as text, beside the position of each row in its source."""
    n = text.num_rows
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"source_row": positions}
    for name in CANONICAL[kind]:
        value = mapping.get(name)
        if value is None:
            columns[name] = pa.nulls(n, pa.string())
        elif value.startswith("="):
            columns[name] = pa.array([value[1:]] * n, pa.string())
        elif name == "attributes" and value == ALL_OTHERS:
            columns[name] = _packed(text, unused={v for k, v in mapping.items() if k not in OPTIONS})
        else:
            columns[name] = text[value]
    return pa.table(columns)


def _packed(text: pa.Table, unused: set[str]) -> pa.Array:
    """The columns that nothing else takes, as one JSON object for each row; empty values are left out."""
    rest = text.select([name for name in text.column_names if name not in unused])
    rows = ({name: value for name, value in row.items() if value is not None} for row in rest.to_pylist())
    return pa.array([json_text(row) for row in rows], pa.string())
