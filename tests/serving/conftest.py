"""A scripted online side with real records, and the application over it, called in this process."""

import socket
import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from starlette.testclient import TestClient

from infra.key_store import KeyStore
from infra.settings import ServiceSettings
from serving.app import create_app
from tasks.domain.errors import NotFoundError
from tasks.domain.online import (
    BelievedProfile,
    ErasureReceipt,
    Evidence,
    Health,
    IntakeReceipt,
    Problem,
    RejectedRow,
    RemovedRows,
)
from tasks.domain.records import Because, Recommendation, Slate
from tasks.online.service import OnlineOptions, OnlineService
from tests.conftest import copied_world

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class ScriptedOnline:
    """Answers from a script and remembers what it was asked; raises ``fails_with``, waits for ``blocks``."""

    def __init__(self):
        self.asked = []
        self.fails_with = None
        self.blocks = None
        self.state = "ready"
        self.version = "v1"
        self.seen_events = set()
        self.n_most_at_once = self._n_inside = 0
        self._lock = threading.Lock()

    def accept(self, kind, rows, *, source):
        self._note("accept", kind, list(rows), source)
        rejected = [
            RejectedRow(i, "event_type is missing") for i, row in enumerate(rows) if not self._is_good(kind, row)
        ]
        bad = {row.index for row in rejected}
        accepted = duplicates = 0
        for index, row in enumerate(rows):
            if index not in bad:
                name = str(row["event_id"]) if row.get("event_id") is not None else None
                duplicates += name is not None and name in self.seen_events
                accepted += name is None or name not in self.seen_events
                self.seen_events.add(name)
        return IntakeReceipt("batch-1", accepted, duplicates, tuple(rejected), 17)

    def recommend(self, request):
        self._note("recommend", request)
        fallbacks = ("unknown_user",) if request.user_id == "nobody" else ()
        because = (Because("item", "Film 3", 0.8, "i03", 0.4), Because("rest", "the rest", 0.2, None, 0.1))
        return self._slate(request.k, because if request.explain else (), request.user_id, fallbacks)

    def similar(self, item_id, *, k, by):
        self._note("similar", item_id, k, by)
        if item_id == "missing":
            raise NotFoundError("There is no item 'missing' in version v1.")
        return self._slate(k)

    def profile(self, user_id):
        self._note("profile", user_id)
        if user_id == "nobody":
            raise NotFoundError("Nothing is known of 'nobody'.")
        evidence = (Evidence("item", "Film 3", "i03", 1.0, NOW), Evidence("attribute", "age 31", None, 0.5, None))
        categories = (("Drama", 0.75), ("Comedy", 0.25))
        return BelievedProfile(user_id, "v1", 3, 0.3, 0.1, 0.2, 17, 1, categories, evidence, 2, "")

    def popular(self, request):
        self._note("popular", request)
        return self._slate(request.k)

    def latest(self, request):
        self._note("latest", request)
        return self._slate(request.k)

    def health(self):
        self._note("health")
        problems = (Problem("stalled", "No refresh for 90 s.", "Look at the worker."),) if self.state != "ready" else ()
        return Health(self.state, self.version, problems, 17, 4, 2.5, "memory")

    def erase(self, user_id):
        self._note("erase", user_id)
        return ErasureReceipt("e1", "0123456789abcdef", NOW, (RemovedRows("raw_events", 3, 0),), 2, 1, (), True)

    def stats(self):
        return {"pending_users": 2.0, "broken": float("nan")}

    def _note(self, *call):
        self.asked.append(call)
        with self._lock:
            self._n_inside += 1
            self.n_most_at_once = max(self.n_most_at_once, self._n_inside)
        try:
            if self.blocks is not None and call[0] != "health":
                self.blocks.wait(10)
            if self.fails_with is not None and call[0] != "health":
                raise self.fails_with
        finally:
            with self._lock:
                self._n_inside -= 1

    @staticmethod
    def _is_good(kind, row):
        return isinstance(row.get("event_type"), str) if kind == "events" else True

    @staticmethod
    def _slate(k, because=(), user_id=None, fallbacks=()):
        items = tuple(
            Recommendation(
                f"i{n:02}", f"Film {n}", n, 1.0 / n, 0.5 / n, 0.3 / n, 0.2 / n, because, categories=("Drama",)
            )
            for n in range(1, k + 1)
        )
        return Slate("v1", "profile", 0.3, 0.1, items, user_id, 3, "", 17, 1, 0.0, fallbacks)


@pytest.fixture
def online():
    return ScriptedOnline()


@pytest.fixture
def key_store(tmp_path):
    return KeyStore(tmp_path)


@pytest.fixture
def make_client(online, key_store):
    """``make_client(scopes, **settings)``: a client with a key of these scopes; the application is its ``app``."""
    opened = []

    def make(*scopes, app=None, **settings):
        app = app or create_app(online, settings=ServiceSettings(**settings), keys=key_store)
        headers = {}
        if scopes:
            _, text = key_store.create("test", scopes, now=datetime.now(UTC) - timedelta(seconds=1))
            headers["Authorization"] = f"Bearer {text}"
        client = TestClient(app, raise_server_exceptions=True, headers=headers)
        client.__enter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client):
    return make_client("read", "write", "admin")


@pytest.fixture
def wait_until():
    """``wait_until(condition)``: within five seconds."""
    return _wait_until


def _wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come about within five seconds"
        time.sleep(0.01)


def open_asgi(app, **options):
    """An asynchronous client of the application in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", **options)


@pytest.fixture(scope="session")
def small_online(trained_home, tmp_path_factory):
    """The real online side over a copy of the small world, and its home."""
    world = copied_world(trained_home[1], tmp_path_factory.mktemp("online") / "var")
    options = OnlineOptions(follow_seconds=0.05, commit_seconds=0.0, wait_seconds=5.0)
    with OnlineService(world.resources, options, lambda: datetime.now(UTC)) as service:
        _wait_until(lambda: service.health().version)
        yield service, world.resources.home


@pytest.fixture(scope="session")
def live(small_online):
    """Address and key of a real service on loopback, over the small world."""
    import uvicorn

    service, home = small_online
    keys = KeyStore(home)
    _, key = keys.create("live", ["read", "write", "admin"], now=datetime(2026, 1, 1, tzinfo=UTC))
    app = create_app(service, settings=ServiceSettings(), keys=keys)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    _wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", key
    server.should_exit = True
    thread.join(10)
