"""What a run leaves behind for people: artifacts with stable keys, custom events, and a summary.

Everything is read back from the warehouse, so that a run that failed reports as much as one that succeeded. It knows
nothing of the order of stages.
"""

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.clock import utc_now
from flows.run_context import run_id
from flows.tuning_report import trials_table, write_picture
from tasks.domain.errors import GateError, NearlineError
from tasks.domain.ports import Resources
from tasks.domain.records import NearlineRun, Receipt
from tasks.domain.watchdog import FINDINGS
from tasks.progress import StageEvent, watch_stages
from tasks.run_records import FAILED, SKIPPED, FlowRun, record_run
from tasks.trial_table import load_trials
from tasks.tune import StudyOutcome
from warehouse.catalog import query_sql

ARTIFACTS = {
    "data-quality": "Every check of the run, failed ones first. A *stop* that failed ended the run; a *warn* did not.",
    "model-quality": "Full ranking over the whole catalog, with 95 % intervals over users.",
    "publication": "The last switch of the serving version.",
    "stages": "Stages of the run, in order. *Reused*: nothing had changed, and the earlier output stands.",
    "nearline-refresh": "The last refresh that found new events.",
    "backfill": "Stages of the last backfill.",
    "maintenance": "Steps of the last maintenance.",
    "tuning": "The best trials of the last tuning, beside the defaults and the parameters in force.",
    "tuning-plot": "How the best value came about, and each parameter against NDCG@10.",
}
"""Keys of the artifacts and what they show; the keys never change, so that the UI has a history of each."""

EVENTS = (
    "nearline.version.published",
    "nearline.version.rolled_back",
    "nearline.gate.stopped",
    "nearline.refresh.completed",
    "nearline.events.waiting",
    *(f"nearline.watchdog.{finding}" for finding in FINDINGS),
)
"""Names of the events that automations can wait for."""


@dataclass(frozen=True)
class RunSummary:
    """How a run ended; what its flow returns, and what ``nearline run --json`` prints."""

    flow: str
    outcome: str
    message: str
    version: str | None
    seconds: float
    receipts: tuple[Receipt, ...]


@dataclass
class RunReport:
    """Collects what the stages of one run tell."""

    flow: str
    resources: Resources
    stages: list[StageEvent] = field(default_factory=list)
    version: str | None = None
    began: float = field(default_factory=time.perf_counter)
    started_at: datetime = field(default_factory=utc_now)
    outcome: str = SKIPPED
    error: str | None = None

    def watch(self, event: StageEvent) -> None:
        """Keep what a stage tells at its end."""
        if event.kind in ("finished", "failed"):
            self.stages.append(event)

    def close(self, outcome: str, message: str) -> RunSummary:
        """The end of a run that did not fail: the state that the UI shows, with its message.

        The pages of a deployment and of a flow list runs by the names of Prefect's own states, so that every run that
        did something is called Completed, and one that had nothing to do stays out of the way as Skipped. Prefect hands
        the summary inside the state to whoever called the flow.
        """
        self.outcome, seconds = outcome, time.perf_counter() - self.began
        receipts = tuple(receipt for stage in self.stages for receipt in stage.receipts)
        summary = RunSummary(self.flow, outcome, message, self.version, seconds, receipts)
        get_run_logger().info(
            f"run_finished flow={self.flow} outcome={outcome.lower()} version={self.version or '-'} "
            f"stages={len(self.stages)} seconds={seconds:.1f}"
        )
        if outcome == SKIPPED:
            return cast(RunSummary, Completed(name=SKIPPED, message=message, data=summary))
        return cast(RunSummary, Completed(message=f"{outcome}: {message}", data=summary))

    def evaluated(self, version: str) -> None:
        """Show the ranking quality of a version."""
        self.version = version
        rows = self._read("metrics_of_version", version=version)
        _table("model-quality", [_round(row) for row in rows], f"Version `{version}`. ")

    def published(self, version: str) -> str:
        """Show and announce the new serving version; returns what to say of it."""
        self.version = version
        row = self._read("last_publication")[0]
        _markdown("publication", _publication_text(row))
        announce("nearline.version.published", f"nearline.version.{version}", row)
        return f"{version} serves {row['n_items']:,} items to {row['n_users']:,} users."

    def tuned(self, outcome: StudyOutcome) -> None:
        """Show the trials of a study, as a table and as a picture."""
        with self.resources.warehouse(read_only=True) as warehouse:
            trials = load_trials(warehouse, outcome.study)
        picture = write_picture(self.resources.home, outcome.study, trials)
        table = trials_table(trials, outcome.in_force)
        _markdown("tuning", f"Study `{outcome.study}`: {outcome.message}\n\n{table} The picture is `{picture}`.\n")
        encoded = base64.b64encode(picture.read_bytes()).decode()
        address = f"data:image/svg+xml;base64,{encoded}"
        create_image_artifact(key="tuning-plot", image_url=address, description=ARTIFACTS["tuning-plot"])

    def refreshed(self, run: NearlineRun, *, show: bool = True) -> None:
        """Announce what a refresh did, and show it."""
        self.version = run.version
        row = {
            "version": run.version,
            "users": run.n_users,
            "events": run.n_events,
            "new items": run.n_new_items,
            "texts without embedding": run.n_missing_texts,
            "lag p50 (s)": _seconds(run.lag_p50_seconds),
            "lag p95 (s)": _seconds(run.lag_p95_seconds),
            "lag p99 (s)": _seconds(run.lag_p99_seconds),
            "snapshots": f"{run.from_snapshot} to {run.to_snapshot}",
            "seconds by stage": ", ".join(f"{name} {value:.2f}" for name, value in run.stage_seconds.items()),
        }
        if show:
            _table("nearline-refresh", [row])
        announce("nearline.refresh.completed", f"nearline.version.{run.version}", row)

    def tag(self, tag: str) -> None:
        """Give this run a tag, by which the UI can be searched."""
        tags = {*flow_run.tags, tag}
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(run_id()), tags=sorted(tags))

    def gate_stopped(self) -> None:
        """Announce that a gate stopped the run: which checks failed and what to do, but nothing that a row holds."""
        failed = [row for row in self._gate_rows() if not row["passed"] and row["severity"] == "stop"]
        gate = failed[0]["gate"] if failed else "ingest"
        announce(
            "nearline.gate.stopped",
            f"nearline.gate.{gate}",
            {
                "flow": self.flow,
                "gate": gate,
                "checks": [f"{row['table_name']}: {row['expectation']}" for row in failed],
                "advice": " ".join(dict.fromkeys(row["advice"] for row in failed if row["advice"]))[:2000],
            },
        )

    def failed(self, error: Exception) -> None:
        """The run ends with this error."""
        self.outcome, self.error = FAILED, type(error).__name__

    def record(self) -> None:
        """Keep how the run ended."""
        ended = (self.outcome, self.error, self.version, self.started_at, utc_now())
        record_run(self.resources, FlowRun(run_id(), self.flow, *ended), self.stages)

    def show_stages(self) -> None:
        """The tables that every run leaves."""
        if gates := self._gate_rows():
            _table("data-quality", [_gate_row(row) for row in gates], _gate_counts(gates))
        key = "stages" if self.flow in ("daily_batch", "tune_factors") else self.flow
        if key in ARTIFACTS and self.stages:
            _table(key, [row for stage in self.stages for row in _stage_rows(stage)])

    def _gate_rows(self) -> list[dict[str, Any]]:
        return self._read("gate_results_of_run", run_id=run_id())

    def _read(self, query: str, **parameters: object) -> list[dict[str, Any]]:
        with self.resources.warehouse(read_only=True) as warehouse:
            rows: list[dict[str, Any]] = warehouse.read(query_sql(query), parameters).to_pylist()
            return rows


