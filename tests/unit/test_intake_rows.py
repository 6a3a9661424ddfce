"""JSON objects as text, and the window that knows repeated rows."""

import json

import pytest

from tasks.domain.json_rows import row_json, rows_as_columns
from tasks.domain.recent_rows import RecentRows, RowKey, row_digest


def text_of(kind, row):
    """The one row as text by column, without what is empty."""
    found = rows_as_columns(kind, [row])
    assert found.faults == [None]
    return {name: values[0] for name, values in found.columns.items() if values[0] is not None}


def fault_of(kind, row):
    found = rows_as_columns(kind, [row])
    assert all(values == [None] for values in found.columns.values())
    return found.faults[0]


def test_values_keep_their_meaning():
    event = {"event_id": 7, "user_id": "007", "item_id": 10**20, "occurred_at": 1767225600.5, "value": 4, "text": None}
    assert text_of("events", event) == {
        "event_id": "7", "user_id": "007", "item_id": str(10**20), "occurred_at": "1767225600.5", "value": "4",
    }  # fmt: skip
    item = {"item_id": "1", "title": "Ü", "available": False, "categories": ["a|b", 2], "attributes": {"a": [1]}}
    assert text_of("items", item) == {
        "item_id": "1", "title": "Ü", "available": "false", "categories": '["a|b", 2]', "attributes": '{"a": [1]}',
    }  # fmt: skip


def test_fields_that_are_not_read_are_passed_over():
    assert text_of("users", {"user_id": "1", "colour": {"of": ["the", "sea"]}}) == {"user_id": "1"}


@pytest.mark.parametrize(
    ("kind", "row", "word"),
    [
        ("events", 3, "a whole number; give an object"),
        ("events", None, "the row is null"),
        ("events", [], "a list"),
        ("events", {"user_id": ["1"]}, "user_id is a list"),
        ("events", {"user_id": 7.0}, "user_id is a number with decimals"),
        ("events", {"user_id": True}, "user_id is true or false"),
        ("events", {"user_id": "1", "value": {"stars": 4}}, "value is an object"),
        ("events", {"user_id": "1", "value": True}, "value is true or false"),
        ("events", {"user_id": "1", "occurred_at": False}, "occurred_at is true or false"),
        ("events", {"user_id": "\ud800"}, "half a character"),
        ("events", {"user_id": "1", "value": 10**5000}, "too large"),
        ("items", {"item_id": "1", "available": False}, "title is missing"),
        ("items", {"item_id": "1", "title": "t", "categories": {"a": 1}}, "categories is an object"),
        ("items", {"item_id": "1", "title": "t", "categories": [["a"]]}, "categories hold a list"),
        ("items", {"item_id": "1", "title": "t", "attributes": [1]}, "attributes is a list"),
        ("users", {"user_id": "1", "attributes": {"a": "\ud800"}}, "half a character"),
        ("users", {"user_id": b"1"}, "a bytes"),
    ],
)
def test_a_row_that_is_no_text_says_why(kind, row, word):
    assert word in fault_of(kind, row)


def test_nesting_that_nothing_can_write_is_a_fault_of_its_row():
    deep = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert "nested too deeply" in fault_of("users", {"user_id": "1", "attributes": deep})
    assert "cannot be written" in row_json({"user_id": "1", "attributes": deep})


@pytest.mark.parametrize("row", [{"a": "\ud800 \x00 ü"}, 3, [1, {"a": 2}], "text", None, {"a": float("nan")}])
def test_every_refused_row_is_one_json_object_that_can_be_stored(row):
    text = row_json(row)
    assert "\x00" not in text
    assert text.encode()
    assert isinstance(json.loads(text), dict)


A, B, C = (RowKey(row_digest((name,))) for name in "ABC")


def test_a_late_retry_of_what_was_corrected_is_a_repeat():
    recent = RecentRows(10)
    assert recent.find_repeats([A, B, A, A]) == [False, False, True, True]
    recent.remember([A, B])
    assert recent.find_repeats([A, C, B]) == [True, False, True]
    assert recent.find_repeats([C]) == [False]  # looking alone remembers nothing


def test_a_state_may_come_back_unless_its_time_says_that_it_is_the_same():
    on, off = (RowKey(row_digest((name,)), "item", is_dated=False) for name in ("on", "off"))
    recent = RecentRows(10)
    assert recent.find_repeats([on, on, off, off, on]) == [False, True, False, True, False]
    recent.remember([on, off])
    assert recent.find_repeats([off, on]) == [True, False]
    dated_on, dated_off = (RowKey(row_digest((name, "at")), "item") for name in ("on", "off"))
    recent.remember([dated_on, dated_off])
    assert recent.find_repeats([dated_on, off, dated_off]) == [True, False, True]


def test_the_window_forgets_its_oldest_rows():
    recent = RecentRows(2)
    recent.remember([A, B, C])
    assert len(recent) == 2
    assert recent.find_repeats([A]) == [False]
    assert recent.find_repeats([B, C]) == [True, True]


def test_digests_differ_where_values_do():
    pairs = [((-1.0,), (-2.0,)), (("1",), (1,)), (("a", None), ("a", "None")), (("ab", "c"), ("a", "bc"))]
    for one, other in pairs:
        assert row_digest(one) != row_digest(other)
