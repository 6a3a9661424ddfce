import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.resources import LocalResources
from tasks.domain.errors import GateError, InputError
from tasks.ingest import import_files
from tasks.transform import build_models

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STRANGE_IDS = ["a/b", 'say "hi"', "it's", "two  spaces", " padded ", "电影", "007", "a,b;c|d", "<b>&amp;"]


@pytest.fixture
def resources(local_resources):
    return local_resources


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def read(resources, sql):
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql).to_pylist()


def events_csv(write, name, *rows, header="user_id,item_id,event_type,occurred_at,value,text,event_id"):
    return write(name, header, *rows)


# what comes in is what is there


def test_items_users_and_events_in_canonical_columns(resources, write):
    items = write(
        "items.csv",
        "item_id,title,description,categories,attributes,available,updated_at",
        'i1,"Heat, 1995",A crew.,Action|Crime,"{""year"": 1995}",false,2026-01-02T03:04:05Z',
        "i2,,,,,,",
    )
    users = write("users.jsonl", '{"user_id": "u1", "attributes": {"age": 30}}', '{"user_id": 7}')
    events = events_csv(
        write, "events.csv", "u1,i1,rating,2026-01-02T03:04:05Z,4.5,,e1", "u1,,search,1767323045,,slow,"
    )
    for kind, path in (("items", items), ("users", users), ("events", events)):
        (receipt,) = import_files(resources, kind, [path], now=NOW)
        assert (receipt.stage, receipt.n_in, receipt.n_out, receipt.location) == ("import", 2, 2, f"raw_{kind}")
    first, second = read(resources, "select * from raw_items order by item_id")
    assert first["title"] == "Heat, 1995"
    assert first["categories"] == ["Action", "Crime"]
    assert json.loads(first["attributes"]) == {"year": 1995}
    assert first["available"] is False
    assert first["updated_at"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (second["title"], second["categories"], second["available"]) == (None, [], True)
    seen = read(resources, "select user_id, attributes from raw_users order by source_row")
    assert [row["user_id"] for row in seen] == ["u1", "7"]
    assert json.loads(seen[0]["attributes"]) == {"age": 30}
    rating, search = read(resources, "select * from raw_events order by source_row")
    assert (rating["event_id"], rating["item_id"], rating["value"]) == ("e1", "i1", 4.5)
    assert (search["item_id"], search["text"]) == (None, "slow")
    assert rating["occurred_at"] == search["occurred_at"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (rating["source"], rating["source_row"], rating["ingested_at"]) == ("events.csv", 1, NOW)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_stay_as_they_came(resources, tmp_path, suffix):
    table = pa.table(
        {
            "user_id": STRANGE_IDS,
            "item_id": STRANGE_IDS[::-1],
            "event_type": ["view"] * len(STRANGE_IDS),
            "occurred_at": ["2026-01-01"] * len(STRANGE_IDS),
        }
    )
    path = tmp_path / f"events.{suffix}"
    if suffix == "csv":
        lines = [table.column_names, *(row.values() for row in table.to_pylist())]
        quoted = (",".join('"' + value.replace('"', '""') + '"' for value in line) for line in lines)
        path.write_text("\n".join(quoted), encoding="utf-8")
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()), encoding="utf-8")
    else:
        pq.write_table(table, path)
    import_files(resources, "events", [path], now=NOW)
    seen = read(resources, "select user_id, item_id from raw_events order by source_row")
    assert seen == table.select(["user_id", "item_id"]).to_pylist()


def test_forms_of_a_time(resources, write):
    forms = [
        "2026-01-02T03:04:05Z",
        "2026-01-02 03:04:05",
        "2026-01-02T04:04:05+01:00",
        "2026-01-02T04:04:05.000+0100",
        " 2026-01-02T03:04:05Z ",
        "1767323045",
        "1767323045.0",
        "1767323045000",
        "1767323045000000",
        "1767323045000000000",
        "1.767323045e9",
    ]
    path = events_csv(write, "events.csv", *(f"u{n},i,view,{form},,," for n, form in enumerate(forms)))
    import_files(resources, "events", [path], now=NOW)
    rows = read(resources, "select occurred_at from raw_events order by source_row")
    assert [row["occurred_at"] for row in rows] == [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)] * len(forms)


def test_forms_of_categories(resources, write):
    cases = [
        ("Action|Sci-Fi | ", None, ["Action", "Sci-Fi"]),
        ('["Action", "a|b", null, ""]', None, ["Action", "a|b"]),
        (["Action", "a|b"], None, ["Action", "a|b"]),
        ("Action; Crime", {"categories.separator": "; "}, ["Action", "Crime"]),
        ("(none)", {"categories.none": "(none)"}, []),
        ("", None, []),
    ]
    for number, (written, mapping, _) in enumerate(cases):
        item = {"item_id": f"i{number}", "title": "t", "categories": written}
        import_files(resources, "items", [write(f"{number}.jsonl", json.dumps(item))], now=NOW, mapping=mapping)
    rows = read(resources, "select categories from raw_items order by item_id")
    assert [row["categories"] for row in rows] == [expected for _, _, expected in cases]


