"""Commands for the API keys of the HTTP service. They know nothing of how keys are stored."""

from typing import Annotated

import typer

from flows.clock import utc_now
from flows.commands.terminal import Json, make_console, read_settings, write_json


def create_key(
    name: Annotated[str, typer.Argument(help="Who uses it, such as 'web shop'.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin; may be repeated. [read and write]")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it ends. [it is revoked]")] = None,
    as_json: Json = False,
) -> None:
    """Make an API key and show it, this once. A service that runs takes it within a second.

    \b
    nearline keys create "web shop"
    nearline keys create operator --scope admin --days 30
    """
    from flows.keys import create_key as create
    from flows.keys import key_document

    key, text = create(read_settings(), name, scope or ["read", "write"], days, utc_now())
    if as_json:
        write_json({**key_document(key), "key": text})
        return
    typer.echo(text)
    about = (
        f"Key {key.key_id} for {name}: {', '.join(sorted(key.scopes))}. It is shown this once; only its hash is kept."
    )
    make_console(stderr=True).print(about, style="dim", markup=False, highlight=False, soft_wrap=True)


def list_keys(as_json: Json = False) -> None:
    """The keys there are, without their secrets, which are not stored."""
    from flows.keys import key_document, keys_table
    from flows.keys import list_keys as find

    found = find(read_settings())
    if as_json:
        write_json([key_document(key) for key in found])
    elif found:
        make_console().print(keys_table(found, utc_now()))
    else:
        make_console().print("There are no keys. Make one: nearline keys create NAME", highlight=False)


def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as nearline keys list shows it.")], as_json: Json = False
) -> None:
    """Take a key back. A service that runs refuses it within a second."""
    from flows.keys import key_document
    from flows.keys import revoke_key as revoke

    key = revoke(read_settings(), key_id)
    if as_json:
        write_json(key_document(key))
    else:
        make_console().print(f"Key {key.key_id} for {key.name} is revoked.", markup=False, highlight=False)
