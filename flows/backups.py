"""Backup, restore and migration of a home, put together from their parts. It knows nothing of terminals."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.backup_files import MANIFEST_FILE, backups_in, find_backup, find_damage, read_manifest
from infra.ducklake_storage import LakeStorage
from infra.home_backup import CATALOG, WAREHOUSE, back_up_home
from infra.home_restore import check_empty, restore_home, settle_settings
from infra.key_store import FOLDER as SERVING
from infra.key_store import SALT_FILE
from infra.resources import LocalResources
from infra.settings import Settings, load_settings
from tasks.domain.backups import KnownErasure, Manifest, unseen_erasures
from tasks.domain.errors import InputError, NotFoundError

BACKUPS = "backups"
"""Where a migration puts its backup, below the home."""


@dataclass(frozen=True)
class BackupReport:
    """What was backed up, where to, and in how many seconds."""

    folder: Path
    made_at: datetime
    layout: int
    snapshot: int
    n_files: int
    n_bytes: int
    n_rows: int
    seconds: float


@dataclass(frozen=True)
class RestoreReport:
    """What was restored. ``serving`` is the version that the index holds again, None where it is still to be made.

    ``n_erased`` people were removed again, who had been removed since the backup; ``n_unknown`` erasures could not be
    matched, because the salt of their pseudonyms is another one. ``unreadable`` are backups beside this one that might
    have known of more.
    """

    home: Path
    backup: Path
    made_at: datetime
    n_rows: int
    n_bytes: int
    migrated: tuple[str, ...]
    serving: str | None
    n_erased: int
    n_unknown: int
    unreadable: tuple[Path, ...]
    outside_settings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class MigrationReport:
    """What was done to the layout, after which backup: nothing and None if there was nothing to do."""

    done: tuple[str, ...]
    backup: Path | None


@dataclass(frozen=True)
class _Source:
    """A place that knows of erasures: a home, or a later backup of the same warehouse."""

    folder: Path
    erasures: tuple[KnownErasure, ...]

    @property
    def salt(self) -> bytes | None:
        file = self.folder / SERVING / SALT_FILE
        return file.read_bytes() if file.exists() else None


def make_backup(settings: Settings, parent: Path, *, now: datetime) -> BackupReport:
    """A new backup in the folder ``parent``; raises as ``infra.home_backup.back_up_home``."""
    began = time.perf_counter()
    folder, manifest = back_up_home(settings, parent, now=now)
    return BackupReport(
        folder=folder,
        made_at=manifest.made_at,
        layout=manifest.layout,
        snapshot=manifest.snapshot,
        n_files=len(manifest.files),
        n_bytes=manifest.n_bytes,
        n_rows=manifest.n_rows,
        seconds=time.perf_counter() - began,
    )


def verify_backup(folder: Path) -> tuple[Path, Manifest, list[str]]:
    """The backup (of a folder of backups the newest), its manifest, and what differs from it."""
    backup = find_backup(folder)
    manifest = read_manifest(backup)
    return backup, manifest, find_damage(backup, manifest)


def restore_backup(
    folder: Path,
    home: Path,
    *,
    now: datetime,
    erasures_of: Sequence[Path] = (),
    open_home: Callable[[Settings], LocalResources] = LocalResources,
) -> RestoreReport:
    """A backup (of a folder of backups the newest) as the new home ``home``, which must be empty.

    An older layout is brought forward, the index of local mode is made again, and who was removed since is removed
    again, as far as ``erasures_of`` (homes, backups) and later backups beside this one know of them. All of that comes
    before the home is there. Raises as ``infra.home_restore.restore_home``.
    """
    began = time.perf_counter()
    backup = find_backup(folder)
    manifest = read_manifest(backup)
    check_empty(home)
    later, unreadable = _backups_beside(backup, manifest)
    sources = [*later, *(_source(place) for place in erasures_of)]

    def finish(staged: Path) -> dict[str, Any]:
        _take_salt(staged, sources)
        resources = open_home(settle_settings(staged))
        migrated = _lake(resources.settings).migrate(lambda: None)
        serving = _make_index(resources, now)
        return {"migrated": migrated, "serving": serving, **_erase_again(resources, manifest, sources, now)}

    done = restore_home(backup, manifest, home, finish)
    return RestoreReport(
        home=home,
        backup=backup,
        made_at=manifest.made_at,
        n_rows=manifest.n_rows,
        n_bytes=manifest.n_bytes,
        unreadable=unreadable,
        outside_settings=manifest.outside_settings,
        seconds=time.perf_counter() - began,
        **done,
    )


def migrate_home(
    settings: Settings, *, now: datetime, parent: Path | None = None, with_backup: bool = True
) -> MigrationReport:
    """Bring the warehouse to the layout of this program, after a backup in ``parent``; nobody writes meanwhile.

    Raises NotFoundError where there is no warehouse, TerminalError for a newer layout, and as ``back_up_home``; then
    nothing was changed.
    """
    if settings.warehouse.catalog_url is None and not (settings.home / WAREHOUSE / CATALOG).exists():
        raise NotFoundError(f"There is no warehouse in {settings.home} to migrate. A new one needs no migration.")
    made: list[Path] = []

    def before() -> None:
        if with_backup:
            made.append(back_up_home(settings, parent or settings.home / BACKUPS, now=now)[0])

    done = _lake(settings).migrate(before)
    return MigrationReport(done, made[0] if made else None)


def restored_lines(report: RestoreReport) -> list[str]:
    """What was restored and what is still to be done, in sentences."""
    lines = [
        f"{report.home}: {report.n_rows:,} rows and {report.n_bytes / 1e6:,.1f} MB of {report.backup}, made "
        f"{report.made_at:%Y-%m-%d %H:%M} UTC, in {report.seconds:.1f} s.",
        *(f"The layout was brought forward: {what}." for what in report.migrated),
        f"Version {report.serving} is in the index again."
        if report.serving
        else "The index was not made: if a version was published, run nearline rebuild-index.",
        f"{report.n_erased:,} people who were removed since the backup were removed from it again.",
    ]
    if report.n_unknown:
        lines.append(
            f"{report.n_unknown:,} removals since then cannot be matched: the salt of their pseudonyms is another one. "
            "Remove these people again by hand: nearline erase USER."
        )
    if report.unreadable:
        names = ", ".join(folder.name for folder in report.unreadable)
        lines.append(f"These backups beside it cannot be read, and may have known of more removals: {names}.")
    if report.outside_settings:
        lines.append(f"Set by the environment then, and not in the backup: {', '.join(report.outside_settings)}.")
    return [*lines, f"Use it: export NEARLINE_HOME={report.home}"]


def _lake(settings: Settings) -> LakeStorage:
    return LakeStorage((settings.home / WAREHOUSE).absolute(), settings.warehouse)


def _backups_beside(backup: Path, manifest: Manifest) -> tuple[list[_Source], tuple[Path, ...]]:
    """Backups of the same warehouse in the same folder, and those that cannot be read."""
    found, unreadable = [], []
    for other in backups_in(backup.parent):
        try:
            known = read_manifest(other)
        except InputError:
            unreadable.append(other)
            continue
        if known.lake == manifest.lake and other != backup:
            found.append(_Source(other, known.erasures))
    return found, tuple(unreadable)


def _source(place: Path) -> _Source:
    if not (place / WAREHOUSE / CATALOG).exists() or (place / MANIFEST_FILE).exists():
        backup = find_backup(place)
        return _Source(backup, read_manifest(backup).erasures)
    with LocalResources(load_settings(home=place)).warehouse(read_only=True) as warehouse:
        rows = warehouse.read("select erasure_id, user_pseudonym, erased_at from erasures").to_pylist()
    return _Source(place, tuple(KnownErasure(**row) for row in rows))


def _take_salt(staged: Path, sources: Sequence[_Source]) -> None:
    """A salt is made by the first erasure, so a backup from before it has none, and a later one has."""
    own = staged / SERVING / SALT_FILE
    known = next((source for source in reversed(sources) if source.salt), None)
    if not own.exists() and known is not None:
        own.parent.mkdir(exist_ok=True, mode=0o700)
        shutil.copy2(known.folder / SERVING / SALT_FILE, own)


def _make_index(resources: LocalResources, now: datetime) -> str | None:
    """The index of local mode. A server's is not touched: it may serve another home."""
    from tasks.publish import rebuild_index

    if not resources.serves_from_memory:
        return None
    try:
        return rebuild_index(resources, now=now).version
    except NotFoundError:
        return None  # nothing was published when the backup was made


def _erase_again(
    resources: LocalResources, manifest: Manifest, sources: Sequence[_Source], now: datetime
) -> dict[str, int]:
    from tasks.backup import repeat_erasures

    own = _Source(resources.home, ()).salt
    wanted: set[str] = set()
    unknown: set[str] = set()
    for source in sources:
        (wanted if source.salt == own else unknown).update(unseen_erasures(manifest, source.erasures))
    receipts = repeat_erasures(resources, wanted, now=now)
    if not all(receipt.is_complete for receipt in receipts):
        raise InputError(
            "Somebody who was removed since the backup could not be removed from it, so nothing was restored. "
            "Run it again."
        )
    return {"n_erased": len(receipts), "n_unknown": len(unknown - wanted)}
