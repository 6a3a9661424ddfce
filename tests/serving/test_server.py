"""The service as a process: its address, its only one, its end, and what goes over a real socket."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from flows.serve import find_service, is_loopback
from infra.key_store import KeyStore

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, threading
import flows.cli, flows.serve
from contextlib import contextmanager
from tests.serving.conftest import ScriptedOnline

class SlowOnline(ScriptedOnline):
    def profile(self, user_id):
        if user_id == "slow":
            threading.Event().wait(0.7)
        return super().profile(user_id)

@contextmanager
def scripted(settings):
    yield SlowOnline()
    print("closed", file=sys.stderr)

if not sys.argv[1] == "real":
    flows.serve.open_online = scripted
else:
    del sys.argv[1]
sys.argv = ["nearline", *sys.argv[1:]]
sys.exit(flows.cli.main())
"""


@dataclass
class Running:
    process: subprocess.Popen
    home: Path
    first_line: str
    key: str

    @property
    def url(self):
        return json.loads(self.first_line)["url"]

    def client(self):
        return httpx.Client(base_url=self.url, headers={"X-API-Key": self.key}, timeout=60)

    def end(self, number=signal.SIGTERM):
        """Seconds until it ended, its code, and what it said."""
        self.process.send_signal(number)
        began = time.monotonic()
        _, said = self.process.communicate(timeout=20)
        return time.monotonic() - began, self.process.returncode, said


@pytest.fixture
def start(tmp_path):
    """``start(*options)``: ``nearline serve`` on a home of the test's own, over a scripted online side."""
    started = []

    def start(*options, wait=True, side=()):
        environment = {**os.environ, "NEARLINE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *side, "serve", *options],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        _, key = KeyStore(tmp_path).create("test", ["read", "write", "admin"], now=datetime.now(UTC))
        return Running(process, tmp_path, process.stdout.readline() if wait else "", key)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_says_where_it_answers_and_ends_in_order(start):
    running = start("--port", "0", "--json")
    assert json.loads(running.first_line) == {"url": running.url, "pid": running.process.pid}
    file = running.home / "serving" / "address.json"
    assert json.loads(file.read_text()) == json.loads(running.first_line)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert find_service(running.home).url == running.url
    with running.client() as client:
        assert client.get("/v1/popular").status_code == 200
        seconds, code, said = running.end()
    assert seconds < 2
    assert code == 0
    assert "closed" in said
    assert not file.exists()
    assert find_service(running.home) is None
    assert "route=/v1/popular status=200" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_finished(start, number):
    running = start("--port", "0", "--json")
    answers = []
    with running.client() as client:
        assert client.get("/v1/popular").status_code == 200  # the connection stands, whatever else the machine does
        thread = threading.Thread(target=lambda: answers.append(client.get("/v1/users/slow/profile")))
        thread.start()
        time.sleep(0.3)
        seconds, code, _ = running.end(number)
        thread.join()
    assert answers[0].status_code == 200
    assert (code, seconds < 3) == (0, True)


def test_one_home_has_one_service(start):
    running = start("--port", "0", "--json")
    second = start("--port", "0", wait=False)
    _, said = second.process.communicate(timeout=20)
    assert second.process.returncode == 1
    assert f"it answers at {running.url} (process {running.process.pid})" in said
    with running.client() as client:
        assert client.get("/v1/popular").status_code == 200


def test_an_address_that_is_taken_is_named(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = start("--port", str(port), wait=False)
        _, said = running.process.communicate(timeout=20)
    assert running.process.returncode == 2
    assert f"Listening on 127.0.0.1 port {port} failed" in said
    assert "Traceback" not in said


def test_a_killed_one_leaves_no_service_behind_that_is_believed(start):
    running = start("--port", "0", "--json")
    running.end(signal.SIGKILL)
    assert find_service(running.home) is None
    again = start("--port", "0", "--json")
    assert find_service(running.home).pid == again.process.pid


def test_over_a_socket_ids_errors_and_logs_are_what_they_are_in_process(start):
    running = start("--port", "0")
    assert running.first_line.startswith("Serving on http://127.0.0.1:")
    url = running.first_line.split()[-1]
    with httpx.Client(base_url=url, headers={"X-API-Key": running.key}) as client:
        for name in ("%2F", "a/b", "secret%25", "ü☃", "/", "."):
            path = quote(name, safe="").replace(".", "%2E")
            assert client.get(f"/v1/users/{path}/recommendations").json()["user_id"] == name
        large = client.post("/v1/events", content=iter([b" " * 1_000_000] * 6))
        assert (large.status_code, large.json()["error"]["type"]) == (413, "too_large")
        assert client.get("/v1/secret?secret=1").status_code == 404
        assert "server" not in client.get("/v1/health").headers
    _, _, said = running.end()
    assert "request method=GET route=/v1/users/{user_id}/recommendations status=200" in said
    assert "secret" not in said


def test_answers_leave_at_once(start):
    """Small packets that wait for the acknowledgement of the one before would make each answer take 40 ms."""
    running = start("--port", "0", "--json")
    with running.client() as client:
        seconds = []
        for _ in range(30):
            began = time.perf_counter()
            client.get("/v1/popular?k=1")
            seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[len(seconds) // 2] < 0.03


def test_before_anything_is_published_rows_are_taken_and_the_rest_says_so(start):
    running = start("--port", "0", "--json", side=("real",))
    with running.client() as client:
        health = client.get("/v1/health")
        assert (health.status_code, health.json()["state"]) == (503, "unavailable")
        assert health.json()["problems"][0]["name"] == "nothing_published"
        taken = client.post("/v1/items", json={"item_id": "i1", "title": "The Quiet Sea"})
        assert (taken.status_code, taken.json()["accepted"]) == (200, 1)
        asked = client.get("/v1/users/42/recommendations")
        assert (asked.status_code, asked.json()["error"]["type"]) == (503, "nothing_published")
        assert "nearline_followed_snapshot" in client.get("/metrics").text
        assert client.delete("/v1/users/42").status_code == 200
    seconds, code, said = running.end()
    assert (code, seconds < 5) == (0, True)
    assert "Traceback" not in said


def test_only_loopback_is_quiet():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "shop.example", "127.evil.example")))
