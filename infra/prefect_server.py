"""Prefect's surroundings: its environment, its server as a child process, and how to find one that runs.

Everything here happens before Prefect is imported, because Prefect reads its environment at that moment. Variables of
Prefect that are set already are left as they are. It knows nothing of flows.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra.logs import PREFECT_CONFIG
from infra.settings import Settings
from tasks.domain.errors import InputError, TerminalError, TransientError

DEFAULT_PORT = 4200
LOOPBACK = "127.0.0.1"
START_SECONDS = 180.0  # the first start makes the database: 4 s here, far more on a busy machine
STOP_SECONDS = 20.0

_BRIEF_EVENTS = (
    *(f"prefect.flow-run.{name}" for name in ("Scheduled", "Pending", "Running", "heartbeat", "Skipped")),
    *(f"prefect.task-run.{name}" for name in ("Pending", "Running", "Completed")),
)
_BRIEF_SECONDS = 2 * 3600
"""A loop that turns every 15 seconds makes some 30,000 of these a day, of 8 KB each in the database: how long they are
kept. Runs, their states and every other event stay longer."""

_started: "ServerProcess | None" = None


@dataclass(frozen=True)
class ServerAddress:
    """A server that ``nearline up`` runs for a home: where it answers, and the process that stands behind it."""

    url: str
    pid: int

    @property
    def api_url(self) -> str:
        """What ``PREFECT_API_URL`` is set to."""
        return f"{self.url}/api"


@dataclass(frozen=True)
class ServerProcess:
    """A server that is a child of this process."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait_healthy(self, seconds: float = START_SECONDS) -> None:
        """Return when the server answers. Raises TransientError with the end of its log if it does not."""
        deadline = time.monotonic() + seconds
        while not is_healthy(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
                raise TransientError(
                    f"The Prefect server at {self.url} did not start within {seconds:.0f} seconds. Its log {self.log} "
                    f"ends so:\n{tail}\nTry again; if the port is taken, name another one: nearline up --port 4300."
                )
            time.sleep(0.1)


def prefect_environment(settings: Settings) -> dict[str, str]:
    """The environment of every Prefect process of this home. The usage data of Prefect and of Great Expectations
    are switched off here and nowhere else."""
    return {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(30 * 24 * 3600),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES": json.dumps(
            dict.fromkeys(_BRIEF_EVENTS, _BRIEF_SECONDS)
        ),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(int(START_SECONDS)),
        "PREFECT_LOGGING_CONFIG_PATH": str(PREFECT_CONFIG),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,infra",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_OUTPUT": settings.logs.format,
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
    }


def prepare_prefect(settings: Settings, *, quiet: bool = False) -> None:
    """Set Prefect's environment for this process and its children. ``quiet`` keeps the console to the caller; the
    log lines still go to the server."""
    for name, value in prefect_environment(settings).items():
        os.environ.setdefault(name, value)
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


@contextmanager
def prefect_api(settings: Settings, *, quiet: bool = True) -> Iterator[None]:
    """A Prefect server for the flows of this process: the one of ``PREFECT_API_URL``, else the one that ``nearline up``
    runs for this home, else one of our own that ends with the context.

    Our own server starts in the background; call ``wait_for_api`` before the first flow. Raises TransientError if
    ``PREFECT_API_URL`` names a server that does not answer.
    """
    global _started
    prepare_prefect(settings, quiet=quiet)
    if _named_api():
        yield
        return
    running = find_server(settings.home)
    if running is not None:
        with _api_url(running.api_url):
            yield
        return
    with start_server(settings, free_port(), with_ui=False) as server, _api_url(f"{server.url}/api"):
        _started = server
        try:
            yield
        finally:
            _started = None
            _send_what_is_queued()


@contextmanager
def connect_prefect(settings: Settings) -> Iterator[None]:
    """Point this process to a server that runs: that of ``PREFECT_API_URL``, else that of ``nearline up``.

    Raises TransientError if there is none.
    """
    with try_connect_prefect(settings) as connected:
        if not connected:
            raise TransientError(
                f"No Prefect server runs for {settings.home}. Start it with nearline up, in another terminal; or set "
                "PREFECT_API_URL to the server you mean, such as http://127.0.0.1:4200/api."
            )
        yield


