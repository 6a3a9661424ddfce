"""The command line ``nearline``: its commands in the order in which help shows them, and how an error ends it.

It knows nothing of what a command does. Starting it imports nothing heavy.
"""

import sys
from typing import Annotated

import typer

from flows.commands import api_keys, asking, copies, files, operating, people, running
from flows.commands.terminal import ASKED_WRONGLY, FAILED, complain
from tasks.domain.errors import InputError, NearlineError, NotFoundError, SettingsError

START, FLOW, ASK, OPERATE = "Start here", "Run the flows", "Ask", "Operate"
ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands that take the parameters of a flow as options of the same name too."""

app = typer.Typer(
    name="nearline",
    help="A recommender platform: it reads what items say, learns from what people do, and follows them within seconds."
    "\n\nA first look, with real data: [bold]nearline demo[/bold]. Your own data: [bold]nearline import[/bold], then "
    "[bold]nearline run daily_batch[/bold], then [bold]nearline recommend[/bold].\n\nState is kept in the folder "
    "NEARLINE_HOME (./var); every setting is in docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(help="API keys of the HTTP service: make, list, revoke.", no_args_is_help=True)


def main() -> int:
    """Run the command line; the exit code is 0 when it is done, 1 when it failed, 2 when it was asked wrongly."""
    try:
        app()
    except NearlineError as error:
        complain(str(error))
        return ASKED_WRONGLY if isinstance(error, InputError | SettingsError | NotFoundError) else FAILED
    except OSError as error:
        from infra.disk_errors import storage_error

        if (refused := storage_error("The command", error)) is None:
            raise
        complain(str(refused))
        return FAILED
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"nearline {version('nearline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command(rich_help_panel=START)(running.demo)
app.command(rich_help_panel=OPERATE)(files.fetch)
app.command("import", rich_help_panel=START)(files.import_)
app.command(rich_help_panel=OPERATE)(files.watch)
app.command(rich_help_panel=START)(running.up)
app.command(rich_help_panel=START)(running.serve)
app.command(rich_help_panel=FLOW, context_settings=ANY_OPTION)(running.run)
app.command(rich_help_panel=FLOW, context_settings=ANY_OPTION)(running.trigger)
app.command(rich_help_panel=ASK)(asking.recommend)
app.command(rich_help_panel=ASK)(asking.similar)
app.command("similar-users", rich_help_panel=ASK)(asking.similar_users)
app.command(rich_help_panel=ASK)(asking.sql)
app.command(rich_help_panel=OPERATE)(operating.status)
app.command(rich_help_panel=OPERATE)(operating.automations)
app.command(rich_help_panel=OPERATE)(operating.rollback)
app.command(rich_help_panel=OPERATE)(people.erase)
app.command(rich_help_panel=OPERATE)(people.export)
app.command("rebuild-index", rich_help_panel=OPERATE)(operating.rebuild_index)
app.command(rich_help_panel=OPERATE)(operating.settings)
app.command(rich_help_panel=OPERATE)(copies.backup)
app.command(rich_help_panel=OPERATE)(copies.restore)
app.command(rich_help_panel=OPERATE)(copies.migrate)

app.add_typer(keys, name="keys", rich_help_panel=OPERATE)
keys.command("create")(api_keys.create_key)
keys.command("list")(api_keys.list_keys)
keys.command("revoke")(api_keys.revoke_key)


if __name__ == "__main__":
    sys.exit(main())
