"""Where the DuckLake lies and how it is attached: its files, its lock, the errors of its engine.

It knows nothing of what is read or written; ``infra.ducklake_warehouse`` does that on the connections made here.
"""

import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import duckdb

from infra.disk_errors import disk_advice, writing
from infra.duckdb_instances import give_back, take_instance
from infra.lake_catalogs import LakeCatalog, lake_catalog
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
    WarehouseUnavailableError,
)
from tasks.progress import step

_HOLDERS: set[tuple[int, str]] = set()
_EXCLUSIVE: set[tuple[int, str]] = set()

T = TypeVar("T")


class LakeStorage:
    """One lake: its catalog (a SQLite file in ``folder``, or a PostgreSQL database), its folder of Parquet files, and
    the lock that writers take in turn."""

    def __init__(self, folder: Path, settings: WarehouseSettings) -> None:
        self._folder = folder
        self._catalog = lake_catalog(folder, settings)
        self._data = settings.data_path or folder / "data"
        self._busy_seconds = settings.busy_timeout_seconds

    @contextmanager
    def attached(
        self, *, read_only: bool, snapshot: int | None = None, upgrade: bool = False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A DuckDB instance with this lake attached as ``lake``; it is made whole first if it is not there yet.

        ``upgrade`` lets the engine bring a catalog of an older DuckLake to its own format. Raises NotFoundError for a
        snapshot that does not exist any more or yet.
        """
        if not self.retried(self._catalog.is_whole, "open"):
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
        """Hold the lock that every writer takes. Raises WarehouseBusyError when it stays taken, StorageError where the
        folder cannot be written, and WarehouseUnavailableError where the catalog's server does not answer."""
        holder = (threading.get_ident(), self._catalog.place)
        if holder in _EXCLUSIVE:
            _EXCLUSIVE.discard(holder)
            try:
                yield
            finally:
                _EXCLUSIVE.add(holder)
            return
        if holder in _HOLDERS:
            raise TerminalError("A commit was begun inside a commit. Use the transaction that is open already.")
        try:
            held = self.locked("write", self._busy_seconds)
        except TimeoutError:
            raise self._busy("write to", "another process held the write lock") from None
        with held:
            _HOLDERS.add(holder)
            try:
                yield
            finally:
                _HOLDERS.discard(holder)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold that lock over several commits of this thread. Raises WarehouseBusyError."""
        holder = (threading.get_ident(), self._catalog.place)
        with self.write_lock():
            _EXCLUSIVE.add(holder)
            try:
                yield
            finally:
                _EXCLUSIVE.discard(holder)

    def locked(self, name: str, seconds: float) -> AbstractContextManager[object]:
        """A lock that is held from now on. Raises TimeoutError if another process keeps it for so long."""
        held = ExitStack()
        with writing(f"Locking the warehouse in {self._folder}"):
            self.retried(lambda: held.enter_context(self._catalog.lock(name, seconds)), "lock")
        return held

    def compact_catalog(self) -> bool:
        """Write the catalog anew without what was deleted from it; False if other processes keep it busy."""
        return self.retried(self._catalog.compact, "compact the catalog of")

    def retried(self, attempt: Callable[[], T], verb: str) -> T:
        """Run ``attempt`` again, after a random wait, while the catalog is busy or away; translate other errors."""
        deadline = time.monotonic() + self._busy_seconds
        wait = 0.01
        while True:
            try:
                return attempt()
            except duckdb.Error as error:
                text = str(error).lower()
                is_away = self._catalog.is_away(text)
                if not is_away and (disk_advice(text) or not self._catalog.is_busy(text)):
                    raise self._catalog.refusal(str(error)) or translated(error) from error
                if time.monotonic() + wait > deadline:
                    raise (self._away if is_away else self._busy)(verb, str(error)) from error
                time.sleep(random.uniform(wait / 2, wait))  # only spreads the waits; no result depends on it
                wait = min(wait * 2, 1.0)

    def finish(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Commit. Raises WarehouseUnavailableError if the server was lost before it said whether it had: to try again
        here could write twice."""
        try:
            cursor.execute("commit")
        except duckdb.Error as error:
            if not self._catalog.is_away(str(error).lower()):
                raise
            raise WarehouseUnavailableError(
                f"The PostgreSQL server of the warehouse's catalog in {self._catalog.place} was lost during a commit, "
                "so it is not known whether that was written. Run this again: what is there already is found."
            ) from error

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
        """Make the lake so that nobody ever sees half of it."""
        with writing(f"Making the warehouse in {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._data.mkdir(parents=True, exist_ok=True)
        with self.write_lock():
            if self._catalog.is_whole():
                return
            self._check_no_files()
            with self._catalog.making() as catalog, self._instance(catalog) as connection, step("make the tables"):
                create_layout(connection)

    def _check_no_files(self) -> None:
        """A new lake would take the files of an older one for its own rubbish, and maintenance would delete them."""
        if next(self._data.rglob("*.parquet"), None) is not None:
            raise TerminalError(
                f"A warehouse was to be made in {self._catalog.place}, and {self._data} holds files of another one. "
                "If its catalog was lost, restore it (docs/backup.md); for a new warehouse name a new folder: "
                "NEARLINE_WAREHOUSE__DATA_PATH."
            )

    @contextmanager
    def _instance(self, catalog: LakeCatalog, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = take_instance(self._folder)
        try:
            self.retried(lambda: catalog.attach(connection, self._data, options), "open")
            self.retried(lambda: connection.execute("use lake"), "open")
        except BaseException:
            connection.close()
            raise
        try:
            yield connection
        finally:
            give_back(connection, "lake")

    def _busy(self, verb: str, why: str) -> WarehouseBusyError:
        reason = _first_line(why).rstrip(".")  # the other lines may hold rows
        return WarehouseBusyError(
            f"Could not {verb} the warehouse in {self._catalog.place} within {self._busy_seconds:g} s: {reason}. "
            "Let the other job finish and run this again, or wait longer: NEARLINE_WAREHOUSE__BUSY_TIMEOUT_SECONDS."
        )

    def _away(self, verb: str, why: str) -> WarehouseUnavailableError:
        return WarehouseUnavailableError(
            f"Could not {verb} the warehouse: the PostgreSQL server of its catalog in {self._catalog.place} did not "
            f"answer within {self._busy_seconds:g} s: {_first_line(why.rpartition(': connection to ')[2])}. Look "
            "whether it runs and can be reached from here, then run this again."
        )


def shared_lock(folder: Path, settings: WarehouseSettings, name: str, seconds: float) -> AbstractContextManager[object]:
    """A lock among all processes that share the catalog, held from now on: a file in ``folder``, or one of the
    PostgreSQL server. Raises TimeoutError when it stays taken, StorageError and WarehouseUnavailableError."""
    if settings.catalog_url is None:
        with writing(f"Making the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
    return LakeStorage(folder, settings).locked(name, seconds)


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