def test_a_mapping_with_constants_and_packed_columns(resources, write):
    ratings = write("ratings.csv", "who,what,stars,when,device", "u1,i1,4,1767323045,phone")
    mapping = {"user_id": "who", "item_id": "what", "event_type": "=rating", "occurred_at": "when", "value": "stars"}
    (receipt,) = import_files(resources, "events", [ratings], now=NOW, mapping=mapping)
    assert "columns that were not read: device" in receipt.note
    (event,) = read(resources, "select event_type, value from raw_events")
    assert event == {"event_type": "rating", "value": 4.0}
    users = write("users.csv", "id,age,city,note", "u1,30,Köln,")
    (receipt,) = import_files(resources, "users", [users], now=NOW, mapping={"user_id": "id", "attributes": "*"})
    assert receipt.note == ""
    (user,) = read(resources, "select attributes from raw_users")
    assert json.loads(user["attributes"]) == {"age": "30", "city": "Köln"}


# once, and in order


def test_the_same_content_is_taken_once(resources, write):
    first = events_csv(write, "a.csv", "u,i,view,2026-01-01,,,")
    same = events_csv(write, "b.csv", "u,i,view,2026-01-01,,,")
    import_files(resources, "events", [first], now=NOW)
    before = read(resources, "select max(snapshot_id) as n from lake.snapshots()")
    receipts = import_files(resources, "events", [first, same], now=NOW + timedelta(hours=1))
    assert [receipt.reused for receipt in receipts] == [True, True]
    assert "taken before, as a.csv, at 2026-03-01 12:00 UTC" in receipts[1].note
    assert read(resources, "select max(snapshot_id) as n from lake.snapshots()") == before
    assert len(read(resources, "from raw_events")) == 1


def test_the_same_content_with_another_mapping_is_another_batch(resources, write):
    path = write("a.csv", "item_id,title,name", "i,Wrong,Right")
    import_files(resources, "items", [path], now=NOW)
    import_files(resources, "items", [path], now=NOW + timedelta(hours=1), mapping={"title": "name"})
    build_models(resources, now=NOW)
    assert read(resources, "select title from stg_items") == [{"title": "Right"}]


def test_two_processes_that_import_one_file(resources, write):
    path = events_csv(write, "a.csv", *(f"u{n},i,view,2026-01-01,,," for n in range(200)))

    def work(_):
        return import_files(resources, "events", [path], now=NOW)[0].reused

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(work, range(3))) == [False, True, True]
    assert len(read(resources, "from raw_events")) == 200


def test_repeated_rows_are_counted_and_corrections_are_kept(resources, write):
    path = events_csv(
        write,
        "a.csv",
        "u,i,rating,2026-01-01,4,,e1",
        "u,i,rating,2026-01-01,4.0,,e1",
        "u,i,rating,2026-01-01,2,,e1",
        "u,i,view,2026-01-01,,,",
        "u,i,view,2026-01-01T00:00:00Z,,,",
    )
    (receipt,) = import_files(resources, "events", [path], now=NOW)
    assert (receipt.n_in, receipt.n_out) == (5, 3)
    assert "2 rows repeat others" in receipt.note
    assert [row["source_row"] for row in read(resources, "select source_row from raw_events order by 1")] == [1, 3, 4]
    (batch,) = read(resources, "select n_rows, n_accepted, n_quarantined, n_duplicates from import_batches")
    assert batch == {"n_rows": 5, "n_accepted": 3, "n_quarantined": 0, "n_duplicates": 2}
    build_models(resources, now=NOW)
    assert read(resources, "select value from stg_events where event_id = 'e1'") == [{"value": 2.0}]


def test_of_several_files_the_later_one_corrects_the_earlier(resources, write):
    for name, value in (("1.csv", 1), ("2.csv", 2), ("3.csv", 3), ("4.csv", 4)):
        path = events_csv(write, name, f"u,i,rating,2026-01-01,{value},,e1")
    import_files(resources, "events", [path.parent], now=NOW)
    build_models(resources, now=NOW)
    assert read(resources, "select value from stg_events") == [{"value": 4.0}]


