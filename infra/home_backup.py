"""Takes a backup of a home: the warehouse as of one moment, the settings file, the API keys' hashes and the salt.

Data files never change once they are written, so the catalog is copied first, in one step, and then the files that it
names, while everybody else goes on. What can be made again is left out: the index, reports, caches. It knows nothing of
what the rows mean, nor of how a backup is restored.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import duckdb
from filelock import FileLock, Timeout

from infra.backup_files import MANIFEST_FILE, UNFINISHED, copy_file, hash_file, remove_folder, sync_folder
from infra.catalog_copy import CatalogCopy, copy_catalog
from infra.ducklake_storage import LakeStorage
from infra.key_store import FOLDER as SERVING
from infra.key_store import KEYS_FILE, SALT_FILE
from infra.migrations import stored_layout
from infra.settings import (
    ENV_PREFIX,
    SETTINGS_FILE,
    Settings,
    WarehouseSettings,
    setting_names,
    setting_source,
    settings_file,
)
from tasks.domain.backups import NAME_PREFIX, BackupFile, KnownErasure, Manifest, backup_name
from tasks.domain.errors import InputError, NotFoundError, StorageError, TerminalError, WarehouseBusyError

WAREHOUSE, CATALOG, DATA = "warehouse", "catalog.sqlite", "data"
_FREE_TRIES = 3
"""Copies that let others write meanwhile; where an erasure or maintenance deleted files during each, one more waits
until nobody writes."""
_HEADROOM = 1.05


def back_up_home(settings: Settings, parent: Path, *, now: datetime) -> tuple[Path, Manifest]:
    """Make a new backup, a folder of ``parent`` that is named by its time; returns it with what is in it.

    It appears under its name when it is whole and on the disk. Raises InputError for a catalog in PostgreSQL,
    NotFoundError where there is no warehouse, WarehouseBusyError if another backup is being written there, and
    StorageError if the disk is too small or refuses something, and TerminalError if the warehouse is damaged.
    """
    lake = settings.home / WAREHOUSE
    _refuse_postgres(settings)
    if not (lake / CATALOG).exists():
        raise NotFoundError(f"There is no warehouse in {settings.home} to back up. NEARLINE_HOME names the home.")
    with _alone(parent):
        for leftover in parent.glob(f"{NAME_PREFIX}*{UNFINISHED}"):
            remove_folder(leftover)
        folder = _free_name(parent, now)
        unfinished = folder.with_name(folder.name + UNFINISHED)
        unfinished.mkdir(mode=0o700)
        try:
            manifest = _fill(settings, lake, unfinished, now)
            (unfinished / MANIFEST_FILE).write_text(manifest.to_json())
            hash_file(unfinished / MANIFEST_FILE, sync=True)
            sync_folder(unfinished)
            unfinished.rename(folder)
            sync_folder(parent)
        except OSError as error:
            raise StorageError(
                f"The backup of {settings.home} to {folder} was not finished: {error}. Nothing of it is left. See that "
                "the disk has room and can be written to, then run it again."
            ) from error
        finally:
            remove_folder(unfinished)
    return folder, manifest


def _refuse_postgres(settings: Settings) -> None:
    if settings.warehouse.catalog_url is not None:
        raise InputError(
            "This home's catalog is in PostgreSQL, which its own tools back up. In this order, with no maintenance and "
            "no erasure meanwhile: pg_dump of the database that warehouse.catalog_url names; then a copy of the folder "
            "of Parquet files; then nearline.toml and the folder serving/ of the home. docs/backup.md has the commands."
        )


def _fill(settings: Settings, lake: Path, target: Path, now: datetime) -> Manifest:
    copy, files = _copy_lake(lake, target / WAREHOUSE, settings.warehouse)
    for source, name in _small_files(settings.home):
        with_place = target / name
        with_place.parent.mkdir(exist_ok=True, mode=0o700)
        files.append(_renamed(copy_file(source, with_place), target, with_place))
    with _opened(target / WAREHOUSE, settings.warehouse) as connection:
        return Manifest(
            made_at=now,
            program=version("nearline"),
            layout=stored_layout(connection) if "layouts" in _tables(connection) else 0,
            lake=copy.lake,
            snapshot=copy.snapshot,
            rows={table: _count(connection, table) for table in _tables(connection)},
            files=tuple(files),
            erasures=_erasures(connection),
            outside_settings=_outside_settings(),
        )


def _copy_lake(lake: Path, target: Path, settings: WarehouseSettings) -> tuple[CatalogCopy, list[BackupFile]]:
    storage = LakeStorage(lake.absolute(), settings)
    done: dict[str, BackupFile] = {}
    for _ in range(_FREE_TRIES):
        try:
            return _copy_once(lake, target, settings, done)
        except FileNotFoundError:
            continue  # deleted since the catalog was copied: what is copied next does not name it any more
    with storage.exclusive():
        try:
            return _copy_once(lake, target, settings, done)
        except FileNotFoundError as error:
            raise TerminalError(
                f"The warehouse in {lake} is damaged: its catalog names {error.filename}, which is not there. "
                "Restore an earlier backup: nearline restore."
            ) from None


def _copy_once(
    lake: Path, target: Path, settings: WarehouseSettings, done: dict[str, BackupFile]
) -> tuple[CatalogCopy, list[BackupFile]]:
    """One copy of the catalog and of the files that it names. ``done`` are files that an earlier try has copied; those
    that are no longer named are deleted."""
    catalog, data = target / CATALOG, settings.data_path or lake / DATA
    target.mkdir(exist_ok=True, mode=0o700)
    catalog.unlink(missing_ok=True)
    catalog.touch(mode=0o600)
    copy = copy_catalog(lake / CATALOG, catalog, settings.busy_timeout_seconds)
    for path in set(done) - set(copy.files):
        (target / DATA / path).unlink()
        del done[path]
    _check_room(target, sum(size for path, size in copy.files.items() if path not in done))
    for path in copy.files:
        if path not in done:
            own = target / DATA / path
            own.parent.mkdir(parents=True, exist_ok=True)
            done[path] = _renamed(copy_file(data / path, own), target.parent, own)
    own_catalog = _renamed(hash_file(catalog, sync=True), target.parent, catalog)
    return copy, [own_catalog, *(done[path] for path in copy.files)]


def _check_room(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target).free
    if free < n_bytes * _HEADROOM:
        raise StorageError(
            f"The backup needs {n_bytes / 1e6:,.0f} MB, and {target.parent.parent} has {free / 1e6:,.0f} MB free. "
            "Make room there, or name a folder on another disk."
        )


def _small_files(home: Path) -> Iterator[tuple[Path, str]]:
    """Files beside the warehouse that a home needs, with their places in the backup."""
    for source, name in (
        (settings_file(home), SETTINGS_FILE),
        (home / SERVING / KEYS_FILE, f"{SERVING}/{KEYS_FILE}"),
        (home / SERVING / SALT_FILE, f"{SERVING}/{SALT_FILE}"),
    ):
        if source.exists():
            yield source, name


@contextmanager
def _opened(lake: Path, settings: WarehouseSettings) -> Iterator[duckdb.DuckDBPyConnection]:
    """The copy as the engine sees it; its catalog is copied once more, because an engine that opens it may change
    it."""
    with tempfile.TemporaryDirectory(prefix="nearline-backup-") as scratch:
        shutil.copyfile(lake / CATALOG, Path(scratch) / CATALOG)
        own = settings.model_copy(update={"data_path": (lake / DATA).absolute()})
        with LakeStorage(Path(scratch), own).attached(read_only=False, upgrade=True) as connection:
            yield connection


def _tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute("select table_name from duckdb_tables() where database_name = 'lake' order by all")
    return [name for (name,) in rows.fetchall()]


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(connection.execute(f'select count(*) from "{table}"').fetchall()[0][0])  # noqa: S608 - the lake's names


def _erasures(connection: duckdb.DuckDBPyConnection) -> tuple[KnownErasure, ...]:
    if "erasures" not in _tables(connection):
        return ()
    rows = connection.execute(
        "select erasure_id, user_pseudonym, erased_at from erasures order by erased_at"
    ).fetchall()
    return tuple(KnownErasure(*row) for row in rows)


def _outside_settings() -> tuple[str, ...]:
    sources = {setting_source(name) for name in setting_names() if name != "home"}
    return tuple(sorted(name for name in sources if name.upper().startswith(ENV_PREFIX)))


def _renamed(file: BackupFile, folder: Path, path: Path) -> BackupFile:
    return BackupFile(path.relative_to(folder).as_posix(), file.size, file.sha256)


def _free_name(parent: Path, now: datetime) -> Path:
    name = backup_name(now.astimezone(UTC))
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(parent / candidate for candidate in names if not (parent / candidate).exists())


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Nobody else writes a backup to this folder, so what is unfinished there was left by a process that is gone."""
    lock = FileLock(parent / ".nearline-backup.lock", timeout=0, mode=0o600)
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except Timeout:
        raise WarehouseBusyError(
            f"Another backup is being written to {parent}. Let it finish, or name another folder."
        ) from None
    except OSError as error:
        raise InputError(
            f"Backups cannot be written to {parent}: {error.strerror or error}. Name a folder on a disk that this user "
            "may write to."
        ) from None
    try:
        yield
    finally:
        lock.release()
