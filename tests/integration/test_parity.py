"""Nearline and batch are the same function of the same events, however these arrive."""

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.demo_data import prepare_movielens
from infra.settings import load_settings
from tasks.domain.profiles import compute_profiles
from tasks.erase import erase_user
from tasks.model_state import load_histories, load_item_space, load_profiles, load_version
from tasks.refresh import refresh

USERS = [*(f"u{n:02}" for n in range(8)), "late", "new"]
TYPES = ("like", "view", "purchase", "dislike", "rating", "impression")


def random_stream(world, rng, n_events):
    """Events of few users in random order of time, with duplicates, corrections, moves and retractions; the last ones
    are moves and retractions, so that no later event hides a user who was not refreshed."""
    rows = []
    for number in range(n_events):
        kinds = ("new", "new", "new", "duplicate", "correction", "move", "retraction")
        kind = rng.choice(kinds if number < n_events - 4 else ("move", "retraction"))
        at = world.clock + np.timedelta64(int(rng.integers(-200, 200)), "h").item()
        user_id, item_id = str(rng.choice(USERS)), f"i{rng.integers(40):02}"
        if kind == "new" or not rows:
            event_type = str(rng.choice(TYPES))
            value = float(rng.integers(1, 6)) if event_type == "rating" else None
            text = f"{rng.choice(('space', 'love', 'unknown'))} stories" if rng.random() < 0.2 else None
            if text:
                rows.append(world.event(user_id, None, "search", at=at, text=text))
            else:
                rows.append(world.event(user_id, item_id, event_type, at=at, value=value))
            continue
        old = rows[rng.integers(len(rows))]
        new = world.event(old["user_id"], old["item_id"], old["event_type"], at=old["occurred_at"],
                          event_id=old["event_id"], value=old["value"], text=old["text"])  # fmt: skip
        if kind == "correction" and old["item_id"]:
            new["item_id"] = item_id
        elif kind == "move":
            new["user_id"] = user_id
        elif kind == "retraction":
            new["event_type"] = "retraction"
        rows.append(new)
    return rows


def random_attributes(rng, user_ids):
    """What users tell of themselves."""
    jobs = ("pilot", "cook", "diver")
    return {user_id: {"age": int(rng.integers(15, 80)), "job": str(rng.choice(jobs))} for user_id in user_ids}


def delete_events(world, rng, rows):
    """Delete received rows of a few events, as nobody should: the older rows of these count again."""
    event_ids = [str(row["event_id"]) for row in rng.choice(np.array(rows, object), 2)]
    delete = "delete from raw_events where event_id in (select unnest($ids)) and source_row % 2 = 0"
    with world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.execute(delete, {"ids": event_ids}))


def assert_parity(resources, version, user_ids=None):
    """Stored profiles, and points in the index, are those of a batch over everything; returns these profiles."""
    with resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, version), load_item_space(warehouse, version)
        nearline = load_profiles(warehouse, version, user_ids)
        histories, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot(), nearline.user_ids)
    batch = compute_profiles(histories, items, model.recipe)
    names = ("text", "factors", "alpha", "beta", "drift")
    largest = max(float(np.abs(getattr(nearline, name) - getattr(batch, name)).max()) for name in names)
    assert largest < 1e-5
    assert (nearline.n_history == batch.n_history).all()
    with resources.index() as index:
        points = index.users(version, nearline.user_ids)
    assert [points[u][0].n_history for u in nearline.user_ids] == batch.n_history.tolist()
    assert [points[u][0].seen for u in nearline.user_ids] == list(batch.seen)
    return nearline


@pytest.mark.parametrize(("seed", "version"), [(2, "v1"), (3, "v1"), (4, "attributed")])
def test_nearline_equals_batch_after_a_stream_in_random_chunks(small_world, seed, version):
    rng = np.random.default_rng(seed)
    if version != "v1":
        small_world.add_users(**random_attributes(rng, [f"u{user:02}" for user in range(25)]))
        small_world.train(version)
        small_world.publish(version)
    stream = random_stream(small_world, rng, 80)
    cuts = [*sorted(rng.choice(np.arange(1, 76), 3, replace=False)), 76]
    for number, chunk in enumerate(np.split(np.array(stream, object), cuts)):
        small_world.add_events(*chunk)
        delete_events(small_world, rng, stream[: cuts[0]])
        if version != "v1":
            told = [*rng.choice(USERS, 3, replace=False), f"silent{len(chunk)}"]
            small_world.add_users(**random_attributes(rng, told))
        if number == seed - 1:
            erase_user(small_world.resources, "u03", now=small_world.tick())
        if rng.random() < 0.8:
            refresh(small_world.resources, now=small_world.tick(), chunk_users=int(rng.integers(3, 12)))
    refresh(small_world.resources, now=small_world.tick())
    nearline = assert_parity(small_world.resources, version)
    silent = [user_id.startswith("silent") for user_id in nearline.user_ids]
    assert nearline.factors[silent].any() == (version != "v1")
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, version), load_item_space(warehouse, version)
        everybody, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot())
    assert set(everybody.user_ids) <= set(nearline.user_ids)


@pytest.fixture
def movielens_day(empty_world):
    """MovieLens 100K up to its busiest day, with a version trained on that and published, and the day's events."""
    data = prepare_movielens(load_settings().cache)
    films = pq.read_table(data.items, columns=["item_id", "title"]).to_pylist()
    events = sorted(pq.read_table(data.events).to_pylist(), key=lambda e: (e["occurred_at"], e["event_id"]))
    day = Counter(event["occurred_at"].date() for event in events).most_common(1)[0][0]
    rows = [
        empty_world.event(e["user_id"], e["item_id"], e["event_type"], at=e["occurred_at"], value=e["value"])
        for e in events
        if e["occurred_at"].date() <= day
    ]
    today = [row for row in rows if row["occurred_at"].date() == day]
    empty_world.add_items(*((film["item_id"], film["title"], True) for film in films))
    empty_world.add_events(*rows[: len(rows) - len(today)])
    empty_world.train("v1")
    empty_world.publish("v1")
    return empty_world, today


@pytest.mark.model
def test_a_replayed_day_of_movielens_equals_the_batch(movielens_day):
    world, today = movielens_day
    assert len(today) == 3550
    touched = sorted({row["user_id"] for row in today})
    with world.resources.warehouse(read_only=True) as warehouse:
        before = load_profiles(warehouse, "v1", touched)
    runs = []
    for start in range(0, len(today), 500):
        for first in range(start, min(start + 500, len(today)), 250):
            world.add_events(*today[first : min(first + 250, start + 500)])
        runs.append(refresh(world.resources, now=world.tick()))
    assert sum(run.n_events for run in runs) == len(today)
    after = assert_parity(world.resources, "v1", touched)
    assert after.user_ids == tuple(touched)
    assert len(before.user_ids) < len(touched)  # some came on that day
    assert after.n_history.sum() - before.n_history.sum() == sum(row["value"] >= 3.5 for row in today)