def test_events_without_an_id_get_one_from_their_content(resources, write):
    first = events_csv(write, "a.csv", "u,i,view,2026-01-01,,,", "u,i,view,2026-01-02,,,")
    other = write("b.jsonl", '{"user_id":"u","item_id":"i","event_type":"view","occurred_at":1767225600}')
    import_files(resources, "events", [first, other], now=NOW)
    ids = [row["event_id"] for row in read(resources, "select event_id from raw_events order by source, source_row")]
    assert ids[0] == ids[2] != ids[1]


def test_each_file_is_one_commit(resources, write):
    paths = [events_csv(write, f"{n}.csv", f"u{n},i,view,2026-01-01,,,") for n in range(3)]
    (before,) = read(resources, "select max(snapshot_id) as n from lake.snapshots()")
    import_files(resources, "events", paths, now=NOW)
    (after,) = read(resources, "select max(snapshot_id) as n from lake.snapshots()")
    assert after["n"] - before["n"] == 3


def test_a_file_that_cannot_be_read_leaves_those_before_it(resources, write):
    good = events_csv(write, "1.csv", "u,i,view,2026-01-01,,,")
    bad = write("2.csv", "")
    bad.write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.csv is empty"):
        import_files(resources, "events", [good, bad], now=NOW)
    assert len(read(resources, "from raw_events")) == 1


def test_a_header_without_rows(resources, write):
    (receipt,) = import_files(resources, "events", [events_csv(write, "a.csv")], now=NOW)
    assert (receipt.n_in, receipt.n_out) == (0, 0)


# bad rows


BAD_EVENTS = [
    (",i,view,2026-01-01,,,", "user_id is missing"),
    ('"  ",i,view,2026-01-01,,,', "user_id is missing"),
    ("u,,view,2026-01-01,,,", "item_id is missing"),
    ("u,i,,2026-01-01,,,", "event_type is missing"),
    ("u,i,poke,2026-01-01,,,", "event_type poke is not in the settings"),
    ("u,i,view,,,,", "occurred_at is not a time"),
    ("u,i,view,yesterday,,,", "occurred_at is not a time"),
    ("u,i,view,01/02/2026,,,", "occurred_at is not a time"),
    ("u,i,view,20260131,,,", "occurred_at is not a time"),
    ("u,i,view,0,,,", "occurred_at is not a time"),
    ("u,i,view,-1767323045,,,", "occurred_at is not a time"),
    ("u,i,view,infinity,,,", "occurred_at is not a time"),
    ("u,i,view,nan,,,", "occurred_at is not a time"),
    ("u,i,view,1e300,,,", "occurred_at is not a time"),
    ("u,i,view,2026-03-05,,,", "occurred_at lies in the future"),
    ("u,i,rating,2026-01-01,four,,", "value is not a number"),
    ("u,i,rating,2026-01-01,NaN,,", "value is NaN or infinite"),
    ("u,i,view,2026-01-01,-inf,,", "value is NaN or infinite"),
    ("u,i,rating,2026-01-01,,,", "value is missing, and a rating needs one"),
    ("u,,search,2026-01-01,,  ,", "text is missing"),
    ("u,i,retraction,2026-01-01,,,", "event_id is missing"),
    ("u,i", "the row has 2 values where the header has 7 columns"),
]


def test_bad_events_go_to_quarantine_whole_and_the_good_ones_go_on(resources, write):
    bad, good = [row for row, _ in BAD_EVENTS], [f"u{n},i,view,2026-01-01,,," for n in range(10)]
    path = events_csv(write, "a.csv", *good[:5], *bad, *good[5:])
    (receipt,) = import_files(resources, "events", [path], now=NOW, max_quarantined_share=0.9)
    assert (receipt.n_in, receipt.n_out) == (len(bad) + 10, 10)
    assert f"{len(bad)} rows went to quarantine: nearline sql" in receipt.note
    users = read(resources, "select user_id from raw_events order by source_row")
    assert [row["user_id"] for row in users] == [f"u{n}" for n in range(10)]
    refused = read(resources, "from quarantine order by source_row")
    assert [row["source_row"] for row in refused] == list(range(6, 6 + len(bad)))
    for row, (line, reason) in zip(refused, BAD_EVENTS, strict=True):
        assert row["reason"].startswith(reason), line
        assert (row["table_name"], row["source"], row["quarantined_at"]) == ("raw_events", "a.csv", NOW)
        values = json.loads(row["row_json"])
        assert "unreadable" in values or ",".join(value or "" for value in values.values()) == line.replace('"', "")


BAD_ITEMS = [
    ({"item_id": " ", "title": "t"}, "item_id is missing"),
    ({"title": "t"}, "item_id is missing"),
    ({"item_id": "i", "title": "t", "available": "maybe"}, "available is neither true nor false"),
    ({"item_id": "i", "title": "t", "attributes": "{broken"}, "attributes are not a JSON object"),
    ({"item_id": "i", "title": "t", "attributes": "[1]"}, "attributes are not a JSON object"),
    ({"item_id": "i", "title": "t", "updated_at": "soon"}, "updated_at is not a time"),
    ({"item_id": "i", "title": "t", "categories": "[broken"}, "categories begin like a JSON list"),
]


