"""Servers that are away, that take connections and say nothing, or whose address is none: an error in bounded time."""

import socket
import threading
import time

import pytest

from infra import dask_runner
from infra.dask_runner import open_compute
from infra.index_owner import open_index
from infra.settings import ComputeSettings, IndexSettings
from tasks.domain.errors import ComputeLostError, IndexUnavailableError, SettingsError

SECONDS = 1.0
BOUND = 10 * SECONDS


@pytest.fixture
def silent_port():
    """A port of loopback that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def take():
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:  # closed: the test is over
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(BOUND)
        for connection in taken:
            connection.close()


@pytest.fixture
def closed_port():
    """A port of loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


@pytest.fixture
def port(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("port", ["silent_port", "closed_port"], indirect=True)
def test_qdrant_that_does_not_answer(port, tmp_path):
    settings = IndexSettings(url=f"http://127.0.0.1:{port}", timeout_seconds=SECONDS)
    started = time.monotonic()
    with (
        pytest.raises(IndexUnavailableError, match=r"got no answer.*NEARLINE_INDEX__URL"),
        open_index(tmp_path, settings),
    ):
        pass
    assert time.monotonic() - started < BOUND


@pytest.mark.parametrize("port", ["silent_port", "closed_port"], indirect=True)
def test_a_dask_scheduler_that_does_not_answer(port, monkeypatch):
    monkeypatch.setattr(dask_runner, "_NO_WORKERS_SECONDS", SECONDS)
    settings = ComputeSettings(scheduler_address=f"tcp://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(ComputeLostError, match="NEARLINE_COMPUTE__SCHEDULER_ADDRESS"), open_compute(settings):
        pass
    assert time.monotonic() - started < BOUND


@pytest.mark.parametrize("address", ["ftp://x", "nonsense host"])
def test_an_address_of_qdrant_that_is_none(address, tmp_path):
    with pytest.raises(SettingsError, match=r"index\.url"), open_index(tmp_path, IndexSettings(url=address)):
        pass


@pytest.mark.parametrize("address", ["nonsense", "http://localhost:1"])
def test_an_address_of_dask_that_is_none(address):
    with pytest.raises(SettingsError, match="tcp://localhost:8786"):
        open_compute(ComputeSettings(scheduler_address=address)).__enter__()
