"""A person is removed from everywhere, and nobody else loses anything."""

import pytest

from tasks.domain.errors import InputError
from tasks.erase import erase_user, tables_of_users, verify_erasure
from tasks.export import export_user
from tasks.refresh import read_watermark, refresh
from tests.conftest import WORDS

SECRET = "person-4711-of-the-test"


@pytest.fixture
def world(small_world):
    world = small_world
    world.add_events(*(world.event(SECRET, item) for item in ("i00", "i02")))
    wishes = ((SECRET, "a secret wish"), ("u00", "a shared wish"), (SECRET, "a shared wish"))
    world.add_events(*(world.event(user, None, "search", text=text) for user, text in wishes))
    world.embed_texts("a secret wish", "a shared wish")
    world.add_events(*(world.event("u00", None, "search", text=f"{word} stories") for word in WORDS))
    world.add_users(**{SECRET: {"age": 50}})
    refresh(world.resources, now=world.tick())
    return world


def files_that_hold(home, text):
    return [path for path in home.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_nothing_is_left_anywhere(world):
    assert files_that_hold(world.resources.home, SECRET)
    receipt = erase_user(world.resources, SECRET, now=world.tick())
    assert receipt.is_complete, receipt
    removed = {place.place: place.n_removed for place in receipt.removed}
    assert removed["raw_events"] == 4
    assert removed["raw_users"] == removed["user_profiles"] == removed["vector index"] == 1
    assert not files_that_hold(world.resources.home, SECRET)
    assert not files_that_hold(world.resources.home, "a secret wish")
    assert SECRET not in receipt.user
    assert all(place.n_left == 0 for place in verify_erasure(world.resources, SECRET))


def test_others_keep_what_they_have(world):
    with world.resources.warehouse() as warehouse:
        before = warehouse.read("from raw_events where user_id <> $user order by event_id", {"user": SECRET})
        profiles = warehouse.read("from user_profiles where user_id <> $user order by user_id", {"user": SECRET})
        n_texts = warehouse.read("from text_embeddings").num_rows
    erase_user(world.resources, SECRET, now=world.tick())
    with world.resources.warehouse() as warehouse:
        assert warehouse.read("from raw_events order by event_id").equals(before)
        assert warehouse.read("from user_profiles order by user_id").equals(profiles)
        assert warehouse.read("from text_embeddings").num_rows == n_texts - 1


def test_events_that_waited_for_a_refresh_still_count(world):
    world.add_events(world.event("u01", "i05"), world.event(SECRET, "i04"))
    erase_user(world.resources, SECRET, now=world.tick())
    run = refresh(world.resources, now=world.tick())
    assert run is not None
    assert run.n_users == 1, "only the user who had waited"
    with world.resources.warehouse() as warehouse:
        (row,) = warehouse.read(
            "select seen_items, as_of_snapshot from user_profiles where user_id = 'u01'"
        ).to_pylist()
        assert row["as_of_snapshot"] == read_watermark(warehouse, run.version)
    assert refresh(world.resources, now=world.tick()) is None


def by_place(places):
    return {place.place: (place.n_removed, place.n_left) for place in places}


def test_the_receipt_names_every_place_that_lost_rows(world):
    with world.resources.warehouse() as warehouse:
        tables = warehouse.read("select table_name from information_schema.tables")["table_name"].to_pylist()
        sizes = {table: warehouse.read(f'from "{table}"').num_rows for table in tables}
    receipt = erase_user(world.resources, SECRET, now=world.tick())
    with world.resources.warehouse() as warehouse:
        lost = {table: size - warehouse.read(f'from "{table}"').num_rows for table, size in sizes.items()}
    removed = {place: n_removed for place, (n_removed, _) in by_place(receipt.removed).items() if n_removed}
    assert removed == {table: n_rows for table, n_rows in lost.items() if n_rows > 0} | {"vector index": 1}
    assert by_place(receipt.removed)["text_embeddings"] == (1, 0)
    verified = by_place(verify_erasure(world.resources, SECRET))
    assert verified == by_place(receipt.removed) | {"earlier snapshots": (0, 0)}
    unknown = by_place(verify_erasure(world.resources, "nobody"))
    assert set(unknown.values()) == {(0, 0)}


def test_a_text_is_looked_for_before_and_after(world):
    assert by_place(verify_erasure(world.resources, SECRET))["text_embeddings"] == (0, 1)
    erase_user(world.resources, SECRET, now=world.tick())
    world.embed_texts("a secret wish")  # by a run that had read it before
    assert by_place(verify_erasure(world.resources, SECRET))["text_embeddings"] == (1, 1)
    again = erase_user(world.resources, SECRET, now=world.tick())
    assert by_place(again.removed)["text_embeddings"] == (1, 0)


def test_a_text_of_an_event_that_moved_goes_with_it(world):
    """Nobody has it any more, though somebody else had."""
    world.add_events(world.event("u02", None, "search", event_id="moved", text="a borrowed wish"))
    world.add_events(world.event(SECRET, None, "search", event_id="moved", text="a borrowed wish"))
    world.embed_texts("a borrowed wish")
    receipt = erase_user(world.resources, SECRET, now=world.tick())
    assert by_place(receipt.removed)["text_embeddings"] == (2, 0)


def test_an_event_that_moved_to_the_person_does_not_come_back(world):
    world.add_events(world.event("u02", "i07", event_id="moved"))
    world.add_events(world.event(SECRET, "i07", event_id="moved"))
    erase_user(world.resources, SECRET, now=world.tick())
    with world.resources.warehouse() as warehouse:
        assert warehouse.read("from raw_events where event_id = 'moved'").num_rows == 0


def test_twice_is_safe_and_says_so(world):
    erase_user(world.resources, SECRET, now=world.tick())
    again = erase_user(world.resources, SECRET, now=world.tick())
    assert again.is_complete
    assert sum(place.n_removed for place in again.removed) == 0
    found = {place.place: place for place in verify_erasure(world.resources, SECRET)}
    assert found["raw_events"].n_removed == 4


def test_refused_rows_of_the_person_go_too(world):
    import pyarrow as pa

    def row(number, text):
        fixed = {"table_name": "raw_events", "reason": "bad", "batch_id": "b", "source": "s"}
        return {**fixed, "source_row": number, "row_json": text, "quarantined_at": world.clock}

    rows = [row(1, f'{{"who": "{SECRET}"}}'), row(2, '{"who": "u00"}'), row(3, f'{{"unreadable": "x,{SECRET},y"}}')]
    with world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.append("quarantine", pa.Table.from_pylist(rows)))
    erase_user(world.resources, SECRET, now=world.tick())
    with world.resources.warehouse() as warehouse:
        assert warehouse.read("select source_row from quarantine")["source_row"].to_pylist() == [2]


def test_every_table_that_names_users_is_among_them():
    assert {"raw_events", "raw_users", "user_profiles", "mart_recommendations"} <= set(tables_of_users())


def test_an_empty_id_is_refused(world):
    with pytest.raises(InputError, match="is empty"):
        erase_user(world.resources, " ", now=world.tick())


def test_everything_of_a_person_is_given_out(world):
    found = export_user(world.resources, SECRET)
    assert len(found["raw_events"]) == 4
    assert found["raw_users"][0]["attributes"] == '{"age": 50}'
    assert {"user_profiles", "vector index, v1"} <= found.keys()
    erase_user(world.resources, SECRET, now=world.tick())
    assert export_user(world.resources, SECRET) == {}
