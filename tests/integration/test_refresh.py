"""The nearline loop on a real warehouse and a real index."""

import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

import tasks.erase
import tasks.refresh
from tasks.domain.errors import GateError, NotFoundError, WarehouseBusyError
from tasks.domain.records import UserPayload
from tasks.erase import erase_user
from tasks.progress import watch_stages
from tasks.projection import load_projection
from tasks.recommend import recommend_to_user
from tasks.refresh import read_watermark, refresh, refresh_users

CHANGES = ("i20", "i21", "i23", "i24", "i25", "i28")


def stored(world, user_id, version="v1"):
    """The user's profile in the warehouse and their point in the index."""
    with world.resources.warehouse(read_only=True) as warehouse:
        sql = "select * from user_profiles where version = $v and user_id = $u"
        rows = warehouse.read(sql, {"v": version, "u": user_id}).to_pylist()
    with world.resources.index() as index:
        point = index.users(version, [user_id]).get(user_id)
    return rows[0] if rows else None, point


def runs(world):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read("select * from nearline_runs order by started_at").to_pylist()


def watermark(world, version="v1"):
    with world.resources.warehouse(read_only=True) as warehouse:
        return read_watermark(warehouse, version)


def like_new_things(world, user_id="u02"):
    world.add_events(*(world.event(user_id, item_id) for item_id in CHANGES))


def slate_ids(world, user_id="u02"):
    return [item.item_id for item in recommend_to_user(world.resources, user_id, k=5).items]


def test_events_change_the_profile_and_the_slate(small_world):
    before, slate = stored(small_world, "u02"), slate_ids(small_world)
    like_new_things(small_world)
    run = refresh(small_world.resources, now=small_world.tick())
    (row, (payload, query)), (old_row, (_, old_query)) = stored(small_world, "u02"), before
    assert (run.n_events, run.n_users, run.version) == (6, 1, "v1")
    assert row["n_history"] == payload.n_history == old_row["n_history"] + 6
    assert row["as_of_snapshot"] == payload.as_of_snapshot == run.to_snapshot == watermark(small_world)
    assert np.abs(query - old_query).max() > 0.05
    moved = [item_id for item_id in slate_ids(small_world) if item_id not in slate]
    assert sum(item_id >= "i20" for item_id in moved) >= 2


def test_without_the_feed_nothing_changes(small_world, monkeypatch):
    """The demonstration that the change feed, and nothing else, brings the events in."""
    before, slate = stored(small_world, "u02"), slate_ids(small_world)
    like_new_things(small_world)
    monkeypatch.setattr(tasks.refresh, "read_feed", lambda warehouse, version, **_: None)
    assert refresh(small_world.resources, now=small_world.tick()) is None
    row, (_, query) = stored(small_world, "u02")
    assert row == before[0]
    assert (query == before[1][1]).all()
    assert slate_ids(small_world)[:3] == slate[:3]
    assert runs(small_world) == []


def test_nothing_new_is_nothing_done(small_world):
    like_new_things(small_world)
    assert refresh(small_world.resources, now=small_world.tick()) is not None
    with small_world.resources.warehouse() as warehouse:
        before = warehouse.latest_snapshot()
    assert refresh(small_world.resources, now=small_world.tick()) is None
    with small_world.resources.warehouse() as warehouse:
        assert warehouse.latest_snapshot() == before
    small_world.embed_texts("a commit that has nothing to do with events")
    assert refresh(small_world.resources, now=small_world.tick()) is None


def test_only_touched_users_are_refreshed(small_world):
    other = stored(small_world, "u03")
    like_new_things(small_world)
    refresh(small_world.resources, now=small_world.tick())
    row, (payload, query) = stored(small_world, "u03")
    assert row == other[0]
    assert payload == other[1][0]
    assert (query == other[1][1]).all()


def test_a_user_seen_for_the_first_time_gets_in(small_world):
    assert stored(small_world, "new/用户") == (None, None)
    like_new_things(small_world, "new/用户")
    refresh(small_world.resources, now=small_world.tick())
    row, (payload, _) = stored(small_world, "new/用户")
    assert row["n_history"] == payload.n_history == 6
    assert recommend_to_user(small_world.resources, "new/用户").source == "profile"


