"""Tells whoever watches, in this process, what the stages of a run do, and before and after each of their steps.

It knows nothing of schedulers or consoles.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from tasks.domain.records import Receipt


@dataclass(frozen=True)
class StageEvent:
    """Something that happened to a stage.

    ``progress`` carries ``done`` of ``total``, and in ``note`` what is worth a line of its own; ``finished`` carries
    the receipts (none for a stage that writes nothing) and the seconds; ``failed`` carries why in ``note``.
    """

    stage: str
    kind: Literal["started", "progress", "finished", "failed"]
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    receipts: tuple[Receipt, ...] = ()
    note: str = ""


Watcher = Callable[[StageEvent], None]

StepWatcher = Callable[[str], None]

_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("stage_watchers", default=())
_step_watchers: ContextVar[tuple[StepWatcher, ...]] = ContextVar("step_watchers", default=())


@contextmanager
def watch_stages(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` with every event of the stages that run inside the context, in this process."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def progress_of(stage: str) -> Callable[[int, int], None]:
    """What a stage is given to say how much of its work is done, and how much there is."""
    return lambda done, total: tell(StageEvent(stage, "progress", done=done, total=total))


def tell(event: StageEvent) -> None:
    """Pass an event to everybody who watches."""
    for watcher in _watchers.get():
        watcher(event)


@contextmanager
def watch_steps(watcher: StepWatcher) -> Iterator[None]:
    """Call ``watcher`` with every step that is taken inside the context, in this process."""
    token = _step_watchers.set((*_step_watchers.get(), watcher))
    try:
        yield
    finally:
        _step_watchers.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """One change of what a run leaves behind: a commit, a switch, a file that appears.

    Whoever watches hears ``before <name>`` and, unless it failed, ``after <name>``: the moments at which
    ``benchmarks/kills.py`` ends the process. Nobody watches otherwise.
    """
    for watcher in _step_watchers.get():
        watcher(f"before {name}")
    yield
    for watcher in _step_watchers.get():
        watcher(f"after {name}")
