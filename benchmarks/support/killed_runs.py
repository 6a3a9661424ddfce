"""Commands on the small world of the tests, in processes of their own that end themselves with SIGKILL at a step.

The steps are those that the code tells (``tasks.progress.step``), by the function that takes them; nothing here lists
them. Flows run as plain functions, without a Prefect server. It knows nothing of what the books say afterwards.
"""

import ast
import csv
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from infra.prefect_server import prepare_prefect
from infra.settings import load_settings

prepare_prefect(load_settings(home=Path.home()), quiet=True)  # before Prefect is imported; nothing is written there

import pyarrow as pa  # noqa: E402
import qdrant_client  # noqa: E402, F401 -- a child that is forked from here has it already
from prefect import Task  # noqa: E402
from prefect.logging import disable_run_logger  # noqa: E402

import flows.run_report  # noqa: E402
from flows import daily_batch, maintenance, nearline, stages  # noqa: E402
from flows.clock import utc_now  # noqa: E402
from flows.run_context import share_resources  # noqa: E402
from tasks.domain.fold_in import load_kernels  # noqa: E402
from tasks.domain.records import CheckResult  # noqa: E402
from tasks.erase import erase_user  # noqa: E402
from tasks.ingest import import_files  # noqa: E402
from tasks.progress import StageEvent, watch_stages, watch_steps  # noqa: E402
from tasks.publish import load_history, publish_version, rollback  # noqa: E402
from tasks.refresh import refresh  # noqa: E402
from tasks.slates import write_slates  # noqa: E402
from tests.conftest import SmallResources, SmallWorld, copy_home, fill  # noqa: E402
from warehouse.catalog import Contract, contracts  # noqa: E402

load_kernels()
contracts()
ROOT = Path(__file__).parents[2]
CLOCKS = (daily_batch, stages, nearline, maintenance, flows.run_report)
LATER = timedelta(days=30)
"""How much later than now ``maintenance`` runs, so that versions, snapshots and files are past their time."""


class Point(NamedTuple):
    """A moment of a command: the stage, the function that takes the step, before or after which step, and for how many
    times this has come."""

    command: str
    stage: str
    function: str
    moment: str
    number: int

    def __str__(self) -> str:
        return f"{self.command}: {self.stage}: {self.function}: {self.moment} #{self.number}"


@dataclass(frozen=True)
class Command:
    """Something that is killed: how it is run, and run again after a kill; what is done to the world before; how far in
    the future it runs."""

    run: Callable[[SmallResources, datetime], object]
    prepare: Callable[[Path, Path], None]
    again: Callable[[SmallResources, datetime], object] | None = None
    later: timedelta = timedelta(0)


@dataclass(frozen=True)
class _KilledResources(SmallResources):
    """The small world's, with gates whose checks pass unseen: looking took most of the time of a run, and what is
    looked at here are the books."""

    def validator(self) -> "_Unseeing":
        return _Unseeing()


class _Unseeing:
    def validate(
        self, contract: Contract, rows: pa.Table, *, parameters: Mapping[str, Any] | None = None
    ) -> list[CheckResult]:
        return [
            CheckResult(
                contract.table,
                check.expectation,
                ", ".join(check.columns) or None,
                check.severity,
                True,
                f"{rows.num_rows} rows",
                "any",
            )
            for check in contract.checks
        ]

    def write_docs(self) -> Path | None:
        return None


def build_world(folder: Path) -> Path:
    """A home in which ``v2`` was published after ``v1``, and has a user and an item more."""
    home = folder / "var"
    world = SmallWorld(SmallResources(load_settings(home=home)))
    fill(world)
    world.add_items(("i38", "The quiet love film", True))  # it had no title, and so no vector that a gate lets pass
    for version in ("v1", "v2"):
        world.train(version)
        publish_version(world.resources, version, now=world.tick())
        write_slates(world.resources, version, now=world.tick())
        if version == "v1":
            world.add_items(("i40", "The late robot film", True))
            world.add_events(world.event("late", "i40"), world.event("late", "i01"))
    return home


def prepare_home(command: str, built: Path, home: Path) -> None:
    """The home that a command starts from, from that of ``build_world``."""
    COMMANDS[command].prepare(built, home)


def record(command: str, home: Path) -> list[Point]:
    """Run a command to its end and return the moments that it came through."""
    points: list[Point] = []
    with _acting(command, home, points.append) as resources:
        COMMANDS[command].run(resources, _now(command))
    return points


def run_until(command: str, home: Path, point: Point) -> None:
    """Run a command, and end this process at a moment of it."""

    def die(reached: Point) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    with _acting(command, home, die) as resources:
        COMMANDS[command].run(resources, _now(command))


