"""Who may open the index, and how the others reach it. It knows nothing of what is stored there.

A server takes everybody. Local mode is one process at a time, so the folder has an owner: the process that holds
``owner.lock``. A command owns it while it runs and the others wait; a resident owner (``serve_index``) shares it: it
answers on loopback, and the address with a random key is in ``owner.json``, which only its user can read. The lock
alone says whether an owner lives; ``owner.json`` of a dead one is never believed.
"""

import json
import logging
import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from infra.disk_errors import writing
from infra.settings import IndexSettings
from infra.shared_index import PORT_METHODS, SharedIndex
from tasks.domain.errors import IndexUnavailableError, NearlineError, TerminalError
from tasks.domain.ports import VectorIndex

if TYPE_CHECKING:
    from infra.qdrant_index import QdrantIndex

logger = logging.getLogger(__name__)

LOCK_FILE, OWNER_FILE, DATA_FOLDER = "owner.lock", "owner.json", "qdrant"
LOOPBACK = "127.0.0.1"


@dataclass
class _Held:
    """The folder as this process holds it; ``users`` counts the contexts that are open."""

    index: "QdrantIndex"
    lock: FileLock
    folder: Path
    users: int = 0
    is_shared: bool = False


@dataclass(frozen=True)
class _Owner:
    """What ``owner.json`` says: who holds the folder, and where it answers if it shares."""

    pid: int
    port: int | None = None
    key: bytes = field(default=b"", repr=False)


_held: dict[tuple[int, Path], _Held] = {}  # by process id too: a fork does not inherit the ownership
_registry = Lock()


@contextmanager
def open_index(folder: Path, settings: IndexSettings) -> Iterator[VectorIndex]:
    """The index: a client of the server, the folder itself, or a line to the process that owns the folder.

    Contexts of one process share one client. Raises IndexUnavailableError if the server does not answer, or if
    another process keeps the folder for longer than ``settings.timeout_seconds``.
    """
    if settings.url is not None:
        from infra.qdrant_index import open_server

        index = open_server(settings)
        try:
            yield index
        finally:
            index.close()
        return
    opened = _own_or_ask(folder.resolve(), settings.timeout_seconds)
    if isinstance(opened, SharedIndex):
        try:
            yield opened
        finally:
            opened.close()
        return
    try:
        yield opened.index
    finally:
        _release(opened)


@contextmanager
def serve_index(folder: Path, settings: IndexSettings) -> Iterator[VectorIndex]:
    """Own the folder and share it with every process of this user on this machine until the context ends.

    With a server in the settings there is nothing to share, and this is ``open_index``. Raises TerminalError if
    another process shares the folder already, IndexUnavailableError if one keeps it for too long.
    """
    with open_index(folder, settings) as index:
        if settings.url is not None:
            yield index
            return
        held = _held.get((os.getpid(), folder.resolve()))
        if isinstance(index, SharedIndex) or held is None or held.is_shared:
            pid = index.owner_pid if isinstance(index, SharedIndex) else os.getpid()
            raise TerminalError(
                f"Sharing the index folder {folder} was refused: process {pid} shares it already. "
                "Use that one, or stop it first."
            )
        held.is_shared = True
        line = _Line(held.folder, index)
        try:
            yield index
        finally:
            line.close()
            held.is_shared = False


def _own_or_ask(folder: Path, timeout_seconds: float) -> "_Held | SharedIndex":
    deadline = time.monotonic() + timeout_seconds
    while True:
        held = _acquire(folder)
        if held is not None:
            return held
        owner = _read_owner(folder)
        if owner is not None and owner.port is not None:
            with suppress(OSError, EOFError, AuthenticationError):
                return SharedIndex(_call(owner, timeout_seconds), owner.pid, timeout_seconds)
        if time.monotonic() > deadline:
            raise _kept(folder, owner, timeout_seconds)
        time.sleep(random.uniform(0.02, 0.1))


