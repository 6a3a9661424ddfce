"""The command line ``nearline``: parses, calls, prints; nothing else.

Every import of something heavy is inside the command that needs it, so that ``nearline --help`` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tasks.domain.errors import InputError, NearlineError, NotFoundError, SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from infra.resources import LocalResources
    from infra.settings import Settings

FLOWS = ("daily_batch", "nearline", "backfill", "maintenance", "tune_factors")
ASKED_WRONGLY = 2
FAILED = 1

START, FLOW, ASK, OPERATE = "Start here", "Run the flows", "Ask", "Operate"

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

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Length = Annotated[int, typer.Option("-k", "--length", min=1, max=500, help="How many items.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the flow; may be given several times."),
]
OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands that take the parameters of a flow as options of the same name too."""


def main() -> int:
    """Run the command line; the exit code is 0 when it is done, 1 when it failed, 2 when it was asked wrongly."""
    try:
        app()
    except NearlineError as error:
        _complain(str(error))
        return ASKED_WRONGLY if isinstance(error, InputError | SettingsError | NotFoundError) else FAILED
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


@app.command(rich_help_panel=START)
def demo() -> None:
    """Real data to published, explained recommendations, told step by step.

    Fetches MovieLens 100K and a small language model once, runs the whole batch, then one nearline refresh. Takes
    about two minutes; a second time it re-uses what is unchanged.
    """
    from flows.demo import run_demo
    from infra.prefect_server import prefect_api
    from infra.settings import load_settings

    settings = load_settings()
    with prefect_api(settings):
        run_demo(settings, _console())


@app.command(rich_help_panel=OPERATE)
def fetch() -> None:
    """Get the language model and the demo's data into the cache now, for a machine that is offline later."""
    from flows.fetch import fetch_all

    fetch_all(_settings(), _console())


@app.command(name="import", rich_help_panel=START)
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
    from flows.clock import utc_now
    from flows.imports import mapping_text, propose, read_mapping
    from tasks.ingest import import_files

    resources, settings = _resources()
    if dry_run:
        typer.echo(mapping_text(propose(resources, kind, paths, _console(stderr=True))), nl=False)
        return
    chosen = read_mapping(mapping) if mapping else None
    if guess:
        chosen = propose(resources, kind, paths, _console(stderr=True)) | (chosen or {})
    share = settings.gates.max_quarantined_share
    receipts = import_files(resources, kind, paths, now=utc_now(), mapping=chosen, max_quarantined_share=share)
    _show_receipts(receipts, as_json)


@app.command(rich_help_panel=OPERATE)
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
    import contextlib
    import time

    from flows.clock import utc_now
    from flows.display import watched_line
    from flows.imports import read_mapping
    from flows.watch import FolderWatch

    resources, settings = _resources()
    share = settings.gates.max_quarantined_share
    watched = FolderWatch(resources, kind, folder, utc_now, read_mapping(mapping) if mapping else None, share)
    console = _console()
    console.print(f"Watching {folder} for {kind}. Stop: Ctrl-C", style="dim", markup=False, highlight=False)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            watched.look(lambda path, result: console.print(watched_line(path.name, result), soft_wrap=True))
            time.sleep(interval)


@app.command(rich_help_panel=START)
def up(
    port: Annotated[int | None, typer.Option(help="Port of the UI. [4200, or the next one that is free]")] = None,
    service: Annotated[bool, typer.Option(help="Start the HTTP service too.")] = True,
) -> None:
    """Start everything: the Prefect server with its UI, the schedules, the workers, the HTTP service, the index.

    It prints where they answer and a fresh API key; the key of the time before is no longer good. With
    PREFECT_API_URL set it joins that server instead of starting one. Ctrl-C ends all of it.
    """
    from flows.up import Running, run_up
    from infra.settings import load_settings

    console = _console()

    def ready(running: Running) -> None:
        console.print(f"[bold green]Nearline is up.[/bold green] UI: {running.ui_url}  REST API: {running.api_url}")
        if running.service_url:
            console.print(f"HTTP service: {running.service_url}  API key: {running.key}", soft_wrap=True)
        console.print("Trigger a run: nearline trigger daily_batch    Stop: Ctrl-C", highlight=False)

    def say(text: str) -> None:
        console.print(f"  {text} ...", style="dim", markup=False, highlight=False)

    run_up(load_settings(), port, say, ready, with_service=service)
    console.print("Stopped.")