@contextmanager
def try_connect_prefect(settings: Settings) -> Iterator[bool]:
    """As ``connect_prefect``; says whether there is a server, instead of raising."""
    prepare_prefect(settings, quiet=True)
    if _named_api():
        yield True
        return
    running = find_server(settings.home)
    if running is None:
        yield False
        return
    with _api_url(running.api_url):
        yield True


def wait_for_api() -> None:
    """Return when the server that ``prefect_api`` started answers; at once if it started none."""
    if _started is not None:
        _started.wait_healthy()


@contextmanager
def start_server(settings: Settings, port: int, *, with_ui: bool = True) -> Iterator[ServerProcess]:
    """A Prefect server on loopback with its SQLite file in ``home/prefect``; stopped with the context.

    It does not answer yet when the context is entered: see ``ServerProcess.wait_healthy``.
    """
    arguments = ["server", "start", "--host", LOOPBACK, "--port", str(port)]
    log = settings.home / "prefect" / ("server.log" if with_ui else "server-of-a-command.log")
    environment = {"PREFECT_UI_ENABLED": str(with_ui).lower(), "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api"}
    with run_prefect(settings, arguments, log, environment) as process:
        yield ServerProcess(f"http://{LOOPBACK}:{port}", process, log)


@contextmanager
def run_prefect(
    settings: Settings, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A ``prefect`` command as a child: see ``run_child``."""
    with run_child(settings, "prefect", arguments, log, environment) as process:
        yield process


@contextmanager
def run_child(
    settings: Settings, module: str, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A module as a program, in a process group of its own, which ends with this process at the latest."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.child_process", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops its children in order
            env={**prefect_environment(settings), **os.environ, **_own_programs(), **(environment or {})},
        )
    try:
        yield process
    finally:
        stop_group(process)


def _send_what_is_queued() -> None:
    """Prefect sends log lines and events from threads; they would look for the server after its end, for a minute."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=STOP_SECONDS)
        EventsWorker.drain_all(timeout=STOP_SECONDS)


def _own_programs() -> dict[str, str]:
    """A PATH on which ``python`` is this one, and the folder in which the children start."""
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    return {"PATH": os.pathsep.join(folders), "PWD": str(Path.cwd())}


def stop_group(process: "subprocess.Popen[bytes]", seconds: float = STOP_SECONDS) -> None:
    """End a child and everything that it started: asked first, killed after ``seconds``."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def address_file(home: Path) -> Path:
    """Where ``nearline up`` leaves the address of its server."""
    return home / "prefect" / "server.json"


def find_server(home: Path) -> ServerAddress | None:
    """The server that ``nearline up`` runs for this home, if it answers."""
    try:
        document = json.loads(address_file(home).read_text())
        found = ServerAddress(str(document["url"]), int(document["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if is_healthy(found.url) else None


def is_healthy(url: str) -> bool:
    """Whether a Prefect server of this machine answers there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, ValueError), opener.open(f"{url}/api/health", timeout=3) as response:
        return bool(response.read() == b"true")
    return False


def _named_api() -> str | None:
    """The server of ``PREFECT_API_URL``, if there is that variable. Raises TransientError if nothing answers there."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return None
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers, and may want a password, which Prefect's client has
    except (OSError, ValueError) as error:
        raise TransientError(
            f"PREFECT_API_URL names a Prefect server at {url}, which does not answer: {error}. Start it, correct the "
            "variable (http://127.0.0.1:4200/api, say), or unset it: then nearline finds or starts one by itself."
        ) from None
    return url


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def choose_port(wanted: int | None, first: int = DEFAULT_PORT) -> int:
    """The wanted port, or from ``first`` on the first that is free. Raises InputError if the wanted one is taken."""
    if wanted is not None:
        if not _is_free(wanted):
            raise InputError(f"Port {wanted} is taken by another program. Name another one: nearline up --port 4300.")
        return wanted
    ports = range(first, first + 50)
    port = next((port for port in ports if _is_free(port)), None)
    if port is None:
        raise TerminalError(f"No port from {ports.start} to {ports.stop - 1} is free. Name one with --port.")
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


@contextmanager
def _api_url(url: str) -> Iterator[None]:
    """Point this process and its children to a server, also if Prefect was imported before."""
    os.environ["PREFECT_API_URL"] = url
    try:
        if "prefect" in sys.modules:
            from prefect.settings import PREFECT_API_URL, temporary_settings

            with temporary_settings({PREFECT_API_URL: url}):
                yield
        else:
            yield
    finally:
        os.environ.pop("PREFECT_API_URL", None)
