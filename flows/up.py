"""What stays up: a Prefect server with its UI, the deployments with their schedules, two workers, the HTTP service,
and the index.

It knows nothing of what the flows do. Everything it starts ends with it: the service and the workers first, so that
their runs can still tell the server how they ended.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flows.clock import utc_now
from flows.serve import ServiceAddress, find_service
from flows.stopping import stop_on_signals
from infra.index_owner import serve_index
from infra.key_store import KeyStore
from infra.loop_files import worker_name
from infra.prefect_server import (
    ServerProcess,
    address_file,
    choose_port,
    find_server,
    free_port,
    prepare_prefect,
    run_child,
    run_prefect,
    start_server,
)
from infra.settings import Settings
from tasks.domain.errors import TerminalError

WATCH_SECONDS = 1.0
LOOK_SECONDS = 10.0
MAX_RESTARTS = 5
QUIET_SECONDS = 600.0
SERVICE_SECONDS = 60.0
"""How long the service may take to answer for the first time."""
KEY_NAME, KEY_SCOPES = "up", ("read", "write", "admin")

Say = Callable[[str], None]
Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Running:
    """What ``up`` started: where the UI and Prefect's REST API answer; where the HTTP service does, and a fresh key for
    it (None without the service)."""

    ui_url: str
    api_url: str
    service_url: str | None = None
    key: str | None = None


def run_up(
    settings: Settings, port: int | None, say: Say, on_ready: Callable[[Running], None], *, with_service: bool = True
) -> None:
    """Start everything, call ``on_ready``, and stay until Ctrl-C or SIGTERM.

    With ``PREFECT_API_URL`` set it joins that server instead of starting one. Raises TerminalError if this home is up
    already, or if a part of it cannot be kept running.
    """
    prepare_prefect(settings)
    os.environ["NEARLINE_HOME"] = str(settings.home)
    with stop_on_signals(), ExitStack() as stack:
        stack.enter_context(_only_one(settings))
        server = None if os.environ.get("PREFECT_API_URL") else _Server(stack, settings, port, say)
        say("opening the index")
        stack.enter_context(serve_index(settings.home / "index", settings.index))
        _join_server(stack, settings, server)
        say("starting the worker")
        children = _start_children(stack, settings, with_service=with_service)
        say("registering the deployments")
        running = _register(stack, settings, server)
        if with_service:
            say("waiting for the service")
            running = _with_service(running, settings, children)
        on_ready(running)
        _watch(settings, server, children, say)


class _Child:
    """A child that is started again when it dies."""

    def __init__(self, name: str, log: Path, begin: Callable[[], AbstractContextManager[Process]]) -> None:
        self.name = name
        self.log = log
        self._begin = begin
        self._stack = ExitStack()
        self._starts: list[float] = []
        self._process: Process | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self._process = self._stack.enter_context(self._begin())
        self._starts.append(time.monotonic())

    def stop(self) -> None:
        self._stack.close()

    def ask_to_end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def restart(self, say: Say, why: str) -> None:
        say(f"the {self.name} is started again: {why} (log: {self.log})")
        self.stop()
        self.start()

    def keep_alive(self, say: Say) -> bool:
        """Start it again if it ended; says whether it had. Raises TerminalError if it ends again and again."""
        if self._process is None or self._process.poll() is None:
            return False
        if self._process.returncode == -signal.SIGKILL:
            self._starts.clear()  # somebody killed it, or memory was short: it has not failed by itself
        recent = [start for start in self._starts if start > time.monotonic() - QUIET_SECONDS]
        if len(recent) > MAX_RESTARTS:
            raise TerminalError(f"The {self.name} ended {len(recent)} times in a row. Its log says why: {self.log}.")
        self.restart(say, f"it ended with code {self._process.returncode}")
        return True


class _Server:
    """The Prefect server, started without waiting for it; again on the same port when it dies."""

    def __init__(self, stack: ExitStack, settings: Settings, port: int | None, say: Say) -> None:
        chosen = choose_port(port)
        say(f"starting the Prefect server on port {chosen}")
        self._settings = settings
        self._port = chosen
        self.process: ServerProcess | None = None
        self.child = _Child("Prefect server", settings.home / "prefect" / "server.log", self._begin)
        stack.callback(self.child.stop)
        self.child.start()

    @property
    def url(self) -> str:
        return self._now.url

    def wait_healthy(self) -> None:
        self._now.wait_healthy()

    def keep_alive(self, say: Say) -> None:
        if self.child.keep_alive(say):
            self.wait_healthy()

    @property
    def _now(self) -> ServerProcess:
        assert self.process is not None  # the child was started
        return self.process

    @contextmanager
    def _begin(self) -> Iterator[Process]:
        with start_server(self._settings, self._port) as self.process:
            yield self.process.process


def _join_server(stack: ExitStack, settings: Settings, server: _Server | None) -> None:
    """Wait for the server, make the work pools, and put in order what an earlier one left."""
    if server is not None:
        server.wait_healthy()
        os.environ["PREFECT_API_URL"] = f"{server.url}/api"
        stack.callback(os.environ.pop, "PREFECT_API_URL", None)
    from flows.deployments import crash_unfinished_runs, drop_missed_runs, make_work_pools

    make_work_pools()
    worker = worker_name(settings.home) if server is None else None
    why = "nearline up ended while this ran, and was started again. Nothing is lost: run it again."
    crash_unfinished_runs(why, worker=worker)
    if server is not None:
        drop_missed_runs(utc_now())
        stack.callback(_crash_interrupted_runs, server)


def _start_children(stack: ExitStack, settings: Settings, *, with_service: bool) -> dict[str, _Child]:
    """The worker of the batch, the resident one of the loop, and the HTTP service."""
    logs = settings.home / "prefect"
    batch = ["worker", "start", "--pool", "nearline", "--type", "process", "--name", worker_name(settings.home)]
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING", "MALLOC_ARENA_MAX": "2"}
    children = {
        "worker": _Child("worker", logs / "worker.log", lambda: run_prefect(settings, batch, logs / "worker.log")),
        "resident": _Child(
            "resident worker",
            logs / "resident.log",
            lambda: run_child(settings, "flows.resident", [], logs / "resident.log", quiet),
        ),
    }
    if with_service:
        log = settings.home / "serving" / "service.log"
        arguments = ["serve", "--port", str(_service_port(settings))]
        children["service"] = _Child("service", log, lambda: run_child(settings, "flows.cli", arguments, log))
    for child in children.values():
        stack.callback(child.stop)
        child.start()
    stack.callback(_ask_to_end, children.values())  # called first: they end side by side
    return children


def _ask_to_end(children: Iterable[_Child]) -> None:
    for child in children:
        child.ask_to_end()


def _service_port(settings: Settings) -> int:
    """The port of the settings; if that is the default one and taken, the next that is free. It stays the same when
    the service is started again."""
    if settings.service.port == 0:
        return free_port()
    if "port" in settings.service.model_fields_set:
        return settings.service.port
    return choose_port(None, first=settings.service.port)


def _with_service(running: Running, settings: Settings, children: dict[str, _Child]) -> Running:
    """Wait until the service answers, and make a key for it."""
    service = _await_service(settings, children["service"])
    return Running(running.ui_url, running.api_url, service.url, _fresh_key(settings))


def _await_service(settings: Settings, child: _Child) -> ServiceAddress:
    deadline = time.monotonic() + SERVICE_SECONDS
    while (service := find_service(settings.home)) is None:
        if not child.is_running or time.monotonic() > deadline:
            tail = "\n".join(child.log.read_text(errors="replace").splitlines()[-8:])
            raise TerminalError(
                f"The HTTP service did not start within {SERVICE_SECONDS:g} s. Its log {child.log} ends so:\n{tail}\n"
                "Correct that, or leave it out: nearline up --no-service."
            )
        time.sleep(0.1)
    return service


def _fresh_key(settings: Settings) -> str:
    """A new key of that name; those of the times before are no longer good."""
    store = KeyStore(settings.home)
    old = [key for key in store.list() if key.name == KEY_NAME]
    _, text = store.create(KEY_NAME, KEY_SCOPES, now=utc_now())
    for key in old:
        store.revoke(key.key_id)
    return text


def _register(stack: ExitStack, settings: Settings, server: _Server | None) -> Running:
    """Register the deployments while the workers start, and tell other processes where the server is."""
    from flows.deployments import register_deployments

    register_deployments()
    if server is not None:
        _write_address(stack, settings.home, server.url)
    api_url = os.environ["PREFECT_API_URL"]
    return Running(api_url.rstrip("/").removesuffix("/api"), api_url)


def _crash_interrupted_runs(server: _Server) -> None:
    """The workers are gone, and the server not yet: their runs would stay "running" for ever."""
    from flows.deployments import crash_unfinished_runs

    if server.child.is_running:
        crash_unfinished_runs("nearline up was stopped while this ran. Nothing is lost: run it again.")


def _watch(settings: Settings, server: _Server | None, children: dict[str, _Child], say: Say) -> None:
    from flows.watchdog import Watchdog

    resident = children["resident"]
    watchdog = Watchdog(settings, owns_server=server is not None, restart_worker=lambda why: resident.restart(say, why))
    looked = time.monotonic()
    told: frozenset[str] = frozenset()
    while True:
        time.sleep(WATCH_SECONDS)
        if server is not None:
            server.keep_alive(say)
        for child in children.values():
            child.keep_alive(say)
        if time.monotonic() - looked > LOOK_SECONDS:
            problems = watchdog.look(utc_now())
            looked = time.monotonic()
            for problem in problems:
                if problem.name not in told:
                    say(f"watchdog: {problem.text} {problem.advice}")
            told = frozenset(problem.name for problem in problems)


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


def _write_address(stack: ExitStack, home: Path, url: str) -> None:
    file = address_file(home)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    temporary.replace(file)
    stack.callback(file.unlink, missing_ok=True)
