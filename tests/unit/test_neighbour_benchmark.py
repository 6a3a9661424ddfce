"""The benchmark of item neighbours: what they are compared with, and that every part of the program runs."""

import json

import numpy as np
import pytest
from scipy import sparse

from benchmarks import neighbours
from benchmarks.support.full_ranking import CUTOFF, measure_ranking, rank_items
from benchmarks.support.generated_data import generate_interactions
from benchmarks.support.interaction_files import hold_out
from benchmarks.support.neighbour_rankings import (
    cosine_strengths,
    ease_strengths,
    measure_gains,
    rank_by_neighbours,
    rank_by_popularity,
)
from tasks.domain.learning import UNLEARNED
from tasks.domain.neighbours import NeighbourParameters, fit_neighbours
from tasks.domain.splits import split_user_tail
from tasks.training_inputs import build_draft, load_inputs


@pytest.fixture(scope="module")
def parts():
    return hold_out(generate_interactions(3000, seed=1), 0.2, seed=0)


def test_cosines_are_those_by_which_neighbours_are_chosen(parts):
    train = parts[0]
    found = cosine_strengths(train, NeighbourParameters(n_neighbours=10_000)).toarray()
    weighted = train.toarray() / np.maximum(np.diff(train.indptr), 1)[:, None] ** 0.25
    norms = np.maximum(np.linalg.norm(weighted, axis=0), 1e-12)
    shared = (train.T @ train).toarray()
    expected = weighted.T @ weighted / np.outer(norms, norms) * shared / (shared + 5)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_all_on_all_is_the_same_regression_with_every_item_as_a_neighbour():
    rng = np.random.default_rng(3)
    likes = sparse.csr_matrix((rng.random((40, 8)) < 0.5).astype(np.float32))
    ours = fit_neighbours(likes, NeighbourParameters(n_neighbours=7, regularization=4.0, frequency_exponent=0.0))
    np.testing.assert_allclose(ours.strengths.toarray(), np.maximum(ease_strengths(likes, 4.0), 0), atol=1e-6)


def test_gains_are_those_of_the_other_benchmarks(parts):
    train, test = parts
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, 4)).astype(np.float32) for n in train.shape)
    who = np.flatnonzero(np.diff(test.indptr))
    gains = measure_gains(rank_items(users[who], items, train[who], CUTOFF), test[who])
    quality = measure_ranking(users, items, train, test)
    assert (gains.recall.mean(), gains.ndcg.mean()) == pytest.approx((quality.recall_at_20, quality.ndcg_at_20))


def test_rankings_leave_out_what_is_known(parts):
    train = parts[0]
    users = np.arange(train.shape[0])
    for best in (rank_by_neighbours(train, fit_neighbours(train).strengths, users), rank_by_popularity(train, users)):
        assert best.shape == (len(users), CUTOFF)
        for user in users:
            assert not set(best[user]) & set(train[user].indices)


def test_files_and_choices_are_measured(parts):
    found = dict(neighbours.measure_files(*parts, [4], 1))
    assert found["all: neighbours, recall_at_20"].value > found["all: popularity, recall_at_20"].value
    assert "all: neighbours minus 4 factors, ndcg_at_20" in found
    chosen = dict(neighbours.file_choices(*parts, 1))
    assert {f"{name}, ndcg_at_20" for name in (*neighbours.CHOICES, neighbours.COSINES)} <= set(chosen)


def test_a_home_is_measured(small_world):
    resources = small_world.resources
    draft, encoder = build_draft(resources, UNLEARNED), resources.encoder()
    with resources.warehouse(read_only=True) as warehouse:
        inputs = load_inputs(warehouse, draft, warehouse.latest_snapshot(), encoder.encoder_id, encoder.width)
    found = dict(neighbours.measure_split(inputs, draft, "user_tail", 1))
    assert found["neighbours, ndcg_at_10"].n_users == found["neighbours minus factors, ndcg_at_10"].n_users > 0
    split = split_user_tail(inputs.log, inputs.texts)
    assert set(neighbours.CHOICES) <= set(dict(neighbours.home_choices(split, inputs, draft)))
    alike = dict(neighbours.likeness(split, inputs, draft))
    assert alike["both minus factors"].value == pytest.approx(alike["both"].value - alike["factors"].value)


def test_the_last_line_is_one_json_object(monkeypatch, capsys):
    monkeypatch.setattr(neighbours, "_sections", lambda arguments: [("a", iter([("b", 0.12345), ("c", NOBODY)]))])
    neighbours.main(["--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["a"] == {"b": 0.123, "c": {"value": 0.0, "low": 0.0, "high": 0.0, "n_users": 0}}


NOBODY = neighbours.Measured(0.0, 0.0, 0.0, 0)
