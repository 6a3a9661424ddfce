"""New and changed items, and texts of users, on their way into the version that serves."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest

import tasks.arrivals
from tasks.arrivals import bring_items
from tasks.domain.arrivals import NO_TEXT
from tasks.domain.errors import GateError, NotFoundError, WarehouseBusyError
from tasks.domain.features import ITEM_FEATURES
from tasks.model_state import load_item_space, load_profiles, load_version
from tasks.projection import load_projection, verify_projection
from tasks.recommend import recommend_for_text, recommend_to_user
from tasks.refresh import refresh, refresh_users
from tasks.train import learn_version, plan_version, refit_version
from tasks.transform import build_models

SPACE, LOVE = "space robot alien star", "love kiss paris heart"


def bring(world, **options):
    return bring_items(world.resources, now=world.tick(), **options)


def rows(world, sql, **parameters):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql, parameters).to_pylist()


def point(world, item_id, version="v1"):
    with world.resources.index() as index:
        return index.items(version, [item_id]).get(item_id)


def factors_of(world, item_id, version="v1"):
    found = rows(world, "select * from item_factors where version = $v and item_id = $i", v=version, i=item_id)
    return found[0] if found else None


def mark(world, version="v1"):
    return rows(world, "select * from watermarks where version = $v", v=version)[0]


def n_added(world):
    return rows(world, "select count(*) as n from item_factors where added_at is not null")[0]["n"]


def latest(world):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.latest_snapshot()


def ranks(world, user_id):
    return {item.item_id: item.rank for item in recommend_to_user(world.resources, user_id, k=60).items}


def assert_index_is_whole(world, version="v1"):
    """The index holds what the warehouse does, to the bit."""
    with world.resources.warehouse(read_only=True) as warehouse, world.resources.index() as index:
        projection = load_projection(warehouse, version)
        failed = [check for check in verify_projection(index, projection) if not check.passed]
    assert [check for check in failed if "users" not in check.expectation] == []


@pytest.fixture
def encodings(small_world, monkeypatch):
    """How many texts the language model was given, call by call."""
    given, encode = [], type(small_world.resources.encoder()).encode

    def counted(self, texts):
        given.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(type(small_world.resources.encoder()), "encode", counted)
    return given


def test_new_items_are_recommended_to_those_whose_taste_they_fit(small_world):
    small_world.add_items(("space", SPACE, True), ("love", LOVE, True))
    assert "space" not in ranks(small_world, "u00")
    receipt = bring(small_world)
    of_space, of_love = ranks(small_world, "u00"), ranks(small_world, "u01")
    assert of_space["space"] < of_space["love"]
    assert of_love["love"] < of_love["space"]
    assert recommend_for_text(small_world.resources, SPACE, k=1).items[0].item_id == "space"
    stored = factors_of(small_world, "space")
    assert (stored["exposure"], stored["n_interactions"], stored["prior"]) == (0, 0, 0)
    assert stored["added_at"] == small_world.clock
    assert (receipt.n_in, receipt.version) == (2, "v1")
    assert_index_is_whole(small_world)


def test_a_run_is_recorded(small_world):
    small_world.add_items(("new", SPACE, True))
    bring(small_world)
    (run,) = rows(small_world, "select * from nearline_runs")
    assert (run["n_new_items"], run["n_events"], run["n_users"], run["note"]) == (1, 0, 0, "")
    assert run["lag_p50_seconds"] == run["lag_p99_seconds"] >= 1
    assert {"feed", "embed", "index"} <= set(json.loads(run["stage_seconds"]))
    checks = rows(small_world, "select * from gate_results where run_id = $r", r=run["run_id"])
    assert {row["expectation"] for row in checks} == {"vector_widths", "finite_values", "unit_or_zero_length"}


def test_twice_is_nothing(small_world, encodings):
    small_world.add_items(("new", SPACE, True), ("same", SPACE, True))
    assert bring(small_world) is not None
    before = latest(small_world)
    assert bring(small_world) is None
    assert latest(small_world) == before
    assert encodings == [1]


def test_the_language_model_is_not_asked_for_without_a_text(small_world, monkeypatch):
    def refused(self):
        raise AssertionError("the language model was asked for")

    monkeypatch.setattr(type(small_world.resources), "encoder", refused)
    assert bring(small_world) is None
    small_world.add_events(small_world.event("u02", "i25"))
    assert bring(small_world) is None
    small_world.add_items(("i05", "The space film 5", False))
    assert bring(small_world).n_out == 1


def test_users_who_have_not_met_an_item_keep_their_profile_to_the_bit(small_world):
    refresh_users(small_world.resources, ["u00", "u07"], now=small_world.tick())
    with small_world.resources.warehouse(read_only=True) as warehouse:
        before = load_profiles(warehouse, "v1", ["u00", "u07"])
    small_world.add_items(("a", SPACE, True), ("z", LOVE, True), ("i051", LOVE, True))
    bring(small_world)
    refresh_users(small_world.resources, ["u00", "u07"], now=small_world.tick())
    with small_world.resources.warehouse(read_only=True) as warehouse:
        after = load_profiles(warehouse, "v1", ["u00", "u07"])
        weights = load_item_space(warehouse, "v1").weights
    assert weights.n_fitted == 40
    np.testing.assert_array_equal(after.factors, before.factors)
    np.testing.assert_array_equal(after.text, before.text)
    np.testing.assert_array_equal(after.drift, before.drift)


def test_who_met_an_item_before_it_was_known_is_refreshed(small_world):
    small_world.add_events(small_world.event("u02", "new"), small_world.event("u03", "i25"))
    refresh(small_world.resources, now=small_world.tick())
    sql = "select n_history from user_profiles where version = 'v1' and user_id = 'u02'"
    before = rows(small_world, sql)[0]["n_history"]
    small_world.add_items(("new", SPACE, True))
    bring(small_world)
    run = refresh(small_world.resources, now=small_world.tick())
    assert run.n_users == 1
    assert rows(small_world, sql)[0]["n_history"] == before + 1
    assert refresh(small_world.resources, now=small_world.tick()) is None


def test_a_text_of_a_user_counts_after_the_next_refresh(small_world, encodings):
    refresh_users(small_world.resources, ["u01"], now=small_world.tick())
    before = ranks(small_world, "u01")
    text = "space space alien"
    small_world.add_events(*(small_world.event(u, event_type="search", text=text) for u in ("u01", "u03")))
    receipt = bring(small_world)
    assert (receipt.n_in, receipt.n_out) == (1, 1)
    run = refresh(small_world.resources, now=small_world.tick())
    assert (run.n_missing_texts, run.n_users) == (0, 2)
    assert ranks(small_world, "u01") != before
    assert bring(small_world) is None
    assert encodings == [1]


def test_texts_wait_in_bounded_steps(small_world, encodings):
    small_world.add_items(*((f"n{number:02}", f"{SPACE} {number}", True) for number in range(14)))
    searched = (small_world.event("u01", event_type="search", text=f"alien {number}") for number in range(6))
    small_world.add_events(*searched)
    first = bring(small_world, most_texts=8)
    assert "10 items wait" in first.note
    assert "texts of users wait" in first.note
    assert (n_added(small_world), encodings) == (4, [8])
    second = bring(small_world, most_texts=8)
    assert (n_added(small_world), encodings) == (10, [8, 8])
    assert "4 items wait" in second.note
    assert bring(small_world, most_texts=8).note == ""
    assert (n_added(small_world), encodings) == (14, [8, 8, 4])
    assert bring(small_world, most_texts=8) is None
    assert refresh(small_world.resources, now=small_world.tick()).n_missing_texts == 0
    assert_index_is_whole(small_world)


def test_600_items_come_in_two_calls(small_world):
    small_world.add_items(*((f"n{number:03}", f"{SPACE} {number}", True) for number in range(600)))
    assert "88 items wait" in bring(small_world).note
    assert n_added(small_world) == 512
    bring(small_world)
    assert n_added(small_world) == 600
    assert bring(small_world) is None


def test_an_unavailable_item_leaves_the_slates(small_world):
    first = min(ranks(small_world, "u00"), key=ranks(small_world, "u00").get)
    vector = point(small_world, first)[1]
    title = rows(small_world, "select title from stg_items where item_id = $i", i=first)[0]["title"]
    small_world.add_items((first, title, False))
    assert bring(small_world).n_out == 1
    assert first not in ranks(small_world, "u00")
    np.testing.assert_array_equal(point(small_world, first)[1], vector)
    small_world.add_items((first, title, True))
    bring(small_world)
    assert ranks(small_world, "u00")[first] == 1


def test_an_item_of_the_training_shows_its_new_title_and_keeps_its_vector(small_world, encodings):
    payload, vector = point(small_world, "i05")
    stored = factors_of(small_world, "i05")
    small_world.add_items(("i05", LOVE, True))
    bring(small_world)
    after, same = point(small_world, "i05")
    assert (after.title, payload.title) == (LOVE, "The robot film 5")
    np.testing.assert_array_equal(same, vector)
    assert factors_of(small_world, "i05") == stored
    assert rows(small_world, "select title from stg_items where item_id = 'i05'") == [{"title": LOVE}]
    assert encodings == []
    assert_index_is_whole(small_world)


def test_an_added_item_follows_its_text(small_world):
    small_world.add_items(("new", SPACE, True))
    bring(small_world)
    small_world.add_events(small_world.event("u02", "new"))
    refresh(small_world.resources, now=small_world.tick())
    before = point(small_world, "new")[1]
    small_world.add_items(("new", LOVE, True))
    assert bring(small_world).n_out == 1
    after = point(small_world, "new")[1]
    assert np.abs(after - before).max() > 0.1
    assert refresh(small_world.resources, now=small_world.tick()).n_users == 1
    assert_index_is_whole(small_world)
    assert bring(small_world) is None


def test_a_kill_between_index_and_commit_is_made_good(small_world, monkeypatch, encodings):
    small_world.add_items(("new", SPACE, True), ("i05", "The robot film 5", False))
    small_world.add_events(small_world.event("u02", "new"))

    def killed(*arguments):
        raise WarehouseBusyError("the process ends here")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.arrivals, "_writer", killed)
        with pytest.raises(WarehouseBusyError):
            bring(small_world)
    assert point(small_world, "new") is not None
    assert factors_of(small_world, "new") is None
    assert mark(small_world)["items_snapshot"] is None
    assert bring(small_world) is not None
    assert encodings == [1]
    assert mark(small_world)["items_snapshot"] > 0
    run = refresh(small_world.resources, now=small_world.tick())
    assert run.n_users == 1
    assert_index_is_whole(small_world)


def test_what_two_calls_wrote_at_once_is_looked_at_again(small_world, monkeypatch):
    small_world.add_items(("new", SPACE, True))
    write, began = tasks.arrivals._write_index, mark(small_world)

    def overtaken(*arguments):
        monkeypatch.setattr(tasks.arrivals, "_write_index", write)
        small_world.add_items(("new", SPACE, False))
        bring(small_world)
        return write(*arguments)

    monkeypatch.setattr(tasks.arrivals, "_write_index", overtaken)
    bring(small_world)
    assert point(small_world, "new")[0].available
    assert began["items_snapshot"] is None
    bring(small_world)
    assert not point(small_world, "new")[0].available
    assert_index_is_whole(small_world)
    assert bring(small_world) is None


def test_a_text_that_cannot_be_encoded_is_left_out(small_world, monkeypatch):
    encode = type(small_world.resources.encoder()).encode

    def poisoned(self, texts):
        if any("poison" in text for text in texts):
            raise ValueError("this text cannot be encoded")
        return encode(self, texts)

    small_world.add_items(("good", SPACE, True), ("bad", "poison", True))
    with monkeypatch.context() as patched:
        patched.setattr(type(small_world.resources.encoder()), "encode", poisoned)
        receipt = bring(small_world)
        assert "1 texts cannot be embedded" in receipt.note
        assert "poison" not in receipt.note
        assert bring(small_world) is None
    assert factors_of(small_world, "bad")["content_hash"] == NO_TEXT
    assert not point(small_world, "bad")[1].any()
    assert_index_is_whole(small_world)
    add_embedding(small_world, "poison")
    assert bring(small_world).n_out == 1
    assert factors_of(small_world, "bad")["content_hash"] != NO_TEXT
    assert_index_is_whole(small_world)
    assert bring(small_world) is None


def add_embedding(world, text):
    """As the batch does that comes later."""
    encoder = world.resources.encoder()
    row = {
        "content_hash": hashlib.sha256(text.encode()).hexdigest(), "encoder_id": encoder.encoder_id,
        "template_version": "v1", "embedding": encoder.encode([text])[0].tolist(), "embedded_at": world.tick(),
    }  # fmt: skip
    schema = pa.schema([("embedding", pa.list_(pa.float32()))])
    table = pa.Table.from_pylist([row])
    place = table.column_names.index("embedding")
    table = table.set_column(place, "embedding", table["embedding"].cast(schema.field(0).type))
    with world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.append("item_embeddings", table))


def test_a_version_of_another_language_model_leaves_the_texts(small_world, monkeypatch, caplog):
    monkeypatch.setattr(type(small_world.resources.encoder()), "encoder_id", "words@2")
    small_world.add_items(("new", SPACE, True), ("blank", "", True), ("i05", "The robot film 5", False))
    small_world.add_events(small_world.event("u02", event_type="search", text="alien"))
    receipt = bring(small_world)
    assert "words@1" in receipt.note
    assert "words@2" in receipt.note
    assert (factors_of(small_world, "new"), n_added(small_world)) == (None, 1)
    assert not point(small_world, "i05")[0].available
    assert bring(small_world) is None
    assert "words@2" in caplog.text
    monkeypatch.undo()
    assert bring(small_world).n_out == 1
    assert factors_of(small_world, "new") is not None


def test_the_nightly_models_agree(small_world):
    small_world.add_items(("new", SPACE, True), ("i05", LOVE, False))
    bring(small_world)
    sql = "select * from {} order by item_id"
    near = [rows(small_world, sql.format(table)) for table in ("stg_items", "int_item_texts")]
    assert not build_models(small_world.resources, now=small_world.tick()).reused
    assert [rows(small_world, sql.format(table)) for table in ("stg_items", "int_item_texts")] == near
    assert bring(small_world) is None


def test_items_that_the_batch_staged_first_come_too(small_world):
    small_world.add_items(("new", SPACE, True))
    build_models(small_world.resources, now=small_world.tick())
    bring(small_world)
    assert factors_of(small_world, "new") is not None


def test_versions_have_watermarks_of_their_own(small_world):
    small_world.add_items(("first", SPACE, True))
    bring(small_world)
    small_world.train("v2")
    assert rows(small_world, "select * from watermarks where version = 'v2'")[0]["items_snapshot"] is None
    small_world.add_items(("second", LOVE, True))
    bring(small_world)
    assert factors_of(small_world, "second", "v2") is None
    bring(small_world, version="v2")
    assert factors_of(small_world, "first", "v2")["added_at"] is None
    assert factors_of(small_world, "second", "v2")["added_at"] is not None
    small_world.publish("v2")
    assert point(small_world, "second", "v2") is not None
    assert bring(small_world) is None


def test_the_watermark_of_the_refresh_leaves_that_of_the_items(small_world):
    small_world.add_items(("new", SPACE, True))
    bring(small_world)
    before = mark(small_world)
    small_world.add_events(small_world.event("u02", "new"))
    refresh(small_world.resources, now=small_world.tick())
    after = mark(small_world)
    assert after["snapshot"] > before["snapshot"]
    assert (after["items_snapshot"], after["texts_snapshot"]) == (before["items_snapshot"], before["texts_snapshot"])


def test_a_vector_that_is_not_sound_stops_at_the_gate(small_world, monkeypatch):
    small_world.add_items(("new", SPACE, True))
    monkeypatch.setattr(tasks.arrivals, "fit_without_history", lambda text, *maps: np.full((len(text), 6), np.nan))
    with pytest.raises(GateError, match="NaN"):
        bring(small_world)
    assert (point(small_world, "new"), factors_of(small_world, "new")) == (None, None)


def test_nothing_published_is_said(tmp_path, small_world):
    with small_world.resources.warehouse() as warehouse:
        warehouse.commit(
            lambda transaction: transaction.replace("watermarks", pa.table({"version": pa.array([], pa.string())}))
        )
    with pytest.raises(NotFoundError, match="no watermark"):
        bring(small_world)


def test_attributes_of_a_new_item_enter_its_factors_as_in_the_training(small_world):
    films = [("space", n) for n in range(20)] + [("love", n) for n in range(20, 40)]
    told = [{"genre": genre} for genre, _ in films]
    add_told_items(small_world, [f"i{n:02}" for _, n in films], told)
    build_models(small_world.resources, now=small_world.tick())
    plan = plan_version(small_world.resources, now=small_world.tick())
    learn_version(small_world.resources, plan, now=small_world.tick())
    refit_version(small_world.resources, plan, now=small_world.tick())
    add_told_items(small_world, ["a", "b", "c"], [{"genre": "space"}, {"genre": "love"}, {"genre": "other"}])
    bring(small_world, version=plan.version)
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model = load_version(warehouse, plan.version)
    assert set(model.item_space.labels) == {"genre space", "genre love"}
    a, b, c = (np.array(factors_of(small_world, name, plan.version)["factors"]) for name in "abc")
    share = model.recipe.factor_parameters.text_prior * ITEM_FEATURES
    columns = [model.item_space.labels.index(f"genre {genre}") for genre in ("space", "love")]
    expected = share * model.item_map[columns]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(np.stack([a - c, b - c]), expected, atol=1e-6)


def add_told_items(world, item_ids, told):
    """Items with the same title, so that nothing but attributes tells them apart."""
    now = world.tick()
    table = pa.table({
        "item_id": item_ids, "title": ["A film"] * len(told), "available": [True] * len(told),
        "attributes": [json.dumps(row) for row in told], "batch_id": [f"told-{now}"] * len(told),
        "source": ["test"] * len(told), "source_row": np.arange(len(told)), "ingested_at": [now] * len(told),
    })  # fmt: skip
    with world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.append("raw_items", table))
