"""The warehouse's SQL engine alone, for models over tables in memory.

It knows nothing of the DuckLake: planning a query over one of its tables costs tens of milliseconds, and here one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from infra.ducklake_storage import translated
from tasks.domain.ports import Reader


@contextmanager
def open_engine() -> Iterator[Reader]:
    """A DuckDB of its own, in memory; one thread works for each call, so that requests keep the other cores."""
    connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
    try:
        yield SqlEngine(connection)
    finally:
        connection.close()


class SqlEngine:
    """Implements ``tasks.domain.ports.Reader``; made by ``open_engine``. Threads may share it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def read(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        shadows: Mapping[str, pa.Table] | None = None,
    ) -> pa.Table:
        """Run a query over ``shadows``; see the port. Raises InputError or NotFoundError for wrong SQL."""
        with self._connection.cursor() as cursor:
            cursor.execute("set timezone = 'UTC'")
            for name, rows in (shadows or {}).items():
                cursor.register(name, rows)
            try:
                return cursor.execute(sql, parameters or None).to_arrow_table()
            except duckdb.Error as error:
                raise translated(error) from error
