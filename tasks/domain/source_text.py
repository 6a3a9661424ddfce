"""Source columns as text, under the names that Nearline reads. It knows nothing of which values are good."""

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.errors import InputError
from tasks.domain.json_rows import type_fault
from tasks.domain.mappings import ALL_OTHERS, CANONICAL, OPTIONS, SourceKind

_PYTHON_TYPES: Mapping[str, type] = {"BOOLEAN": bool, "DOUBLE": float, "ARRAY": list, "OBJECT": dict}


def check_id_types(rows: pa.Table, mapping: Mapping[str, str], source: str) -> None:
    """Raises InputError for an id column that is neither text nor whole numbers: 7 would become "7.0", and ids stay as
    they came."""
    for name in ("item_id", "user_id", "event_id"):
        column = mapping.get(name)
        if column in rows.column_names and _is_no_id(rows.schema.field(column).type):
            raise InputError(
                f"The column {column} of {source} holds {name} as {rows.schema.field(column).type}, which is neither "
                "text nor a whole number. Write ids as text or as integers; in pandas: frame[column].astype('Int64')."
            )


def _is_no_id(kind: pa.DataType) -> bool:
    is_fraction = pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and kind.scale > 0)
    return bool(is_fraction or pa.types.is_boolean(kind) or pa.types.is_nested(kind))


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


def type_faults(kinds: Mapping[str, pa.ChunkedArray], n_rows: int, mapping: Mapping[str, str]) -> pa.ChunkedArray:
    """Why each row of a JSON file has a value of a type that its column cannot have; null: it has none.

    ``kinds`` is that of ``SourceRows``. A list as a title, or true as an id, is refused as it is in a request.
    """
    faults = pa.chunked_array([pa.nulls(n_rows, pa.string())])
    for name, column in mapping.items():
        if name in OPTIONS or column not in kinds:
            continue
        for kind, python_type in _PYTHON_TYPES.items():
            if (fault := type_fault(name, python_type)) is not None:
                is_bad = pc.fill_null(pc.equal(kinds[column], kind), False)
                faults = pc.coalesce(faults, pc.if_else(is_bad, fault, pa.scalar(None, pa.string())))
    return faults


def without(rows: pa.Table, faults: pa.ChunkedArray) -> pa.Table:
    """Canonical rows with nulls in every row that has a fault, so that it repeats no other row."""
    if faults.null_count == len(faults):
        return rows
    kept, nothing = pc.is_null(faults), pa.scalar(None, pa.string())
    columns = {name: pc.if_else(kept, rows[name], nothing) for name in rows.column_names if name != "source_row"}
    return pa.table({"source_row": rows["source_row"], **columns})


def _packed(text: pa.Table, unused: set[str]) -> pa.Array:
    """The columns that nothing else takes, as one JSON object for each row; empty values are left out."""
    rest = text.select([name for name in text.column_names if name not in unused])
    rows = ({name: value for name, value in row.items() if value is not None} for row in rest.to_pylist())
    return pa.array([json_text(row) for row in rows], pa.string())
