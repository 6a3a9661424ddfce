"""The online service on a real warehouse and a real index: own writes, publications, refreshes, restarts."""

import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest

from infra.resources import LocalResources
from tasks.domain.errors import IndexUnavailableError, NotFoundError
from tasks.domain.fusion import fuse_queries
from tasks.domain.online import SlateRequest
from tasks.domain.profiles import compute_profiles
from tasks.model_state import load_histories, load_item_space, load_version
from tasks.online.service import OnlineOptions, OnlineService
from tasks.publish import publish_version, rollback
from tasks.refresh import refresh

OTHER_TASTE = ("i20", "i21", "i23", "i24", "i25", "i28")


def utc_now():
    return datetime.now(UTC)


@contextmanager
def serving(world, **options):
    """The service over a world, which looks around every 100 ms."""
    chosen = {"follow_seconds": 0.1, "commit_seconds": 0.0, "wait_seconds": 5.0, **options}
    with OnlineService(world.resources, OnlineOptions(**chosen), utc_now) as service:
        yield service


def event(user_id, item_id=None, event_type="like", **more):
    row = {"user_id": user_id, "item_id": item_id, "event_type": event_type, "occurred_at": utc_now().isoformat()}
    return {**{name: value for name, value in row.items() if value is not None}, **more}


def send(service, *rows):
    receipt = service.accept("events", rows, source="test")
    assert receipt.rejected == ()
    return receipt


def slate(service, user_id, k=5):
    return service.recommend(SlateRequest(user_id=user_id, k=k))


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def settle(service):
    """Wait until everything that is in the warehouse was seen and folded."""
    latest = latest_snapshot(service)
    eventually(lambda: service._follower.snapshot >= latest)
    assert service._follower.live.pending.wait_until_folded(30)


def latest_snapshot(service):
    with service._resources.warehouse(read_only=True) as warehouse:
        return warehouse.latest_snapshot()


def view(service, user_id):
    return service._view(service._follower.live, user_id)


def recomputed(world, user_ids, version="v1"):
    """Query vectors from scratch, as a refresh to the newest snapshot would write them."""
    with world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, version), load_item_space(warehouse, version)
        histories, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot(), user_ids)
    profiles = compute_profiles(histories, items, model.recipe)
    return fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, model.recipe.fusion)


def test_the_next_request_shows_what_was_just_sent(small_world):
    with serving(small_world) as service:
        before = slate(service, "u02")
        assert (before.n_pending_events, before.stale_seconds) == (0, 0.0)
        send(service, *(event("u02", item_id) for item_id in OTHER_TASTE))
        after = slate(service, "u02")
        assert (after.n_pending_events, after.stale_seconds) == (6, 0.0)
        assert after.n_history == before.n_history + 6
        assert not {item.item_id for item in after.items} & set(OTHER_TASTE)
        assert {item.item_id for item in after.items} != {item.item_id for item in before.items}
        np.testing.assert_allclose(view(service, "u02").query, recomputed(small_world, ["u02"])[0], atol=1e-5)


@pytest.mark.parametrize("step", ["histories", "pending"])
def test_a_commit_that_was_not_taken_over_is_found_by_the_follower(small_world, monkeypatch, step):
    with serving(small_world) as service:
        part = service._folder.histories if step == "histories" else service._follower.live.pending
        name = "add" if step == "histories" else "mark"
        take, failed = getattr(part, name), []

        def fail_once(*arguments):
            if not failed:
                failed.append(True)
                raise RuntimeError("not now")
            return take(*arguments)

        monkeypatch.setattr(part, name, fail_once)
        with service._follower._looking:  # until the rows were offered and not taken, the follower sees nothing
            send(service, event("new", "i01"))
        assert failed
        settle(service)
        assert slate(service, "new").n_history == 1