def test_what_a_user_has_met_is_stored_whatever_they_thought_of_it(small_world):
    with small_world.resources.warehouse(read_only=True) as warehouse:
        met = warehouse.read("select distinct item_id from raw_events where user_id = 'u00' and item_id is not null")
    small_world.add_events(
        small_world.event("u00", "i25"),
        small_world.event("u00", "i26", "dislike"),
        small_world.event("u00", "i27", "rating", value=3.0),
        small_world.event("u00", "i28", "impression"),
        small_world.event("u00", "unknown"),
    )
    refresh(small_world.resources, now=small_world.tick())
    row, (payload, _) = stored(small_world, "u00")
    assert row["seen_items"] == sorted({*met["item_id"].to_pylist(), "i25", "i26", "i27"})
    assert payload.seen == tuple(row["seen_items"])
    with small_world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.execute("update user_profiles set seen_items = null"))
        assert not any(user.seen for user in load_projection(warehouse, "v1").user_payloads)


def test_an_erased_user_does_not_come_back(small_world, monkeypatch):
    """A refresh of this machine is waited for; one of another machine, which our lock does not reach, finds nobody."""
    with tasks.refresh.refreshing(small_world.resources, "v1"), monkeypatch.context() as patched:
        patched.setattr(tasks.refresh, "LOCK_SECONDS", 0.2)
        with pytest.raises(WarehouseBusyError, match="another refresh"):
            erase_user(small_world.resources, "u02", now=small_world.tick())
    monkeypatch.setattr(tasks.erase, "refreshing", lambda resources, version: nullcontext())
    like_new_things(small_world)
    read, erased = tasks.refresh.read_feed, []

    def overtaken(warehouse, version, **options):
        feed = read(warehouse, version, **options)
        if not erased:
            erased.append(erase_user(small_world.resources, "u02", now=small_world.tick()))
        return feed

    with monkeypatch.context() as patched:
        patched.setattr(tasks.refresh, "read_feed", overtaken)
        with pytest.raises(NotFoundError):
            refresh(small_world.resources, now=small_world.tick())
    small_world.add_events(small_world.event("u04", "i25"))
    assert refresh(small_world.resources, now=small_world.tick()).n_users == 1
    assert stored(small_world, "u02") == (None, None)


def test_an_event_that_moves_to_another_user_refreshes_both(small_world):
    small_world.add_events(small_world.event("u02", "i25", event_id="moves"))
    refresh(small_world.resources, now=small_world.tick())
    had = [stored(small_world, user_id)[0]["n_history"] for user_id in ("u02", "u04")]
    small_world.add_events(small_world.event("u04", "i25", event_id="moves"))
    run = refresh(small_world.resources, now=small_world.tick())
    has = [stored(small_world, user_id)[0]["n_history"] for user_id in ("u02", "u04")]
    assert run.n_users == 2
    assert has == [had[0] - 1, had[1] + 1]


def test_a_retraction_takes_the_event_back(small_world):
    before = stored(small_world, "u02")[0]
    small_world.add_events(small_world.event("u02", "i25", event_id="regret"))
    refresh(small_world.resources, now=small_world.tick())
    small_world.add_events(small_world.event("u02", "i25", "retraction", event_id="regret"))
    refresh(small_world.resources, now=small_world.tick())
    after = stored(small_world, "u02")[0]
    assert after["n_history"] == before["n_history"]
    assert after["factors"] == pytest.approx(before["factors"], abs=1e-6)


def test_the_last_event_taken_back_leaves_what_is_popular(small_world):
    small_world.add_events(small_world.event("brief", "i25", event_id="only"))
    refresh(small_world.resources, now=small_world.tick())
    small_world.add_events(small_world.event("brief", "i25", "retraction", event_id="only"))
    refresh(small_world.resources, now=small_world.tick())
    row, _ = stored(small_world, "brief")
    assert row["n_history"] == 0
    assert not any(row["factors"])
    assert recommend_to_user(small_world.resources, "brief").source == "popular"


