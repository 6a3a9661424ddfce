"""SIGKILL at any point of a publication leaves the serving version whole, and the next run finishes."""

import signal
import subprocess
import sys
import textwrap

import pytest

from tasks.maintain import run_maintenance
from tasks.publish import publish_version, rebuild_index, reconcile, rollback
from tests.conftest import copied_world

SCRIPT = """
import os, signal, sys
from datetime import datetime
from pathlib import Path

from infra.qdrant_index import QdrantIndex
from infra.resources import build_resources
from infra.settings import load_settings
from tasks.maintain import run_maintenance
from tasks.publish import publish_version, rebuild_index, rollback

home, now, moment, command = Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2]), sys.argv[3], sys.argv[4]
resources = build_resources(load_settings(home=home))


def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(function, times=1):
    calls = []

    def wrapped(*arguments, **options):
        function(*arguments, **options)
        calls.append(1)
        if len(calls) == times:
            die()

    return wrapped


match moment:
    case "half created":
        QdrantIndex._create = die_after(QdrantIndex._create)
    case "items written":
        QdrantIndex.upsert_items = die_after(QdrantIndex.upsert_items)
    case "half caught up":
        QdrantIndex.upsert_users = die_after(QdrantIndex.upsert_users, times=2)
    case "before the switch":
        QdrantIndex.switch = die
    case "after the switch":
        QdrantIndex.switch = die_after(QdrantIndex.switch)
    case "dropped":
        QdrantIndex.drop_version = die_after(QdrantIndex.drop_version)

exec(command)
raise SystemExit("was not killed")
"""


@pytest.fixture(scope="session")
def third_home(published_home, tmp_path_factory):
    """Built once: ``v3`` is trained and not published, ``v2`` serves."""
    world = copied_world(published_home, tmp_path_factory.mktemp("third") / "var")
    world.train("v3")
    return world


@pytest.fixture
def third_version(third_home, tmp_path):
    """A copy of the world in which ``v3`` waits for its publication."""
    return copied_world(third_home, tmp_path / "var")


def _killed(world, moment: str, command: str) -> None:
    arguments = [str(world.resources.home), world.tick().isoformat(), moment, command]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def _publications(world):
    sql = "select action, version, previous_version from publications order by published_at"
    with world.resources.warehouse(read_only=True) as warehouse:
        return [tuple(row.values()) for row in warehouse.read(sql).to_pylist()]


BEFORE = [("publish", "v1", None), ("publish", "v2", "v1")]
PUBLISH = "publish_version(resources, 'v3', now=now)"


@pytest.mark.parametrize("moment", ["half created", "items written", "half caught up", "before the switch"])
def test_a_kill_before_the_switch_leaves_the_old_version(third_version, assert_whole, moment):
    third_version.add_events(third_version.event("u03", "i05"))

    _killed(third_version, moment, PUBLISH)

    with third_version.resources.index() as index:
        assert index.serving_version() == "v2"
    assert reconcile(third_version.resources, now=third_version.tick()) is None
    assert_whole(third_version, "v2")
    assert _publications(third_version) == BEFORE
    publish_version(third_version.resources, "v3", now=third_version.tick())
    assert_whole(third_version, "v3")
    assert _publications(third_version) == [*BEFORE, ("publish", "v3", "v2")]


def test_a_kill_between_the_switch_and_its_record_is_recorded_by_the_next_run(third_version, assert_whole):
    _killed(third_version, "after the switch", PUBLISH)

    assert_whole(third_version, "v3")
    assert _publications(third_version) == BEFORE
    receipt = publish_version(third_version.resources, "v3", now=third_version.tick())
    assert receipt.reused
    assert _publications(third_version) == [*BEFORE, ("reconcile", "v3", "v2")]
    with third_version.resources.warehouse(read_only=True) as warehouse:
        states = warehouse.read("select state from model_versions where version = 'v3'")["state"].to_pylist()
    assert states == ["published"]
    rollback(third_version.resources, now=third_version.tick())
    assert_whole(third_version, "v2")


@pytest.mark.parametrize("moment", ["before the switch", "after the switch"])
def test_a_kill_during_a_rollback(two_versions, assert_whole, moment):
    _killed(two_versions, moment, "rollback(resources, now=now)")

    assert_whole(two_versions, "v2" if moment == "before the switch" else "v1")
    rollback(two_versions.resources, "v1", now=two_versions.tick())
    assert_whole(two_versions, "v1")
    action = "rollback" if moment == "before the switch" else "reconcile"
    assert _publications(two_versions) == [*BEFORE, (action, "v1", "v2")]


@pytest.mark.parametrize("moment", ["items written", "after the switch"])
def test_a_kill_while_a_lost_index_is_made_again(two_versions, assert_whole, moment):
    import shutil

    shutil.rmtree(two_versions.resources.home / "index")

    _killed(two_versions, moment, "rebuild_index(resources, now=now)")

    rebuild_index(two_versions.resources, now=two_versions.tick())
    assert_whole(two_versions, "v2")


def test_a_kill_between_the_collections_and_the_rows_of_a_dropped_version(third_version, assert_whole):
    publish_version(third_version.resources, "v3", now=third_version.tick())
    third_version.clock = third_version.clock.replace(hour=23)

    _killed(third_version, "dropped", "run_maintenance(resources, now=now)")

    with third_version.resources.index() as index:
        assert index.versions() == ["v2", "v3"]
    run_maintenance(third_version.resources, now=third_version.tick())
    with third_version.resources.warehouse(read_only=True) as warehouse:
        left = warehouse.read("select distinct version from item_factors order by version")["version"].to_pylist()
    assert left == ["v2", "v3"]
    assert_whole(third_version, "v3")
