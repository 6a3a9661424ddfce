"""The warehouse port on a DuckLake: DuckDB as the engine, Parquet files for rows, a catalog in SQLite or PostgreSQL.

It knows nothing of what the tables mean: their shapes come from the contracts, their SQL from ``warehouse/``.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from infra.duckdb_instances import release_memory
from infra.ducklake_storage import LakeStorage
from infra.migrations import check_layout
from infra.settings import WarehouseSettings
from tasks.domain.errors import InputError, NotFoundError, TerminalError
from tasks.domain.ports import Transaction, Warehouse
from tasks.progress import step
from warehouse.catalog import Contract, contracts

T = TypeVar("T")

_SNAPSHOT = "select id from lake.current_snapshot()"
_LARGE_BYTES = 50_000_000
"""Size of an answer after which the engine is asked to let go of what it took to make it."""
_SMALL_FILE_BYTES = 4_000_000
"""Files up to this size are merged whenever a table is flushed: about 300,000 events."""


@contextmanager
def open_warehouse(folder: Path, settings: WarehouseSettings, *, read_only: bool = False) -> Iterator[Warehouse]:
    """Open the warehouse in ``folder``; it is made, with every table of the contracts, if it is not there yet.

    Raises WarehouseBusyError if other processes keep the catalog for longer than the settings allow,
    MigrationNeededError if an older program wrote the warehouse, and TerminalError if a newer one did.
    """
    storage = LakeStorage(folder.absolute(), settings)
    with storage.attached(read_only=read_only) as connection:
        check_layout(connection)
        yield DuckLakeWarehouse(storage, connection, read_only=read_only)


class DuckLakeWarehouse:
    """Implements ``tasks.domain.ports.Warehouse``; made by ``open_warehouse``.

    Every call takes a cursor of its own, so threads may share one opening.
    """

    def __init__(self, storage: LakeStorage, connection: duckdb.DuckDBPyConnection, *, read_only: bool) -> None:
        self._storage = storage
        self._connection = connection
        self._read_only = read_only

    def latest_snapshot(self) -> int:
        """The id of the newest snapshot (of a view ``at`` a snapshot: that one)."""
        return int(self.read(_SNAPSHOT)["id"][0].as_py())

    def read(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        shadows: Mapping[str, pa.Table] | None = None,
    ) -> pa.Table:
        """Run a query; see the port. Times come back in UTC. Raises InputError or NotFoundError for wrong SQL."""
        with self._cursor() as cursor:
            rows = self._storage.retried(lambda: _fetch_among(cursor, shadows or {}, sql, parameters), "read from")
            if rows.nbytes > _LARGE_BYTES:
                release_memory(cursor)
            return rows

    def read_together(
        self, sqls: Sequence[str], shadows: Mapping[str, pa.Table] | None = None
    ) -> tuple[int, list[pa.Table]]:
        """Several queries in one transaction, with the id of its snapshot; see the port. Raises as ``read``."""
        with self._cursor() as cursor:
            *tables, snapshot = self._storage.retried(
                lambda: _fetch_together(cursor, shadows or {}, [*sqls, _SNAPSHOT]), "read from"
            )
        return int(snapshot["id"][0].as_py()), tables

    @contextmanager
    def at(self, snapshot: int) -> Iterator[Warehouse]:
        """A read-only view of every table as it was at ``snapshot``. Raises NotFoundError if it has expired."""
        with self._storage.attached(read_only=True, snapshot=snapshot) as connection:
            yield DuckLakeWarehouse(self._storage, connection, read_only=True)

    def insertions(self, table: str, after_snapshot: int, to_snapshot: int) -> pa.Table:
        """Rows inserted by the commits ``after_snapshot < s <= to_snapshot``; see the port.

        Raises NotFoundError if a snapshot of that range has expired or does not exist yet.
        """
        columns = _names(column.name for column in _contract(table).columns)
        if to_snapshot <= after_snapshot:
            return self.read(f"select {columns} from lake.{_quoted(table)} limit 0")  # noqa: S608 - contract's names
        sql = f"select {columns} from lake.table_insertions($name, $first, $last)"  # noqa: S608 - contract's names
        return self.read(sql, {"name": table, "first": after_snapshot + 1, "last": to_snapshot})

    def commit(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction, once every other writer has finished; see the port."""
        if self._read_only:
            raise TerminalError("A write was asked of a warehouse that is open for reading. Open it without read_only.")
        with self._storage.write_lock(), self._cursor() as cursor:
            return self._storage.retried(lambda: self._attempt(cursor, work), "write to")

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else commits while this is open; see the port."""
        return self._storage.exclusive()

    def purge(self, before_expiry: Callable[[Transaction, int], None]) -> Mapping[str, int]:
        """Remove deleted rows from files and catalog, with every earlier snapshot; see the port."""
        with self._storage.write_lock(), self._cursor() as cursor:

            def call(sql: str, parameters: Mapping[str, object] | None = None) -> pa.Table:
                with step("purge"):
                    return self._storage.retried(lambda: _fetch(cursor, sql, parameters), "purge")

            call("call ducklake_flush_inlined_data('lake')")
            rewritten = call("call ducklake_rewrite_data_files('lake', delete_threshold => 0)")
            snapshot = self.latest_snapshot()
            self._storage.retried(
                lambda: self._attempt(cursor, lambda transaction: before_expiry(transaction, snapshot)), "write to"
            )
            old = call("select snapshot_id from lake.snapshots() where snapshot_id < $s", {"s": self.latest_snapshot()})
            expired = old["snapshot_id"].to_pylist()
            call("call ducklake_expire_snapshots('lake', versions => $expired)", {"expired": expired})
            deleted = call("call ducklake_cleanup_old_files('lake', cleanup_all => true)").num_rows
        return {
            "rewritten_files": _total(rewritten, "files_processed"),
            "expired_snapshots": len(expired),
            "deleted_files": deleted,
            "catalog_compacted": int(self._storage.compact_catalog()),
        }

    def flush(self, table: str) -> int:
        """Write the rows of one table that lie in the catalog to a file, and merge small ones; see the port."""
        of_table: dict[str, object] = {"name": _contract(table).table}
        flush = "call ducklake_flush_inlined_data('lake', table_name => $name)"
        merge = "call ducklake_merge_adjacent_files('lake', $name, max_file_size => $bytes)"
        with self._storage.write_lock(), self._cursor() as cursor:
            flushed = self._storage.retried(lambda: _fetch(cursor, flush, of_table), "write to")
            self._storage.retried(lambda: _fetch(cursor, merge, {**of_table, "bytes": _SMALL_FILE_BYTES}), "write to")
        return _total(flushed, "rows_flushed")

    def maintain(
        self, *, keep_from: int | None, keep: Collection[int], older_than: datetime, unused_since: datetime
    ) -> Mapping[str, int]:
        """Flush, merge, expire and clean up while no other process writes; see the port."""
        if self._read_only:
            raise TerminalError("Maintenance was asked of a warehouse that is open for reading.")
        with self._storage.write_lock(), self._cursor() as cursor:

            def call(sql: str, parameters: Mapping[str, object] | None = None) -> pa.Table:
                with step("maintain"):
                    return self._storage.retried(lambda: _fetch(cursor, sql, parameters), "maintain")

            flushed = call("call ducklake_flush_inlined_data('lake')")
            merged = call("call ducklake_merge_adjacent_files('lake')")
            sql = "select snapshot_id from lake.snapshots() where snapshot_time < $before order by snapshot_id"
            old = call(sql, {"before": older_than})["snapshot_id"].to_pylist()
            bound = min(self.latest_snapshot(), self.latest_snapshot() if keep_from is None else keep_from)
            expired = [snapshot for snapshot in old if snapshot < bound and snapshot not in keep]
            if expired:
                call("call ducklake_expire_snapshots('lake', versions => $expired)", {"expired": expired})
            deleted = [
                call(f"call {function}('lake', older_than => $before)", {"before": unused_since}).num_rows
                for function in ("ducklake_cleanup_old_files", "ducklake_delete_orphaned_files")
            ]
        return {
            "flushed_rows": _total(flushed, "rows_flushed"),
            "merged_files": _total(merged, "files_processed"),
            "expired_snapshots": len(expired),
            "deleted_files": sum(deleted),
        }

    def _attempt(self, cursor: duckdb.DuckDBPyConnection, work: Callable[[Transaction], T]) -> T:
        transaction = DuckLakeTransaction(cursor, self._storage)
        cursor.execute("begin")
        try:
            result = work(transaction)
            with step("commit"):
                self._storage.finish(cursor)
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                cursor.execute("rollback")
            transaction.forget_files()
            raise
        return result

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        cursor = self._connection.cursor()
        try:
            settings = "set enable_progress_bar = false; set timezone = 'UTC'; use lake"  # which asks the catalog
            self._storage.retried(lambda: cursor.execute(settings), "open")
            yield cursor
        finally:
            cursor.close()


class DuckLakeTransaction:
    """Implements ``tasks.domain.ports.Transaction`` on a cursor that has begun one; made by ``commit``."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, storage: LakeStorage) -> None:
        self._cursor = cursor
        self._storage = storage
        self._files: list[Path] = []

    def append(self, table: str, rows: pa.Table) -> int:
        """Insert rows by column name. Raises InputError for a column or a value that the contract does not allow."""
        _check_columns(_contract(table), rows.column_names)
        if rows.num_rows == 0:
            return 0
        names = _names(rows.column_names)
        sql = f"insert into lake.{_quoted(table)} ({names}) select {names} from appended_rows"  # noqa: S608
        self.execute(sql, shadows={"appended_rows": rows})
        return int(rows.num_rows)

    def replace(self, table: str, rows: pa.Table, where: Mapping[str, object] | None = None) -> int:
        """Delete the rows whose columns equal ``where`` (a list or tuple: one of these) and insert ``rows``."""
        where = where or {}
        _check_columns(_contract(table), list(where))
        parameters = {f"value_{i}": list(v) if isinstance(v, tuple) else v for i, v in enumerate(where.values())}
        terms = [
            f"{_quoted(name)} in (select unnest(${parameter}))"
            if isinstance(parameters[parameter], list)
            else f"{_quoted(name)} is not distinct from ${parameter}"
            for name, parameter in zip(where, parameters, strict=True)
        ]
        condition = f" where {' and '.join(terms)}" if terms else ""
        self.execute(f"delete from lake.{_quoted(table)}{condition}", parameters)  # noqa: S608 - contract's names
        return self.append(table, rows)

    def execute(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        shadows: Mapping[str, pa.Table] | None = None,
    ) -> None:
        """Run one statement with bound ``$name`` parameters; ``shadows`` stand in for tables during it."""
        for name, rows in (shadows or {}).items():
            self._cursor.register(name, rows)
        try:
            self._cursor.execute(sql, parameters or None)
        finally:
            for name in shadows or {}:
                self._cursor.unregister(name)

    def register_parquet(self, table: str, paths: Sequence[Path]) -> int:
        """Take over Parquet files that workers wrote; the caller may delete its own afterwards.

        Types must be exactly those of the contract (FLOAT[] is a list of 32-bit floats); columns that are left out
        are null. Returns the number of rows.
        """
        before = self._count(table)
        for path in paths:
            with step("adopt a file"):
                own = self._storage.adopt(table, path)
            self._files.append(own)
            self.execute(
                "call ducklake_add_data_files('lake', $table, $path, allow_missing => true)",
                {"table": table, "path": str(own)},
            )
        return self._count(table) - before

    def read(self, sql: str, parameters: Mapping[str, object] | None = None) -> pa.Table:
        """Read inside the transaction."""
        return _fetch(self._cursor, sql, parameters)

    def forget_files(self) -> None:
        """Delete the files adopted by a transaction that did not happen."""
        for path in self._files:
            path.unlink(missing_ok=True)

    def _count(self, table: str) -> int:
        rows = self.read(f"select count(*) as n from lake.{_quoted(_contract(table).table)}")  # noqa: S608
        return int(rows["n"][0].as_py())