def test_lag_is_from_arrival_to_serving(small_world):
    like_new_things(small_world)
    arrived_at = small_world.clock
    run = refresh(small_world.resources, now=arrived_at + timedelta(seconds=30))
    seconds = (run.finished_at - run.started_at).total_seconds()
    assert run.lag_p50_seconds == run.lag_p95_seconds == pytest.approx(30 + seconds, abs=0.001)
    assert 0 < seconds < 30
    (row,) = runs(small_world)
    assert row["lag_p50_seconds"] == run.lag_p50_seconds
    assert (row["from_snapshot"], row["to_snapshot"]) == (run.from_snapshot, run.to_snapshot)
    assert row["lag_p99_seconds"] == run.lag_p99_seconds == pytest.approx(run.lag_p50_seconds, abs=0.001)
    assert {"feed", "items", "rows", "models", "profiles", "gate", "upsert", "commit"} <= set(run.stage_seconds)


def test_percentiles_of_the_lag_are_over_events(small_world):
    for _ in range(5):
        small_world.add_events(small_world.event("u02", "i25"))
    run = refresh(small_world.resources, now=small_world.clock)
    seconds = (run.finished_at - run.started_at).total_seconds()
    lags = [run.lag_p50_seconds, run.lag_p95_seconds, run.lag_p99_seconds]
    assert lags == pytest.approx([2 + seconds, 3.8 + seconds, 3.96 + seconds], abs=0.001)


def test_a_text_without_an_embedding_is_counted_and_caught_up_with(small_world):
    small_world.add_events(small_world.event("u02", None, "search", text="paris in the rain"))
    run = refresh(small_world.resources, now=small_world.tick())
    without = stored(small_world, "u02")[0]
    assert run.n_missing_texts == 1
    small_world.embed_texts("paris in the rain")
    run = refresh(small_world.resources, now=small_world.tick())
    assert (run.n_users, run.n_events, run.n_missing_texts, run.lag_p50_seconds) == (1, 0, 0, None)
    change = np.subtract(stored(small_world, "u02")[0]["text_embedding"], without["text_embedding"])
    assert change[6] > 0.05  # the direction of "paris"


def test_a_backlog_is_done_in_chunks_and_tells_how_far_it_is(small_world):
    users = [f"u{n:02}" for n in range(7)]
    small_world.add_events(*(small_world.event(user_id, "i25") for user_id in users))
    told = []
    with watch_stages(lambda event: told.append((event.stage, event.done, event.total))):
        run = refresh(small_world.resources, now=small_world.tick(), chunk_users=3)
    assert told == [("refresh", 3, 7), ("refresh", 6, 7), ("refresh", 7, 7)]
    assert run.n_users == 7
    assert len(runs(small_world)) == 1
    assert all(stored(small_world, user_id)[1][0].as_of_snapshot == run.to_snapshot for user_id in users)
    assert all(stored(small_world, user_id)[0]["as_of_snapshot"] == run.to_snapshot for user_id in users)


