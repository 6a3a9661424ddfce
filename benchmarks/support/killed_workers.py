"""Each stage that runs on Dask workers, with one worker killed under it.

A worker ends itself with SIGKILL at the first partition that any of them is given. It knows nothing of what the stages
compute: the outcome is compared with that of the same stage without Dask.
"""

import ast
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest.mock import patch

from infra.settings import ComputeSettings, EncoderSettings, FactorSettings, Settings, load_settings
from tasks.domain.ports import Compute
from tasks.embed import embed_items
from tasks.train import learn_version, plan_version, refit_version
from tasks.transform import build_models
from tasks.tune import run_study
from tests.conftest import NOW, SmallResources, SmallWorld, copied_world

T = TypeVar("T")
R = TypeVar("R")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class WorkerKill:
    """What came of it: workers killed, whether the outcome is that of this process alone, and the seconds it took."""

    killed: int
    same: bool
    seconds: float


@dataclass(frozen=True)
class Mortal:
    """A function whose first call, in whichever worker, ends that worker. ``mark`` is a file that says it happened."""

    function: Callable[[Any], Any]
    mark: Path

    def __call__(self, partition: Any) -> Any:
        """The function's own result."""
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return self.function(partition)
        os.kill(os.getpid(), signal.SIGKILL)
        return None


@dataclass(frozen=True)
class MortalCompute:
    """Dask workers of which one dies."""

    compute: Compute
    mark: Path

    def map(self, function: Callable[[T], R], partitions: Iterable[T], *, in_flight: int = 2) -> Iterator[R]:
        """As the port says."""
        return self.compute.map(Mortal(function, self.mark), partitions, in_flight=in_flight)


@dataclass(frozen=True)
class MortalResources(SmallResources):
    """The small world's resources with such workers."""

    mark: Path = Path()

    @contextmanager
    def compute(self) -> Iterator[Compute]:
        """Workers of which the first to be given work dies."""
        with super().compute() as compute:
            yield MortalCompute(compute, self.mark)


@dataclass(frozen=True)
class HereResources(SmallResources):
    """The small world's resources with no worker at all."""

    @contextmanager
    def compute(self) -> Iterator[Compute]:
        """This process."""
        yield _Here()


class _Here:
    def map(self, function: Callable[[T], R], partitions: Iterable[T], *, in_flight: int = 2) -> Iterator[R]:
        return map(function, partitions)


def kill_worker(function: str, folder: Path) -> WorkerKill:
    """Run the stage that hands ``function`` to workers on a world of its own, below ``folder``, twice: on workers of
    which one dies, and in this process."""
    began, stage = time.monotonic(), PARALLEL[function]
    start = SmallWorld(SmallResources(_settings(folder / "start")))
    _fill(start)
    mark = folder / "killed"
    lost, here = (copied_world(start, folder / name).resources.home for name in ("lost", "here"))
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):  # workers find this module by its name
        found = stage(MortalResources(_settings(lost, factor_solver="workers"), mark))
    expected = stage(HereResources(_settings(here)))
    return WorkerKill(int(mark.exists()), found == expected, round(time.monotonic() - began, 1))


def mapped_functions() -> set[str]:
    """The functions of ``tasks`` that are handed to workers, found in its code."""
    found = set()
    for file in sorted((ROOT / "tasks").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            is_map = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "map"
            if is_map and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Name):
                found.add(node.args[0].id)
    return found


def _settings(home: Path, factor_solver: Literal["threads", "workers"] = "threads") -> Settings:
    return load_settings(
        home=home,
        encoder=EncoderSettings(partition_items=8),
        compute=ComputeSettings(n_workers=2, factor_solver=factor_solver),
        factors=FactorSettings(n_factors=6, n_sweeps=4),
    )


def _fill(world: SmallWorld) -> None:
    """Forty users of two tastes who like twelve of forty items each, one a day."""
    world.add_items(*((f"i{n:02}", f"The {('love', 'space')[n % 2]} film {n}", True) for n in range(40)))
    orders = [world.rng.permutation(20)[:12] for _ in range(40)]
    world.add_events(*(
        world.event(f"u{user:02}", f"i{place * 2 + user % 2:02}", at=NOW + timedelta(days=day, minutes=user))
        for user, order in enumerate(orders) for day, place in enumerate(order)
    ))  # fmt: skip
    build_models(world.resources, now=world.tick())


def _embed(resources: SmallResources) -> object:
    embed_items(resources, now=NOW)
    return _read(resources, "select content_hash, embedding from item_embeddings order by content_hash")


def _train(resources: SmallResources) -> object:
    embed_items(HereResources(resources.settings), now=NOW)
    plan = plan_version(resources, now=NOW)
    learn_version(HereResources(_settings(resources.home)), plan, now=NOW)
    refit_version(resources, plan, now=NOW)
    tables = ("item_factors", "user_factors")
    return [_read(resources, f"select * exclude (version) from {table} order by 1") for table in tables]  # noqa: S608


def _tune(resources: SmallResources) -> object:
    embed_items(HereResources(resources.settings), now=NOW)
    run_study(resources, now=NOW, clock=lambda: NOW, max_trials=3, max_factors=8)
    return _read(resources, "select number, parameters, user_ndcg, error from factor_trials order by number")


def _read(resources: SmallResources, sql: str) -> object:
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql).to_pylist()


PARALLEL = {"embed_partition": _embed, "solve_block": _train, "run_trial": _tune}
"""Stages by the function that they hand to workers."""