def test_bad_items(resources, write):
    good = [json.dumps({"item_id": f"g{n}", "title": "good"}) for n in range(10)]
    path = write("a.jsonl", *good, *(json.dumps(row) for row, _ in BAD_ITEMS))
    (receipt,) = import_files(resources, "items", [path], now=NOW, max_quarantined_share=0.9)
    assert receipt.n_out == 10
    for row, (item, reason) in zip(read(resources, "from quarantine order by source_row"), BAD_ITEMS, strict=True):
        assert row["reason"].startswith(reason), item
        kept = {name: value for name, value in json.loads(row["row_json"]).items() if value is not None}
        assert kept == item


def test_bad_users(resources, write):
    path = write(
        "a.jsonl", *(json.dumps({"user_id": n}) for n in range(30)), '{"x": 1}', '{"user_id": 1, "attributes": 3}'
    )
    import_files(resources, "users", [path], now=NOW)
    reasons = {row["reason"] for row in read(resources, "from quarantine")}
    assert reasons == {"user_id is missing", "attributes are not a JSON object"}


def test_too_many_bad_rows_stop_the_file_and_not_what_was_there(resources, write):
    before = events_csv(write, "good.csv", "u0,i,view,2026-01-01,,,")
    path = events_csv(
        write, "bad.csv", *(f"u{n},i,view,2026-01-01,,," for n in range(8)), "u,i,poke,2026-01-01,,,", ",,,,,,"
    )
    with pytest.raises(GateError) as raised:
        import_files(resources, "events", [before, path], now=NOW)
    message = str(raised.value)
    for words in ("2 of 10 rows of bad.csv", "at most 10% of the rows", "poke", "from quarantine", "import it again"):
        assert words in message
    assert len(read(resources, "from raw_events")) == 1
    assert len(read(resources, "from quarantine")) == 2
    assert len(read(resources, "from import_batches")) == 1
    (result,) = read(resources, "select gate, passed, severity, n_failed from gate_results")
    assert result == {"gate": "ingest", "passed": False, "severity": "stop", "n_failed": 2}
    (receipt,) = import_files(resources, "events", [path], now=NOW, max_quarantined_share=0.2)
    assert receipt.n_out == 8
    assert len(read(resources, "from raw_events")) == 9
    assert len(read(resources, "from quarantine")) == 2, "a second try replaces the refused rows of the first"


def test_a_type_that_was_added_to_the_settings_lets_the_file_in_again(resources, write):
    path = events_csv(write, "a.csv", *(f"u{n},i,view,2026-01-01,,," for n in range(10)), "u,i,poke,2026-01-01,,,")
    import_files(resources, "events", [path], now=NOW)
    types = {"poke": {"effect": "positive"}}
    wider = replace(resources, settings=type(resources.settings)(home=resources.home, event_types=types))
    assert isinstance(wider, LocalResources)
    (receipt,) = import_files(wider, "events", [path], now=NOW + timedelta(hours=1))
    assert (receipt.reused, receipt.n_out) == (False, 11)
    build_models(wider, now=NOW)
    assert read(wider, "select count(*) as n from stg_events") == [{"n": 11}]


def test_the_outcomes_of_several_files_of_one_run_stay_apart(resources, write):
    good = [f"u{n},i,view,2026-01-01,,," for n in range(20)]
    paths = [events_csv(write, f"{name}.csv", *good, f"{name},,view,2026-01-01,,,") for name in ("a", "b")]
    import_files(resources, "events", paths, now=NOW, run_id="r")
    rows = read(resources, "select observed from gate_results where run_id = 'r' order by observed")
    assert [row["observed"].split(":")[0] for row in rows] == ["1 of 21 rows of a.csv", "1 of 21 rows of b.csv"]


def test_an_event_may_be_a_little_ahead_of_our_clock(resources, write):
    ahead = NOW + timedelta(hours=20)
    path = events_csv(write, "ahead.csv", f"u,i,like,{ahead:%Y-%m-%dT%H:%M:%SZ},,,")
    (receipt,) = import_files(resources, "events", [path], now=NOW)
    assert receipt.n_out == 1


def test_a_file_without_rows_is_taken_and_says_so(local_resources, write):
    (receipt,) = import_files(local_resources, "items", [write("empty.csv", "item_id,title")], now=NOW)
    assert (receipt.n_in, receipt.n_out) == (0, 0)
    assert "no rows" in receipt.note