@app.command(rich_help_panel=START)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [service.host, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 is any that is free. [service.port, 8000]")] = None,
    as_json: Json = False,
) -> None:
    """Start the HTTP service: events in, recommendations out. Ctrl-C ends it.

    It answers requests that come with an API key (nearline keys create NAME). `nearline up` starts one by itself; one
    service runs for each home. What can be asked is in docs/http.md.

    \b
    nearline serve
    nearline serve --port 0 --json
    """
    from flows.serve import ServiceAddress, is_loopback, run_service, write_logs

    settings = _settings()
    host, port = host or settings.service.host, settings.service.port if port is None else port
    write_logs(settings)
    if not is_loopback(host):
        _complain(f"Other machines can reach {host}, and keys and events travel in the clear: put TLS before it.")

    def ready(address: ServiceAddress) -> None:
        import json

        typer.echo(json.dumps({"url": address.url, "pid": address.pid}) if as_json else f"Serving on {address.url}")
        sys.stdout.flush()

    run_service(settings, host, port, ready)


keys_app = typer.Typer(help="API keys of the HTTP service: make, list, revoke.", no_args_is_help=True)
app.add_typer(keys_app, name="keys", rich_help_panel=OPERATE)


@keys_app.command("create")
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
    from flows.clock import utc_now
    from flows.keys import create_key as create
    from flows.keys import key_document

    key, text = create(_settings(), name, scope or ["read", "write"], days, utc_now())
    if as_json:
        _write({**key_document(key), "key": text})
        return
    typer.echo(text)
    about = (
        f"Key {key.key_id} for {name}: {', '.join(sorted(key.scopes))}. It is shown this once; only its hash is kept."
    )
    _console(stderr=True).print(about, style="dim", markup=False, highlight=False, soft_wrap=True)


@keys_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """The keys there are, without their secrets, which are not stored."""
    from flows.clock import utc_now
    from flows.keys import key_document, keys_table
    from flows.keys import list_keys as find

    found = find(_settings())
    if as_json:
        _write([key_document(key) for key in found])
    elif found:
        _console().print(keys_table(found, utc_now()))
    else:
        _console().print("There are no keys. Make one: nearline keys create NAME", highlight=False)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as nearline keys list shows it.")], as_json: Json = False
) -> None:
    """Take a key back. A service that runs refuses it within a second."""
    from flows.keys import key_document
    from flows.keys import revoke_key as revoke

    key = revoke(_settings(), key_id)
    if as_json:
        _write(key_document(key))
    else:
        _console().print(f"Key {key.key_id} for {key.name} is revoked.", markup=False, highlight=False)


@app.command(rich_help_panel=FLOW, context_settings=OPEN)
def run(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(metavar="FLOW", help=f"One of {', '.join(FLOWS)}.")],
    param: Parameters = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's log lines too.")] = False,
    as_json: Json = False,
) -> None:
    """Run a flow here and now, in this process, and show its stages.

    The run is in the UI of `nearline up` where that runs; without it, Prefect's history is kept all the same. Each
    parameter of the flow is also an option of its name.

    \b
    nearline run daily_batch
    nearline run daily_batch -p events=new.csv -p force_retrain=true
    nearline run tune_factors --minutes 10 --max-factors 64
    nearline run nearline
    nearline run backfill -p from_date=2026-01-01
    """
    from dataclasses import asdict

    from flows.parameters import pairs_from_options, parse_parameters
    from infra.prefect_server import prefect_api, wait_for_api
    from infra.settings import load_settings

    _check_flow(flow)
    parameters = parse_parameters([*(param or []), *pairs_from_options(context.args)])
    console = _console(stderr=as_json)
    with prefect_api(load_settings(), quiet=not verbose):
        with console.status("starting Prefect"):
            from flows.local_runs import run_flow

            wait_for_api()
        summary = run_flow(flow, parameters, console)
    if as_json:
        _write(asdict(summary))
    else:
        console.print(f"[bold]{summary.outcome}[/bold] after {summary.seconds:.1f} s: ", end="")
        console.print(summary.message, markup=False, highlight=False)


