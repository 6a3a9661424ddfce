"""NAME=VALUE on the command line."""

import pytest

from flows.parameters import pairs_from_options, parse_parameters
from tasks.domain.errors import InputError


def test_json_is_taken_as_such_and_anything_else_as_text():
    pairs = ["force_retrain=true", "slate_length=5", "version=v20260101T000000Z", "from_date=2026-01-01", "note=a=b"]
    assert parse_parameters(pairs) == {
        "force_retrain": True,
        "slate_length": 5,
        "version": "v20260101T000000Z",
        "from_date": "2026-01-01",
        "note": "a=b",
    }


def test_lists_collect_their_values_and_keep_ids_as_text():
    assert parse_parameters(["users=7", "users=007"]) == {"users": ["7", "007"]}
    assert parse_parameters(['users=["7", "8"]']) == {"users": ["7", "8"]}


def test_a_file_becomes_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    assert parse_parameters(["events=a.csv", "events=not-there.csv"]) == {
        "events": [str(tmp_path / "a.csv"), "not-there.csv"]
    }


@pytest.mark.parametrize(
    ("pairs", "message"), [(["force_retrain"], "NAME=VALUE"), (["=1"], "NAME=VALUE"), (["k=1", "k=2"], "given twice")]
)
def test_what_cannot_be_understood_is_refused(pairs, message):
    with pytest.raises(InputError, match=message):
        parse_parameters(pairs)


def test_options_are_parameters_of_the_same_name():
    options = ["--minutes", "10", "--max-trials=5", "--force-retrain", "--users", "7", "--users", "8", "--flag"]
    pairs = pairs_from_options(options)
    assert pairs == ["minutes=10", "max_trials=5", "force_retrain=true", "users=7", "users=8", "flag=true"]
    assert parse_parameters(pairs)["users"] == ["7", "8"]
    assert pairs_from_options([]) == []


@pytest.mark.parametrize("options", [["10"], ["--minutes", "10", "20"], ["-x"]])
def test_a_value_without_a_name_is_refused(options):
    with pytest.raises(InputError, match="belongs to no parameter"):
        pairs_from_options(options)
