"""DuckDB instances of this process, kept for the next user. It knows nothing of what is attached to them."""

import contextlib
import importlib.util
import itertools
import os
import shutil
import socket
from pathlib import Path

import duckdb

_IDLE: dict[int, list[duckdb.DuckDBPyConnection]] = {}
MEMORY_LIMIT = "1500MB"
"""What one DuckDB instance may hold before it writes to files: the memory of a process then does not grow with the
events. ``benchmarks.growth`` measures it."""
_OVERFLOW = "overflow"
_NUMBERS = itertools.count()


class EngineThreads:
    """How many threads each DuckDB instance that this process makes uses; None: as many as there are cores.

    One is for a process that answers many callers at once, each with a small question. ``benchmarks.lake_layout``
    measures looks at one user and at many with one thread and with all cores.
    """

    wanted: int | None = None


def take_instance(folder: Path | None = None) -> duckdb.DuckDBPyConnection:
    """An idle instance of this process, or a new one. Loading the extensions is most of an opening's time.

    A new one writes what is beyond ``MEMORY_LIMIT`` into ``folder``, under a name of its own.
    """
    with contextlib.suppress(IndexError):
        return _IDLE.setdefault(os.getpid(), []).pop()
    connection = duckdb.connect(
        config={
            **({} if folder is None else {"memory_limit": MEMORY_LIMIT, "temp_directory": _overflow(folder)}),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": False,
            "allocator_bulk_deallocation_flush_threshold": "32MB",
            **({} if EngineThreads.wanted is None else {"threads": EngineThreads.wanted}),
        }
    )
    connection.execute("set enable_progress_bar = false")  # first: a bar on stdout breaks what programs read there
    load_extension(connection, "ducklake")
    connection.execute("set timezone = 'UTC'")
    return connection


def _overflow(folder: Path) -> str:
    """The name of a folder that the instance makes when it needs it, and deletes; those of killed processes go now."""
    prefix = f"{_OVERFLOW}-{socket.gethostname()}-"
    for left in folder.glob(f"{prefix}*"):
        if not _is_alive(int(left.name.removeprefix(prefix).partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)
    return str(folder / f"{prefix}{os.getpid()}-{next(_NUMBERS)}")


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def release_memory(connection: duckdb.DuckDBPyConnection) -> None:
    """Give memory that the instance has freed back to the system.

    Its allocator holds on to it otherwise, several hundred megabytes after a query over ten million rows; setting the
    limit, to what it is, makes it let go.
    """
    connection.execute(f"set memory_limit = '{MEMORY_LIMIT}'")


def give_back(connection: duckdb.DuckDBPyConnection, attached: str) -> None:
    """Detach the database of that name and keep the instance, which was taken with a folder, for the next one."""
    try:
        connection.execute(f"use memory; detach {attached}")
        release_memory(connection)
    except duckdb.Error:
        connection.close()
        return
    _IDLE.setdefault(os.getpid(), []).append(connection)


def load_extension(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load an extension that came as a package, else one that DuckDB itself has installed."""
    connection.execute(f"load {quoted(_extension(name))}")


def quoted(text: object) -> str:
    """A SQL literal, for statements that take no parameters."""
    escaped = str(text).replace("'", "''")
    return f"'{escaped}'"


def _extension(name: str) -> str:
    package = importlib.util.find_spec(f"duckdb_extension_{name}")
    if package is None or not package.submodule_search_locations:
        return name
    found = sorted(Path(package.submodule_search_locations[0]).glob(f"extensions/*/{name}.duckdb_extension"))
    return str(found[-1]) if found else name
