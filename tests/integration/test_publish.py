"""A version is published whole, a rollback goes back, and the index is made again from the warehouse."""

import shutil
import threading
import time
from dataclasses import replace

import pytest

from infra.qdrant_index import QdrantIndex
from tasks.domain.errors import GateError, NotFoundError, TerminalError
from tasks.domain.publication_gate import PublicationLimits
from tasks.domain.records import IndexFilter
from tasks.projection import load_projection, verify_projection
from tasks.publish import publish_version, rebuild_index, reconcile, rollback
from tasks.refresh import refresh


def _read(world, sql, **parameters):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql, parameters).to_pylist()


def _write(world, sql, **parameters):
    with world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.execute(sql, parameters))


def _serving(world):
    with world.resources.index() as index:
        return index.serving_version()


def _projection(world, version):
    with world.resources.warehouse(read_only=True) as warehouse:
        return load_projection(warehouse, version)


def _publications(world):
    sql = "select action, version, previous_version from publications order by published_at"
    return [tuple(row.values()) for row in _read(world, sql)]


@pytest.fixture
def unpublished(small_world):
    """``v1`` is trained; nothing was ever published."""
    shutil.rmtree(small_world.resources.home / "index")
    return small_world


def test_the_first_publication(unpublished, assert_whole):
    receipt = publish_version(unpublished.resources, "v1", now=unpublished.tick())

    assert_whole(unpublished, "v1")
    assert _publications(unpublished) == [("publish", "v1", None)]
    assert _read(unpublished, "select state from model_versions") == [{"state": "published"}]
    row = _read(unpublished, "select n_items, n_users, snapshot from publications")[0]
    mark = _read(unpublished, "select snapshot from watermarks where version = 'v1'")[0]
    assert (row["n_items"], row["n_users"], row["snapshot"]) == (40, 30, mark["snapshot"])
    assert (receipt.n_in, receipt.n_out, receipt.version, receipt.reused) == (70, 70, "v1", False)
    assert "first one" in receipt.note


