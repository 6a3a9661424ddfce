"""Item neighbours from the warehouse to a slate."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from tasks.domain.errors import GateError, InputError, NotFoundError
from tasks.domain.neighbours import fit_neighbours, score_by_neighbours
from tasks.domain.profiles import weigh_recency
from tasks.model_state import load_histories, load_item_space, load_version
from tasks.neighbours import write_neighbours
from tasks.quality import check_gate
from tasks.recommend import recommend_to_user


@pytest.fixture
def world(small_world):
    write_neighbours(small_world.resources, "v1")
    return small_world


def read(world, sql, **parameters):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql, parameters).to_pylist()


def ask(world, user_id, **options):
    return recommend_to_user(world.resources, user_id, method="neighbours", **options)


def check_train(world):
    return check_gate(world.resources, "train", run_id="r", now=world.tick(), version="v1")


def test_the_table_holds_the_neighbours_of_everybodys_likes(world):
    with world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, "v1"), load_item_space(warehouse, "v1")
        histories, _ = load_histories(warehouse, model, items, model.training_snapshot)
    found = fit_neighbours(histories.interactions)
    rows = read(world, "from item_neighbours order by item_id, rank")
    assert len(rows) == found.strengths.nnz > 100
    for row in rows:
        cell = items.index[row["neighbour_id"]], items.index[row["item_id"]]
        assert row["strength"] == pytest.approx(found.strengths[cell], abs=1e-6)
        assert row["n_shared"] == found.n_shared[cell]
    for before, after in pairwise(rows):
        if before["item_id"] == after["item_id"]:
            assert after["rank"] == before["rank"] + 1
            assert after["strength"] <= before["strength"]
        else:
            assert after["rank"] == 1


def test_writing_twice_gives_the_same_rows(world):
    before = read(world, "from item_neighbours order by item_id, rank")
    receipt = write_neighbours(world.resources, "v1")
    assert read(world, "from item_neighbours order by item_id, rank") == before
    assert (receipt.stage, receipt.n_in, receipt.n_out, receipt.version) == ("neighbours", 40, len(before), "v1")


def test_what_came_after_the_training_changes_nothing(world):
    before = read(world, "from item_neighbours order by item_id, rank")
    world.add_events(*(world.event(f"late{n}", item) for n in range(9) for item in ("i00", "i30")))
    write_neighbours(world.resources, "v1")
    assert read(world, "from item_neighbours order by item_id, rank") == before


def test_a_slate_is_exact_and_leaves_out_what_was_met_or_is_not_available(world):
    with world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, "v1"), load_item_space(warehouse, "v1")
        users = [f"u{n:02}" for n in range(30)]
        histories, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot(), users)
    strengths = fit_neighbours(histories.interactions).strengths
    scores = score_by_neighbours(weigh_recency(histories, items, model.recipe)[0].interactions, strengths).toarray()
    for number, user_id in enumerate(users[:6]):
        slate = ask(world, user_id, k=40)
        met = {items.item_ids[row] for row in histories.interactions[number].indices}
        open_ids = [item for item in items.item_ids if item not in met | {"i39"} and scores[number, items.index[item]]]
        expected = sorted(open_ids, key=lambda item: (-scores[number, items.index[item]], item))
        assert [item.item_id for item in slate.items] == expected
        assert [item.score for item in slate.items] == pytest.approx(
            [scores[number, items.index[item]] for item in expected], abs=1e-5
        )
        assert (slate.version, slate.source, slate.user_id) == ("v1", "neighbours", user_id)


@pytest.mark.parametrize("user_id", ["u00", "u07", "u20"])
def test_the_reasons_are_the_neighbours_in_the_history_and_add_up(world, user_id):
    slate = ask(world, user_id, explain=True)
    liked = read(world, "select item_id from fct_interactions where user_id = $u and weight > 0", u=user_id)
    pairs = {(row["item_id"], row["neighbour_id"]) for row in read(world, "from item_neighbours")}
    assert slate.items
    assert slate.n_history == len(liked)
    for item in slate.items:
        assert item.neighbours_part == item.score
        assert (item.text_part, item.factors_part, item.prior_part) == (0, 0, 0)
        assert sum(because.contribution for because in item.because) == pytest.approx(item.score, abs=1e-5)
        assert sum(because.share for because in item.because) == pytest.approx(1, abs=1e-5)
        named = [because for because in item.because if because.kind == "item"]
        assert named and all((item.item_id, because.item_id) in pairs for because in named)
        assert {because.item_id for because in named} <= {row["item_id"] for row in liked}
        assert all(because.label.startswith("The ") for because in named)
    plain = ask(world, user_id)
    assert [item.item_id for item in plain.items] == [item.item_id for item in slate.items]
    assert all(item.because == () for item in plain.items)


def test_a_like_counts_at_once_and_a_short_slate_says_so(world):
    world.add_events(world.event("new", "i20"))
    slate = ask(world, "new", k=40, explain=True)
    assert slate.source == "neighbours"
    assert f"only {len(slate.items)} items" in slate.note
    assert all([because.item_id for because in item.because] == ["i20"] for item in slate.items)


@pytest.mark.parametrize("events", [[], [("i05", "dislike")], [("i37", "like")]])
def test_without_a_neighbour_in_the_history_the_slate_is_the_fused_one_and_says_so(world, events):
    """Nobody; somebody who only dislikes; and somebody who likes what nobody else does."""
    world.add_events(*(world.event("new", item, kind) for item, kind in events))
    slate = ask(world, "new")
    fused = recommend_to_user(world.resources, "new")
    assert slate.items == fused.items
    assert slate.source == fused.source != "neighbours"
    assert slate.note.startswith("nothing that this user liked has a neighbour")
    assert fused.note in slate.note


def test_a_version_without_neighbours_says_what_to_do(small_world):
    with pytest.raises(NotFoundError, match=r"v1 has none.*force_retrain"):
        ask(small_world, "u01")


def test_bad_questions_are_refused(world):
    with pytest.raises(InputError, match=r"'magic'.*fused, neighbours"):
        recommend_to_user(world.resources, "u01", method="magic")
    with pytest.raises(InputError, match="from 1 to 500"):
        ask(world, "u01", k=0)
    with pytest.raises(NotFoundError, match="'v9' does not exist"):
        write_neighbours(world.resources, "v9")


def test_the_gate_passes_what_was_written(world):
    results = [result for result in check_train(world) if result.table == "item_neighbours"]
    assert len(results) == 3
    assert all(result.passed for result in results)


@pytest.mark.parametrize(
    "changes",
    [{"strength": -0.5}, {"strength": np.nan}, {"neighbour_id": "i00"}, {"neighbour_id": "no/such"}, {"n_shared": 0}],
)
def test_the_gate_stops_what_is_no_neighbour(world, changes):
    row = {"version": "v1", "item_id": "i00", "rank": 99, "neighbour_id": "i37", "strength": 0.1, "n_shared": 1}
    rows = pa.Table.from_pylist([row | changes])
    with world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.append("item_neighbours", rows))
    with pytest.raises(GateError, match="n_wrong"):
        check_train(world)


def test_the_gate_stops_a_neighbour_that_stands_there_twice(world):
    rows = pa.Table.from_pylist([read(world, "from item_neighbours where rank = 1 limit 1")[0] | {"rank": 99}])
    with world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.append("item_neighbours", rows))
    with pytest.raises(GateError, match="n_repeated"):
        check_train(world)


def test_the_gate_warns_where_neighbours_are_missing(small_world):
    results = [result for result in check_train(small_world) if result.table == "item_neighbours"]
    assert [(result.passed, result.severity) for result in results] == [(True, "stop"), (True, "stop"), (False, "warn")]
