"""Functions in processes of their own that are forked from one which has imported everything: a start takes
milliseconds, and a child may be killed.

It knows nothing of what is run.
"""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PRELOADED = "benchmarks.support.killed_runs"
MOST_SECONDS = 300.0
"""For one process: one that hangs is an error."""
_looking = threading.Lock()
"""A start asks after every child that there is, and of two threads that ask at once only one hears how it ended."""


def call(function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """What a function of a module returns. Raises RuntimeError with the child's own words if it raises or dies."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver:
        process = _started(_answer, sender, function, args, options)
        sender.close()
        try:
            if not receiver.poll(MOST_SECONDS):
                raise RuntimeError(f"{function.__name__} did not end within {MOST_SECONDS:g} s")
            is_fine, result = receiver.recv()
        except EOFError:
            is_fine, result = False, f"{function.__name__} died without a word"
        finally:
            _ended(process)
    if not is_fine:
        raise RuntimeError(result)
    answer: R = result
    return answer


def run(function: Callable[P, object], *args: P.args, **options: P.kwargs) -> int | None:
    """The exit code of a function of a module; minus the number of the signal that ended it. None: it did not end."""
    process = _started(_silent, function, args, options)
    _join(process, MOST_SECONDS)
    code = process.exitcode
    _ended(process)
    return code


def _started(target: Callable[..., None], *args: object) -> ForkServerProcess:
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    process = context.Process(target=target, args=args)
    with _looking:
        process.start()
    return process


def _join(process: ForkServerProcess, seconds: float) -> None:
    wait([process.sentinel], seconds)
    with _looking:
        process.join(0)


def _ended(process: ForkServerProcess) -> None:
    _join(process, 5)
    if process.exitcode is None:
        process.kill()
        _join(process, 5)
    with _looking:
        process.close()


def _answer(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    try:
        answer = True, function(*args, **options)
    except BaseException:
        answer = False, traceback.format_exc()
    sender.send(answer)
    sender.close()


def _silent(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    function(*args, **options)
