"""DuckDB instances of this process, kept for the next user. It knows nothing of what is attached to them."""

import contextlib
import importlib.util
import os
from pathlib import Path

import duckdb

_IDLE: dict[int, list[duckdb.DuckDBPyConnection]] = {}


class EngineThreads:
    """How many threads each DuckDB instance that this process makes uses; None: as many as there are cores.

    One is for a process that answers many callers at once, each with a small question. ``benchmarks.lake_layout``
    measures looks at one user and at many with one thread and with all cores.
    """

    wanted: int | None = None


def take_instance() -> duckdb.DuckDBPyConnection:
    """An idle instance of this process, or a new one. Loading the extensions is most of an opening's time."""
    with contextlib.suppress(IndexError):
        return _IDLE.setdefault(os.getpid(), []).pop()
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": False,
            **({} if EngineThreads.wanted is None else {"threads": EngineThreads.wanted}),
        }
    )
    connection.execute("set enable_progress_bar = false")  # first: a bar on stdout breaks what programs read there
    load_extension(connection, "ducklake")
    connection.execute("set timezone = 'UTC'")
    return connection


def give_back(connection: duckdb.DuckDBPyConnection, attached: str) -> None:
    """Detach the database of that name and keep the instance for the next one who takes one."""
    try:
        connection.execute(f"use memory; detach {attached}")
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
