"""A PostgreSQL server of the tests' own: in a temporary folder, on a free loopback port, with a password."""

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from infra.prefect_server import free_port

OWNER, PASSWORD = "nearline", "p@ss w'ord/é %"
_NUMBERS = itertools.count(1)


def find_programs():
    """The folder of ``initdb`` and ``postgres``; None where no server is installed."""
    told = shutil.which("pg_config") and subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
    usual = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr/local/opt").glob("postgresql*/bin")]
    own = [Path(found).parent for name in ("initdb", "postgres") if (found := shutil.which(name))]
    for folder in [*([Path(told.stdout.strip())] if told else []), *sorted(usual, reverse=True), *own]:
        if all((folder / name).exists() for name in ("initdb", "postgres", "psql")):
            return folder
    return None


def find_account():
    """Who runs the server: PostgreSQL refuses root. None: we are not root; False: there is nobody else."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return False


@dataclass(frozen=True)
class PostgresServer:
    """A running server; ``new_database`` gives each test its own."""

    programs: Path
    process: subprocess.Popen
    port: int

    def url(self, database, user=OWNER, password=PASSWORD):
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def new_database(self, template="template0", *changes):
        """The name of a database that OWNER owns: an empty one, or a copy of another that is changed so."""
        name = f"test_{next(_NUMBERS)}"
        self.ask(f"create database {name} owner {OWNER} template {template}", f"\\connect {name}", *changes)
        return name

    def let_go(self, database):
        """End every connection to a database, as a restart of the server would."""
        self.ask(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'")  # noqa: S608

    @contextmanager
    def holding(self, database, table):
        """Somebody else holds a table: every other transaction that asks for it waits."""
        command = [self.programs / "psql", self.url(database), "-qAt"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            other.stdin.write(f"begin; lock table {table} in access exclusive mode; select 'held';\n")
            other.stdin.flush()
            assert other.stdout.readline() == "held\n"
            yield
            other.communicate("rollback;\n")

    def ask(self, *statements, database="postgres"):
        """What the server's administrator is told, by line."""
        command = [self.programs / "psql", self.url(database, "postgres"), "-v", "ON_ERROR_STOP=1", "-qAt"]
        command += [part for statement in statements for part in ("-c", statement)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()


@contextmanager
def running_postgres(programs, account):
    """Start a server in a folder of its own, stop it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="nearline-postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        who = {}
        if account:
            who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            for path in (folder, folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        start = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "--auth=scram-sha-256", "--no-sync"]
        start += [f"--pwfile={folder / 'password'}", "--encoding=UTF8", "--locale=C"]
        subprocess.run(start, check=True, capture_output=True, cwd=folder, timeout=60, **who)
        yield from _served(programs, folder, who)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent():
    """On Linux: a session of tests that is killed leaves no server."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _served(programs, folder, who):
    port = free_port()
    command = [programs / "postgres", "-D", folder / "data", "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, preexec_fn=_end_with_parent, **who
        )
    server = PostgresServer(programs, process, port)
    try:
        deadline = time.monotonic() + 30
        while subprocess.run(
            [programs / "psql", server.url("postgres", "postgres"), "-c", ""], capture_output=True
        ).returncode:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        literal = PASSWORD.replace("'", "''")
        server.ask(f"create role {OWNER} login password '{literal}'")
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
