"""SIGKILL at any point of a publication leaves the serving version whole, and the next run finishes."""

import signal
import subprocess
import sys
import textwrap

import pytest

from tasks.maintain import run_maintenance
from tasks.publish import publish_version, rebuild_index, reconcile, rollback

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
def test_a_kill_before_the_switch_leaves_the_old_version(two_versions, assert_whole, moment):
    two_versions.train("v3")
    two_versions.add_events(two_versions.event("u03", "i05"))

    _killed(two_versions, moment, PUBLISH)

    with two_versions.resources.index() as index:
        assert index.serving_version() == "v2"
    assert reconcile(two_versions.resources, now=two_versions.tick()) is None
    assert_whole(two_versions, "v2")
    assert _publications(two_versions) == BEFORE
    publish_version(two_versions.resources, "v3", now=two_versions.tick())
    assert_whole(two_versions, "v3")
    assert _publications(two_versions) == [*BEFORE, ("publish", "v3", "v2")]


def test_a_kill_between_the_switch_and_its_record_is_recorded_by_the_next_run(two_versions, assert_whole):
    two_versions.train("v3")

    _killed(two_versions, "after the switch", PUBLISH)

    assert_whole(two_versions, "v3")
    assert _publications(two_versions) == BEFORE
    receipt = publish_version(two_versions.resources, "v3", now=two_versions.tick())
    assert receipt.reused
    assert _publications(two_versions) == [*BEFORE, ("reconcile", "v3", "v2")]
    with two_versions.resources.warehouse(read_only=True) as warehouse:
        states = warehouse.read("select state from model_versions where version = 'v3'")["state"].to_pylist()
    assert states == ["published"]
    rollback(two_versions.resources, now=two_versions.tick())
    assert_whole(two_versions, "v2")


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


def test_a_kill_between_the_collections_and_the_rows_of_a_dropped_version(two_versions, assert_whole):
    two_versions.train("v3")
    publish_version(two_versions.resources, "v3", now=two_versions.tick())
    two_versions.clock = two_versions.clock.replace(hour=23)

    _killed(two_versions, "dropped", "run_maintenance(resources, now=now)")

    with two_versions.resources.index() as index:
        assert index.versions() == ["v2", "v3"]
    run_maintenance(two_versions.resources, now=two_versions.tick())
    with two_versions.resources.warehouse(read_only=True) as warehouse:
        left = warehouse.read("select distinct version from item_factors order by version")["version"].to_pylist()
    assert left == ["v2", "v3"]
    assert_whole(two_versions, "v3")
