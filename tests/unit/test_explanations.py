import json

import numpy as np
import pytest
from scipy import sparse

from tasks.domain.explanations import name_reasons, phrase_reasons, reasons_to_json, split_by_reason
from tasks.domain.factor_model import FactorParameters, ItemWeights
from tasks.domain.fusion import Bucket, Fusion, fuse_items, fuse_queries, split_scores
from tasks.domain.profiles import Histories, ItemSpace, Recipe, compute_profiles
from tasks.domain.records import Because, Recommendation

N_ITEMS, TEXT_WIDTH, N_FACTORS = 12, 6, 4


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def items():
    rng = np.random.default_rng(1)
    text = unit(rng.normal(size=(N_ITEMS, TEXT_WIDTH)))
    text[3] = 0  # an item with no text
    return ItemSpace(
        item_ids=tuple(f"i{row:02}" for row in range(N_ITEMS)),
        text=text,
        factors=rng.normal(size=(N_ITEMS, N_FACTORS)).astype(np.float32),
        prior=rng.random(N_ITEMS).astype(np.float32),
        text_map=rng.normal(size=(TEXT_WIDTH, N_FACTORS)).astype(np.float32),
        weights=ItemWeights(*rng.random((2, N_ITEMS)).astype(np.float32)),
    )


@pytest.fixture
def recipe():
    fusion = Fusion(1.7, (Bucket(0, 0.2, 0.5), Bucket(3, 0.4, 0.1)), Bucket(0, 0.9, 0.05), 0.5, 2.0)
    return Recipe(FactorParameters(n_factors=N_FACTORS), fusion, 2.0, 20.0, 365.0, ())


@pytest.fixture
def histories():
    """Four users: likes, seen and disliked; likes and texts; one text alone; nothing."""
    weights = np.array([1, 0.5, 0, -1, 1, 0.25], np.float32)
    columns, indptr = np.array([0, 3, 5, 8, 2, 7]), np.array([0, 4, 6, 6, 6])
    ages = np.array([2, 0, 3, 1, 0, 1], np.float32)
    return Histories(
        user_ids=("a", "b", "c", "d"),
        interactions=sparse.csr_matrix((weights, columns, indptr), shape=(4, N_ITEMS)),
        ages=sparse.csr_matrix((ages, columns, indptr), shape=(4, N_ITEMS)),
        texts=unit(np.random.default_rng(2).normal(size=(4, TEXT_WIDTH))),
        text_user=np.array([1, 1, 1, 2]),
        text_weight=np.array([1, 1, 0.5, 1], np.float32),
        text_age=np.array([2, 0, 0, 0], np.float32),
        text_labels=("noir", "crime", "noir", "space opera"),
    )


def test_reasons_add_up_to_the_text_and_the_factors_part(histories, items, recipe):
    profiles = compute_profiles(histories, items, recipe)
    queries = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, recipe.fusion)
    stored = fuse_items(items.text, items.factors, items.prior, recipe.fusion)
    parts = split_scores(queries, stored, TEXT_WIDTH)
    targets = [np.array([1, 9, 3]), np.array([0, 11]), np.array([4]), np.array([4])]
    splits = list(split_by_reason(histories, profiles, items, recipe, targets))
    for user, split in enumerate(splits):
        expected = (parts.text + parts.factors)[user, targets[user]]
        assert split.values.sum(axis=0) == pytest.approx(expected, abs=1e-5)
    assert np.abs(splits[0].values).max() > 0.05


def test_seen_and_disliked_items_add_nothing_of_their_own(histories, items, recipe):
    profiles = compute_profiles(histories, items, recipe)
    split = next(split_by_reason(histories, profiles, items, recipe, [np.array([1])]))
    assert split.item_rows.tolist() == [0, 3, 5, 8]
    assert split.values[2:].tolist() == [[0], [0]]


def test_a_text_written_twice_is_one_reason(histories, items, recipe):
    profiles = compute_profiles(histories, items, recipe)
    _, split, *_ = split_by_reason(histories, profiles, items, recipe, [np.array([1])] * 4)
    assert split.text_labels == ("noir", "crime")
    assert split.values.shape == (4, 1)


def test_named_reasons_and_the_rest_add_up(histories, items, recipe):
    profiles = compute_profiles(histories, items, recipe)
    _, split, *_ = split_by_reason(histories, profiles, items, recipe, [np.array([9])] * 4)
    score = float(split.values.sum()) + 3
    reasons = name_reasons(split, 0, score, items.item_ids, {"i02": "Heat"}, limit=2)
    assert len(reasons) == 3
    assert reasons[-1].kind == "rest"
    assert reasons[-1].label == "2 more"
    assert abs(reasons[0].contribution) >= abs(reasons[1].contribution)
    assert sum(r.contribution for r in reasons) + 3 == pytest.approx(score)
    assert sum(r.share for r in reasons) + 3 / score == pytest.approx(1)


def test_items_are_called_by_title_else_by_id(histories, items, recipe):
    profiles = compute_profiles(histories, items, recipe)
    split = next(split_by_reason(histories, profiles, items, recipe, [np.array([9])]))
    reasons = name_reasons(split, 0, 1.0, items.item_ids, {"i00": "Heat", "i03": ""}, limit=5)
    assert {r.item_id: r.label for r in reasons} == {"i00": "Heat", "i03": "i03"}


def test_shares_keep_their_sign_when_the_score_is_negative(histories, items, recipe):
    profiles = compute_profiles(histories, items, recipe)
    split = next(split_by_reason(histories, profiles, items, recipe, [np.array([9])]))
    for reason in name_reasons(split, 0, -0.5, items.item_ids, {}, limit=5):
        assert reason.share == pytest.approx(reason.contribution / 0.5)
    assert all(r.share == 0 for r in name_reasons(split, 0, 0.0, items.item_ids, {}, limit=5))


def explained(*because, prior=0.0, score=1.0):
    return Recommendation("x", "X", 1, score, score - prior, 0.0, prior, because)


HEAT, ALIEN = Because("item", "Heat", 0.41, "1"), Because("item", "Alien", 0.22, "2")
WORDS, AGAINST = Because("text", "crime drama", 0.3), Because("item", "Babe", -0.15, "3")
REST = Because("rest", "9 more", 0.9)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (explained(ALIEN, HEAT, REST), "Because of Heat (41%) and Alien (22%)"),
        (explained(HEAT, WORDS, ALIEN), 'Because of Heat (41%) and your words "crime drama" (30%)'),
        (explained(HEAT, AGAINST), "Because of Heat (41%), in spite of Babe (−15%)"),
        (explained(HEAT, prior=0.5), "Because of its popularity (50%) and Heat (41%)"),
        (explained(HEAT, prior=0.1), "Because of Heat (41%)"),
        (explained(prior=0.5, score=0.5), "Because of its popularity"),
        (explained(AGAINST), ""),
        (explained(), ""),
    ],
)
def test_phrase(item, sentence):
    assert phrase_reasons(item) == sentence


def test_reasons_as_json():
    stored = json.loads(reasons_to_json([Because("item", "Alien³ <b>", 0.123456, "2", 0.0123456789)]))
    assert stored == [
        {"kind": "item", "label": "Alien³ <b>", "share": 0.1235, "item_id": "2", "contribution": 0.012346}
    ]