@app.command(rich_help_panel=FLOW, context_settings=OPEN)
def trigger(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(metavar="FLOW", help=f"One of {', '.join(FLOWS)}.")],
    param: Parameters = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended; the exit code tells how.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a running server (PREFECT_API_URL, or that of `nearline up`) for a run, through its REST API.

    \b
    nearline trigger daily_batch --wait
    nearline trigger backfill -p users=42
    """
    from dataclasses import asdict

    from flows.parameters import pairs_from_options, parse_parameters
    from infra.prefect_server import connect_prefect

    parameters = parse_parameters([*(param or []), *pairs_from_options(context.args)])
    console = _console(stderr=as_json)
    with connect_prefect(_settings()):
        from flows.deployments import TriggeredRun, trigger_flow, wait_for_run

        def show(run: TriggeredRun) -> None:
            console.print(f"  {run.state}: {run.message}" if run.message else f"  {run.state}", markup=False)

        asked = trigger_flow(flow, parameters)
        console.print(f"{flow}: run {asked.name}, {asked.url}", markup=False, soft_wrap=True)
        seen = wait_for_run(asked, show) if wait else asked
    if as_json:
        _write(asdict(seen))
    if seen.is_final and not seen.succeeded:
        raise typer.Exit(FAILED)


@app.command(rich_help_panel=ASK)
def recommend(
    user: Annotated[str | None, typer.Option(help="Id of a user.")] = None,
    text: Annotated[str | None, typer.Option(help="What somebody is looking for, in their words.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="Id of an item that somebody likes; may be repeated.")] = None,
    k: Length = 10,
    category: Annotated[
        list[str] | None, typer.Option(help="Only items of this category; may be repeated, for any of several.")
    ] = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="How much being unlike the items above counts against the score.")
    ] = 0.0,
    method: Annotated[
        Literal["fused", "neighbours"],
        typer.Option(help="How a user's score is made: the learned vectors, or the neighbours of what they liked."),
    ] = "fused",
    explain: Annotated[bool, typer.Option("--explain", help="Say why, in parts that add up to the score.")] = False,
    as_json: Json = False,
) -> None:
    """Recommend to a user, to somebody known by a text, or to somebody who likes some items.

    \b
    nearline recommend --user 42 --explain
    nearline recommend --user 42 --explain --method neighbours
    nearline recommend --text "a quiet film about the sea"
    nearline recommend --like 50 --like 172 -k 5
    """
    from tasks.domain.online import SlateRequest
    from tasks.recommend import answer

    if sum(value is not None for value in (user, text, like or None)) != 1:
        raise InputError("A recommendation needs one of --user, --text and --like. See: nearline recommend --help")
    if user is None and method != "fused":
        raise InputError(f"--method {method} was asked for without --user. Only a user has a history: name one.")
    resources, _ = _resources()
    request = SlateRequest(
        user_id=user,
        text=text,
        liked=tuple(like or ()),
        k=k,
        categories=tuple(category or ()),
        diversity=diversity,
        explain=explain,
        method=method,
    )
    _show_slate(answer(resources, request), as_json)


@app.command(rich_help_panel=ASK)
def similar(
    item: Annotated[str, typer.Argument(help="Id of an item.")],
    by: Annotated[
        Literal["factors", "text", "both"],
        typer.Option(help="What is compared: who likes them, what they say, or both."),
    ] = "factors",
    k: Length = 10,
    as_json: Json = False,
) -> None:
    """Items that are most like one item, by who likes them or by what they say."""
    from tasks.similar import similar_items

    resources, _ = _resources()
    _show_slate(similar_items(resources, item, k=k, by=by), as_json)


@app.command(name="similar-users", rich_help_panel=ASK)
def similar_users(
    user: Annotated[str, typer.Argument(help="Id of a user.")], k: Length = 10, as_json: Json = False
) -> None:
    """Users who are most like one user, and what both liked."""
    from dataclasses import asdict

    from flows.display import similar_users_table
    from tasks.similar import similar_users as find_similar

    resources, _ = _resources()
    found = find_similar(resources, user, k=k)
    if as_json:
        _write(asdict(found))
        return
    if found.users:
        _console().print(similar_users_table(found))
    if found.note:
        _console().print(found.note, style="dim", markup=False)


@app.command(rich_help_panel=ASK)
def sql(
    query: Annotated[str, typer.Argument(help="A query in DuckDB's SQL; tables are in docs/data-dictionary.md.")],
    limit: Annotated[int, typer.Option(min=1, help="Rows that are shown as a table.")] = 50,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, all rows.")] = False,
) -> None:
    """Ask the warehouse, read-only; flows may run meanwhile.

    \b
    nearline sql "from mart_recommendations where user_id = '42' order by rank"
    nearline sql "select reason, count(*) from quarantine group by all" --csv
    """
    from flows.rows import print_csv, print_json, print_table

    resources, _ = _resources()
    with resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read(query)
    if as_json:
        print_json(rows, sys.stdout)
    elif as_csv:
        print_csv(rows, sys.stdout)
    else:
        print_table(rows, limit, _console())


@app.command(rich_help_panel=OPERATE)
def status(as_json: Json = False) -> None:
    """What serves and how fresh it is, what failed last, and what to do next."""
    from dataclasses import asdict

    from flows.clock import utc_now
    from flows.status_page import find_recent_runs, status_page
    from infra.loop_files import read_findings
    from tasks.status import load_status

    resources, settings = _resources()
    found = load_status(resources, now=utc_now())
    findings = read_findings(settings.home, utc_now())
    url, runs = find_recent_runs(settings)
    if as_json:
        about = {"home": settings.home, "ui": url, "last_runs": [asdict(run) for run in runs]}
        _write({**asdict(found), **about, "findings": [asdict(problem) for problem in findings]})
    else:
        _console().print(status_page(found, settings.home, url, runs, findings))


@app.command(rich_help_panel=OPERATE)
def rollback(
    version: Annotated[str | None, typer.Argument(help="Version to go back to. [the one before]")] = None,
    as_json: Json = False,
) -> None:
    """Let an earlier version serve again, with its users brought up to date."""
    from dataclasses import asdict

    from flows.clock import utc_now
    from infra.prefect_server import try_connect_prefect
    from tasks.publish import rollback as go_back

    resources, settings = _resources()
    receipt = go_back(resources, version, now=utc_now())
    with try_connect_prefect(settings) as connected:
        if connected and not receipt.reused:
            from flows.run_report import announce

            announce("nearline.version.rolled_back", f"nearline.version.{receipt.version}", asdict(receipt))
    _show_receipts([receipt], as_json)


@app.command(rich_help_panel=OPERATE)
def erase(
    user: Annotated[str, typer.Argument(help="Id of a user.")],
    verify: Annotated[bool, typer.Option("--verify", help="Erase nothing; look whether anything is left.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a person for good: events, profiles, slates, refused rows, vectors, and the snapshots that hold them.

    The warehouse cannot be read as it was before this moment afterwards.
    """
    from dataclasses import asdict

    from flows.clock import utc_now
    from flows.display import erasure_table
    from tasks.erase import erase_user, verify_erasure

    resources, _ = _resources()
    if verify:
        places = verify_erasure(resources, user)
        is_gone = not any(place.n_left for place in places)
        if as_json:
            _write({"is_gone": is_gone, "places": [asdict(place) for place in places]})
        else:
            _console().print(erasure_table(places))
        raise typer.Exit(0 if is_gone else FAILED)
    if not yes:
        typer.confirm(
            "Everything that is stored of this user will be removed, and cannot be had back. Go on?", abort=True
        )
    receipt = erase_user(resources, user, now=utc_now())
    if as_json:
        _write(asdict(receipt))
        return
    console = _console()
    console.print(erasure_table(receipt.removed))
    console.print(f"Receipt {receipt.erasure_id}, for {receipt.user}.", highlight=False)
    for sentence in receipt.remains:
        console.print(f"- {sentence}", style="dim", markup=False)


