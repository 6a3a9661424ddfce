"""What the commands share: the settings, the resources, and how they print. It knows nothing of any command.

Every import of something heavy is inside the function that needs it, here and in the commands, so that
``nearline --help`` answers at once.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from infra.resources import LocalResources
    from infra.settings import Settings
    from tasks.domain.records import Receipt

FAILED, ASKED_WRONGLY = 1, 2
"""Exit codes; 0 is done."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def read_settings() -> "Settings":
    """The settings of this process. Raises SettingsError."""
    from infra.settings import load_settings

    return load_settings()


def open_resources() -> "tuple[LocalResources, Settings]":
    """This machine's adapters, and the settings they were built from. Raises SettingsError."""
    from infra.resources import LocalResources

    settings = read_settings()
    return LocalResources(settings), settings


def make_console(*, stderr: bool = False) -> "Console":
    """A terminal, at least 120 columns wide where it is a file or a pipe, which has no width of its own."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def complain(message: str) -> None:
    """Print a message on stderr, in red, as it stands."""
    from rich.text import Text

    make_console(stderr=True).print(Text(message, style="red"), soft_wrap=True)


def json_text(document: object) -> str:
    """A document as JSON for people and programs; times in ISO 8601, and what JSON does not know as its text."""
    return json.dumps(document, indent=2, ensure_ascii=False, default=_plain)


def write_json(document: object) -> None:
    """Print a document as JSON."""
    typer.echo(json_text(document))


def show_receipts(receipts: "Sequence[Receipt]", as_json: bool) -> None:
    """Print receipts, one line each, or all as JSON."""
    from flows.display import receipt_line

    if as_json:
        write_json([asdict(receipt) for receipt in receipts])
        return
    for receipt in receipts:
        make_console().print(receipt_line(receipt), soft_wrap=True)


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
