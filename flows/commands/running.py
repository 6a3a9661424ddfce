"""Commands that start something: the demo, all of the platform, the HTTP service, a flow. They know nothing of what
those do.
"""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from flows.commands.terminal import FAILED, Json, complain, make_console, read_settings, write_json
from tasks.domain.errors import NotFoundError

FLOWS = ("daily_batch", "nearline", "backfill", "maintenance", "tune_factors")

Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the flow; may be given several times."),
]


def demo() -> None:
    """Real data to published, explained recommendations, told step by step.

    Fetches MovieLens 100K and a small language model once, runs the whole batch, then one nearline refresh. Takes
    about two minutes; a second time it re-uses what is unchanged.
    """
    from flows.demo import run_demo
    from infra.prefect_server import prefect_api

    settings = read_settings()
    with prefect_api(settings):
        run_demo(settings, make_console())


def up(
    port: Annotated[int | None, typer.Option(help="Port of the UI. [4200, or the next one that is free]")] = None,
    service: Annotated[bool, typer.Option(help="Start the HTTP service too.")] = True,
) -> None:
    """Start everything: the Prefect server with its UI, the schedules, the workers, the HTTP service, the index.

    It prints where they answer and a fresh API key; the key of the time before is no longer good. With
    PREFECT_API_URL set it joins that server instead of starting one. Ctrl-C ends all of it.
    """
    from flows.up import Running, run_up

    console = make_console()

    def ready(running: Running) -> None:
        console.print(f"[bold green]Nearline is up.[/bold green] UI: {running.ui_url}  REST API: {running.api_url}")
        if running.service_url:
            console.print(f"HTTP service: {running.service_url}  API key: {running.key}", soft_wrap=True)
        console.print("Trigger a run: nearline trigger daily_batch    Stop: Ctrl-C", highlight=False)

    def say(text: str) -> None:
        console.print(f"  {text} ...", style="dim", markup=False, highlight=False)

    run_up(read_settings(), port, say, ready, with_service=service)
    console.print("Stopped.")


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
    from flows.serve import ServiceAddress, is_loopback, run_service
    from infra.logs import configure_logs

    settings = read_settings()
    host, port = host or settings.service.host, settings.service.port if port is None else port
    configure_logs(settings)
    if not is_loopback(host):
        complain(f"Other machines can reach {host}, and keys and events travel in the clear: put TLS before it.")

    def ready(address: ServiceAddress) -> None:
        typer.echo(json.dumps({"url": address.url, "pid": address.pid}) if as_json else f"Serving on {address.url}")
        sys.stdout.flush()

    run_service(settings, host, port, ready)


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
    from flows.parameters import pairs_from_options, parse_parameters
    from infra.prefect_server import prefect_api, wait_for_api

    _check_flow(flow)
    parameters = parse_parameters([*(param or []), *pairs_from_options(context.args)])
    console = make_console(stderr=as_json)
    with prefect_api(read_settings(), quiet=not verbose):
        with console.status("starting Prefect"):
            from flows.local_runs import run_flow

            wait_for_api()
        summary = run_flow(flow, parameters, console)
    if as_json:
        write_json(asdict(summary))
    else:
        console.print(f"[bold]{summary.outcome}[/bold] after {summary.seconds:.1f} s: ", end="")
        console.print(summary.message, markup=False, highlight=False)


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
    from flows.parameters import pairs_from_options, parse_parameters
    from infra.prefect_server import connect_prefect

    parameters = parse_parameters([*(param or []), *pairs_from_options(context.args)])
    console = make_console(stderr=as_json)
    with connect_prefect(read_settings()):
        from flows.deployments import TriggeredRun, trigger_flow, wait_for_run

        def show(run: TriggeredRun) -> None:
            console.print(f"  {run.state}: {run.message}" if run.message else f"  {run.state}", markup=False)

        asked = trigger_flow(flow, parameters)
        console.print(f"{flow}: run {asked.name}, {asked.url}", markup=False, soft_wrap=True)
        seen = wait_for_run(asked, show) if wait else asked
    if as_json:
        write_json(asdict(seen))
    if seen.is_final and not seen.succeeded:
        raise typer.Exit(FAILED)


def _check_flow(flow: str) -> None:
    if flow not in FLOWS:
        raise NotFoundError(f"There is no flow {flow!r}. Flows: {', '.join(FLOWS)}. See docs/flows.md.")
