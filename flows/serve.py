"""``nearline serve``: one process with the online side and the HTTP service in it. It knows nothing of single routes.

One home has one service. ``<home>/serving/address.json`` says where it answers, and is removed when it ends.
"""

import ipaddress
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from flows.stopping import StopRequested, stop_on_signals
from infra.duckdb_instances import EngineThreads
from infra.key_store import KeyStore, make_private_folder, write_private
from infra.math_threads import limit_math_threads
from infra.settings import Settings
from tasks.domain.errors import InputError, TerminalError

if TYPE_CHECKING:
    from serving.desk import Online
    from serving.figures import KeptFigures

FOLDER, ADDRESS_FILE, LOCK_FILE = "serving", "address.json", "serve.lock"
GRACE_SECONDS = 10
BACKLOG = 1024
SWITCH_SECONDS = 0.001
"""How long one thread may compute while others wait. Python's 5 ms made the p99 of short answers 4 ms; now it is 1."""
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class ServiceAddress:
    """Where a service answers, and its process."""

    url: str
    pid: int


def run_service(settings: Settings, host: str, port: int, on_ready: Callable[[ServiceAddress], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; ``on_ready`` is called once requests are answered.

    Requests in flight are finished, for at most ten seconds. Raises TerminalError if this home has a service already,
    InputError if the address cannot be had.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    limit_math_threads()
    EngineThreads.wanted = 1
    with (
        stop_on_signals(),
        _only_one(settings.home),
        _listen(host, port) as listener,
        open_online(settings) as online,
    ):
        serve_online(online, settings, listener, on_ready)


def open_online(settings: Settings) -> "AbstractContextManager[Online]":
    """The online side for these settings, on this machine's adapters."""
    from flows.clock import utc_now
    from infra.resources import build_resources
    from tasks.online.service import OnlineOptions, OnlineService

    service = settings.service
    options = OnlineOptions(
        commit_seconds=service.commit_seconds,
        max_waiting_rows=service.max_waiting_rows,
        follow_seconds=service.follow_seconds,
        history_megabytes=service.history_megabytes,
        request_timeout_seconds=service.request_timeout_seconds,
        stalled_after_seconds=settings.nearline.stalled_after_seconds,
    )
    return OnlineService(build_resources(settings), options, utc_now)


def serve_online(
    online: "Online", settings: Settings, listener: socket.socket, on_ready: Callable[[ServiceAddress], None]
) -> None:
    """Answer requests on a socket until a signal."""
    import uvicorn

    from serving.app import create_app

    address = ServiceAddress(_url(listener), os.getpid())

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _write_address(settings.home, address)
            on_ready(address)

    figures = _kept_figures(settings)
    app = create_app(online, settings=settings.service, keys=KeyStore(settings.home), figures=figures.current)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # its lines hold paths, and paths hold ids
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    try:
        with suppress(StopRequested):  # uvicorn raises the signal again when it has ended in order
            Server(config).run([listener])
    finally:
        _remove_address(settings.home)
        figures.close()


def _kept_figures(settings: Settings) -> "KeptFigures":
    """The figures for the metrics; the first are read now, so that they are there when somebody asks."""
    from flows.clock import utc_now
    from infra.resources import build_resources
    from serving.figures import KeptFigures
    from tasks.figures import load_figures

    resources = build_resources(settings)
    figures = KeptFigures(lambda: load_figures(resources, now=utc_now()))
    figures.current()
    return figures


def find_service(home: Path) -> ServiceAddress | None:
    """The service of a home, if its process lives."""
    try:
        document = json.loads((home / FOLDER / ADDRESS_FILE).read_text())
        found = ServiceAddress(str(document["url"]), int(document["pid"]))
        os.kill(found.pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    folder = home / FOLDER
    make_private_folder(folder)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        running = find_service(home)
        where = f"it answers at {running.url} (process {running.pid})" if running else "it is starting, or stopping"
        raise TerminalError(
            f"A service runs already for {home}: {where}. Stop that one, or use another NEARLINE_HOME."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small packets at once only on sockets that say that they are TCP; others wait for 40 ms
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        raise InputError(
            f"Listening on {host} port {port} failed: {error.strerror or error}. Name another one: "
            "nearline serve --port N, where 0 is any that is free, or stop what listens there."
        ) from None
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    reached = ANYWHERE.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _write_address(home: Path, address: ServiceAddress) -> None:
    text = json.dumps({"url": address.url, "pid": address.pid})
    write_private(home / FOLDER / ADDRESS_FILE, text.encode())


def _remove_address(home: Path) -> None:
    with suppress(FileNotFoundError):
        (home / FOLDER / ADDRESS_FILE).unlink()