def _acquire(folder: Path) -> _Held | None:
    """The folder as this process holds it, or None while another process does."""
    key = (os.getpid(), folder)
    with _registry:
        if key not in _held:
            lock = FileLock(folder / LOCK_FILE, timeout=0, is_singleton=False, thread_local=False)
            try:
                with writing(f"Opening the index folder {folder}"):
                    folder.mkdir(parents=True, exist_ok=True)
                    lock.acquire()
            except Timeout:
                return None
            try:
                from infra.qdrant_index import open_folder

                with writing(f"Opening the index folder {folder}"):
                    for leftover in folder.glob(f"{OWNER_FILE}.*"):
                        leftover.unlink()
                    _write_owner(folder, _Owner(os.getpid()))
                _held[key] = _Held(open_folder(folder / DATA_FOLDER), lock, folder)
            except BaseException:
                lock.release()
                raise
        _held[key].users += 1
        return _held[key]


def _release(held: _Held) -> None:
    with _registry:
        held.users -= 1
        if held.users == 0:
            _held.pop((os.getpid(), held.folder), None)
            held.index.close()
            (held.folder / OWNER_FILE).unlink(missing_ok=True)
            held.lock.release()


class _Line:
    """Answers the port's methods on loopback, one thread for each process that asks."""

    def __init__(self, folder: Path, index: VectorIndex) -> None:
        self._folder = folder
        self._index = index
        self._key = secrets.token_bytes(32)
        self._listener = Listener((LOOPBACK, 0))
        self._port: int = self._listener.address[1]
        self._connections: set[Connection] = set()
        self._closing = False
        Thread(target=self._accept, name="index-line", daemon=True).start()
        _write_owner(folder, _Owner(os.getpid(), self._port, self._key))
        logger.info("index shared: folder=%s port=%d", folder, self._port)

    def close(self) -> None:
        """Stop answering. A process in the middle of a request gets IndexUnavailableError."""
        _write_owner(self._folder, _Owner(os.getpid()))
        self._closing = True
        with suppress(OSError):
            Client((LOOPBACK, self._port)).close()  # wakes the thread that accepts
        self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(0.05)
                continue
            Thread(target=self._answer, args=(connection,), name="index-answer", daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        self._connections.add(connection)
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            while not self._closing:
                method, arguments, options = connection.recv()
                connection.send(self._run(method, arguments, options))
        except (EOFError, OSError, AuthenticationError, TypeError, ValueError):
            pass  # the other side went away, or never had the key
        finally:
            self._connections.discard(connection)
            with suppress(OSError):
                connection.close()

    def _run(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[bool, Any]:
        if method not in PORT_METHODS:
            return False, TerminalError(f"The index has no method {method!r}. It has: {', '.join(PORT_METHODS)}.")
        try:
            return True, getattr(self._index, method)(*arguments, **options)
        except NearlineError as error:
            return False, type(error)(*error.args)  # without its cause, which may not travel
        except Exception as error:
            logger.exception("the index failed: method=%s", method)
            return False, TerminalError(f"The index failed in {method}: {type(error).__name__}: {error}")


def _call(owner: _Owner, timeout_seconds: float) -> Connection:
    """Both sides prove that they have the key before anything is unpickled."""
    connection = Client((LOOPBACK, owner.port or 0))
    try:
        if not connection.poll(timeout_seconds):
            raise EOFError
        answer_challenge(connection, owner.key)
        deliver_challenge(connection, owner.key)
    except BaseException:
        connection.close()
        raise
    return connection


def _kept(folder: Path, owner: _Owner | None, timeout_seconds: float) -> IndexUnavailableError:
    who = f"process {owner.pid}" if owner else "another process"
    return IndexUnavailableError(
        f"Opening the index folder {folder} failed: {who} has held it for all of the {timeout_seconds:g} seconds that "
        "NEARLINE_INDEX__TIMEOUT_SECONDS allows, and does not share it. Wait until it ends; or keep `nearline up` "
        "running, which shares the folder; or set NEARLINE_INDEX__URL to a Qdrant server."
    )


def _read_owner(folder: Path) -> _Owner | None:
    try:
        document = json.loads((folder / OWNER_FILE).read_text())
        return _Owner(document["pid"], document["port"], bytes.fromhex(document["key"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_owner(folder: Path, owner: _Owner) -> None:
    text = json.dumps({"pid": owner.pid, "port": owner.port, "key": owner.key.hex()})
    temporary = folder / f"{OWNER_FILE}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(folder / OWNER_FILE)
