"""A lake's catalog in a PostgreSQL database, which processes of several machines share.

The password travels to DuckDB as a secret, so that no statement, path or message holds it. It knows nothing of tables
and rows.
"""

import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from infra.catalog_address import parse_catalog_url
from infra.duckdb_instances import load_extension, quoted, take_instance
from tasks.domain.errors import NearlineError, SettingsError

_SECRET = "nearline_catalog"
_PLAIN = "nearline_session"
_WHOLE = "a lake that was made to the end"
_AWAY = (
    "unable to connect to postgres",
    "connection refused",
    "server closed the connection",
    "terminating connection",
    "no connection to the server",
    "could not receive data from server",
    "could not send data to server",
    "connection not open",
    "ssl connection has been closed",
)
_LOST_AT_COMMIT = 'failed to execute query "rollback":'  # and then no reason: there was nobody to ask for one
_BUSY = ("lock timeout", "statement timeout", "deadlock detected", "could not serialize", "transaction conflict")
_CONFLICT = "failed to commit ducklake transaction"
_REFUSED = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "authentication failed",
    "permission denied for",
    "is not permitted to log in",
    "does not support ssl",
    "certificate verify failed",
)
_OLDER = """
select count(*) as n from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and age(backend_xmin) > age('{now}'::xid)
"""
_SESSIONS: dict[tuple[int, str], duckdb.DuckDBPyConnection] = {}
_GUARD = threading.Lock()


