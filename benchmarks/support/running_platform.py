"""The platform's own processes, started as a user starts them, on a home of the measurement's own.

It knows nothing of what is measured.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.support.http_load import Ask, Service
from flows.clock import utc_now
from tasks.domain.errors import NotFoundError, TransientError

READY_SECONDS = 120.0


def copy_home(source: Path, target: Path) -> Path:
    """The warehouse and the index of a home that has a published version, and nothing else of it."""
    if not (source / "warehouse").is_dir():
        raise NotFoundError(
            f"The benchmark works on a copy of the home {source}, and there is none. Make one first: make demo; or name"
            " another one in NEARLINE_HOME."
        )
    for part in ("warehouse", "index"):
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part)
    for lock in target.rglob("*.lock"):
        lock.unlink()
    return target


@contextmanager
def running(home: Path, *command: str, module: str = "flows.cli") -> Iterator[subprocess.Popen[bytes]]:
    """``nearline COMMAND`` on ``home``, its output in ``<home>/platform.log``; stopped with SIGTERM at the end."""
    log = (home / "platform.log").open("ab")
    inside = {**os.environ, "NEARLINE_HOME": str(home)}
    program = [sys.executable, "-m", module, *command]
    process = subprocess.Popen(program, stdout=log, stderr=log, env=inside, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def make_key(home: Path, name: str = "benchmark") -> str:
    """A new key for everything."""
    from infra.key_store import KeyStore

    _, text = KeyStore(home).create(name, ("read", "write", "admin"), now=utc_now())
    return text


def wait_for_service(home: Path, key: str, seconds: float = READY_SECONDS) -> Service:
    """The service of this home, once it is ready."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError):
            service = Service(json.loads((home / "serving" / "address.json").read_text())["url"], key)
            status, document = service.ask(Ask("GET", "/v1/health"))
            if status == 200 and document["version"]:
                return service
        time.sleep(0.1)
    raise TransientError(f"The service of {home} was not ready within {seconds:g} s. Its log is in that folder.")


def children_of(pid: int) -> dict[int, str]:
    """The living descendants of a process: their command lines."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
    found, edge = {}, {pid}
    while edge:
        edge = {child for child, parent in parents.items() if parent in edge}
        found.update({child: lines[child] for child in edge})
    return found


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