def _fetch(cursor: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, object] | None) -> pa.Table:
    return cursor.execute(sql, parameters or None).to_arrow_table()


@contextmanager
def _among(cursor: duckdb.DuckDBPyConnection, shadows: Mapping[str, pa.Table]) -> Iterator[None]:
    """One transaction: outside of one, each ``register`` asks the catalog anew, which took most of a small read."""
    cursor.execute("begin")
    try:
        for name, rows in shadows.items():
            cursor.register(name, rows)
        yield
    finally:
        cursor.execute("rollback")


def _fetch_among(
    cursor: duckdb.DuckDBPyConnection,
    shadows: Mapping[str, pa.Table],
    sql: str,
    parameters: Mapping[str, object] | None,
) -> pa.Table:
    if not shadows:
        return _fetch(cursor, sql, parameters)
    with _among(cursor, shadows):
        return _fetch(cursor, sql, parameters)


def _fetch_together(
    cursor: duckdb.DuckDBPyConnection, shadows: Mapping[str, pa.Table], sqls: Sequence[str]
) -> list[pa.Table]:
    with _among(cursor, shadows):
        return [_fetch(cursor, sql, None) for sql in sqls]


def _total(rows: pa.Table, column: str) -> int:
    return int(sum(rows[column].to_pylist()))


def _contract(table: str) -> Contract:
    found = contracts().get(table)
    if found is None:
        raise NotFoundError(f"The warehouse has no table {table!r}. Its tables: {', '.join(contracts())}.")
    return found


def _check_columns(contract: Contract, names: Sequence[str]) -> None:
    known = [column.name for column in contract.columns]
    foreign = [name for name in names if name not in known]
    if foreign:
        raise InputError(
            f"{contract.table} has no column {', '.join(foreign)}. Its columns: {', '.join(known)}. "
            "See docs/data-dictionary.md."
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(_quoted(name) for name in names)


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