def run_again(command: str, home: Path) -> None:
    """What an operator does after a kill."""
    chosen = COMMANDS[command]
    with _acting(command, home, lambda _point: None) as resources:
        (chosen.again or chosen.run)(resources, _now(command))


def settle(home: Path) -> None:
    """The loop, until nothing is new."""
    with _acting("nearline", home, lambda _point: None):
        while nearline.nearline.fn().name != flows.run_report.SKIPPED:
            nearline._quiet.clear()  # noqa: SLF001 -- every turn of another process looks


def tidy(home: Path) -> None:
    """Housekeeping once everything that is not kept is past its time."""
    with _acting("maintenance", home, lambda _point: None, later=2 * LATER):
        maintenance.maintenance.fn(keep_days=1)


def open_small(home: Path) -> SmallResources:
    """The small world's resources on a home."""
    return _KilledResources(load_settings(home=home))


def taking_steps() -> set[str]:
    """Every function of ``tasks`` that takes a step itself, found in its code: it commits, writes the index, or names a
    step."""
    found = set()
    for file in sorted((ROOT / "tasks").glob("*.py")):
        for name, function in _functions(ast.parse(file.read_text()).body, f"tasks.{file.stem}"):
            if any(_is_step(node) for node in ast.walk(function)):
                found.add(name)
    return found


def stages_of_flows() -> dict[str, set[str]]:
    """The tasks that each flow's code names, by flow."""
    shared = {node.name: _named(node) for node in _tree("flows/stages.py").body if isinstance(node, ast.FunctionDef)}
    found = {}
    for flow in ("daily_batch", "nearline", "maintenance"):
        names = _named(_tree(f"flows/{flow}.py"))
        found[flow] = (names | {name for group in names for name in shared.get(group, ())}) & _tasks()
    return found


def _tasks() -> set[str]:
    from tasks import prefect_tasks

    return {name for name, value in vars(prefect_tasks).items() if isinstance(value, Task)}


def _tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def _named(node: ast.AST) -> set[str]:
    return {part.func.id for part in ast.walk(node) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)}


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield f"{prefix}.{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}.{node.name}")


_WRITES = frozenset({
    "commit", "purge", "flush", "maintain", "register_parquet",
    "create_version", "upsert_items", "upsert_users", "switch", "delete_users", "drop_version",
})  # fmt: skip


