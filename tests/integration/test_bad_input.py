"""Bad input from the file to the tables of the models: a clear error or the quarantine, and nothing good is lost."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tasks.domain.errors import GateError, InputError
from tasks.ingest import import_files
from tasks.quality import check_gate
from tasks.transform import build_models

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STRANGE_IDS = ["a/b", 'say "hi"', "it's; drop table raw_items --", "two  spaces", "电影/1", "007", "<b>&amp;</b>"]


class World:
    """Imports files, builds the models and reads them; ``clock`` moves on with every import."""

    def __init__(self, resources, folder):
        self.resources, self.folder, self.clock, self.n_files = resources, folder, NOW, 0

    def bring(self, kind, rows, *, name=None, **options):
        """Import rows as JSON lines, or bytes as a file called ``name``."""
        self.clock += timedelta(minutes=1)
        self.n_files += 1
        path = self.folder / (name or f"{kind}-{self.n_files}.jsonl")
        path.write_bytes(rows if isinstance(rows, bytes) else "\n".join(json.dumps(row) for row in rows).encode())
        return import_files(self.resources, kind, [path], now=self.clock, **options)[0]

    def build(self):
        self.clock += timedelta(minutes=1)
        return build_models(self.resources, now=self.clock)

    def read(self, sql):
        with self.resources.warehouse(read_only=True) as warehouse:
            return warehouse.read(sql).to_pylist()

    def check(self):
        return check_gate(self.resources, "transform", run_id="run", now=self.clock)


def item(item_id, title="A title", **rest):
    return {"item_id": item_id, "title": title, **rest}


def event(user_id, item_id, event_type="like", **rest):
    return {"user_id": user_id, "item_id": item_id, "event_type": event_type, "occurred_at": "2026-01-01", **rest}


@pytest.fixture
def world(local_resources, tmp_path):
    """Two items and two events that are fine."""
    world = World(local_resources, tmp_path)
    world.bring("items", [item("i1"), item("i2")])
    world.bring("events", [event("u1", "i1"), event("u2", "i2")])
    return world


GOOD = 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("events.csv", b"user_id,item_id,occurred_at\nu,i,2026-01-01\n", "no column event_type"),
        ("events.csv", b"userId,movieId,rating,timestamp\n1,2,3,4\n", "--mapping mapping.yml"),
        ("events.csv", b"", "is empty"),
        ("events.parquet", b"user_id,item_id\n", "is not a Parquet file"),
        ("events.csv", "user_id\nJosé".encode("latin1"), "is not UTF-8"),
    ],
    ids=["missing column", "other headers", "empty file", "not a Parquet file", "wrong encoding"],
)
def test_a_file_that_cannot_be_used_changes_nothing(world, name, content, words):
    before = world.read("select max(snapshot_id) as id from lake.snapshots()")
    with pytest.raises(InputError, match=words):
        world.bring("events", content, name=name)
    assert world.read("select max(snapshot_id) as id from lake.snapshots()") == before


BAD_ROWS = {
    "value is not a number": event("u3", "i1", "rating", value="four"),
    "value is NaN or infinite": event("u3", "i1", "rating", value="NaN"),
    "occurred_at is not a time": event("u3", "i1") | {"occurred_at": "soon"},
    "item_id is missing": event("u3", None),
    "user_id is missing": event("", "i1"),
}


def test_bad_rows_are_set_aside_and_the_others_are_learned_from(world):
    receipt = world.bring("events", [event(f"v{n}", "i1") for n in range(60)] + list(BAD_ROWS.values()))
    assert (receipt.n_in, receipt.n_out) == (60 + len(BAD_ROWS), 60)
    assert "nearline sql" in receipt.note
    rows = world.read("select reason, count(*) as n from quarantine group by all order by min(source_row)")
    for row, reason in zip(rows, BAD_ROWS, strict=True):
        assert row["reason"].startswith(reason)
        assert row["n"] == 1
    world.build()
    assert world.read("select count(*) as n from fct_interactions") == [{"n": GOOD + 60}]
    assert world.check()


def test_too_many_bad_rows_take_nothing_from_what_was_there(world):
    world.build()
    with pytest.raises(GateError, match="still serves"):
        world.bring("events", [event("u3", "i1"), event("", "i1")])
    assert world.build().reused
    assert world.read("select count(*) as n from fct_interactions") == [{"n": GOOD}]
    world.bring("events", [event("u3", "i1"), event("u4", "i1")])
    world.build()
    assert world.read("select count(*) as n from fct_interactions") == [{"n": GOOD + 2}]


def test_a_duplicate_event_id_corrects_and_does_not_count_twice(world):
    first = event("u1", "i2", "rating", value=5, event_id="e1")
    world.bring("events", [first, first])
    world.bring("events", [first | {"value": 1}], name="correction.jsonl")
    world.build()
    assert world.read("select value from stg_events where event_id = 'e1'") == [{"value": 1.0}]
    assert world.read("select weight, n_events from fct_interactions where item_id = 'i2' and user_id = 'u1'") == [
        {"weight": 0.0, "n_events": 1}
    ]
    world.bring("events", [{"event_id": "e1", "user_id": "u1", "event_type": "retraction", "occurred_at": "2026-01-02"}
                           | {"item_id": None}])  # fmt: skip
    world.build()
    assert world.read("select * from stg_events where event_id = 'e1'") == []


def test_events_of_unknown_items_are_kept_and_warned_about(world):
    world.bring("events", [event("u1", "unknown", event_id="e1")])
    world.build()
    assert world.read("select item_id from stg_events where event_id = 'e1'") == [{"item_id": "unknown"}]
    assert world.read("select * from fct_interactions where item_id = 'unknown'") == []
    (warned,) = [result for result in world.check() if not result.passed]
    assert (warned.column, warned.severity, warned.observed) == ("unknown_item_share", "warn", "0.3333")
    world.bring("items", [item("unknown")])
    world.build()
    assert len(world.read("select * from fct_interactions where item_id = 'unknown'")) == 1


def test_an_item_with_empty_text_is_kept_and_warned_about(world):
    world.bring("items", [item("bare", ""), item("blank", "  ", description=" ", categories=["", " "])])
    world.build()
    rows = world.read("select item_id, text from int_item_texts where text = '' order by item_id")
    assert rows == [{"item_id": "bare", "text": ""}, {"item_id": "blank", "text": ""}]
    (warned,) = [result for result in world.check() if not result.passed]
    assert (warned.column, warned.n_failed) == ("text_length", 2)


def test_ids_with_slashes_quotes_spaces_and_chinese(world):
    world.bring("items", [item(item_id) for item_id in STRANGE_IDS])
    world.bring("users", [{"user_id": user_id, "attributes": {"note": user_id}} for user_id in STRANGE_IDS])
    world.bring("events", [event(strange, strange) for strange in STRANGE_IDS])
    world.build()
    for table, column in (("stg_items", "item_id"), ("stg_users", "user_id"), ("fct_interactions", "item_id")):
        seen = {row[column] for row in world.read(f"select {column} from {table}")}  # noqa: S608 - names of this test
        assert set(STRANGE_IDS) <= seen
    assert world.check()


def test_a_user_with_one_event(world):
    world.build()
    assert world.read("select user_id, weight from fct_interactions order by user_id") == [
        {"user_id": "u1", "weight": 1.0},
        {"user_id": "u2", "weight": 1.0},
    ]


def test_no_events_at_all(local_resources, tmp_path):
    world = World(local_resources, tmp_path)
    world.bring("items", [item("i1")])
    world.build()
    with pytest.raises(GateError) as raised:
        world.check()
    assert "There are no events. Import some: nearline import events FILE" in str(raised.value)
    world.bring("events", [event("u1", "i1")])
    world.build()
    assert world.check()


def test_nothing_at_all(local_resources, tmp_path):
    world = World(local_resources, tmp_path)
    assert world.build().n_out == 0
    with pytest.raises(GateError, match=r"There are no items\. Import a catalog"):
        world.check()


def test_building_again_changes_nothing_and_says_so(world):
    first = world.build()
    before = world.read("from fct_interactions order by all")
    again = world.build()
    assert (first.reused, again.reused) == (False, True)
    assert (again.n_in, again.n_out) == (first.n_in, first.n_out)
    assert world.read("from fct_interactions order by all") == before
    world.bring("events", [event("u9", "i1")])
    assert not world.build().reused


@pytest.mark.parametrize(
    "content",
    [
        b'user_id,item_id,event_type,occurred_at\nu,"i1,like,2026-01-01\nu,i2,like,2026-01-01\nu,"i1",like,2026-01-01\n',
        b'user_id,item_id,event_type,occurred_at\nu,"the "red" one",like,2026-01-01\n',
    ],
    ids=["left open", "within a value"],
)
def test_a_wrong_quote_swallows_no_row(world, content):
    with pytest.raises(InputError, match="a double quote in line 2"):
        world.bring("events", content, name="quotes.csv")
    assert world.read("select count(*) as n from raw_events") == [{"n": GOOD}]


def test_rows_in_single_quotes_are_set_aside_where_they_fall_apart(world):
    good = "".join(f"u{n},i1,like,2026-01-01\n" for n in range(20))
    rows = f"user_id,item_id,event_type,occurred_at\n{good}'u,v',i1,like,2026-01-01\n"
    receipt = world.bring("events", rows.encode(), name="single.csv")
    assert (receipt.n_in, receipt.n_out) == (21, 20)
    (row,) = world.read("select reason from quarantine")
    assert row["reason"] == "the row has 5 values where the header has 4 columns"


def test_an_item_that_changes_the_case_of_its_id_is_another_item(world):
    world.bring("items", [item("Film-1", "One"), item("film-1", "One")])
    world.bring("events", [event("u1", "Film-1"), event("u1", "FILM-1")])
    world.build()
    rows = world.read("select item_id from stg_items where lower(item_id) = 'film-1' order by item_id")
    assert [row["item_id"] for row in rows] == ["Film-1", "film-1"]
    liked = world.read("select item_id from fct_interactions where lower(item_id) = 'film-1'")
    assert liked == [{"item_id": "Film-1"}], "the event of FILM-1 waits for an item of that name"
    (warned,) = [result for result in world.check() if not result.passed]
    assert (warned.column, warned.severity) == ("unknown_item_share", "warn")
