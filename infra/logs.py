"""Log lines as text or as JSON, for every process of the platform: what they hold, and what is kept out of them.

``infra/prefect_logging.yml`` gives Prefect's processes the same handler. It knows nothing of who logs.
"""

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from infra.settings import Settings

LogFormat = Literal["text", "json"]
PACKAGES = ("flows", "serving", "infra", "tasks", "warehouse")
PREFECT_CONFIG = Path(__file__).with_name("prefect_logging.yml")
"""What ``PREFECT_LOGGING_CONFIG_PATH`` names."""

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_FIELD = re.compile(r"(?<![^\s])([a-z_][a-z0-9_]*)=('(?:[^'\\]|\\.)*'|[^\s,;]+)")
_WITH_FIELDS = tuple(f"{package}." for package in (*PACKAGES, "prefect"))
_NAMES = {"version": "model_version_id", "seconds": "duration_seconds"}
_PARENTHESIS = re.compile(r"\(.*\)", re.DOTALL)
_CRASH = "Crash detected!"
_FAILED = tuple(f"Finished in state {state}(" for state in ("Failed", "Crashed", "TimedOut", "Cancelled"))
_PREFECT_TEXT = "%(asctime)s.%(msecs)03d | %(levelname)-7s | {} - %(message)s"


def configure_logs(settings: Settings) -> None:
    """Log lines of this process to stderr; of other people's packages only warnings, since theirs may hold addresses
    with ids. What a process has configured already stays (Prefect configures its own)."""
    if not logging.root.handlers:
        logging.root.addHandler(console_handler(settings.logs.format))
        logging.root.setLevel(logging.WARNING)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(settings.log_level)


def console_handler(output: LogFormat, rich: bool = False) -> logging.Handler:
    """A handler to stderr whose lines hold no value of a row. ``rich``: text as Prefect shows it."""
    handler: logging.Handler
    if output == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
    elif rich:
        handler = _prefect_handler()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_TEXT))
    handler.addFilter(WithoutValues())
    return handler


def _prefect_handler() -> logging.Handler:
    from prefect.logging.formatters import PrefectFormatter
    from prefect.logging.handlers import PrefectConsoleHandler

    handler = PrefectConsoleHandler(stream=sys.stderr)
    flow_run = _PREFECT_TEXT.format("Flow run %(flow_run_name)r")
    task_run = _PREFECT_TEXT.format("Task run %(task_run_name)r")
    other, clock = _PREFECT_TEXT.format("%(name)s"), "%H:%M:%S"
    handler.setFormatter(PrefectFormatter(other, clock, flow_run_fmt=flow_run, task_run_fmt=task_run))
    return handler


class WithoutValues(logging.Filter):
    """Takes the messages of exceptions out of a record: they hold what was received, and that may be a person's.

    The types stay, and where in the code it was. The message of a run that failed is its state in Prefect.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; every record passes."""
        if isinstance(record.args, tuple):
            record.args = tuple(type(a).__name__ if isinstance(a, BaseException) else a for a in record.args)
        if record.name.startswith("prefect"):
            record.msg, record.args = _without_reason(record.getMessage(), record.levelno >= logging.ERROR), ()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record.error = type(error).__name__
            record.exc_text = _where(error)
        record.exc_info = None
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``; where they are known also
    ``flow_run_id``, ``flow``, ``stage``, ``model_version_id``, ``duration_seconds``, ``error`` and ``trace``.

    Fields that a line of ours has in its message (``rows=12``) are fields of the object too.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        message = record.getMessage()
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        fields = _fields(message) if record.name.startswith(_WITH_FIELDS) else {}
        for name, value in {**fields, **_run(record)}.items():
            document.setdefault(name, value)
        if error := getattr(record, "error", None):
            document |= {"error": error, "trace": record.exc_text}
        return json.dumps(document, ensure_ascii=False, default=str)


def _without_reason(text: str, is_error: bool) -> str:
    """A line of Prefect about a failure without the message of the error."""
    if text.startswith(_CRASH):
        return _CRASH
    return _PARENTHESIS.sub("", text) if is_error or text.startswith(_FAILED) else text


def _where(error: BaseException) -> str:
    """The stack of an error, and of what it came from, without messages."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        parts.insert(0, f"{''.join(traceback.format_tb(seen.__traceback__))}{type(seen).__name__}")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\nled to\n".join(parts)


def _fields(message: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, text in _FIELD.findall(message):
        if name == "ms":
            fields["duration_seconds"] = round(float(text) / 1000, 6)
        else:
            fields.setdefault(_NAMES.get(name, name), _value(text))
    return fields


def _value(text: str) -> object:
    if text.startswith("'"):
        return text[1:-1]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _run(record: logging.LogRecord) -> dict[str, Any]:
    """What Prefect knows of the run at hand: on the record, or in the context of the thread that logs."""
    found = {
        "flow_run_id": getattr(record, "flow_run_id", None),
        "flow": getattr(record, "flow_name", None),
        "stage": getattr(record, "task_run_name", None),
    }
    if "prefect.context" in sys.modules:
        from prefect.context import FlowRunContext, TaskRunContext

        flow, task = FlowRunContext.get(), TaskRunContext.get()
        if task is not None:
            found["stage"] = found["stage"] or task.task_run.name
            found["flow_run_id"] = found["flow_run_id"] or task.task_run.flow_run_id
        if flow is not None and flow.flow_run is not None:
            found["flow_run_id"] = found["flow_run_id"] or flow.flow_run.id
            found["flow"] = found["flow"] or (flow.flow.name if flow.flow else None)
    return {name: str(value) for name, value in found.items() if value}
