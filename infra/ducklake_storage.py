"""Where the DuckLake lies and how it is attached: its files, its lock, the errors of its engine.

It knows nothing of what is read or written; ``infra.ducklake_warehouse`` does that on the connections made here.
"""

import contextlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import duckdb
from filelock import FileLock, Timeout

from infra.disk_errors import disk_advice, writing
from infra.migrations import check_layout, create_layout, migrate_layout
from infra.settings import WarehouseSettings
from tasks.domain.errors import (
    InputError,
    MigrationNeededError,
    NearlineError,
    NotFoundError,
    StorageError,
    TerminalError,
    WarehouseBusyError,
)

_EXTENSIONS = ("sqlite_scanner", "ducklake")
_BUSY_SIGNS = ("database is locked", "transaction conflict", "failed to commit ducklake transaction")
_HOLDERS: set[tuple[int, str]] = set()
_EXCLUSIVE: set[tuple[int, str]] = set()
_IDLE: dict[int, list[duckdb.DuckDBPyConnection]] = {}

_COMPACT = """
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]))) as catalog:
    catalog.execute("vacuum")
    is_busy, _, _ = catalog.execute("pragma wal_checkpoint(truncate)").fetchone()
sys.exit(is_busy)
"""

T = TypeVar("T")


class EngineThreads:
    """How many threads each DuckDB instance that this process makes uses; None: as many as there are cores.

    One is for a process that answers many callers at once, each with a small question. ``benchmarks.lake_layout``
    measures looks at one user and at many with one thread and with all cores.
    """

    wanted: int | None = None


