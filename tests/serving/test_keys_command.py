"""``nearline keys`` as people and programs use it."""

import json
import re
import sys
from datetime import UTC, datetime

import pytest

import flows.cli
from infra.key_store import KeyStore


@pytest.fixture
def keys(monkeypatch, capsys, tmp_path):
    """Run ``nearline keys ...``; returns the exit code, stdout and stderr."""
    monkeypatch.setenv("NEARLINE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nearline", "keys", *arguments])
        try:
            code = flows.cli.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_a_key_is_printed_once_and_opens(keys, tmp_path):
    code, out, err = keys("create", "web shop")
    assert code == 0
    assert re.fullmatch(r"nl_[0-9a-f]{8}_[0-9a-f]{64}\n", out)
    found = KeyStore(tmp_path).find(out.strip(), datetime.now(UTC))
    assert (found.name, found.scopes) == ("web shop", {"read", "write"})
    assert found.key_id in err
    code, listed, _ = keys("list")
    assert (code, found.key_id in listed, "web shop" in listed) == (0, True, True)
    assert out.strip().split("_")[2] not in listed


def test_programs_get_json(keys):
    _, out, _ = keys("create", "operator", "--scope", "admin", "--scope", "read", "--days", "2", "--json")
    made = json.loads(out)
    assert made["scopes"] == ["admin", "read"]
    lasts = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert lasts.days == 2
    (listed,) = json.loads(keys("list", "--json")[1])
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert json.loads(keys("revoke", made["key_id"], "--json")[1])["key_id"] == made["key_id"]
    assert json.loads(keys("list", "--json")[1]) == []


@pytest.mark.parametrize("arguments", [("create", "x", "--scope", "all"), ("create", ""), ("revoke", "00000000")])
def test_what_cannot_be_is_said(keys, arguments):
    code, out, err = keys(*arguments)
    assert (code, out) == (2, "")
    assert "API key" in err


def test_without_keys_it_says_how_to_make_one(keys):
    assert "nearline keys create NAME" in keys("list")[1]