@app.command(rich_help_panel=OPERATE)
def export(
    user: Annotated[str, typer.Argument(help="Id of a user.")],
    out: Annotated[Path | None, typer.Option(help="File to write. [standard output]")] = None,
) -> None:
    """Everything that is stored of a user, as JSON."""
    import json

    from tasks.export import export_user

    resources, _ = _resources()
    text = json.dumps(export_user(resources, user), indent=2, ensure_ascii=False, default=_plain)
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text)


@app.command(name="rebuild-index", rich_help_panel=OPERATE)
def rebuild_index(as_json: Json = False) -> None:
    """Make the vector index again from the warehouse; for one that was lost or damaged."""
    from flows.clock import utc_now
    from tasks.publish import rebuild_index as make_again

    resources, _ = _resources()
    _show_receipts([make_again(resources, now=utc_now())], as_json)


@app.command(rich_help_panel=OPERATE)
def settings(as_json: Json = False) -> None:
    """Every setting with its value and where that comes from; secrets stay hidden."""
    from dataclasses import asdict

    from flows.rows import settings_table
    from infra.settings_docs import effective_settings

    found = effective_settings(_settings())
    if as_json:
        _write([asdict(setting) for setting in found])
    else:
        _console().print(settings_table(found))


def _settings() -> "Settings":
    from infra.settings import load_settings

    return load_settings()


def _resources() -> "tuple[LocalResources, Settings]":
    from infra.resources import LocalResources

    settings = _settings()
    return LocalResources(settings), settings


def _check_flow(flow: str) -> None:
    if flow not in FLOWS:
        raise NotFoundError(f"There is no flow {flow!r}. Flows: {', '.join(FLOWS)}. See docs/flows.md.")


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = max(console.width, 120)
    return console


def _complain(message: str) -> None:
    from rich.text import Text

    _console(stderr=True).print(Text(message, style="red"), soft_wrap=True)


def _write(document: object) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _show_receipts(receipts: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from flows.display import receipt_line

    if as_json:
        _write([asdict(receipt) for receipt in receipts])
        return
    for receipt in receipts:
        _console().print(receipt_line(receipt), soft_wrap=True)


def _show_slate(slate: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from flows.display import slate_table

    if as_json:
        _write(asdict(slate))
        return
    _console().print(slate_table(slate))
    if slate.note:
        _console().print(slate.note, style="dim", markup=False)


if __name__ == "__main__":
    sys.exit(main())