def _is_step(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in _WRITES
    return isinstance(node.func, ast.Name) and node.func.id == "step"


@contextmanager
def _acting(
    command: str, home: Path, reach: Callable[[Point], None], later: timedelta | None = None
) -> Iterator[SmallResources]:
    """The home as the flows of this process see it; ``reach`` hears every moment."""
    resources, told = open_small(home), _Steps(command, reach)
    clock = partial(_now, command, later)
    with ExitStack() as stack:
        stack.enter_context(
            patch.dict(os.environ, {"NEARLINE_HOME": str(home), "PREFECT__RUNTIME__FLOW_RUN__ID": "kill"})
        )
        stack.enter_context(disable_run_logger())
        stack.enter_context(patch.object(Task, "__call__", lambda task, *args, **options: task.fn(*args, **options)))
        for name in ("create_table_artifact", "create_markdown_artifact", "emit_event"):
            stack.enter_context(patch.object(flows.run_report, name))
        stack.enter_context(patch.object(flows.run_report.RunReport, "tag"))
        for module in CLOCKS:
            if hasattr(module, "utc_now"):
                stack.enter_context(patch.object(module, "utc_now", clock))
        stack.enter_context(share_resources(resources))
        stack.enter_context(watch_stages(told.hear_stage))
        stack.enter_context(watch_steps(told.hear_step))
        yield resources


class _Steps:
    """Turns what the code tells into points."""

    def __init__(self, command: str, reach: Callable[[Point], None]) -> None:
        self._command, self._reach = command, reach
        self._stage = ""
        self._times: dict[tuple[str, ...], int] = {}

    def hear_stage(self, event: StageEvent) -> None:
        if event.kind == "started":
            self._stage = event.stage
        elif event.kind in ("finished", "failed"):
            self._stage = ""

    def hear_step(self, moment: str) -> None:
        key = (self._command, self._stage, _caller(), moment)
        self._times[key] = self._times.get(key, 0) + 1
        self._reach(Point(*key, self._times[key]))


def _caller() -> str:
    """The innermost function of ``tasks`` or ``flows`` that is under way."""
    frame: Any = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(("tasks.", "flows.")) and module != "tasks.progress":
            return f"{module}.{frame.f_code.co_qualname.split('.<locals>')[0]}"
        frame = frame.f_back
    return ""


def _now(command: str, later: timedelta | None = None) -> datetime:
    return utc_now() + (COMMANDS[command].later if later is None else later)


def _batch(resources: SmallResources, _now: datetime) -> object:
    folder = resources.home / "files"
    paths = {kind: (str(folder / f"{kind}.csv"),) for kind in ("items", "users", "events")}
    return daily_batch.daily_batch.fn(**paths)


def _import(resources: SmallResources, now: datetime) -> object:
    folder = resources.home / "files"
    return [import_files(resources, kind, [folder / f"{kind}.csv"], now=now) for kind in ("items", "users", "events")]


def _go_back(resources: SmallResources, now: datetime) -> object:
    return rollback(resources, now=now)


def _go_back_unless_done(resources: SmallResources, now: datetime) -> object:
    """An operator looks at the record first: a rollback that stands there is not to be done once more."""
    with resources.warehouse(read_only=True) as warehouse:
        is_done = load_history(warehouse)[-1].action == "rollback"
    return None if is_done else rollback(resources, now=now)


def _write_files(home: Path) -> None:
    """New items, users and events; one row of each kind is refused, and one event repeats another."""
    folder = home / "files"
    folder.mkdir(parents=True)
    items = [(f"n{n}", f"The {('robot', 'kiss')[n % 2]} sequel {n}") for n in range(10)]
    events = [(f"e{n}", f"u{n % 30:02}", f"i{(n * 7) % 37:02}", "like", f"2026-03-01T13:{n:02}:00Z") for n in range(40)]
    events += [(f"m{n}", f"new{n}", f"n{n}", "like", f"2026-03-01T14:{n:02}:00Z") for n in range(10)]
    _write(folder / "items.csv", ("item_id", "title"), [*items, ("", "nobody's")])
    users = [(f"u{n:02}", '{"job": "pilot"}') for n in range(12)]
    _write(folder / "users.csv", ("user_id", "attributes"), [*users, ("", "{}")])
    header = ("event_id", "user_id", "item_id", "event_type", "occurred_at")
    _write(folder / "events.csv", header, [*events, events[0], ("bad", "u01", "i01", "like", "yesterday")])


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _published(built: Path, home: Path) -> SmallWorld:
    copy_home(built, home)
    world = SmallWorld(open_small(home), utc_now() - timedelta(hours=1), 10_000)
    world.add_events(world.event("u03", "i05"), world.event("u04", None, "search", text="space stories"))
    return world


def _prepare_batch(built: Path, home: Path) -> None:
    _published(built, home)
    _write_files(home)


def _prepare_import(_built: Path, home: Path) -> None:
    _write_files(home)


def _prepare_nearline(built: Path, home: Path) -> None:
    """Something of everything that a turn may find: new items and changed ones, texts, events."""
    world = _published(built, home)
    items = (("n1", "The alien robot sequel", True), ("i03", "The renamed robot film", True), ("i04", "Gone", False))
    world.add_items(*items)
    world.add_events(world.event("u05", "n1"), world.event("u06", None, "search", text="a robot in paris"))


def _prepare_maintenance(built: Path, home: Path) -> None:
    """A third version, events that nobody has read, and what a killed worker left."""
    world = _published(built, home)
    world.train("v3")
    publish_version(world.resources, "v3", now=world.tick())
    write_slates(world.resources, "v3", now=world.tick())
    world.add_events(world.event("u07", "i06"))
    refresh(world.resources, now=world.tick(), version="v3")  # its watermark can move alone, the others cannot
    left = home / "staging" / "item_embeddings" / "left"
    left.mkdir(parents=True)
    (left / "text.partial-1").write_text("half")


def _prepare_rollback(built: Path, home: Path) -> None:
    """As for ``maintenance``: three versions, so that going back twice would show."""
    _prepare_maintenance(built, home)


COMMANDS = {
    "daily_batch": Command(_batch, _prepare_batch),
    "nearline": Command(lambda _resources, _now: nearline.nearline.fn(), _prepare_nearline),
    "maintenance": Command(
        lambda _resources, _now: maintenance.maintenance.fn(keep_days=1), _prepare_maintenance, later=LATER
    ),
    "rollback": Command(_go_back, _prepare_rollback, again=_go_back_unless_done),
    "import": Command(_import, _prepare_import),
    "erase": Command(lambda resources, now: erase_user(resources, "u03", now=now), _prepare_nearline),
}