class PostgresCatalog:
    """A database of a PostgreSQL server, for one lake; made from a URL that ``infra.settings`` has checked."""

    def __init__(self, url: str, busy_seconds: float) -> None:
        self._address = parse_catalog_url(url)
        self._busy_seconds = busy_seconds

    @property
    def place(self) -> str:
        """Server and database."""
        return f"{self._address.host}:{self._address.port}/{self._address.database}"

    def is_whole(self) -> bool:
        """Whether the table of DuckLake's own metadata carries the comment that the last step of making it sets."""
        sql = "select obj_description(to_regclass('ducklake_metadata')) as about"
        return self._asked(sql) == [(_WHOLE,)]

    @contextmanager
    def making(self) -> Iterator["PostgresCatalog"]:
        """The same database; a comment says at the end that the lake is whole."""
        yield self
        self._told(f"comment on table ducklake_metadata is {quoted(_WHOLE)}")

    def attach(self, connection: duckdb.DuckDBPyConnection, data: Path, options: Sequence[str]) -> None:
        """The data folder must be the one that the catalog was made with: another would be another lake's."""
        self._prepare(connection)
        settings = [f"data_path {quoted(f'{data}/')}", f"meta_secret {quoted(_SECRET)}", *options]
        statement = f"attach {quoted(f'ducklake:postgres:{self._options()}')} as lake ({', '.join(settings)})"
        connection.execute(statement)

    @contextmanager
    def lock(self, name: str, seconds: float) -> Iterator[None]:
        """An advisory lock of a transaction: the server frees it when the connection ends, however it ends.

        Under ``read committed`` a transaction that waits holds no snapshot, which would keep deleted rows alive.
        """
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        timeout = f"set local lock_timeout = {max(1, int(seconds * 1000))}; set local statement_timeout = 0"
        cursor = self._session().cursor()
        try:
            cursor.execute("begin")
            _execute(cursor, f"set transaction isolation level read committed; {timeout}")
            try:
                _query(cursor, f"select 1 as taken from pg_advisory_xact_lock({key})")  # noqa: S608 - a number
            except duckdb.Error as error:
                if "lock timeout" not in str(error):
                    raise
                raise TimeoutError(f"Another process held the lock {name} for {seconds:g} s.") from None
            yield
        finally:
            with contextlib.suppress(duckdb.Error):  # a connection that was lost has freed it
                cursor.execute("rollback")
            cursor.close()

    def compact(self) -> bool:
        """Write every table of the catalog anew once no transaction is left that could see what was deleted."""
        now = self._asked("select pg_current_xact_id()::xid::text as id")[0][0]
        older = _OLDER.format(now=now)
        deadline = time.monotonic() + self._busy_seconds
        while self._asked(older) != [(0,)]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        try:
            self._told("vacuum (full)", use_transaction=False)
        except duckdb.Error as error:
            if self.is_busy(str(error).lower()):
                return False
            raise
        return True

    def is_busy(self, text: str) -> bool:
        """Locks and statements that took too long, and conflicts of DuckLake that its own tries did not settle."""
        return not self.is_away(text) and any(sign in text for sign in (*_BUSY, _CONFLICT))

    def is_away(self, text: str) -> bool:
        """A server that does not answer, is starting or stopping, has no connection left, or dropped one."""
        is_lost = text.rstrip().endswith(_LOST_AT_COMMIT) or any(sign in text for sign in _AWAY)
        return is_lost and self.refusal(text) is None

    def refusal(self, text: str) -> NearlineError | None:
        """A password, a right or a database that the server does not accept, or a data folder of another lake."""
        folded = text.lower()
        if "data_path parameter" in folded:
            return SettingsError(
                f"The catalog in {self.place} belongs to other files: {text.splitlines()[0]} Set "
                "NEARLINE_WAREHOUSE__DATA_PATH (or NEARLINE_HOME) to the folder that it names, on every machine; "
                "docs/deployment.md says how to move it."
            )
        missing = "fatal:" in folded and "does not exist" in folded
        if missing or any(sign in folded for sign in _REFUSED):
            why = text.strip().rpartition("FATAL: ")[2].rpartition("ERROR: ")[2].strip().splitlines()[0]
            return SettingsError(
                f"The PostgreSQL server refused the warehouse's catalog in {self.place} to user "
                f"{self._address.user}: {why}. Correct NEARLINE_WAREHOUSE__CATALOG_URL, or make the user and a "
                "database that it owns: docs/deployment.md."
            )
        return None

    def _options(self) -> str:
        """What is no secret, in libpq's form; a server that went away is noticed within the wait that is allowed."""
        seconds = max(2, min(math.ceil(self._busy_seconds), 10))
        entries = {
            "connect_timeout": seconds,
            "keepalives_idle": seconds,
            "keepalives_interval": seconds,
            "keepalives_count": 2,
            "tcp_user_timeout": 2000 * seconds,
            "application_name": "nearline",
            "options": f"-c statement_timeout={max(1, int(self._busy_seconds * 1000))}",
            **self._address.parameters,
        }
        return " ".join(f"{name}={_libpq(str(value))}" for name, value in entries.items())

    def _prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        load_extension(connection, "postgres_scanner")
        about = {
            "host": self._address.host,
            "port": self._address.port,
            "database": self._address.database,
            "user": self._address.user,
            "password": self._address.password,
        }
        entries = ", ".join(f"{name} {quoted(value)}" for name, value in about.items() if value is not None)
        connection.execute(f"create or replace temporary secret {_SECRET} (type postgres, {entries})")

    def _session(self) -> duckdb.DuckDBPyConnection:
        """An instance of this process with the database itself attached, for locks and questions to the server."""
        holder = (os.getpid(), repr(self._address))
        with _GUARD:
            if holder not in _SESSIONS:
                connection = take_instance()
                self._prepare(connection)
                connection.execute(f"attach {quoted(self._options())} as {_PLAIN} (type postgres, secret {_SECRET})")
                _SESSIONS[holder] = connection
            return _SESSIONS[holder]

    def _asked(self, sql: str) -> list[tuple[object, ...]]:
        with contextlib.closing(self._session().cursor()) as cursor:
            return _query(cursor, sql)

    def _told(self, sql: str, *, use_transaction: bool = True) -> None:
        with contextlib.closing(self._session().cursor()) as cursor:
            _execute(cursor, sql, use_transaction=use_transaction)


def _query(cursor: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[object, ...]]:
    return cursor.execute(f"from postgres_query('{_PLAIN}', $sql)", {"sql": sql}).fetchall()


def _execute(cursor: duckdb.DuckDBPyConnection, sql: str, *, use_transaction: bool = True) -> None:
    cursor.execute(
        f"call postgres_execute('{_PLAIN}', $sql, use_transaction => {str(use_transaction).lower()})", {"sql": sql}
    )


def _libpq(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