def killed_after_commits(world, monkeypatch, n_commits, **options):
    """A refresh whose process ends before one commit more."""
    writer, written = tasks.refresh._writer, []

    def killed(*arguments):
        if len(written) == n_commits:
            raise WarehouseBusyError("the process ends here")
        written.append(None)
        return writer(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(tasks.refresh, "_writer", killed)
        with pytest.raises(WarehouseBusyError):
            refresh(world.resources, now=world.tick(), **options)


def test_what_a_killed_catch_up_has_committed_is_not_done_again(small_world, monkeypatch):
    users = [f"u{n:02}" for n in range(7)]
    small_world.add_events(*(small_world.event(user_id, "i25") for user_id in users))
    before = watermark(small_world)
    killed_after_commits(small_world, monkeypatch, 1, chunk_users=3)
    assert watermark(small_world) == before
    small_world.add_events(small_world.event("u01", "i28"))
    run = refresh(small_world.resources, now=small_world.tick(), chunk_users=3)
    assert (run.n_users, run.n_events, run.from_snapshot) == (5, 8, before)  # u00 and u02 were done, u01 has more
    as_of = {user_id: stored(small_world, user_id)[0]["as_of_snapshot"] for user_id in users}
    assert as_of["u00"] == as_of["u02"] < as_of["u01"] == as_of["u06"] == watermark(small_world)
    assert refresh(small_world.resources, now=small_world.tick()) is None


def test_a_kill_loses_nobody_whom_an_event_has_left(small_world, monkeypatch):
    """Whoever an event moved away from is refreshed with whom it moved to, not later."""
    small_world.add_events(*(small_world.event("u20", f"i{n}", event_id=f"e{n}") for n in (25, 26)))
    refresh(small_world.resources, now=small_world.tick())
    had = stored(small_world, "u20")[0]["n_history"]
    small_world.add_events(small_world.event("u02", "i25", event_id="e25"))
    small_world.add_events(*(small_world.event(f"u{n:02}", "i28") for n in (3, 4, 5)))
    killed_after_commits(small_world, monkeypatch, 1, chunk_users=1)
    run = refresh(small_world.resources, now=small_world.tick(), chunk_users=1)
    assert run.n_users == 3
    assert stored(small_world, "u20")[0]["n_history"] == had - 1


def test_a_kill_between_upsert_and_commit_repeats_harmlessly(small_world, monkeypatch):
    like_new_things(small_world)
    before = watermark(small_world)

    def killed(*arguments):
        raise WarehouseBusyError("the process ends here")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.refresh, "_writer", killed)
        with pytest.raises(WarehouseBusyError):
            refresh(small_world.resources, now=small_world.tick())
    assert watermark(small_world) == before
    assert stored(small_world, "u02")[0]["as_of_snapshot"] == before
    run = refresh(small_world.resources, now=small_world.tick())
    assert run.n_events == 6
    row, (payload, _) = stored(small_world, "u02")
    assert row["as_of_snapshot"] == payload.as_of_snapshot == watermark(small_world)


def test_an_expired_watermark_loses_nobody(small_world):
    """Rows carry the snapshot they came with, so that the feed can be read although the snapshots are gone."""
    like_new_things(small_world)
    small_world.add_events(small_world.event("u05", "i25"))
    after, much_later = watermark(small_world), small_world.clock + timedelta(days=36500)
    with small_world.resources.warehouse() as warehouse:
        warehouse.maintain(keep_from=None, keep=(), older_than=much_later, unused_since=small_world.clock)
        with pytest.raises(NotFoundError), warehouse.at(after):
            pass
    run = refresh(small_world.resources, now=small_world.tick())
    assert (run.n_users, run.n_events) == (2, 7)
    assert "expired" in run.note
    assert stored(small_world, "u05")[0]["as_of_snapshot"] == run.to_snapshot == watermark(small_world)
    assert runs(small_world)[0]["note"] == run.note
    assert refresh(small_world.resources, now=small_world.tick()) is None


def test_a_newer_profile_is_never_replaced_and_the_watermark_never_moves_back(small_world, monkeypatch):
    """Another machine, which our lock does not reach, refreshes between our feed and our writes."""
    monkeypatch.setattr(tasks.refresh, "refreshing", lambda resources, version: nullcontext())
    like_new_things(small_world)
    read_feed, newer = tasks.refresh.read_feed, []

    def overtaken(warehouse, version, **options):
        feed = read_feed(warehouse, version, **options)
        if not newer:
            newer.append(None)
            small_world.add_events(small_world.event("u02", "i24"))
            newer.append(refresh(small_world.resources, now=small_world.tick()))
        return feed

    monkeypatch.setattr(tasks.refresh, "read_feed", overtaken)
    run = refresh(small_world.resources, now=small_world.tick())
    assert run.to_snapshot < newer[1].to_snapshot == watermark(small_world)
    row, (payload, _) = stored(small_world, "u02")
    assert row["as_of_snapshot"] == payload.as_of_snapshot == newer[1].to_snapshot
    assert row["n_history"] == payload.n_history