def test_somebody_new_is_known_with_their_first_event(small_world):
    with serving(small_world) as service:
        assert slate(service, "new").fallbacks == ("unknown_user",)
        with pytest.raises(NotFoundError, match="nothing is known"):
            service.profile("new")
        send(service, event("new", "i01"))
        found = slate(service, "new")
        assert (found.source, found.n_history, found.n_pending_events) == ("profile", 1, 1)
        believed = service.profile("new")
        assert (believed.n_evidence, believed.n_pending_events) == (1, 1)


def test_a_refresh_elsewhere_covers_pending_users(small_world):
    with serving(small_world) as service:
        send(service, *(event("u02", item_id) for item_id in OTHER_TASTE), event("new", "i01"))
        folded = {user_id: view(service, user_id).query for user_id in ("u02", "new")}
        assert service.health().n_waiting_events == 7
        run = refresh(small_world.resources, now=small_world.tick())
        eventually(lambda: service.health().watermark == run.to_snapshot)
        eventually(lambda: service.stats()["pending_users"] == 0)
        assert service.health().n_waiting_events == 0
        for user_id, query in folded.items():
            stored = view(service, user_id)
            assert (stored.as_of_snapshot, stored.n_pending_events) == (run.to_snapshot, 0)
            np.testing.assert_allclose(stored.query, query, atol=1e-5)
        send(service, event("u02", "i26"))
        found = slate(service, "u02")
        assert (found.n_pending_events, found.as_of_snapshot) == (1, run.to_snapshot)


def test_events_of_others_and_what_waited_before_a_start_are_found(small_world):
    small_world.add_events(small_world.event("u02", "i25"), small_world.event("early", "i01"))
    with serving(small_world) as service:
        assert slate(service, "u02").n_pending_events == 1
        assert slate(service, "early").source == "profile"
        small_world.add_events(small_world.event("u02", "i26"), small_world.event("u04", "i25"))
        eventually(lambda: slate(service, "u04").n_pending_events == 1)
        assert slate(service, "u02").n_pending_events == 2
        assert service.health().n_waiting_events == 4
        settle(service)
        expected = recomputed(small_world, ["u02", "u04"])
        for user_id, query in zip(("u02", "u04"), expected, strict=True):
            np.testing.assert_allclose(view(service, user_id).query, query, atol=1e-5)


def test_own_commits_are_not_counted_twice(small_world):
    with serving(small_world) as service:
        again = event("u02", "i25", event_id="once")
        for _ in range(3):
            send(service, again, event("u02", "i26"))
        settle(service)
        time.sleep(0.2)
        assert slate(service, "u02").n_pending_events == 4  # one "once" and three others
        assert service.health().n_waiting_events == 4


def test_after_any_sequence_of_commits_every_vector_is_that_of_a_refresh(small_world):
    rng = np.random.default_rng(3)
    users = ["u02", "u05", "u10", "n1", "n2"]
    small_world.embed_texts("space and robots")
    with serving(small_world, history_megabytes=0.005) as service:
        sent = []
        for _ in range(16):
            user_id, item_id = str(rng.choice(users)), f"i{rng.integers(40):02}"
            match rng.integers(7):
                case 0 if sent:  # a correction, perhaps by somebody else
                    row = event(user_id, item_id, event_id=str(rng.choice(sent)))
                case 1 if sent:
                    row = event(user_id, item_id, "retraction", event_id=str(rng.choice(sent)))
                case 2:
                    row = event(user_id, None, "search", text="space and robots")
                case 3:
                    row = event(user_id, item_id, "rating", value=float(rng.integers(1, 6)))
                case 4:
                    row = event(user_id, item_id, "dislike")
                case _:
                    row = event(user_id, item_id)
            sent.append(row.setdefault("event_id", f"e{len(sent)}"))
            if rng.random() < 0.3:
                small_world.add_events(small_world.event(user_id, item_id, event_id=str(rng.choice(sent))))
            send(service, row)
            if rng.random() < 0.1:
                refresh(small_world.resources, now=small_world.tick())
        settle(service)
        expected = recomputed(small_world, users)
        for user_id, query in zip(users, expected, strict=True):
            found = view(service, user_id)
            actual = np.zeros_like(query) if found is None else found.query
            if found is not None:
                np.testing.assert_allclose(actual, query, atol=1e-5, err_msg=user_id)
        refresh(small_world.resources, now=small_world.tick())
        settle(service)
        eventually(lambda: service.stats()["pending_users"] == 0)
        for user_id, query in zip(users, expected, strict=True):
            np.testing.assert_allclose(view(service, user_id).query, query, atol=1e-5, err_msg=user_id)


