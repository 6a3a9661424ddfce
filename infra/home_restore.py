"""Makes a home out of a backup: beside what will be, then moved into place, so that half a home never looks like one.

It knows nothing of what is done to the warehouse before it is moved.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from infra.backup_files import copy_backup, remove_folder, sync_folder
from infra.home_backup import WAREHOUSE
from infra.key_store import FOLDER as SERVING
from infra.key_store import write_private
from infra.settings import SETTINGS_FILE, Settings, load_settings
from tasks.domain.backups import Manifest
from tasks.domain.errors import InputError, StorageError

STAGED = ".restoring"
_MOVED = (SETTINGS_FILE, SERVING, "index", "locks", "data_docs", "staging")
_OF_THE_DISK = ("lost+found",)

T = TypeVar("T")


def restore_home(backup: Path, manifest: Manifest, home: Path, finish: Callable[[Path], T]) -> T:
    """Copy and check every file, run ``finish`` on the home that they make, and move it to ``home``.

    The warehouse is moved last: a kill before leaves a home without one, which the next restore clears away. Raises
    InputError if ``home`` is not empty or the backup is damaged, and StorageError if the disk is too small or refuses
    something.
    """
    check_empty(home)
    staged = home / STAGED
    for leftover in (STAGED, *_MOVED) if staged.exists() else ():
        _remove(home / leftover)
    staged.mkdir(parents=True, mode=0o700)
    try:
        _check_room(manifest, home)
        copy_backup(backup, manifest, staged)
        result = finish(staged)
        for path in sorted(staged.iterdir(), key=lambda path: path.name == WAREHOUSE):
            sync_folder(path) if path.is_dir() else None
            path.rename(home / path.name)
        sync_folder(home)
    except OSError as error:
        raise StorageError(
            f"Restoring {backup} into {home} was not finished: {error}. See that the disk has room and can be written "
            "to, then run it again."
        ) from error
    finally:
        remove_folder(staged)
    return result


def check_empty(home: Path) -> None:
    """Raises InputError if a home holds anything but what a restore that was killed has left."""
    if not home.exists():
        return
    if not home.is_dir():
        raise InputError(f"Restoring into {home} is not possible: it is a file. Name a folder that is empty.")
    left = (STAGED, *_MOVED) if (home / STAGED).exists() else ()
    present = sorted(path.name for path in home.iterdir() if path.name not in (*left, *_OF_THE_DISK))
    if present:
        raise InputError(
            f"Restoring into {home} was refused: it is not empty ({', '.join(present[:5])}). A restore never writes "
            "over anything. Name an empty or new folder: nearline restore BACKUP --home NEW."
        )


def settle_settings(staged: Path) -> Settings:
    """The settings of a home that is being made, whose warehouse lies in the home: a line of the settings file that
    says otherwise is made a comment. Raises InputError where the environment says so."""
    file = staged / SETTINGS_FILE
    if file.exists():
        own = re.sub(r"(?m)^(\s*(?:warehouse\.)?data_path\s*=)", r"# before the restore: \1", file.read_text())
        write_private(file, own.encode())
    settings = load_settings(home=staged)
    if settings.warehouse.catalog_url or settings.warehouse.data_path:
        raise InputError(
            "A backup is restored with its catalog and files in the home, and the settings name another place for them "
            "(warehouse.catalog_url or warehouse.data_path). Unset that and run this again; docs/backup.md says how to "
            "move them afterwards."
        )
    return settings


def _check_room(manifest: Manifest, home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < manifest.n_bytes:
        raise StorageError(
            f"The backup holds {manifest.n_bytes / 1e6:,.0f} MB, and {home} has {free / 1e6:,.0f} MB free. Make room "
            "there, or name a folder on another disk."
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)