def test_the_index_answers_with_the_formula_of_the_warehouse(unpublished):
    publish_version(unpublished.resources, "v1", now=unpublished.tick())
    projection = _projection(unpublished, "v1")
    scores = projection.items @ projection.users[4]

    with unpublished.resources.index() as index:
        hits = index.search("v1", projection.users[4], 40, IndexFilter())

    assert len(hits) == 39
    for hit in hits:
        assert hit.item_id != "i39"
        assert hit.score == pytest.approx(float(scores[projection.item_rows[hit.item_id]]), abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_new_version_takes_over_and_the_one_before_stays(two_versions, assert_whole):
    assert_whole(two_versions, "v2")
    assert _publications(two_versions) == [("publish", "v1", None), ("publish", "v2", "v1")]
    with two_versions.resources.index() as index:
        assert index.versions() == ["v1", "v2"]
        assert index.count("v1") == (40, 30)


def test_publishing_what_serves_already_changes_nothing(two_versions):
    receipt = publish_version(two_versions.resources, "v2", now=two_versions.tick())

    assert receipt.reused and "already" in receipt.note
    assert len(_publications(two_versions)) == 2


def test_events_that_came_after_the_training_are_in_before_readers_see_it(unpublished, assert_whole, monkeypatch):
    unpublished.add_events(unpublished.event("u03", "i05"), unpublished.event("newcomer", "i05"))

    users = {}
    switch = QdrantIndex.switch

    def look_and_switch(index, version):
        users.update(index.users(version, ["u03", "u04", "newcomer"]))
        switch(index, version)

    monkeypatch.setattr(QdrantIndex, "switch", look_and_switch)
    publish_version(unpublished.resources, "v1", now=unpublished.tick())

    as_of = {user: payload.as_of_snapshot for user, (payload, _) in users.items()}
    assert as_of["newcomer"] == as_of["u03"] > as_of["u04"]
    assert refresh(unpublished.resources, now=unpublished.tick()) is None
    assert_whole(unpublished, "v1")


def test_events_that_came_between_the_catch_up_and_the_switch_are_caught_up(unpublished, monkeypatch):
    switch = QdrantIndex.switch

    def switch_late(index, version):
        unpublished.add_events(unpublished.event("hasty", "i05"))
        switch(index, version)

    monkeypatch.setattr(QdrantIndex, "switch", switch_late)
    publish_version(unpublished.resources, "v1", now=unpublished.tick())

    with unpublished.resources.index() as index:
        assert "hasty" in index.users("v1", ["hasty"])


def test_rollback_goes_back_with_users_up_to_date(two_versions, assert_whole):
    two_versions.add_events(two_versions.event("u03", "i05"), two_versions.event("after", "i05"))
    refresh(two_versions.resources, now=two_versions.tick())

    receipt = rollback(two_versions.resources, now=two_versions.tick())

    assert_whole(two_versions, "v1")
    with two_versions.resources.index() as index:
        assert "after" in index.users("v1", ["after"])
    assert _publications(two_versions)[-1] == ("rollback", "v1", "v2")
    assert "v2 served before" in receipt.note and "as it was published" in receipt.note


def test_rollback_goes_back_only_as_far_as_there_is_something(two_versions):
    rollback(two_versions.resources, now=two_versions.tick())

    with pytest.raises(NotFoundError, match=r"v1.*Published versions: v1, v2"):
        rollback(two_versions.resources, now=two_versions.tick())
    assert _serving(two_versions) == "v1"


def test_rollback_to_a_named_version_goes_either_way(two_versions):
    rollback(two_versions.resources, "v1", now=two_versions.tick())
    assert _serving(two_versions) == "v1"
    rollback(two_versions.resources, "v2", now=two_versions.tick())
    assert _serving(two_versions) == "v2"
    assert rollback(two_versions.resources, "v2", now=two_versions.tick()).reused
    with pytest.raises(NotFoundError, match=r"'v9'.*v1, v2"):
        rollback(two_versions.resources, "v9", now=two_versions.tick())


def test_a_version_that_went_back_is_not_where_the_next_rollback_goes(two_versions):
    rollback(two_versions.resources, now=two_versions.tick())
    two_versions.train("v3")
    publish_version(two_versions.resources, "v3", now=two_versions.tick())

    rollback(two_versions.resources, now=two_versions.tick())

    assert _serving(two_versions) == "v1"


def test_rollback_writes_collections_that_are_gone(two_versions, assert_whole):
    with two_versions.resources.index() as index:
        index.drop_version("v1")

    receipt = rollback(two_versions.resources, now=two_versions.tick())

    assert_whole(two_versions, "v1")
    assert "written anew" in receipt.note


def test_rollback_to_a_version_whose_rows_are_gone_says_so(two_versions, assert_whole):
    with two_versions.resources.index() as index:
        index.drop_version("v1")
    for table in ("item_factors", "user_profiles"):
        _write(two_versions, f"delete from {table} where version = 'v1'")  # noqa: S608

    with pytest.raises(NotFoundError, match="maintenance has removed"):
        rollback(two_versions.resources, now=two_versions.tick())
    assert_whole(two_versions, "v2")


def test_a_lost_index_is_made_again(two_versions, assert_whole):
    two_versions.add_events(two_versions.event("u03", "i05"))
    shutil.rmtree(two_versions.resources.home / "index")
    assert _serving(two_versions) is None

    receipt = rebuild_index(two_versions.resources, now=two_versions.tick())

    assert_whole(two_versions, "v2")
    assert _publications(two_versions)[-1] == ("rebuild", "v2", "v2")
    assert "made again" in receipt.note
    assert rebuild_index(two_versions.resources, now=two_versions.tick()).reused
    rollback(two_versions.resources, now=two_versions.tick())
    assert_whole(two_versions, "v1")


def test_a_damaged_serving_version_is_mended_in_place(two_versions, assert_whole):
    projection = _projection(two_versions, "v2")
    with two_versions.resources.index() as index:
        index.upsert_items("v2", -projection.items, projection.item_payloads)

    rebuild_index(two_versions.resources, now=two_versions.tick())

    assert_whole(two_versions, "v2")


def test_a_collection_folder_that_was_deleted_is_made_again(two_versions, assert_whole):
    shutil.rmtree(two_versions.resources.home / "index" / "qdrant" / "collection" / "users__v2")

    rebuild_index(two_versions.resources, now=two_versions.tick())

    assert_whole(two_versions, "v2")


def test_nothing_to_make_again_before_the_first_publication(unpublished):
    with pytest.raises(NotFoundError, match="nearline run daily_batch"):
        rebuild_index(unpublished.resources, now=unpublished.tick())


def test_a_switch_that_was_not_recorded_is_recorded(small_world):
    """The small world switched to v1 without recording it, as a kill between the two would."""
    receipt = reconcile(small_world.resources, now=small_world.tick())

    assert _publications(small_world) == [("reconcile", "v1", None)]
    assert _read(small_world, "select state from model_versions") == [{"state": "published"}]
    assert "not recorded" in receipt.note
    assert reconcile(small_world.resources, now=small_world.tick()) is None


def test_an_unknown_version_cannot_be_published(small_world):
    with pytest.raises(NotFoundError, match="v9"):
        publish_version(small_world.resources, "v9", now=small_world.tick())


def test_a_rejected_version_cannot_be_published(two_versions):
    two_versions.train("v3")
    _write(two_versions, "update model_versions set state = 'rejected' where version = 'v3'")

    with pytest.raises(TerminalError, match="rejected"):
        publish_version(two_versions.resources, "v3", now=two_versions.tick())
    assert _serving(two_versions) == "v2"


SPOILS = {
    "width": ("update item_factors set factors = factors[:3] where version = 'v3' and item_id = 'i05'", "width"),
    "nan": (
        "update user_profiles set factors = list_transform(factors, lambda x: 'nan'::float) where version = 'v3'",
        "finite",
    ),
    "infinite alpha": ("update user_profiles set alpha = 'inf'::double where version = 'v3'", "finite"),
    "norm": (
        "update user_profiles set text_embedding = list_transform(text_embedding, lambda x: x * 3) "
        "where version = 'v3' and user_id = 'u04'",
        "unit length",
    ),
    "coverage": ("delete from item_embeddings", "text embedding"),
    "shrunk": ("delete from item_factors where version = 'v3' and item_id > 'i20'", "shrink"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_the_gate_stops_a_bad_version_and_the_old_one_serves(two_versions, spoil):
    sql, says = SPOILS[spoil]
    two_versions.train("v3")
    _write(two_versions, sql)

    with pytest.raises(GateError, match=says):
        publish_version(two_versions.resources, "v3", now=two_versions.tick(), run_id="bad")

    assert _serving(two_versions) == "v2"
    assert len(_publications(two_versions)) == 2
    failed = _read(two_versions, "select distinct gate, version from gate_results where run_id = 'bad' and not passed")
    assert failed == [{"gate": "publish", "version": "v3"}]
    with two_versions.resources.index() as index:
        assert "v3" not in index.versions()


def test_a_smaller_catalog_passes_where_it_is_allowed(two_versions):
    two_versions.train("v3")
    _write(two_versions, "delete from item_factors where version = 'v3' and item_id > 'i20'")
    _write(two_versions, "update stg_items set available = false where item_id > 'i20'")

    publish_version(
        two_versions.resources, "v3", now=two_versions.tick(), limits=PublicationLimits(max_catalog_drop=0.6)
    )

    assert _serving(two_versions) == "v3"


def test_every_check_of_a_publication_is_recorded(two_versions):
    two_versions.train("v3")
    publish_version(two_versions.resources, "v3", now=two_versions.tick(), run_id="run")

    rows = _read(two_versions, "select expectation, severity, passed, observed from gate_results where run_id = 'run'")

    assert len(rows) >= 15
    assert all(row["passed"] for row in rows)
    assert any(row["observed"].startswith("100.0% of it over 20 users") for row in rows)


def _verified(world, change):
    """Which checks fail after ``change(index, projection)`` on the serving version."""
    projection = _projection(world, "v2")
    with world.resources.index() as index:
        change(index, projection)
        return [result.expectation for result in verify_projection(index, projection) if not result.passed]


def test_verification_sees_what_differs(two_versions):
    assert _verified(two_versions, lambda index, projection: None) == []

    def add_item(index, projection):
        extra = replace(projection.item_payloads[0], item_id="extra")
        index.upsert_items("v2", projection.items[:1], [extra])

    assert _verified(two_versions, add_item) == ["holds as many points as the warehouse has rows"]

    def turn_user(index, projection):
        index.upsert_users("v2", -projection.users[:1], projection.user_payloads[:1])

    assert "a sample of users reads back as it was written" in _verified(two_versions, turn_user)

    def turn_items(index, projection):
        index.upsert_items("v2", -projection.items, projection.item_payloads)

    assert "canary queries find the exact top 10" in _verified(two_versions, turn_items)


def test_verification_forgives_a_user_that_was_refreshed_meanwhile(two_versions):
    def refresh_user(index, projection):
        newer = [replace(payload, as_of_snapshot=payload.as_of_snapshot + 1) for payload in projection.user_payloads]
        index.upsert_users("v2", -projection.users, newer)

    assert _verified(two_versions, refresh_user) == []


def test_a_reader_during_a_publication_always_gets_a_whole_version(two_versions):
    two_versions.train("v3")
    seen: list[tuple[str, tuple[int, int], int]] = []
    stop = threading.Event()

    def read():
        with two_versions.resources.index() as index:
            while not stop.is_set():
                version = index.serving_version()
                hits = index.search(version, query[version], 5, IndexFilter())
                seen.append((version, index.count(version), len(hits)))
                time.sleep(0.01)

    query = {version: _projection(two_versions, version).users[0] for version in ("v2", "v3")}
    reader = threading.Thread(target=read)
    reader.start()
    publish_version(two_versions.resources, "v3", now=two_versions.tick())
    while not seen or seen[-1][0] != "v3":
        assert reader.is_alive()
        time.sleep(0.01)
    stop.set()
    reader.join()

    assert {entry for entry in seen} == {("v2", (41, 31), 5), ("v3", (41, 31), 5)}
