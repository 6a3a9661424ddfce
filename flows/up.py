"""The resident process: a Prefect server with its UI, the deployments with their schedules, a worker, and the index.

It knows nothing of what the flows do. Everything it starts ends with it: the worker first, so that its runs can still
tell the server how they ended.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from flows.clock import utc_now
from infra.index_owner import serve_index
from infra.prefect_server import (
    ServerProcess,
    address_file,
    choose_port,
    find_server,
    prepare_prefect,
    run_prefect,
    start_server,
)
from infra.settings import Settings
from tasks.domain.errors import TerminalError

WATCH_SECONDS = 1.0
MAX_RESTARTS = 5
QUIET_SECONDS = 600.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Running:
    """What ``up`` started: where the UI and the REST API answer."""

    ui_url: str
    api_url: str


def run_up(settings: Settings, port: int | None, say: Say, on_ready: Callable[[Running], None]) -> None:
    """Start everything, call ``on_ready``, and stay until Ctrl-C or SIGTERM.

    With ``PREFECT_API_URL`` set it joins that server instead of starting one. Raises TerminalError if this home is up
    already, or if a part of it cannot be kept running.
    """
    prepare_prefect(settings)
    os.environ["NEARLINE_HOME"] = str(settings.home)
    with _stop_on_signals(), ExitStack() as stack:
        stack.enter_context(_only_one(settings))
        own = None if os.environ.get("PREFECT_API_URL") else _begin_server(stack, settings, port, say)
        say("opening the index")
        stack.enter_context(serve_index(settings.home / "index", settings.index))
        _join_server(stack, own)
        say("starting the worker")
        worker = _Worker(settings)
        stack.callback(worker.stop)
        worker.start()
        say("registering the deployments")
        on_ready(_register(stack, settings, own))
        _watch(own, worker, say)


class _Stopped(BaseException):
    """Somebody asked this process to end."""


class _Worker:
    """The child that runs flows; started again when it dies."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = settings.home / "prefect" / "worker.log"
        self._stack = ExitStack()
        self._starts: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["worker", "start", "--pool", "nearline", "--type", "process", "--name", f"up-{os.getpid()}"]
        self._process = self._stack.enter_context(run_prefect(self._settings, arguments, self._log))
        self._starts.append(time.monotonic())

    def stop(self) -> None:
        self._stack.close()

    def keep_alive(self, say: Say) -> None:
        """Start the worker again if it ended. Raises TerminalError if it ends again and again."""
        if self._process is None or self._process.poll() is None:
            return
        recent = [start for start in self._starts if start > time.monotonic() - QUIET_SECONDS]
        if len(recent) > MAX_RESTARTS:
            raise TerminalError(f"The worker ended {len(recent)} times in a row. Its log says why: {self._log}.")
        say(f"the worker ended with code {self._process.returncode}; starting it again (log: {self._log})")
        self.stop()
        self.start()


def _begin_server(stack: ExitStack, settings: Settings, port: int | None, say: Say) -> ServerProcess:
    """Start the server without waiting for it: the index is opened meanwhile."""
    chosen = choose_port(port)
    say(f"starting the Prefect server on port {chosen}")
    return stack.enter_context(start_server(settings, chosen))


def _join_server(stack: ExitStack, own: ServerProcess | None) -> None:
    """Wait for the server, make the work pool, and put in order what an earlier one left."""
    if own is not None:
        own.wait_healthy()
        os.environ["PREFECT_API_URL"] = f"{own.url}/api"
        stack.callback(os.environ.pop, "PREFECT_API_URL", None)
    from flows.deployments import crash_unfinished_runs, drop_missed_runs, make_work_pool

    make_work_pool()
    if own is not None:
        crash_unfinished_runs("nearline up ended while this ran, and was started again. Nothing is lost: run it again.")
        drop_missed_runs(utc_now())
        stack.callback(_crash_interrupted_runs, own)


def _register(stack: ExitStack, settings: Settings, own: ServerProcess | None) -> Running:
    """Register the deployments while the worker starts, and tell other processes where the server is."""
    from flows.deployments import register_deployments

    register_deployments()
    if own is not None:
        _write_address(stack, settings.home, own)
    api_url = os.environ["PREFECT_API_URL"]
    return Running(api_url.rstrip("/").removesuffix("/api"), api_url)


def _crash_interrupted_runs(own: ServerProcess) -> None:
    """The worker is gone, and the server not yet: its runs would stay "running" for ever."""
    from flows.deployments import crash_unfinished_runs

    if own.process.poll() is None:
        crash_unfinished_runs("nearline up was stopped while this ran. Nothing is lost: run it again.")


def _watch(own: ServerProcess | None, worker: _Worker, say: Say) -> None:
    while True:
        time.sleep(WATCH_SECONDS)
        if own is not None and own.process.poll() is not None:
            raise TerminalError(f"The Prefect server ended. Its log says why: {own.log}. Then: nearline up.")
        worker.keep_alive(say)


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    folder = settings.home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "up.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        running = find_server(settings.home)
        where = f"its UI is at {running.url} (process {running.pid})" if running else "it is starting, or stopping"
        raise TerminalError(
            f"Nearline is up already for {settings.home}: {where}. Stop that one with Ctrl-C, or use another "
            "NEARLINE_HOME."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the context in order; asking twice changes nothing."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Stopped:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_address(stack: ExitStack, home: Path, server: ServerProcess) -> None:
    file = address_file(home)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"url": server.url, "pid": os.getpid()}))
    temporary.replace(file)
    stack.callback(file.unlink, missing_ok=True)
