"""Commands for a home's copies and its layout: backup, restore, migrate. They know nothing of files."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.clock import utc_now
from flows.commands.terminal import FAILED, Json, make_console, read_settings, write_json


def backup(
    folder: Annotated[Path, typer.Argument(help="Folder of backups; each backup makes a new folder in it.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Copy nothing; compare a backup, or the newest in FOLDER, with its hashes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy the warehouse, the settings file and the API keys' hashes as of one moment; everything may go on meanwhile.

    The index is left out: it is made again from the warehouse. A backup holds everybody's data and can be read only by
    you; keep it on another disk.

    \b
    nearline backup /mnt/backups
    nearline backup /mnt/backups --verify
    """
    from flows.backups import make_backup, verify_backup

    if not verify:
        made = make_backup(read_settings(), folder, now=utc_now())
        _show(
            asdict(made),
            f"{made.folder}: {made.n_rows:,} rows as of snapshot {made.snapshot}, {made.n_files:,} files, "
            f"{made.n_bytes / 1e6:,.1f} MB, in {made.seconds:.1f} s.",
            as_json,
        )
        return
    found, manifest, damage = verify_backup(folder)
    summary = f"{found} is whole: {len(manifest.files):,} files, {manifest.n_rows:,} rows, made {manifest.made_at}."
    if damage:
        summary = "\n".join([f"{found} is damaged, and cannot be restored:", *(f"- {what}" for what in damage)])
    _show({"backup": found, "is_whole": not damage, "damage": damage, "made_at": manifest.made_at}, summary, as_json)
    raise typer.Exit(FAILED if damage else 0)


def restore(
    folder: Annotated[Path, typer.Argument(help="A backup; of a folder of backups the newest.")],
    home: Annotated[Path | None, typer.Option(help="Empty or new folder for the state. [NEARLINE_HOME]")] = None,
    erasures_of: Annotated[
        list[Path] | None,
        typer.Option(
            help="A home or backup that knows who was removed since; may be repeated. [later backups beside it]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a home from a backup: every file is checked, an older layout brought forward, the index made again.

    People who were removed since the backup are removed again, as far as it is known who. It writes over nothing.

    \b
    nearline restore /mnt/backups --home /srv/nearline
    nearline restore /mnt/backups/nearline-20260301T120000Z --erasures-of /srv/old-home
    """
    from flows.backups import restore_backup, restored_lines

    target = home or read_settings().home
    report = restore_backup(folder, target.absolute(), now=utc_now(), erasures_of=erasures_of or ())
    _show(asdict(report), "\n".join(restored_lines(report)), as_json)


def migrate(
    backups: Annotated[
        Path | None, typer.Option(help="Folder for the backup that comes first. [backups in NEARLINE_HOME]")
    ] = None,
    with_backup: Annotated[
        bool, typer.Option("--backup/--no-backup", help="Back up first; without only if you did so yourself.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Bring the warehouse of an older Nearline to this one's layout, after a backup. There is no way back but that.

    Stop `nearline up` and everything else that uses the home before. Twice does no harm.
    """
    from flows.backups import migrate_home

    report = migrate_home(read_settings(), now=utc_now(), parent=backups, with_backup=with_backup)
    lines = [
        *([f"Backed up to {report.backup}."] if report.backup else []),
        *(f"Done: {what}." for what in report.done),
    ]
    _show(asdict(report), "\n".join(lines) or "Nothing to do: the warehouse has this program's layout.", as_json)


def _show(document: object, text: str, as_json: bool) -> None:
    if as_json:
        write_json(document)
    else:
        make_console().print(text, markup=False, highlight=False, soft_wrap=True)
