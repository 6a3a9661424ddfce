"""Strange values through both ways in, as lines of a file and over HTTP: kept as they are, or refused by name."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from infra.key_store import KeyStore
from infra.resources import LocalResources
from infra.settings import ServiceSettings, load_settings
from serving.app import create_app
from tasks.ingest import import_files
from tasks.online.service import OnlineOptions, OnlineService

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG = "x" * 100_000
HALF = "the line is not a JSON object of whole characters"
LOST = "an id holds the character U+FFFD"
NUL = "a value holds the character NUL"

REFUSED_EVENTS = {
    "a future time": ('{"occurred_at": "2099-01-01"}', "occurred_at lies in the future"),
    "an endless time": ('{"occurred_at": 1e300}', "occurred_at is not a time"),
    "an infinite value": ('{"value": 1e999}', "value is NaN or infinite"),
    "infinity as text": ('{"value": "-Infinity"}', "value is NaN or infinite"),
    "NaN": ('{"value": NaN}', "value is NaN or infinite"),
    "text for a number": ('{"value": "four"}', "value is not a number"),
    "a list for a number": ('{"value": [4]}', "value is a list; give a number"),
    "an object for a text": ('{"text": {"a": 1}}', "text is an object; give text"),
    "a fraction for an id": ('{"user_id": 7.0}', "user_id is a number with decimals; give text or a whole number"),
    "true for an id": ('{"user_id": true}', "user_id is true or false; give text or a whole number"),
    "a list for an id": ('{"item_id": ["i1"]}', "item_id is a list; give text or a whole number"),
    "NUL in an id": ('{"item_id": "i\\u0000"}', NUL),
}
REFUSED_ITEMS = {
    "NUL in a title": ('{"item_id": "nul", "title": "a\\u0000b"}', NUL, NUL),
    "half a character in an id": ('{"item_id": "\\ud800", "title": "t"}', HALF, LOST),
    "a character that was lost from an id": ('{"item_id": "Jos\ufffd", "title": "t"}', LOST, LOST),
    "a list for a title": ('{"item_id": "list", "title": ["a"]}', "title is a list", "title is a list"),
}
TITLES = {
    "long": LONG,
    "emoji": "\U0001f3ac 👩‍👩‍👧",  # one of several characters that are joined
    "right to left": "\u202eשלום עולם مرحبا",
    "controls": "a\x01\x1b[31m\x7f\u2028b",
    "7": "a whole number as an id",
}
CUT = '{"item_id": "cut", "title": "cut \\ud83d"}'


@dataclass
class Taken:
    """What one way in made of all the rows: reasons by the position of the row, and what is stored."""

    resources: LocalResources
    event_reasons: dict[int, str]
    item_reasons: dict[int, str]

    def read(self, sql):
        with self.resources.warehouse(read_only=True) as warehouse:
            return warehouse.read(sql).to_pylist()


def event(written):
    """A like by ``u`` with what was written over it, as text: some of it no JSON library would write."""
    more = ", ".join(f'"{name}": "{value}"' for name, value in _DEFAULTS.items() if f'"{name}"' not in written)
    return f"{written[:-1]}, {more}}}"


_DEFAULTS = {"user_id": "u", "item_id": "i1", "event_type": "rating", "occurred_at": "2026-01-01", "value": "4"}
EVENTS = [
    event('{"user_id": "first"}'),
    *(event(row) for row, *_ in REFUSED_EVENTS.values()),
    event('{"text": "last"}'),
]
ITEMS = [
    *(json.dumps({"item_id": int(name) if name.isdigit() else name, "title": title}) for name, title in TITLES.items()),
    *(row for row, *_ in REFUSED_ITEMS.values()),
    CUT,
]


@pytest.fixture(scope="module")
def from_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    resources = LocalResources(load_settings(home=folder / "var"))
    for kind, lines in (("events", EVENTS), ("items", ITEMS)):
        (folder / f"{kind}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        import_files(resources, kind, [folder / f"{kind}.jsonl"], now=NOW, max_quarantined_share=0.9)
    taken = Taken(resources, {}, {})
    for row in taken.read("select table_name, source_row, reason from quarantine"):
        reasons = taken.event_reasons if row["table_name"] == "raw_events" else taken.item_reasons
        reasons[row["source_row"] - 1] = row["reason"]
    return taken


@pytest.fixture(scope="module")
def over_http(tmp_path_factory):
    home = tmp_path_factory.mktemp("http") / "var"
    resources, keys = LocalResources(load_settings(home=home)), KeyStore(home)
    _, key = keys.create("shop", ["write"], now=NOW)
    with (
        OnlineService(resources, OnlineOptions(follow_seconds=60.0, commit_seconds=0.0), lambda: NOW) as service,
        TestClient(create_app(service, settings=ServiceSettings(), keys=keys), headers={"X-API-Key": key}) as client,
    ):
        answers = [
            client.post(f"/v1/{kind}", content=f"[{','.join(rows)}]".encode())
            for kind, rows in (("events", EVENTS), ("items", ITEMS))
        ]
    assert [answer.status_code for answer in answers] == [200, 200]
    rejected = [{row["index"]: row["reason"] for row in answer.json()["rejected"]} for answer in answers]
    return Taken(resources, *rejected)


@pytest.fixture(params=["from_file", "over_http"])
def taken(request):
    """Both ways in, one after the other."""
    return request.getfixturevalue(request.param)


def test_strange_values_of_events_are_refused_by_name(taken):
    expected = {place: reason for place, (_, reason) in enumerate(REFUSED_EVENTS.values(), start=1)}
    assert taken.event_reasons.keys() == expected.keys()
    for place, reason in expected.items():
        assert taken.event_reasons[place].startswith(reason), EVENTS[place]


def test_the_good_events_among_them_are_taken(taken):
    rows = taken.read("select user_id, text from raw_events order by source_row")
    assert rows == [{"user_id": "first", "text": None}, {"user_id": "u", "text": "last"}]


@pytest.mark.parametrize("way", ["from_file", "over_http"])
def test_damaged_texts_are_refused(request, way):
    taken = request.getfixturevalue(way)
    column = 1 if way == "from_file" else 2
    for place, case in enumerate(REFUSED_ITEMS.values(), start=len(TITLES)):
        assert taken.item_reasons[place].startswith(case[column]), ITEMS[place]


def test_long_foreign_and_odd_titles_stay_as_they_came(taken):
    rows = {row["item_id"]: row["title"] for row in taken.read("select item_id, title from raw_items")}
    rows.pop("cut", None)
    assert rows == TITLES


def test_a_title_cut_within_a_character(from_file, over_http):
    assert from_file.item_reasons[len(ITEMS) - 1].startswith(HALF)
    assert over_http.read("select title from raw_items where item_id = 'cut'") == [{"title": "cut \ufffd"}]


def test_what_was_refused_is_kept_whole(taken):
    rows = taken.read("select row_json from quarantine")
    assert len(rows) == len(taken.event_reasons) + len(taken.item_reasons)
    assert all(isinstance(json.loads(row["row_json"]), dict) for row in rows)


def test_a_clock_that_goes_back_does_not_undo_corrections_of_files(tmp_path):
    resources = LocalResources(load_settings(home=tmp_path / "var"))
    for n in range(3):
        path = tmp_path / f"{n}.jsonl"
        path.write_text(event(f'{{"event_id": "e", "value": {n}}}'))
        import_files(resources, "events", [path], now=NOW - timedelta(hours=n))
    with resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read("select value from raw_events order by ingested_at").to_pylist()
    assert [row["value"] for row in rows] == [0.0, 1.0, 2.0]
