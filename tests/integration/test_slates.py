"""Everybody's slates: the same ones that the index gives, whole, explained, replaced at once."""

import json

import pytest

import tasks.quality
import tasks.slates
from tasks.domain.errors import GateError, InputError, NotFoundError
from tasks.recommend import recommend_to_user
from tasks.refresh import refresh
from tasks.slates import write_slates


def mart(world, version="v1"):
    with world.resources.warehouse(read_only=True) as warehouse:
        sql = "select * from mart_recommendations where version = $v order by user_id, rank"
        return warehouse.read(sql, {"v": version}).to_pylist()


def test_slates_are_those_of_the_index(small_world):
    receipt = write_slates(small_world.resources, "v1", now=small_world.tick(), k=6)
    rows = mart(small_world)
    assert receipt.n_in == 30
    assert receipt.n_out == len(rows) == 30 * 6
    for user_id in ("u00", "u07", "u13", "u29"):
        own = [row for row in rows if row["user_id"] == user_id]
        slate = recommend_to_user(small_world.resources, user_id, k=6)
        assert [row["item_id"] for row in own] == [item.item_id for item in slate.items]
        assert [row["rank"] for row in own] == [1, 2, 3, 4, 5, 6]
        for row, item in zip(own, slate.items, strict=True):
            for name in ("score", "text_part", "factors_part", "prior_part"):
                assert row[name] == pytest.approx(getattr(item, name), abs=1e-4)


def test_parts_and_reasons_add_up(small_world):
    write_slates(small_world.resources, "v1", now=small_world.tick())
    for row in mart(small_world):
        assert row["text_part"] + row["factors_part"] + row["prior_part"] == pytest.approx(row["score"], abs=1e-6)
        reasons = json.loads(row["reason"])
        assert sum(r["contribution"] for r in reasons) + row["prior_part"] == pytest.approx(row["score"], abs=1e-4)
        assert len([r for r in reasons if r["kind"] != "rest"]) <= 3


def test_slates_in_chunks_are_the_same(small_world, monkeypatch):
    write_slates(small_world.resources, "v1", now=small_world.tick())
    whole = mart(small_world)
    monkeypatch.setattr(tasks.slates, "CHUNK_USERS", 7)
    monkeypatch.setattr(tasks.slates, "CHUNK_SCORES", 100)
    write_slates(small_world.resources, "v1", now=small_world.clock)
    again = mart(small_world)
    assert [(r["user_id"], r["item_id"]) for r in again] == [(r["user_id"], r["item_id"]) for r in whole]
    assert [r["score"] for r in again] == pytest.approx([r["score"] for r in whole], abs=1e-6)
    assert not (small_world.resources.home / "staging" / "mart_recommendations" / "v1").exists()


def test_a_user_without_history_gets_the_popular_items(small_world):
    small_world.add_events(small_world.event("brief", "i25", event_id="only"))
    small_world.add_events(small_world.event("brief", "i25", "retraction", event_id="only"))
    refresh(small_world.resources, now=small_world.tick())
    write_slates(small_world.resources, "v1", now=small_world.tick())
    rows = [row for row in mart(small_world) if row["user_id"] == "brief"]
    assert {row["source"] for row in rows} == {"popular"}
    assert [row["reason"] for row in rows] == ["[]"] * 10
    assert [row["item_id"] for row in rows] == [
        i.item_id for i in recommend_to_user(small_world.resources, "brief").items
    ]


def test_a_catalog_shorter_than_the_slate(small_world):
    write_slates(small_world.resources, "v1", now=small_world.tick(), k=100)
    rows = [row for row in mart(small_world) if row["user_id"] == "u01"]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    with small_world.resources.warehouse(read_only=True) as warehouse:
        met = warehouse.read("select item_id from fct_interactions where user_id = 'u01'")["item_id"].to_pylist()
    assert {row["item_id"] for row in rows} == {f"i{n:02}" for n in range(39)} - set(met)


def test_other_versions_stay(small_world):
    small_world.train("v2")
    write_slates(small_world.resources, "v1", now=small_world.tick(), k=2)
    write_slates(small_world.resources, "v2", now=small_world.tick(), k=3)
    assert len(mart(small_world, "v1")) == 60
    assert len(mart(small_world, "v2")) == 90


def test_the_gate_keeps_the_slates_that_are_there(small_world, monkeypatch):
    write_slates(small_world.resources, "v1", now=small_world.tick())
    before = mart(small_world)

    def twice_the_same(scores, k, blocked):
        top = top_items(scores, k, blocked)
        top.rows[:, 1] = top.rows[:, 0]
        return top

    top_items = tasks.slates.top_items
    monkeypatch.setattr(tasks.slates, "top_items", twice_the_same)
    with pytest.raises(GateError):
        write_slates(small_world.resources, "v1", now=small_world.tick())
    assert mart(small_world) == before


def gate_rows(world, run_id):
    with world.resources.warehouse(read_only=True) as warehouse:
        sql = "select * from gate_results where gate = 'slates' and run_id = $run_id order by expectation, column_name"
        return warehouse.read(sql, {"run_id": run_id}).to_pylist()


def test_many_chunks_leave_the_outcomes_of_one(small_world, monkeypatch):
    write_slates(small_world.resources, "v1", now=small_world.tick(), run_id="whole")
    monkeypatch.setattr(tasks.slates, "CHUNK_USERS", 7)
    write_slates(small_world.resources, "v1", now=small_world.tick(), run_id="parts")
    whole, parts = gate_rows(small_world, "whole"), gate_rows(small_world, "parts")
    assert [row["passed"] for row in parts] == [row["passed"] for row in whole] == [True] * len(whole)
    [coverage] = [row for row in parts if row["column_name"] == "missing_share"]
    assert coverage["observed"] == "0"


def test_what_one_chunk_lacks_is_not_passed_over(small_world, monkeypatch):
    monkeypatch.setattr(tasks.slates, "CHUNK_USERS", 7)

    def first_user_has_none(scores, k, blocked):
        top = top_items(scores, k, blocked)
        top.rows[0] = -1
        return top

    top_items = tasks.slates.top_items
    monkeypatch.setattr(tasks.slates, "top_items", first_user_has_none)
    write_slates(small_world.resources, "v1", now=small_world.tick(), run_id="gaps")
    [coverage] = [row for row in gate_rows(small_world, "gaps") if row["column_name"] == "missing_share"]
    assert not coverage["passed"]
    assert float(coverage["observed"]) == pytest.approx(5 / 30, abs=1e-3)


def test_bad_requests(small_world):
    with pytest.raises(InputError, match="from 1 to 500"):
        write_slates(small_world.resources, "v1", now=small_world.tick(), k=0)
    with pytest.raises(NotFoundError, match="v9"):
        write_slates(small_world.resources, "v9", now=small_world.tick())
