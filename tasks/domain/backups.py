"""What a backup says of itself: its manifest, as records and as JSON. No files are touched here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from tasks.domain.errors import InputError

FORMAT = 1
"""Number of the backup's own form; raise it when a program that reads form 1 could not restore it."""
NAME_PREFIX = "nearline-"


@dataclass(frozen=True)
class BackupFile:
    """One file: its path in the backup (relative, with ``/``), its bytes and their SHA-256 in hexadecimal digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class KnownErasure:
    """A person who was removed, by the pseudonym of their home."""

    erasure_id: str
    user_pseudonym: str
    erased_at: datetime


@dataclass(frozen=True)
class Manifest:
    """What is in a backup.

    ``lake`` names the warehouse and stays the same in every backup of it. ``rows`` counts the rows of each table as of
    ``snapshot``. ``outside_settings`` are the environment variables that settings came from: names, not values.
    """

    made_at: datetime
    program: str
    layout: int
    lake: str
    snapshot: int
    rows: Mapping[str, int]
    files: tuple[BackupFile, ...]
    erasures: tuple[KnownErasure, ...] = ()
    outside_settings: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def n_rows(self) -> int:
        """Rows of all tables."""
        return sum(self.rows.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=1, default=datetime.isoformat)


def backup_name(made_at: datetime) -> str:
    """The folder of a backup made then (UTC): names sort as times do."""
    return f"{NAME_PREFIX}{made_at:%Y%m%dT%H%M%SZ}"


def parse_manifest(text: str, source: str) -> Manifest:
    """The manifest of the backup ``source``. Raises InputError if it is damaged or of a form this program does not
    know."""
    try:
        document = json.loads(text)
        if document["format"] > FORMAT:
            raise InputError(
                f"The backup {source} has form {document['format']!s:.20}, and this program knows forms up to "
                f"{FORMAT}: a newer Nearline made it. Install that version."
            )
        return _manifest(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The manifest of the backup {source} is damaged ({type(error).__name__}). Take another backup."
        ) from None


def unseen_erasures(manifest: Manifest, later: tuple[KnownErasure, ...]) -> frozenset[str]:
    """Pseudonyms of people whom the backup may still hold: ``later`` knows of an erasure, the backup does not."""
    known = {erasure.erasure_id for erasure in manifest.erasures}
    return frozenset(erasure.user_pseudonym for erasure in later if erasure.erasure_id not in known)


def _manifest(document: Mapping[str, Any]) -> Manifest:
    return Manifest(
        made_at=datetime.fromisoformat(document["made_at"]),
        program=str(document["program"]),
        layout=int(document["layout"]),
        lake=str(document["lake"]),
        snapshot=int(document["snapshot"]),
        rows={str(table): int(n_rows) for table, n_rows in document["rows"].items()},
        files=tuple(BackupFile(_checked_path(f["path"]), int(f["size"]), str(f["sha256"])) for f in document["files"]),
        erasures=tuple(
            KnownErasure(e["erasure_id"], e["user_pseudonym"], datetime.fromisoformat(e["erased_at"]))
            for e in document["erasures"]
        ),
        outside_settings=tuple(str(name) for name in document["outside_settings"]),
        format=int(document["format"]),
    )


def _checked_path(path: str) -> str:
    """A path that stays inside the backup."""
    parsed = PurePosixPath(path)
    if parsed.is_absolute() or ".." in parsed.parts or "\\" in path or not parsed.parts:
        raise ValueError(path)
    return path