def test_an_event_that_moves_changes_both_users(small_world):
    with serving(small_world) as service:
        send(service, event("u02", "i25", event_id="moves"))
        had = [slate(service, user_id).n_history for user_id in ("u02", "u04")]
        send(service, event("u04", "i25", event_id="moves"))
        settle(service)
        assert [slate(service, user_id).n_history for user_id in ("u02", "u04")] == [had[0] - 1, had[1] + 1]
        send(service, event("u03", "i25", "retraction", event_id="moves"))
        settle(service)
        assert [slate(service, user_id).n_history for user_id in ("u02", "u04")] == [had[0] - 1, had[1]]


def test_a_text_without_an_embedding_is_missed_until_it_has_one(small_world):
    with serving(small_world) as service:
        send(service, event("u02", None, "search", text="paris in the rain"))
        late = slate(service, "u02")
        assert late.n_pending_events == 1
        assert 0 < late.stale_seconds < 60
        small_world.embed_texts("paris in the rain")
        eventually(lambda: slate(service, "u02").stale_seconds == 0.0)
        np.testing.assert_allclose(view(service, "u02").query, recomputed(small_world, ["u02"])[0], atol=1e-5)


def test_a_process_with_a_loaded_encoder_embeds_texts_itself(small_world):
    with serving(small_world) as service:
        service.recommend(SlateRequest(text="love and kisses"))
        send(service, event("u02", None, "search", text="paris in the snow"))
        assert slate(service, "u02").stale_seconds == 0.0
        found = view(service, "u02").query
        small_world.embed_texts("paris in the snow")
        np.testing.assert_allclose(found, recomputed(small_world, ["u02"])[0], atol=1e-5)


def test_attributes_are_in_the_next_request_where_the_version_knows_them(told_world):
    with serving(told_world) as service:
        before = view(service, "silent").query
        told = {"user_id": "silent", "attributes": {"job": "pilot", "age": 40}}
        receipt = service.accept("users", [told], source="test")
        assert receipt.n_accepted == 1
        after = view(service, "silent")
        assert np.abs(after.query - before).max() > 1e-3
        np.testing.assert_allclose(after.query, recomputed(told_world, ["silent"], "v2")[0], atol=1e-5)


def test_publication_and_rollback_are_followed_and_no_request_sees_two_versions(two_versions):
    world, seen, errors, stop = two_versions, set(), [], threading.Event()

    def ask(service, number):
        while not stop.wait(0.002):  # leaves the processor to what they are asked about
            try:
                found = service.recommend(SlateRequest(user_id=f"u{number:02}", explain=number == 1, k=5))
                knows_late = len(service.recommend(SlateRequest(user_id="u02", k=100)).items)
                seen.add(found.version)
                assert len(found.items) == 5
                assert knows_late > 20
            except Exception as error:
                errors.append(error)

    with serving(world) as service:
        assert service.health().version == "v2"
        send(service, event("u02", "i25"), event("late", "i02"))
        threads = [threading.Thread(target=ask, args=(service, n)) for n in (1, 2, 3)]
        for thread in threads:
            thread.start()
        rollback(world.resources, now=world.tick())
        eventually(lambda: service.health().version == "v1")
        send(service, event("u02", "i26"))
        assert slate(service, "u02").n_pending_events >= 1
        np.testing.assert_allclose(view(service, "u02").query, recomputed(world, ["u02"], "v1")[0], atol=1e-5)
        publish_version(world.resources, "v2", now=world.tick())
        eventually(lambda: service.health().version == "v2")
        np.testing.assert_allclose(view(service, "u02").query, recomputed(world, ["u02"], "v2")[0], atol=1e-5)
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert seen == {"v1", "v2"}


