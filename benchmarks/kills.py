"""A kill at every step of every command, and then the books.

    python -m benchmarks.kills [--only import erase] [--sample 6] [--pairs 4] [--seed 0] [--jobs 2] [--json]

``daily_batch``, ``nearline``, ``maintenance``, ``rollback``, ``import`` and ``erase`` run on the small world of the
tests, each in a process of its own. One undisturbed run of each tells at which moments it can be killed: before and
after each step that the code names (``tasks.progress.step``): commits, the writes of the index, switches, files that
appear. Then for each moment: a fresh copy of the world, a run that gets SIGKILL there, the same command again, the loop
until nothing is new, and housekeeping. The books must then be right by themselves (no row twice, no half version, every
profile that of its history, no orphan) and those of the undisturbed run. Some runs are killed twice before they may
end, at two moments drawn at random, and a worker is killed under each stage that runs on Dask.

The last line is one JSON object.
"""

import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.support import killed_runs as runs
from benchmarks.support.books import Books, check_books, check_leftovers, compare_books, read_books
from benchmarks.support.forked import call, run
from benchmarks.support.killed_runs import COMMANDS, Point
from benchmarks.support.killed_workers import PARALLEL, kill_worker
from benchmarks.support.measured_process import describe_machine
from tests.conftest import copy_home


@dataclass(frozen=True)
class Outcome:
    """What came of one kill, or several in a row: what is wrong, in sentences; seconds from the copy to the end of the
    audit."""

    points: tuple[Point, ...]
    problems: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return ", then ".join(map(str, self.points))


class Harness:
    """Kills on copies of one world, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: Path | None = None
        self._expected: dict[str, Books] = {}
        self._points: dict[str, list[Point]] = {}

    def points(self, command: str) -> list[Point]:
        """The moments of a command, from an undisturbed run."""
        if command not in self._points:
            home = self._folder / command / "undisturbed"
            if self._built is None:
                self._built = call(runs.build_world, self._folder / "world")
            call(runs.prepare_home, command, self._built, self._start(command))
            _copy(self._start(command), home)
            self._points[command] = call(runs.record, command, home)
        return self._points[command]

    def expected(self, command: str) -> Books:
        """The books after an undisturbed run. Raises AssertionError if something is wrong with them."""
        self.points(command)
        if command not in self._expected:
            home = self._folder / command / "undisturbed"
            problems, self._expected[command] = call(_audit, command, home, again=False)
            if problems:
                raise AssertionError(f"{command} without a kill: {'; '.join(problems)}")
        return self._expected[command]

    def kill(self, *points: Point) -> Outcome:
        """Kill a run at the first point, the next one at the second (if it still comes there), and so on; run it once
        more, and look at the books."""
        command = points[0].command
        expected, began = self.expected(command), time.monotonic()
        home = Path(tempfile.mkdtemp(dir=self._folder / command)) / "var"
        _copy(self._start(command), home)
        codes = [run(runs.run_until, command, home, point) for point in points]
        problems: list[str] = []
        if codes[0] != -signal.SIGKILL or not {*codes} <= {0, -signal.SIGKILL}:
            problems.append(f"it was to be killed and ended with {codes}")
        else:
            found, books = call(_audit, command, home, again=True)
            problems += [*found, *compare_books(books, expected)]
        if not problems:
            shutil.rmtree(home.parent)
        return Outcome(points, tuple(problems), time.monotonic() - began)

    def _start(self, command: str) -> Path:
        return self._folder / command / "start"


def main() -> None:
    """Kill everywhere, and say where the books were wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="these commands, and no workers")
    parser.add_argument("--sample", type=int, help="so many kills of each command, and not all; no workers")
    parser.add_argument("--pairs", type=int, default=4, help="runs of each command that are killed twice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="kills at one time")
    arguments = parser.parse_args()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="nearline-kills-"))
    harness, outcomes = Harness(folder), []
    for command in arguments.only or COMMANDS:
        points = harness.points(command)
        kills: list[tuple[Point, ...]] = [
            (point,) for point in choose(points, arguments.sample or len(points), arguments.seed)
        ]
        kills += choose_pairs(points, arguments.pairs, arguments.seed)
        harness.expected(command)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for outcome in pool.map(lambda chosen: harness.kill(*chosen), kills):
                outcomes.append(outcome)
                if not arguments.json:
                    print(
                        f"  {outcome.seconds:5.1f} s  {outcome}",
                        *outcome.problems,
                        sep="\n          ",
                        flush=True,
                    )
    report = {"commands": _by_command(outcomes), "wrong": [_wrong(outcome) for outcome in outcomes if outcome.problems]}
    if arguments.only is None and arguments.sample is None:
        report["workers"] = _kill_workers(folder)
    if not report["wrong"]:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"benchmark": "kills", "machine": describe_machine(), "seconds": seconds, **report}))


def choose(points: Sequence[Point], n: int, seed: int) -> list[Point]:
    """``n`` of the points, spread evenly over the run; another seed begins elsewhere."""
    if n >= len(points):
        return list(points)
    return [points[(place * len(points) // n + seed) % len(points)] for place in range(n)]


def choose_pairs(points: Sequence[Point], n: int, seed: int) -> list[tuple[Point, ...]]:
    """``n`` pairs of the points, drawn at random: where a run is killed, and then the one after it."""
    drawn = random.Random(seed)
    return [(drawn.choice(points), drawn.choice(points)) for _ in range(n)]


def _kill_workers(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: asdict(call(kill_worker, name, folder / name)) for name in PARALLEL}


def _by_command(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for outcome in outcomes:
        about = found.setdefault(outcome.points[0].command, {"kills": 0, "wrong": 0, "seconds": 0.0})
        about["kills"] += 1
        about["wrong"] += bool(outcome.problems)
        about["seconds"] = round(about["seconds"] + outcome.seconds, 1)
    return found


def _wrong(outcome: Outcome) -> dict[str, Any]:
    return {"killed": str(outcome), "problems": outcome.problems}


def _audit(command: str, home: Path, *, again: bool) -> tuple[list[str], Books]:
    """In a process of its own: the command again, the loop, housekeeping, and what is wrong after each."""
    if again:
        runs.run_again(command, home)
    runs.settle(home)
    resources = runs.open_small(home)
    problems, books = list(check_books(resources)), read_books(resources)
    runs.tidy(home)
    return [*problems, *check_leftovers(resources)], books


def _copy(home: Path, copy: Path) -> None:
    if (home / "warehouse").exists():
        copy_home(home, copy)
    else:
        shutil.copytree(home, copy)


if __name__ == "__main__":
    main()
