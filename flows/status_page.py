"""The page that ``nearline status`` prints. It computes nothing but the words."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from infra.prefect_server import try_connect_prefect
from infra.settings import Settings
from tasks.needs import Need, verdict
from tasks.status import FailedCheck, PlatformStatus

if TYPE_CHECKING:
    from flows.deployments import RecentRun

Part = Table | Text | Padding


def find_recent_runs(settings: Settings) -> "tuple[str | None, list[RecentRun]]":
    """Where the UI is, and the last run of each flow that did something; nothing if no server runs."""
    with try_connect_prefect(settings) as connected:
        if not connected:
            return None, []
        from flows.deployments import load_recent_runs

        return load_recent_runs()


def status_page(
    status: PlatformStatus,
    home: Path,
    ui_url: str | None,
    runs: "Sequence[RecentRun]",
    needs: Sequence[Need] = (),
) -> Group:
    """Everything a person needs at one look: the verdict, what needs them with what to run, then the facts."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    for name, value in _facts(status, home, ui_url):
        facts.add_row(name, Text(value))
    parts: list[Part] = [*_verdict(status, needs), facts]
    if runs:
        parts += [Text("\nLast runs", style="bold"), _runs_table(runs)]
    if status.failed_checks:
        parts += [Text("\nChecks that failed last", style="bold"), _checks_table(status.failed_checks)]
    return Group(*parts)


def _verdict(status: PlatformStatus, needs: Sequence[Need]) -> list[Part]:
    lines: list[Part] = [Text(verdict(status, needs), style="bold red" if needs else "bold green")]
    for number, need in enumerate(needs):
        if number:
            lines.append(Text(f"Also: {need.text}", style="bold"))
        body = Text.assemble(f"{need.advice}\n", "Next: ", (need.command, "bold"))
        lines.append(Padding(body, (0, 0, 0, 2)))
    return [*lines, Text("")]


def _facts(status: PlatformStatus, home: Path, ui_url: str | None) -> list[tuple[str, str]]:
    rows = status.rows
    raw = f"{rows['raw_items']:,} item rows, {rows['raw_users']:,} user rows, {rows['raw_events']:,} event rows"
    look = ": nearline sql 'from quarantine'" if rows["quarantine"] else ""
    return [
        ("home", str(home)),
        ("serving", _serving(status)),
        ("profiles", _freshness(status)),
        *_refreshes(status),
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
    return "none" if status.watermark is None else f"true for snapshot {status.watermark}; {_waiting(status)}"


def _waiting(status: PlatformStatus) -> str:
    if not status.n_waiting_events:
        return "no events wait"
    oldest = status.oldest_waiting_seconds
    return f"{status.n_waiting_events:,} events wait" + (f", the oldest for {_age(oldest)}" if oldest else "")


def _refreshes(status: PlatformStatus) -> list[tuple[str, str]]:
    """The last refresh that found events, and those of the last hour together."""
    last, hour = status.last_refresh, status.last_hour
    if last is None:
        return []
    lags = _lags(last.lag_p50_seconds, last.lag_p95_seconds, last.lag_p99_seconds)
    when = f"{last.finished_at:%Y-%m-%d %H:%M:%S} UTC"
    rows = [("last refresh", f"{when}: {last.n_users:,} users from {last.n_events:,} events{lags}")]
    if hour.n_refreshes:
        lags = _lags(hour.lag_p50_seconds, hour.lag_p95_seconds, hour.lag_p99_seconds, "at most ")
        text = f"{hour.n_refreshes:,} refreshes: {hour.n_users:,} users from {hour.n_events:,} events{lags}"
        rows.append(("last hour", text))
    return rows


def _lags(p50: float | None, p95: float | None, p99: float | None, how: str = "") -> str:
    if p50 is None or p95 is None or p99 is None:
        return ""
    return f"; lag p50 {how}{p50:.1f} s, p95 {p95:.1f} s, p99 {p99:.1f} s"


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
