"""Commands that bring data in, and fetch what an offline machine will need. They know nothing of how files are read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.clock import utc_now
from flows.commands.terminal import Json, make_console, open_resources, read_settings, show_receipts


def fetch() -> None:
    """Get the language model and the demo's data into the cache now, for a machine that is offline later."""
    from flows.fetch import fetch_all

    fetch_all(read_settings(), make_console())


def import_(
    kind: Annotated[Literal["items", "users", "events"], typer.Argument(help="What the files hold.")],
    paths: Annotated[list[Path], typer.Argument(help="Files or folders: CSV, JSON lines or Parquet.")],
    mapping: Annotated[
        Path | None, typer.Option(help="File (YAML, JSON or TOML) that says which column is which.")
    ] = None,
    guess: Annotated[bool, typer.Option("--guess", help="Take the mapping that --dry-run proposes.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the columns, and propose a mapping on stdout.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take in items, users or events; rows that cannot be taken go to quarantine, with the reason.

    The same file twice is taken once.

    \b
    nearline import items films.csv
    nearline import events ratings.csv --dry-run > mapping.yml
    nearline import events ratings.csv --mapping mapping.yml
    nearline import events ratings.csv --guess
    """
    from flows.imports import mapping_text, propose, read_mapping
    from tasks.ingest import import_files

    resources, settings = open_resources()
    if dry_run:
        typer.echo(mapping_text(propose(resources, kind, paths, make_console(stderr=True))), nl=False)
        return
    chosen = read_mapping(mapping) if mapping else None
    if guess:
        chosen = propose(resources, kind, paths, make_console(stderr=True)) | (chosen or {})
    share = settings.gates.max_quarantined_share
    receipts = import_files(resources, kind, paths, now=utc_now(), mapping=chosen, max_quarantined_share=share)
    show_receipts(receipts, as_json)


def watch(
    kind: Annotated[Literal["items", "users", "events"], typer.Argument(help="What the files hold.")],
    folder: Annotated[Path, typer.Argument(help="Folder in which files appear.")],
    mapping: Annotated[
        Path | None, typer.Option(help="File (YAML, JSON or TOML) that says which column is which.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Import the files that appear in a folder, once they are no longer written to, until Ctrl-C.

    It moves and deletes nothing. A file that was imported before is recognised by its content; one that cannot be
    imported is named, and the others go on.

    \b
    nearline watch events incoming/ --mapping mapping.yml
    """
    from flows.display import watched_line
    from flows.imports import read_mapping
    from flows.stopping import pauses_until_stopped
    from flows.watch import FolderWatch

    resources, settings = open_resources()
    share = settings.gates.max_quarantined_share
    watched = FolderWatch(resources, kind, folder, utc_now, read_mapping(mapping) if mapping else None, share)
    console = make_console()
    console.print(f"Watching {folder} for {kind}. Stop: Ctrl-C", style="dim", markup=False, highlight=False)
    with pauses_until_stopped() as goes_on:
        while True:
            watched.look(lambda path, result: console.print(watched_line(path.name, result), soft_wrap=True))
            if not goes_on(interval):
                return
