"""The page that ``nearline status`` prints. It computes nothing but the words."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from infra.prefect_server import try_connect_prefect
from infra.settings import Settings
from tasks.status import FailedCheck, PlatformStatus

if TYPE_CHECKING:
    from flows.deployments import RecentRun


def find_recent_runs(settings: Settings) -> "tuple[str | None, list[RecentRun]]":
    """Where the UI is, and the last run of each flow that did something; nothing if no server runs."""
    with try_connect_prefect(settings) as connected:
        if not connected:
            return None, []
        from flows.deployments import load_recent_runs

        return load_recent_runs()


def status_page(status: PlatformStatus, home: Path, ui_url: str | None, runs: "Sequence[RecentRun]") -> Group:
    """Everything a person needs at one look, the next step last."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    for name, value in _facts(status, home, ui_url):
        facts.add_row(name, Text(value))
    parts: list[Table | Text] = [facts]
    if runs:
        parts += [Text("\nLast runs", style="bold"), _runs_table(runs)]
    if status.failed_checks:
        parts += [Text("\nChecks that failed last", style="bold"), _checks_table(status.failed_checks)]
    parts.append(Text.assemble("\n", ("Next: ", "bold"), status.next_step))
    return Group(*parts)


def _facts(status: PlatformStatus, home: Path, ui_url: str | None) -> list[tuple[str, str]]:
    rows = status.rows
    raw = f"{rows['raw_items']:,} item rows, {rows['raw_users']:,} user rows, {rows['raw_events']:,} event rows"
    look = ": nearline sql 'from quarantine'" if rows["quarantine"] else ""
    return [
        ("home", str(home)),
        ("serving", _serving(status)),
        ("profiles", _freshness(status)),
        ("index", status.index),
        ("received", raw),
        ("quarantine", f"{rows['quarantine']:,} rows{look}"),
        ("server", ui_url or "not running (nearline up starts it)"),
    ]


def _serving(status: PlatformStatus) -> str:
    if status.serving_version is None:
        return "nothing"
    age = "" if status.age_seconds is None else f", published {_age(status.age_seconds)} ago"
    return f"{status.serving_version}{age}"


def _freshness(status: PlatformStatus) -> str:
    if status.watermark is None:
        return "none"
    waiting = "an unknown number of" if status.n_waiting_events is None else f"{status.n_waiting_events:,}"
    text = f"true for snapshot {status.watermark}; {waiting} events wait"
    if status.last_refresh is not None:
        last = status.last_refresh
        lag = "" if last.lag_p95_seconds is None else f", lag p95 {_age(last.lag_p95_seconds)}"
        text += f"; last refresh {last.finished_at:%Y-%m-%d %H:%M:%S} UTC, {last.n_users:,} users{lag}"
    return text


def _runs_table(runs: "Sequence[RecentRun]") -> Table:
    table = Table("flow", "began (UTC)", "state", "", box=None, header_style="dim")
    for run in runs:
        style = "" if run.succeeded else "red"
        began = f"{run.began_at:%Y-%m-%d %H:%M:%S}" if run.began_at else "not yet"
        table.add_row(run.flow, began, Text(run.state, style=style), Text(run.message))
    return table


def _checks_table(checks: Sequence[FailedCheck]) -> Table:
    table = Table("when (UTC)", "gate", "check", "observed", "", box=None, header_style="dim")
    for check in checks:
        style = "red" if check.severity == "stop" else "yellow"
        when = f"{check.checked_at:%Y-%m-%d %H:%M}"
        what = Text(f"{check.table}: {check.expectation}")
        table.add_row(when, check.gate, what, Text(check.observed), Text(check.severity, style=style))
    return table


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
