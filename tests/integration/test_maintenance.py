"""Maintenance removes what nobody needs, and nothing else."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from tasks.domain.errors import InputError, NotFoundError
from tasks.maintain import VERSION_TABLES, run_maintenance
from tasks.publish import publish_version, rebuild_index, rollback
from tasks.refresh import refresh

LATER = timedelta(days=3650)  # snapshots carry the real clock, the world has its own: this is after both


def _read(world, sql, **parameters):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql, parameters).to_pylist()


def _versions_in(world, table):
    return [row["version"] for row in _read(world, f"select distinct version from {table} order by version")]  # noqa: S608


def _snapshots(world):
    return {row["snapshot_id"] for row in _read(world, "select snapshot_id from lake.snapshots()")}


def _index_versions(world):
    with world.resources.index() as index:
        return index.versions()


@pytest.fixture
def three_versions(two_versions):
    two_versions.train("v3")
    publish_version(two_versions.resources, "v3", now=two_versions.tick())
    return two_versions


def test_a_version_that_just_stopped_serving_is_left_to_its_readers(three_versions):
    receipts = run_maintenance(three_versions.resources, now=three_versions.tick())

    assert _index_versions(three_versions) == ["v1", "v2", "v3"]
    assert receipts[0].reused and "no version is past its time" in receipts[0].note


def test_versions_past_their_time_go_with_their_rows(three_versions):
    receipts = run_maintenance(three_versions.resources, now=three_versions.tick() + timedelta(hours=7))

    assert _index_versions(three_versions) == ["v2", "v3"]
    for table in ("item_factors", "user_profiles", "watermarks"):
        assert _versions_in(three_versions, table) == ["v2", "v3"]
    assert _versions_in(three_versions, "model_versions") == ["v1", "v2", "v3"]
    assert "dropped v1" in receipts[0].note and "kept v2, v3" in receipts[0].note
    with pytest.raises(NotFoundError, match="maintenance has removed"):
        rollback(three_versions.resources, "v1", now=three_versions.tick())
    rollback(three_versions.resources, now=three_versions.tick())
    assert _index_versions(three_versions) == ["v2", "v3"]


def test_every_table_with_rows_of_a_version_is_cleared():
    from warehouse.catalog import contracts

    keeps_history = {
        "model_versions",
        "eval_metrics",
        "factor_sweeps",
        "gate_results",
        "publications",
        "nearline_runs",
        "flow_runs",
    }
    with_version = {
        name for name, contract in contracts().items() if any(column.name == "version" for column in contract.columns)
    }
    assert with_version - keeps_history == set(VERSION_TABLES)


def test_after_a_rollback_the_version_that_serves_is_kept_and_the_newest_beside_it(three_versions):
    rollback(three_versions.resources, "v1", now=three_versions.tick())

    run_maintenance(three_versions.resources, now=three_versions.tick() + timedelta(hours=7))

    assert _index_versions(three_versions) == ["v1", "v3"]


def test_a_candidate_in_the_making_is_left_alone_and_an_old_one_is_not(two_versions):
    two_versions.train("v3")
    with two_versions.resources.index() as index:
        index.create_version("v3", 15)
        index.create_version("stray", 15)

    run_maintenance(two_versions.resources, now=two_versions.tick())
    assert _index_versions(two_versions) == ["v1", "v2", "v3"]
    assert _versions_in(two_versions, "item_factors") == ["v1", "v2", "v3"]

    run_maintenance(two_versions.resources, now=two_versions.tick() + timedelta(hours=7))
    assert _index_versions(two_versions) == ["v1", "v2"]
    assert _versions_in(two_versions, "item_factors") == ["v1", "v2"]


def test_a_lost_index_is_no_reason_to_delete_what_it_is_made_from(two_versions):
    import shutil

    shutil.rmtree(two_versions.resources.home / "index")

    run_maintenance(two_versions.resources, now=two_versions.tick() + LATER)
    rebuild_index(two_versions.resources, now=two_versions.tick())

    with two_versions.resources.index() as index:
        assert index.serving_version() == "v2"
        assert index.count("v2") == (41, 31)


def test_snapshots_that_a_watermark_or_a_training_needs_do_not_expire(two_versions):
    trained = {row["training_snapshot"] for row in _read(two_versions, "select training_snapshot from model_versions")}
    two_versions.add_events(two_versions.event("u02", "i05"))
    two_versions.clock = datetime.now(UTC) + timedelta(days=8)
    for version in ("v1", "v2"):
        refresh(two_versions.resources, now=two_versions.tick(), version=version)
    marks = {row["version"]: row["snapshot"] for row in _read(two_versions, "select * from watermarks")}
    two_versions.add_events(two_versions.event("u03", "i05"))
    before = _snapshots(two_versions)

    receipts = run_maintenance(two_versions.resources, now=two_versions.tick())

    low = min(marks.values())
    assert max(trained) < low
    assert _snapshots(two_versions) & before == {snapshot for snapshot in before if snapshot >= low} | trained
    assert f"{len([s for s in before if s < low]) - len(trained)} expired snapshots" in receipts[2].note
    run = refresh(two_versions.resources, now=two_versions.tick(), version="v2")
    assert (run.from_snapshot, run.n_events, run.n_users, run.note) == (marks["v2"], 1, 1, "")


def test_the_feed_is_exact_after_files_were_merged(two_versions):
    with two_versions.resources.warehouse(read_only=True) as warehouse:
        start = warehouse.latest_snapshot()
    for user in ("u01", "u02", "u03"):
        two_versions.add_events(two_versions.event(user, "i05"))

    run_maintenance(two_versions.resources, now=two_versions.tick())

    two_versions.add_events(two_versions.event("u04", "i05"))
    with two_versions.resources.warehouse(read_only=True) as warehouse:
        fed = warehouse.insertions("raw_events", start + 1, warehouse.latest_snapshot())
    assert sorted(fed["user_id"].to_pylist()) == ["u02", "u03", "u04"]


def test_a_watermark_that_stands_is_moved_so_that_it_holds_nothing_back(two_versions):
    two_versions.add_events(two_versions.event("u03", "i05"))
    refresh(two_versions.resources, now=two_versions.tick(), version="v1")
    stands = {row["version"]: row["snapshot"] for row in _read(two_versions, "select * from watermarks")}

    receipts = run_maintenance(two_versions.resources, now=two_versions.tick() + LATER)

    moved = {row["version"]: row["snapshot"] for row in _read(two_versions, "select * from watermarks")}
    assert moved["v1"] > stands["v1"] and moved["v2"] > stands["v2"]
    assert "v1, v2" in receipts[1].note
    with two_versions.resources.index() as index:  # v2 had an event to catch up with
        assert index.users("v2", ["u03"])["u03"][0].as_of_snapshot > stands["v2"]


def test_a_second_run_has_nothing_to_do(two_versions):
    now = two_versions.tick() + LATER
    run_maintenance(two_versions.resources, now=now)
    run_maintenance(two_versions.resources, now=now)  # deletes the files that the first one took out of use
    snapshots = _snapshots(two_versions)

    again = run_maintenance(two_versions.resources, now=now)

    assert [(receipt.reused, receipt.note) for receipt in again if not receipt.reused] == []
    assert _snapshots(two_versions) == snapshots


def test_files_left_by_killed_workers_go_after_their_time(two_versions):
    folder = two_versions.resources.home / "staging" / "item_embeddings" / "run"
    folder.mkdir(parents=True)
    old, new = folder / "old.parquet", folder / "new.parquet"
    now = datetime.now(UTC)
    for path, days in ((old, 8), (new, 6)):
        path.write_bytes(b"rows")
        moment = (now - timedelta(days=days)).timestamp()
        os.utime(path, (moment, moment))

    receipts = run_maintenance(two_versions.resources, now=now)

    assert not old.exists() and new.exists()
    assert "deleted 1 of 2" in receipts[3].note


def test_wrong_arguments_are_refused(two_versions):
    with pytest.raises(InputError, match="at least 1 day"):
        run_maintenance(two_versions.resources, now=two_versions.tick(), keep_days=0)
