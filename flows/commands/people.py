"""Commands for one person's data: give it out, remove it. They know nothing of where it is stored."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.clock import utc_now
from flows.commands.terminal import FAILED, Json, json_text, make_console, open_resources, write_json


def erase(
    user: Annotated[str, typer.Argument(help="Id of a user.")],
    verify: Annotated[bool, typer.Option("--verify", help="Erase nothing; look whether anything is left.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a person for good: events, profiles, slates, refused rows, vectors, and the snapshots that hold them.

    The warehouse cannot be read as it was before this moment afterwards.
    """
    from flows.display import erasure_table
    from tasks.erase import erase_user, verify_erasure

    resources, _ = open_resources()
    if verify:
        places = verify_erasure(resources, user)
        is_gone = not any(place.n_left for place in places)
        if as_json:
            write_json({"is_gone": is_gone, "places": [asdict(place) for place in places]})
        else:
            make_console().print(erasure_table(places))
        raise typer.Exit(0 if is_gone else FAILED)
    if not yes:
        typer.confirm(
            "Everything that is stored of this user will be removed, and cannot be had back. Go on?", abort=True
        )
    receipt = erase_user(resources, user, now=utc_now())
    if as_json:
        write_json(asdict(receipt))
        return
    console = make_console()
    console.print(erasure_table(receipt.removed))
    console.print(f"Receipt {receipt.erasure_id}, for {receipt.user}.", highlight=False)
    for sentence in receipt.remains:
        console.print(f"- {sentence}", style="dim", markup=False)


def export(
    user: Annotated[str, typer.Argument(help="Id of a user.")],
    out: Annotated[Path | None, typer.Option(help="File to write. [standard output]")] = None,
) -> None:
    """Everything that is stored of a user, as JSON."""
    from tasks.export import export_user

    resources, _ = open_resources()
    text = json_text(export_user(resources, user))
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text)
