"""The layout of the tables: made whole in a new lake, and brought forward by numbered steps in an older one.

Forwards only. An opening never changes a layout, it says what is to be done; ``nearline migrate`` does it, with a
backup before. This knows nothing of where the lake lies, of its lock or of its backup.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb

from tasks.domain.errors import MigrationNeededError, TerminalError
from warehouse.catalog import Column, contracts

_INLINED_ROWS = 500
"""An insert of so many rows or fewer stays in the catalog until the next flush. A file for each commit of the intake
would be thousands in an hour; above some hundred rows a file is faster (1,000 events: 50 ms against 140 ms)."""
_OPTIONS = {
    "parquet_version": "2",
    "parquet_compression": "uncompressed",
    "data_inlining_row_limit": str(_INLINED_ROWS),
}
"""How new rows are stored: ``docs/nearline.md`` has the measurements. Files that are there already stay as they are."""
_INLINED_VECTORS = 10
"""The same for a table with vectors, which the catalog takes far more slowly than a file (1,000 profiles: 1.1 s against
0.07 s)."""
_EVENT_GROUP_ROWS = "500000"
"""Rows of ``raw_events`` in one row group: large enough for dictionaries of ids (a fifth less bytes, a quarter less
time to read 1,000 of 100,000 users), and small enough for two threads to share a few million rows."""


@dataclass(frozen=True)
class Migration:
    """One step to layout ``number``. ``apply`` runs in a transaction in which every column of the contracts is there,
    and so is every older one: it moves what is in the old ones, then drops them."""

    number: int
    about: str
    apply: Callable[[duckdb.DuckDBPyConnection], None]


def create_layout(connection: duckdb.DuckDBPyConnection) -> None:
    """All tables of the contracts in an empty lake."""
    with _transaction(connection):
        for table, columns in _missing(connection).items():
            _add_columns(connection, table, columns)
    with _transaction(connection):
        _set_options(connection)
        _record(connection, LAYOUT)


def check_layout(connection: duckdb.DuckDBPyConnection) -> None:
    """Compare the lake with the contracts, reading only.

    Raises MigrationNeededError where something is missing, and TerminalError for a layout newer than this program's.
    """
    missing = _missing(connection)
    layout = 0 if "layouts" in missing else stored_layout(connection)
    if layout > LAYOUT:
        raise TerminalError(
            f"The warehouse has layout {layout}, and this program knows layouts up to {LAYOUT}: "
            "a newer Nearline wrote it. Install that version."
        )
    if layout < LAYOUT or missing:
        numbers = f"has layout {layout}, and this program needs layout {LAYOUT}" if layout < LAYOUT else ""
        lacks = f"lacks {_listed(missing)}, which this program needs" if missing else ""
        raise MigrationNeededError(
            f"The warehouse {' and '.join(filter(None, (numbers, lacks)))}. An older Nearline wrote it. Stop what uses "
            "it, then bring it forward: nearline migrate (docs/backup.md says how)."
        )


def migrate_layout(connection: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """Add what the contracts have and the lake has not, then take the steps above its layout; says what was done.

    The additions are one transaction, and so is each step with the record of its number: what a kill leaves out is done
    by the next call.
    """
    missing = _missing(connection)
    with _transaction(connection):
        for table, columns in missing.items():
            _add_columns(connection, table, columns)
    done = [f"added {_listed(missing)}"] if missing else []
    layout = stored_layout(connection)
    for step in (step for step in MIGRATIONS if step.number > layout):
        with _transaction(connection):
            step.apply(connection)
            _record(connection, step.number)
        done.append(f"layout {step.number}: {step.about}")
    if layout == LAYOUT:
        _set_options(connection)  # those of a table that was added
    return tuple(done)


def stored_layout(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the lake's layout; 0 if none was recorded."""
    return int(connection.execute("select coalesce(max(layout), 0) from layouts").fetchall()[0][0])


def _record(connection: duckdb.DuckDBPyConnection, layout: int) -> None:
    row = {"layout": layout, "applied_at": datetime.now(UTC)}
    connection.execute("insert into layouts values ($layout, $applied_at)", row)


def _missing(connection: duckdb.DuckDBPyConnection) -> dict[str, list[Column]]:
    """Columns of the contracts that the lake does not have, by table."""
    rows = connection.execute("select table_name, column_name from duckdb_columns() where database_name = 'lake'")
    present = set(rows.fetchall())
    gaps = {
        table: [column for column in contract.columns if (table, column.name) not in present]
        for table, contract in contracts().items()
    }
    return {table: columns for table, columns in gaps.items() if columns}


def _listed(missing: dict[str, list[Column]]) -> str:
    tables = [name for name, columns in missing.items() if len(columns) == len(contracts()[name].columns)]
    columns = [f"{name}.{column.name}" for name in missing if name not in tables for column in missing[name]]
    named = (("tables", tables), ("columns", columns))
    return " and ".join(f"the {what} {', '.join(names)}" for what, names in named if names)


def _add_columns(connection: duckdb.DuckDBPyConnection, table: str, columns: list[Column]) -> None:
    """Create a table, or add the columns that it lacks (without NOT NULL: earlier rows have nothing there)."""
    contract = contracts()[table]
    if len(columns) == len(contract.columns):
        definitions = ", ".join(f'"{c.name}" {c.type}{" not null" if c.required else ""}' for c in columns)
        connection.execute(f'create table "{table}" ({definitions})')
        _comment(connection, f'table "{table}"', f"One row is {contract.grain}. {contract.description}")
    else:
        for column in columns:
            connection.execute(f'alter table "{table}" add column "{column.name}" {column.type}')
    for column in columns:
        _comment(connection, f'column "{table}"."{column.name}"', column.description)


def _comment(connection: duckdb.DuckDBPyConnection, what: str, text: str) -> None:
    literal = text.replace("'", "''")
    connection.execute(f"comment on {what} is '{literal}'")


def _set_options(connection: duckdb.DuckDBPyConnection) -> None:
    """Options of one table can only be set once the transaction that made it has ended."""
    for name, value in _OPTIONS.items():
        connection.execute("call lake.set_option($name, $value)", {"name": name, "value": value})
    groups = {"value": _EVENT_GROUP_ROWS, "table": "raw_events"}
    connection.execute("call lake.set_option('parquet_row_group_size', $value, table_name => $table)", groups)
    for table, contract in contracts().items():
        if any(column.type == "FLOAT[]" for column in contract.columns):
            option = {"value": str(_INLINED_VECTORS), "table": table}
            connection.execute("call lake.set_option('data_inlining_row_limit', $value, table_name => $table)", option)


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.execute("begin")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            connection.execute("rollback")
        raise


MIGRATIONS = (Migration(2, "new rows are stored as is fastest to read; older files stay as they are", _set_options),)
"""In order, without a gap, from the layout after the first. A step that was released is never changed."""
LAYOUT = MIGRATIONS[-1].number
"""The layout that this program reads and writes. Raise it by a step when rows must change; columns and tables that a
contract adds need none."""
