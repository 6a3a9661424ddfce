"""What a lake asks of the database that holds its catalog, and the one of the embedded shape: a SQLite file.

It knows nothing of tables and rows; ``infra.ducklake_storage`` attaches lakes with it.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, Self

import duckdb
from filelock import FileLock

from infra.duckdb_instances import load_extension, quoted
from infra.settings import WarehouseSettings
from tasks.domain.errors import NearlineError

_COMPACT = """
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]))) as catalog:
    catalog.execute("vacuum")
    is_busy, _, _ = catalog.execute("pragma wal_checkpoint(truncate)").fetchone()
sys.exit(is_busy)
"""


class LakeCatalog(Protocol):
    """The database that holds a lake's catalog; what it raises and says never holds a password."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    def is_whole(self) -> bool:
        """Whether a lake was made in it to the end. Raises duckdb.Error where it cannot be asked."""

    def making(self) -> AbstractContextManager[Self]:
        """The catalog to make the lake in; it is whole once this ends without an error."""

    def attach(self, connection: duckdb.DuckDBPyConnection, data: Path, options: Sequence[str]) -> None:
        """Attach the lake as ``lake``, or make an empty one. Raises duckdb.Error."""

    def lock(self, name: str, seconds: float) -> AbstractContextManager[object]:
        """What one process at a time holds; the lock of a process that dies is free. Raises TimeoutError if another
        one holds it for so long, and duckdb.Error where the catalog cannot be asked."""

    def compact(self) -> bool:
        """Write the catalog anew without what was deleted from it; False if others keep it busy."""

    def is_busy(self, text: str) -> bool:
        """Whether an engine's message (in lower case) says that others keep the catalog busy: nothing was written."""

    def is_away(self, text: str) -> bool:
        """Whether such a message says that the catalog cannot be reached now, or was lost on the way."""

    def refusal(self, text: str) -> NearlineError | None:
        """The error for a message (as it came) that says the catalog will not be had with these settings."""


class SqliteCatalog:
    """A SQLite file, which the processes of one machine share."""

    def __init__(self, file: Path, busy_seconds: float) -> None:
        self._file = file
        self._busy_seconds = busy_seconds

    @property
    def place(self) -> str:
        """The folder of the file."""
        return str(self._file.parent)

    def is_whole(self) -> bool:
        """Whether the file is there: it is moved to its place as the last step of making it."""
        return self._file.exists()

    @contextmanager
    def making(self) -> Iterator["SqliteCatalog"]:
        """A file beside the place of this one, so that nobody ever sees half of it."""
        unfinished = self._file.with_name(f"{self._file.stem}.unfinished.sqlite")
        for leftover in unfinished.parent.glob(f"{unfinished.name}*"):
            leftover.unlink()
        yield SqliteCatalog(unfinished, self._busy_seconds)
        unfinished.rename(self._file)

    def attach(self, connection: duckdb.DuckDBPyConnection, data: Path, options: Sequence[str]) -> None:
        """With a write-ahead log, beside which readers and one writer go on at once."""
        load_extension(connection, "sqlite_scanner")
        settings = [
            f"data_path {quoted(f'{data}/')}",
            "override_data_path true",  # the folder may have been moved since it was made
            "meta_journal_mode 'WAL'",
            f"meta_busy_timeout {int(self._busy_seconds * 1000)}",
            *options,
        ]
        connection.execute(f"attach {quoted(f'ducklake:sqlite:{self._file}')} as lake ({', '.join(settings)})")

    def lock(self, name: str, seconds: float) -> AbstractContextManager[object]:
        """A locked file beside the catalog."""
        return FileLock(self._file.with_name(f"{name}.lock"), timeout=seconds)

    def compact(self) -> bool:
        """A process of its own does it: two copies of SQLite in one process, DuckDB's and Python's, undo each other's
        locks on the file."""
        command = [sys.executable, "-c", _COMPACT, str(self._file), str(self._busy_seconds)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def is_busy(self, text: str) -> bool:
        """SQLite's own sign, and those of DuckLake's conflicts."""
        signs = ("database is locked", "transaction conflict", "failed to commit ducklake transaction")
        return any(sign in text for sign in signs)

    def is_away(self, text: str) -> bool:
        """Never: it is a file."""
        return False

    def refusal(self, text: str) -> NearlineError | None:
        """None: there is no password."""
        return None


def lake_catalog(folder: Path, settings: WarehouseSettings) -> LakeCatalog:
    """The catalog that the settings choose, for the lake in ``folder``."""
    if settings.catalog_url is None:
        return SqliteCatalog(folder / "catalog.sqlite", settings.busy_timeout_seconds)
    from infra.postgres_catalog import PostgresCatalog

    return PostgresCatalog(settings.catalog_url.get_secret_value(), settings.busy_timeout_seconds)