@contextmanager
def report_run(flow: str, resources: Resources) -> Iterator[RunReport]:
    """Watch the stages of a run; at its end, however it ends, leave the tables and say why it stopped."""
    report = RunReport(flow, resources)
    with watch_stages(report.watch):
        try:
            yield report
        except Exception as error:
            report.failed(error)
            if isinstance(error, GateError):
                _quietly(report.gate_stopped)
            raise
        finally:
            _quietly(report.record)
            _quietly(report.show_stages)


def announce(event: str, resource: str, payload: dict[str, Any]) -> None:
    """Emit a custom event about a resource; events are what automations and other programs wait for."""
    plain = (int, float, str, list)
    values = {name: value if isinstance(value, plain) else str(value) for name, value in payload.items()}
    emit_event(event, resource={"prefect.resource.id": resource, "prefect.resource.name": resource}, payload=values)


def _quietly(report: Callable[[], None]) -> None:
    """A report that cannot be written must not hide how the run ended."""
    try:
        report()
    except NearlineError as error:
        get_run_logger().warning(f"report_failed error={type(error).__name__}")


def _table(key: str, rows: list[dict[str, Any]], preface: str = "") -> None:
    create_table_artifact(key=key, table=rows, description=preface + ARTIFACTS[key])


def _markdown(key: str, text: str) -> None:
    create_markdown_artifact(key=key, markdown=text, description=ARTIFACTS[key])


def _gate_counts(rows: list[dict[str, Any]]) -> str:
    failed = [row["severity"] for row in rows if not row["passed"]]
    return f"**{len(rows)} checks, {failed.count('stop')} stopped, {failed.count('warn')} warned.** "


def _gate_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "result": "passed" if row["passed"] else "STOP" if row["severity"] == "stop" else "warn",
        "gate": row["gate"],
        "table": row["table_name"],
        "column": row["column_name"] or "",
        "check": row["expectation"].removeprefix("expect_").replace("_", " "),
        "observed": row["observed"],
        "allowed": row["allowed"],
        "rows failed": row["n_failed"],
        "what to do": "" if row["passed"] else row["advice"],
    }


def _stage_rows(stage: StageEvent) -> list[dict[str, Any]]:
    base = {"stage": stage.stage, "seconds": round(stage.seconds, 2)}
    if stage.kind == "failed":
        return [{**base, "in": "", "out": "", "result": "failed", "where": "", "note": stage.note.split("\n", 1)[0]}]
    if not stage.receipts:
        return [{**base, "in": "", "out": "", "result": "done", "where": "", "note": ""}]
    return [
        {
            **base,
            "seconds": round(receipt.seconds, 2),
            "in": receipt.n_in,
            "out": receipt.n_out,
            "result": "reused" if receipt.reused else "done",
            "where": receipt.location,
            "note": receipt.note,
        }
        for receipt in stage.receipts
    ]


def _publication_text(row: dict[str, Any]) -> str:
    before = f"`{row['previous_version']}`" if row["previous_version"] else "nothing"
    return (
        f"| serves | `{row['version']}` |\n| --- | --- |\n"
        f"| since | {row['published_at']:%Y-%m-%d %H:%M:%S} UTC |\n"
        f"| how | {row['action']} |\n"
        f"| before it | {before} |\n"
        f"| items | {row['n_items']:,} |\n"
        f"| users | {row['n_users']:,} |\n"
        f"| true for snapshot | {row['snapshot']} |\n\n"
        "To go back to the version before it: `nearline rollback`.\n"
    )


def _round(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def _seconds(value: float | None) -> float | str:
    return "" if value is None else round(value, 2)
