"""What the processes of ``nearline up`` tell each other in small files of ``<home>/prefect``.

The worker of the refresh says what it does and sees, ``up`` says what it found wrong. A file that is old, cut or
missing says nothing. It knows nothing of Prefect.
"""

import json
import os
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.domain.online import Problem

BEAT_FILE, FINDINGS_FILE, WORKER_FILE = "resident.json", "watchdog.json", "worker.json"
FRESH_SECONDS = 60.0
"""Findings that are older are no longer true: whoever wrote them looks every few seconds."""


@dataclass(frozen=True)
class Beat:
    """What the worker of the refresh said last; times are seconds since 1970.

    ``polled_at`` is when it last asked for work, and ``run_id`` what it has worked on since ``run_began_at``.
    ``oldest_waiting_at`` is when the first of the ``n_waiting_events`` arrived, ``pid_began_at`` what
    ``process_began_at`` says of the process.
    """

    pid: int
    at: float
    polled_at: float
    run_id: str | None = None
    run_began_at: float | None = None
    n_waiting_events: int = 0
    oldest_waiting_at: float | None = None
    pid_began_at: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its process is there, and no later one of the same number, which a container gives again."""
        began_at = process_began_at(self.pid)
        is_other = None not in (began_at, self.pid_began_at) and began_at != self.pid_began_at
        return process_lives(self.pid) and not is_other


def write_beat(home: Path, beat: Beat) -> None:
    """Leave a beat."""
    _write(home / "prefect" / BEAT_FILE, asdict(beat))


def read_beat(home: Path) -> Beat | None:
    """The last beat, or None if there is none that can be read."""
    try:
        return Beat(**_read(home / "prefect" / BEAT_FILE))
    except (OSError, ValueError, TypeError):
        return None


def write_findings(home: Path, problems: tuple[Problem, ...], now: datetime) -> None:
    """Leave what is wrong now; nothing, if nothing is."""
    document = {"at": now.timestamp(), "problems": [asdict(problem) for problem in problems]}
    _write(home / "prefect" / FINDINGS_FILE, document)


def read_findings(home: Path, now: datetime) -> tuple[Problem, ...]:
    """What the watchdog of ``nearline up`` found in the last minute; nothing if there is none."""
    try:
        document = _read(home / "prefect" / FINDINGS_FILE)
        if now.timestamp() - float(document["at"]) > FRESH_SECONDS:
            return ()
        return tuple(Problem(**problem) for problem in document["problems"])
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def worker_name(home: Path) -> str:
    """What the worker of the batch is called, from the first start of ``nearline up`` on: its successor knows by it
    which runs it left. Only the ``up`` that holds this home may ask."""
    file = home / "prefect" / WORKER_FILE
    try:
        return str(_read(file)["name"])
    except (OSError, ValueError, TypeError, KeyError):
        name = f"up-{uuid.uuid4().hex[:12]}"
        _write(file, {"name": name})
        return name


def process_lives(pid: int) -> bool:
    """Whether there is a process of that number; one of another user counts too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def process_began_at(pid: int) -> int | None:
    """When a process began, in ticks since the machine started; None where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _read(file: Path) -> dict[str, Any]:
    document = json.loads(file.read_text())
    if not isinstance(document, dict):
        raise TypeError(f"{file} holds no object")
    return document


def _write(file: Path, document: dict[str, object]) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(document))
    temporary.replace(file)
