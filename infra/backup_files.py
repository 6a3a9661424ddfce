"""The files of a backup: copied and hashed in one pass, read, compared with the manifest.

It knows nothing of what is in them, nor of a warehouse.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tasks.domain.backups import NAME_PREFIX, BackupFile, Manifest, parse_manifest
from tasks.domain.errors import InputError, NotFoundError

MANIFEST_FILE, UNFINISHED = "manifest.json", ".unfinished"
_PIECE_BYTES = 4 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def find_backup(folder: Path) -> Path:
    """The backup itself, or the newest one in a folder of backups. Raises NotFoundError."""
    if (folder / MANIFEST_FILE).is_file():
        return folder
    found = backups_in(folder)
    if not found:
        raise NotFoundError(
            f"{folder} is no backup and holds none: a whole one is a folder with a {MANIFEST_FILE}. "
            "Make one: nearline backup FOLDER."
        )
    return found[-1]


def backups_in(parent: Path) -> list[Path]:
    """The whole backups of a folder, the oldest first."""
    found = (file.parent for file in parent.glob(f"{NAME_PREFIX}*/{MANIFEST_FILE}"))
    return sorted(backup for backup in found if not backup.name.endswith(UNFINISHED))


def read_manifest(backup: Path) -> Manifest:
    """What a backup says of itself. Raises InputError if that is damaged."""
    return parse_manifest((backup / MANIFEST_FILE).read_text(errors="replace"), str(backup))


def find_damage(backup: Path, manifest: Manifest) -> list[str]:
    """What differs from the manifest: files that are missing, changed, or that it does not know."""
    found = [what for file in manifest.files if (what := _difference(backup / file.path, file))]
    known = {MANIFEST_FILE, *(file.path for file in manifest.files)}
    present = (path.relative_to(backup).as_posix() for path in sorted(backup.rglob("*")) if path.is_file())
    return found + [f"{path} is not in the manifest" for path in present if path not in known]


def copy_backup(backup: Path, manifest: Manifest, target: Path) -> None:
    """Copy every file of the manifest to the folder ``target``. Raises InputError at the first that differs from it."""
    for file in manifest.files:
        own = target / file.path
        own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        source = backup / file.path
        if not source.is_file() or (copied := copy_file(source, own)).sha256 != file.sha256 or copied.size != file.size:
            why = "is missing" if not source.is_file() else "is not what was backed up"
            raise InputError(
                f"The backup {backup} cannot be restored: {file.path} {why}. Nothing was changed. All that is wrong "
                f"with it: nearline backup --verify {backup}. Take another backup."
            )


def copy_file(source: Path, target: Path) -> BackupFile:
    """Copy to a new file that only its user can read, on the disk when this returns. Raises FileNotFoundError."""
    with source.open("rb") as read, os.fdopen(os.open(target, _NEW_FILE, 0o600), "wb") as written:
        digest = hashlib.sha256()
        for piece in _pieces(read):
            digest.update(piece)
            written.write(piece)
        written.flush()
        os.fsync(written.fileno())
        return BackupFile(target.name, written.tell(), digest.hexdigest())


def hash_file(path: Path, *, sync: bool = False) -> BackupFile:
    """Size and SHA-256 of a file; with ``sync`` it is on the disk when this returns."""
    with path.open("rb") as read:
        digest = hashlib.sha256()
        for piece in _pieces(read):
            digest.update(piece)
        if sync:
            os.fsync(read.fileno())
        return BackupFile(path.name, read.tell(), digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """See that the names in a folder, and in those below it, are on the disk."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder that may not be there."""
    shutil.rmtree(folder, ignore_errors=True)


def _difference(path: Path, file: BackupFile) -> str:
    if not path.is_file():
        return f"{file.path} is missing"
    if path.stat().st_size != file.size:
        return f"{file.path} has {path.stat().st_size:,} bytes instead of {file.size:,}"
    return "" if hash_file(path).sha256 == file.sha256 else f"{file.path} has other content than it had"


def _pieces(opened: BinaryIO) -> Iterator[bytes]:
    while piece := opened.read(_PIECE_BYTES):
        yield piece