class LakeStorage:
    """The files of one lake: ``catalog.sqlite``, ``data/`` and the lock that writers take in turn."""

    def __init__(self, folder: Path, settings: WarehouseSettings) -> None:
        self._folder = folder
        self._catalog = folder / "catalog.sqlite"
        self._data = folder / "data"
        self._busy_seconds = settings.busy_timeout_seconds

    @contextmanager
    def attached(
        self, *, read_only: bool, snapshot: int | None = None, upgrade: bool = False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A DuckDB instance with this lake attached as ``lake``; it is made whole first if it is not there yet.

        ``upgrade`` lets the engine bring a catalog of an older DuckLake to its own format. Raises NotFoundError for a
        snapshot that does not exist any more or yet.
        """
        if not self._catalog.exists():
            self._create()
        options = ["read_only"] if read_only else []
        if upgrade:
            options.append("automatic_migration true")
        if snapshot is not None:
            options.append(f"snapshot_version {int(snapshot)}")
        with self._instance(self._catalog, *options) as connection:
            yield connection

    def migrate(self, before: Callable[[], object]) -> tuple[str, ...]:
        """Bring an older layout forward while nobody else writes, once ``before`` has returned; says what was done.

        Nothing, and no call of ``before``, where there is nothing to do. Raises TerminalError for a newer layout.
        """
        with self.exclusive():
            try:
                with self.attached(read_only=True) as connection:
                    check_layout(connection)
            except MigrationNeededError:
                before()
                with self.attached(read_only=False, upgrade=True) as writer:
                    return self.retried(lambda: migrate_layout(writer), "migrate")
        return ()

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        """Hold the lock that every writer takes. Raises WarehouseBusyError when it stays taken, and StorageError where
        the folder cannot be written."""
        holder = (threading.get_ident(), str(self._folder))
        if holder in _EXCLUSIVE:
            _EXCLUSIVE.discard(holder)
            try:
                yield
            finally:
                _EXCLUSIVE.add(holder)
            return
        if holder in _HOLDERS:
            raise TerminalError("A commit was begun inside a commit. Use the transaction that is open already.")
        lock = FileLock(self._folder / "write.lock", timeout=self._busy_seconds)
        try:
            with writing(f"Writing to the warehouse in {self._folder}"):
                lock.acquire()
        except Timeout:
            raise self._busy("write to", "another process held the write lock") from None
        _HOLDERS.add(holder)
        try:
            yield
        finally:
            _HOLDERS.discard(holder)
            lock.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold that lock over several commits of this thread. Raises WarehouseBusyError."""
        holder = (threading.get_ident(), str(self._folder))
        with self.write_lock():
            _EXCLUSIVE.add(holder)
            try:
                yield
            finally:
                _EXCLUSIVE.discard(holder)

    def compact_catalog(self) -> bool:
        """Write the catalog's file anew without what was deleted from it; False if another process keeps it busy.

        A process of its own does it: two copies of SQLite in one process, DuckDB's and Python's, undo each other's
        locks on the file.
        """
        command = [sys.executable, "-c", _COMPACT, str(self._catalog), str(self._busy_seconds)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def retried(self, attempt: Callable[[], T], verb: str) -> T:
        """Run ``attempt`` again, after a random wait, for as long as the catalog is busy; translate other errors."""
        deadline = time.monotonic() + self._busy_seconds
        wait = 0.01
        while True:
            try:
                return attempt()
            except duckdb.Error as error:
                if not _is_busy(error):
                    raise translated(error) from error
                if time.monotonic() + wait > deadline:
                    raise self._busy(verb, str(error)) from error
                time.sleep(random.uniform(wait / 2, wait))  # only spreads the waits; no result depends on it
                wait = min(wait * 2, 1.0)

    def adopt(self, table: str, path: Path) -> Path:
        """Link (else copy) a Parquet file into the lake's own folder and return its new place."""
        folder = self._data / "main" / table
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"adopted-{uuid.uuid4().hex}.parquet"
        try:
            os.link(path, own)
        except FileNotFoundError:
            raise InputError(f"There is no Parquet file {path} to take over into {table}.") from None
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, own)
        return own

    def _create(self) -> None:
        """Make the catalog beside its place and move it there, so that nobody ever sees half of it."""
        with writing(f"Making the warehouse in {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
        with self.write_lock():
            if self._catalog.exists():
                return
            unfinished = self._folder / "catalog.unfinished.sqlite"
            for leftover in self._folder.glob(f"{unfinished.name}*"):
                leftover.unlink()
            with self._instance(unfinished) as connection:
                create_layout(connection)
            unfinished.rename(self._catalog)

    @contextmanager
    def _instance(self, catalog: Path, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = _take_instance()
        settings = [
            f"data_path '{_escaped(self._data)}/'",
            "override_data_path true",  # the folder may have been moved since it was made
            "meta_journal_mode 'WAL'",
            f"meta_busy_timeout {int(self._busy_seconds * 1000)}",
            *options,
        ]
        statement = f"attach 'ducklake:sqlite:{_escaped(catalog)}' as lake ({', '.join(settings)})"
        try:
            self.retried(lambda: connection.execute(statement), "open")
            connection.execute("use lake")
        except BaseException:
            connection.close()
            raise
        try:
            yield connection
        finally:
            _give_back(connection)

    def _busy(self, verb: str, why: str) -> WarehouseBusyError:
        return WarehouseBusyError(
            f"Could not {verb} the warehouse in {self._folder} within {self._busy_seconds:g} s: {why}. "
            "Let the other job finish and run this again, or wait longer: NEARLINE_WAREHOUSE__BUSY_TIMEOUT_SECONDS."
        )


def translated(error: duckdb.Error) -> NearlineError:
    """One of our errors for one of DuckDB's, with its text."""
    text = str(error).strip()
    if "No snapshot found" in text:
        return NotFoundError(
            f"That snapshot of the warehouse has expired or was not made yet: {_first_line(text)}. "
            'Those there are: nearline sql "from lake.snapshots()". '
            "A change feed that has expired is caught up by a full run: nearline run daily_batch."
        )
    if "catalog version mismatch" in text:
        return MigrationNeededError(
            f"The warehouse's catalog has another DuckLake format than this program writes: {_first_line(text)} "
            "Stop what uses it, then bring it forward: nearline migrate (it makes a backup first; docs/backup.md)."
        )
    if isinstance(error, duckdb.CatalogException):
        return NotFoundError(f"The warehouse has no such name. {text}\nTables and columns: docs/data-dictionary.md.")
    refused = (
        duckdb.ParserException,
        duckdb.BinderException,
        duckdb.ConversionException,
        duckdb.ConstraintException,
        duckdb.InvalidInputException,
    )
    if isinstance(error, refused):
        return InputError(f"The warehouse refused a statement or a value. {text}")
    if advice := disk_advice(text):
        return StorageError(f"The disk refused what the warehouse asked of it: {text}. {advice}")
    return TerminalError(f"The warehouse's engine failed. {text}")


def _first_line(text: str) -> str:
    return text.splitlines()[0]


def _is_busy(error: duckdb.Error) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in _BUSY_SIGNS) and not disk_advice(text)


def _escaped(path: Path) -> str:
    return str(path).replace("'", "''")


def _take_instance() -> duckdb.DuckDBPyConnection:
    """An idle DuckDB instance of this process, or a new one. Loading the extensions is most of an opening's time."""
    with contextlib.suppress(IndexError):
        return _IDLE.setdefault(os.getpid(), []).pop()
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": False,
            **({} if EngineThreads.wanted is None else {"threads": EngineThreads.wanted}),
        }
    )
    connection.execute("set enable_progress_bar = false")  # first: a bar on stdout breaks what programs read there
    for name in _EXTENSIONS:
        connection.execute(f"load '{_extension(name)}'")
    connection.execute("set timezone = 'UTC'")
    return connection


def _give_back(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute("use memory; detach lake")
    except duckdb.Error:
        connection.close()
        return
    _IDLE.setdefault(os.getpid(), []).append(connection)


def _extension(name: str) -> str:
    """Path of an extension that came as a package, else its bare name: one that DuckDB itself has installed."""
    package = importlib.util.find_spec(f"duckdb_extension_{name}")
    if package is None or not package.submodule_search_locations:
        return name
    found = sorted(Path(package.submodule_search_locations[0]).glob(f"extensions/*/{name}.duckdb_extension"))
    return _escaped(found[-1]) if found else name