def test_two_refreshes_of_a_version_never_run_at_once(small_world, monkeypatch):
    like_new_things(small_world)
    compute, running, most = tasks.refresh.compute_profiles, [], []

    def slow(*arguments, **options):
        running.append(None)
        most.append(len(running))
        time.sleep(0.2)
        running.pop()
        return compute(*arguments, **options)

    monkeypatch.setattr(tasks.refresh, "compute_profiles", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(refresh(small_world.resources, now=small_world.clock)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert sorted(run.n_users for run in found if run) == [1] and None in found


def test_a_refresh_that_does_not_end_is_said(small_world, monkeypatch):
    monkeypatch.setattr(tasks.refresh, "LOCK_SECONDS", 0.2)
    with (
        tasks.refresh.refreshing(small_world.resources, "v1"),
        pytest.raises(WarehouseBusyError, match=r"another refresh of it has run for 0\.2 s"),
    ):
        refresh(small_world.resources, now=small_world.tick())


def test_versions_have_watermarks_of_their_own(small_world):
    small_world.train("v2")
    like_new_things(small_world)
    refresh(small_world.resources, now=small_world.tick(), version="v1")
    trained = watermark(small_world, "v2")
    assert trained < watermark(small_world, "v1")
    small_world.publish("v2")
    run = refresh(small_world.resources, now=small_world.tick())
    assert (run.version, run.from_snapshot, run.n_events) == ("v2", trained, 6)


def test_a_profile_that_is_not_sound_stops_at_the_gate(small_world, monkeypatch):
    before = stored(small_world, "u02")
    like_new_things(small_world)
    compute = tasks.refresh.compute_profiles

    def broken(*arguments, **options):
        profiles = compute(*arguments, **options)
        profiles.factors[0, 0] = np.nan
        return profiles

    with monkeypatch.context() as patched:
        patched.setattr(tasks.refresh, "compute_profiles", broken)
        with pytest.raises(GateError, match="NaN"):
            refresh(small_world.resources, now=small_world.tick())
    after = stored(small_world, "u02")
    assert after[0] == before[0]
    assert (after[1][1] == before[1][1]).all()
    with small_world.resources.warehouse(read_only=True) as warehouse:
        failed = warehouse.read("select * from gate_results where gate = 'nearline' and not passed").to_pylist()
    assert [(row["expectation"], row["n_failed"], row["version"]) for row in failed] == [("finite_values", 1, "v1")]
    assert refresh(small_world.resources, now=small_world.tick()).n_users == 1


def test_named_users_are_solved_again_at_the_watermark(small_world):
    zero = np.zeros((1, 15), np.float32)
    with small_world.resources.index() as index:
        index.upsert_users("v1", zero, [UserPayload("u02", 0, 0.0, 0.0, watermark(small_world))])
    before = watermark(small_world)
    run = refresh_users(small_world.resources, ["u02"], now=small_world.tick())
    row, (payload, query) = stored(small_world, "u02")
    assert query.any()
    assert row["as_of_snapshot"] == payload.as_of_snapshot == run.to_snapshot == watermark(small_world) == before


def test_nothing_published_and_no_watermark_are_said(empty_world, small_world):
    with pytest.raises(NotFoundError, match="nearline run daily_batch"):
        refresh(empty_world.resources, now=empty_world.tick())
    with small_world.resources.warehouse() as warehouse:
        warehouse.commit(
            lambda transaction: transaction.replace("watermarks", pa.table({"version": pa.array([], pa.string())}))
        )
    with pytest.raises(NotFoundError, match="no watermark"):
        refresh(small_world.resources, now=small_world.tick())


IDLE = """
import sys, time
from datetime import datetime, timezone
from infra.resources import build_resources
from tasks.refresh import refresh
seconds = []
for _ in range(3):
    began = time.perf_counter()
    assert refresh(build_resources(), now=datetime.now(timezone.utc)) is None
    seconds.append(time.perf_counter() - began)
print([name for name in ("torch", "great_expectations", "numba", "transformers", "prefect") if name in sys.modules])
print(min(seconds))
"""


def test_nothing_new_imports_nothing_heavy(small_world, monkeypatch):
    monkeypatch.setenv("NEARLINE_HOME", str(small_world.resources.home))
    ran = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True)
    heavy, seconds = ran.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 1.0