def test_before_the_first_publication_rows_are_taken_and_nothing_else_is_answered(empty_world):
    with serving(empty_world) as service:
        health = service.health()
        assert (health.state, health.version, [p.name for p in health.problems]) == (
            "unavailable", None, ["nothing_published"],
        )  # fmt: skip
        with pytest.raises(NotFoundError, match="nothing is published"):
            slate(service, "u02")
        assert send(service, event("u02", "i01")).n_accepted == 1
        assert "pending_users" not in service.stats()


def test_an_index_that_is_away_is_named_and_what_serves_stays(small_world, monkeypatch):
    with serving(small_world) as service:
        assert service.health().state == "ready"

        def away(self):
            raise IndexUnavailableError("gone")

        monkeypatch.setattr(LocalResources, "index", away)
        eventually(lambda: service.health().state == "degraded")
        assert [problem.name for problem in service.health().problems] == ["index_away"]
        send(service, event("u02", "i25"))
        assert slate(service, "u02").n_pending_events == 1
        monkeypatch.undo()
        eventually(lambda: service.health().state == "ready")


def test_without_an_index_the_last_published_version_serves(two_versions, monkeypatch):
    def away(self):
        raise IndexUnavailableError("gone")

    monkeypatch.setattr(LocalResources, "index", away)
    with serving(two_versions) as service:
        assert (service.health().version, service.health().state) == ("v2", "degraded")
        assert slate(service, "u02").source == "profile"


def test_events_that_wait_too_long_are_a_stalled_refresh(small_world):
    with serving(small_world, stalled_after_seconds=0.1) as service:
        send(service, event("u02", "i25"))
        time.sleep(0.15)
        health = service.health()
        assert (health.state, [problem.name for problem in health.problems]) == ("degraded", ["refresh_stalled"])
        assert health.oldest_waiting_seconds > 0.1
        refresh(small_world.resources, now=small_world.tick())
        eventually(lambda: service.health().state == "ready")


def test_a_warehouse_that_fails_is_named_and_answers_go_on(small_world, monkeypatch):
    with serving(small_world) as service:

        def failing():
            raise RuntimeError("broken")

        monkeypatch.setattr(service._follower._warehouse, "latest_snapshot", failing, raising=False)
        eventually(lambda: service.health().state == "degraded")
        assert [problem.name for problem in service.health().problems] == ["follower_failed"]
        assert slate(service, "u03").source == "profile"


def test_an_erased_user_is_unknown_at_once_and_stays_so(small_world):
    with serving(small_world) as service:
        send(service, event("u02", "i25"), event("u04", "i25"))
        assert slate(service, "u02").source == "profile"
        receipt = service.erase("u02")
        assert sum(place.n_removed for place in receipt.removed) > 0
        assert slate(service, "u02").fallbacks == ("unknown_user",)
        settle(service)
        assert slate(service, "u02").fallbacks == ("unknown_user",)
        np.testing.assert_allclose(view(service, "u04").query, recomputed(small_world, ["u04"])[0], atol=1e-5)
        send(service, event("u02", "i01"))
        assert slate(service, "u02").n_history == 1


def test_it_ends_quickly_and_can_start_again(small_world):
    with serving(small_world) as service:
        send(service, event("u02", "i25"))
        started = time.monotonic()
    assert time.monotonic() - started < 2
    with serving(small_world) as service:
        assert slate(service, "u02").n_pending_events == 1
