"""Commands for who keeps it running: what serves, notifications, the settings, an earlier version, a new index. They
know nothing of how a version is made.
"""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.clock import utc_now
from flows.commands.terminal import Json, make_console, open_resources, read_settings, show_receipts, write_json


def status(as_json: Json = False) -> None:
    """Whether all is well, and if not, what needs you and the command to run next; then the facts.

    What serves and how fresh it is, the last runs, and the checks that failed last. The exit code is 0 either way; a
    program reads `well` and `needs` of --json.
    """
    from flows.status_page import find_recent_runs, status_page
    from infra.loop_files import read_findings
    from tasks.needs import Around, judge_needs, verdict
    from tasks.status import load_status

    (resources, settings), now = open_resources(), utc_now()
    found = load_status(resources, now=now)
    findings = read_findings(settings.home, now)
    url, runs = find_recent_runs(settings)
    crashed = [run.flow for run in runs if run.state == "Crashed"]
    allowed, index_url = settings.nearline.stalled_after_seconds, settings.index.url
    around = Around(str(settings.home), url is not None, findings, crashed, allowed, index_url)
    needs = judge_needs(found, around, now=now)
    if not as_json:
        make_console().print(status_page(found, settings.home, url, runs, needs))
        return
    judged = {"well": not needs, "verdict": verdict(found, needs), "needs": [asdict(need) for need in needs]}
    about = {"home": settings.home, "ui": url, "last_runs": [asdict(run) for run in runs]}
    next_step = f"{needs[0].text} {needs[0].advice} {needs[0].command}" if needs else "Nothing to do."
    told = [asdict(problem) for problem in findings]
    write_json({**judged, **asdict(found), "next_step": next_step, **about, "findings": told})


def automations(
    notify: Annotated[str, typer.Option(metavar="TYPE/NAME", help="The notification block, as slack-webhook/team.")],
    show: Annotated[bool, typer.Option("--print", help="Print the file for prefect automation create.")] = False,
    as_json: Json = False,
) -> None:
    """Be told when a gate stopped a run, or when the loop is in trouble: automations on the Prefect server.

    It makes them on the server of PREFECT_API_URL or of `nearline up`, or changes those of the same names. Whom they
    tell is a notification block of that server (docs/operations.md says how to make one).

    \b
    nearline automations --notify slack-webhook/operators
    nearline automations --notify custom-webhook/pager --print > automations.yaml
    """
    from infra.prefect_server import connect_prefect

    with connect_prefect(read_settings()):
        from flows.automations import apply_automations, automations_text

        if show:
            typer.echo(automations_text(notify), nl=False)
            return
        names = apply_automations(notify)
    if as_json:
        write_json(names)
    else:
        make_console().print(f"{notify} is told by {', '.join(names)}.", markup=False, highlight=False, soft_wrap=True)


def rollback(
    version: Annotated[str | None, typer.Argument(help="Version to go back to. [the one before]")] = None,
    as_json: Json = False,
) -> None:
    """Let an earlier version serve again, with its users brought up to date."""
    from infra.prefect_server import try_connect_prefect
    from tasks.publish import rollback as go_back

    resources, settings = open_resources()
    receipt = go_back(resources, version, now=utc_now())
    with try_connect_prefect(settings) as connected:
        if connected and not receipt.reused:
            from flows.run_report import announce

            announce("nearline.version.rolled_back", f"nearline.version.{receipt.version}", asdict(receipt))
    show_receipts([receipt], as_json)


def rebuild_index(as_json: Json = False) -> None:
    """Make the vector index again from the warehouse; for one that was lost or damaged."""
    from tasks.publish import rebuild_index as make_again

    resources, _ = open_resources()
    show_receipts([make_again(resources, now=utc_now())], as_json)


def settings(as_json: Json = False) -> None:
    """Every setting with its value and where that comes from; secrets stay hidden."""
    from flows.rows import settings_table
    from infra.settings_docs import effective_settings

    found = effective_settings(read_settings())
    if as_json:
        write_json([asdict(setting) for setting in found])
    else:
        make_console().print(settings_table(found))
