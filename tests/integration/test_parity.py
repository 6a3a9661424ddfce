"""Nearline and batch are the same function of the same events, however these arrive."""

import numpy as np
import pytest

from tasks.domain.profiles import compute_profiles
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


@pytest.mark.parametrize(("seed", "version"), [(2, "v1"), (3, "v1"), (4, "attributed")])
def test_nearline_equals_batch_after_a_stream_in_random_chunks(small_world, seed, version):
    rng = np.random.default_rng(seed)
    if version != "v1":
        small_world.add_users(**random_attributes(rng, [f"u{user:02}" for user in range(25)]))
        small_world.train(version)
        small_world.publish(version)
    stream = random_stream(small_world, rng, 80)
    cuts = [*sorted(rng.choice(np.arange(1, 76), 3, replace=False)), 76]
    for chunk in np.split(np.array(stream, object), cuts):
        small_world.add_events(*chunk)
        if version != "v1":
            told = [*rng.choice(USERS, 3, replace=False), f"silent{len(chunk)}"]
            small_world.add_users(**random_attributes(rng, told))
        if rng.random() < 0.8:
            refresh(small_world.resources, now=small_world.tick(), chunk_users=int(rng.integers(3, 12)))
    refresh(small_world.resources, now=small_world.tick())
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, version), load_item_space(warehouse, version)
        nearline = load_profiles(warehouse, version)
        histories, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot(), nearline.user_ids)
        everybody, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot())
    batch = compute_profiles(histories, items, model.recipe)
    assert set(everybody.user_ids) <= set(nearline.user_ids)
    silent = [user_id.startswith("silent") for user_id in nearline.user_ids]
    assert nearline.factors[silent].any() == (version != "v1")
    for name in ("text", "factors", "alpha", "beta", "drift"):
        assert np.abs(getattr(nearline, name) - getattr(batch, name)).max() < 1e-5, name
    assert (nearline.n_history == batch.n_history).all()
    with small_world.resources.index() as index:
        points = index.users(version, nearline.user_ids)
    assert set(points) == set(nearline.user_ids)
    assert [points[u][0].n_history for u in nearline.user_ids] == batch.n_history.tolist()
