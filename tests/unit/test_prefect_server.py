"""Finding and choosing servers. That they run is tested in ``tests/flows``."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from infra.prefect_server import (
    address_file,
    choose_port,
    find_server,
    free_port,
    prefect_api,
    prefect_environment,
    try_connect_prefect,
)
from infra.settings import load_settings
from tasks.domain.errors import InputError, TransientError


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return load_settings(home=tmp_path)


def test_usage_data_is_switched_off_and_the_state_lies_in_the_home(settings):
    environment = prefect_environment(settings)
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["GX_ANALYTICS_ENABLED"] == "false"
    assert environment["PREFECT_HOME"] == str(settings.home / "prefect")


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"url": "http://127.0.0.1:9"}'])
def test_an_address_that_leads_nowhere_is_no_server(settings, text):
    if text is not None:
        address_file(settings.home).parent.mkdir()
        address_file(settings.home).write_text(text)
    assert find_server(settings.home) is None


def test_a_server_that_is_gone_is_not_connected(settings):
    address_file(settings.home).parent.mkdir()
    address_file(settings.home).write_text(json.dumps({"url": f"http://127.0.0.1:{free_port()}", "pid": 1}))
    with try_connect_prefect(settings) as connected:
        assert not connected


def test_a_named_server_that_does_not_answer_is_an_error_at_once(settings, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(TransientError, match="does not answer"), prefect_api(settings):
        pass


def test_a_taken_port_is_refused_when_named_and_passed_over_when_not():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} is taken"):
            choose_port(port)
    assert choose_port(free_port())
    assert 4200 <= choose_port(None) < 4250


def test_a_child_ends_with_the_process_that_started_it(tmp_path):
    """The child sleeps for a minute; its parent dies after a second."""
    (tmp_path / "sleeper.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    parent = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'infra.child_process', 'sleeper'])\n"
        "time.sleep(2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", parent], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
    assert time.monotonic() - began < 20, "the pipe was held open: the child outlived its parent"
