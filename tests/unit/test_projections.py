"""Exact search over a version, and the gate it passes."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.domain.projections import (
    Projection,
    canary_recall,
    checksum,
    exact_scores,
    sample_rows,
    slate_overlap,
)
from tasks.domain.publication_gate import PublicationLimits, check_canaries, check_counts, check_projection
from tasks.domain.records import Hit, ItemPayload, UserPayload
from tasks.domain.vectors import unit_rows


def _projection(version="v1", n_items=30, n_users=12, seed=0):
    rng = np.random.default_rng(seed)
    text = unit_rows(rng.normal(size=(n_items, 4)))
    user_text = unit_rows(rng.normal(size=(n_users, 4)))
    return Projection(
        version=version,
        text_width=4,
        items=np.hstack([text, rng.normal(size=(n_items, 3))]).astype(np.float32),
        item_payloads=tuple(ItemPayload(f"i{n}", "", (), n % 7 != 0) for n in range(n_items)),
        users=np.hstack([user_text, rng.normal(size=(n_users, 3))]).astype(np.float32),
        user_payloads=tuple(UserPayload(f"u{n}", 1, 0.5, 0.1, 3) for n in range(n_users)),
        user_text=user_text.astype(np.float32),
    )


def _answer(projection, user=0, k=10):
    scores = exact_scores(projection, np.array([user]))[0]
    best = np.argsort(-scores)[:k]
    hits = [Hit(f"i{row}", float(scores[row]), projection.item_payloads[row]) for row in best]
    return scores, hits


def test_a_true_answer_has_all_and_a_wrong_one_has_not():
    projection = _projection()
    scores, hits = _answer(projection)

    assert canary_recall(projection, scores, hits) == 1.0
    assert canary_recall(projection, scores, hits[:9]) == 0.9
    assert canary_recall(projection, scores, [replace(hits[0], score=hits[0].score + 0.1), *hits[1:]]) == 0.9
    assert canary_recall(projection, scores, [replace(hits[0], item_id="stranger"), *hits[1:]]) == 0.9
    assert canary_recall(projection, scores, [hits[0]] * 10) == 0.1
    assert canary_recall(projection, scores, []) == 0.0


def test_items_that_tie_stand_for_one_another():
    projection = _projection()
    twins = replace(projection, items=np.tile(projection.items[1], (30, 1)))
    scores, _ = _answer(twins)
    other = [Hit(f"i{row}", float(scores[row]), twins.item_payloads[row]) for row in range(29, 18, -1) if row % 7]

    assert canary_recall(twins, scores, other[:10]) == pytest.approx(len(other[:10]) / 10)


def test_an_item_that_is_not_available_is_never_exact():
    projection = _projection()
    assert np.isneginf(exact_scores(projection, np.array([0]))[0][[0, 7, 14]]).all()


def test_the_sample_is_the_same_for_a_version_and_another_for_the_next():
    assert sample_rows("v1", "users", 1000, 20).tolist() == sample_rows("v1", "users", 1000, 20).tolist()
    assert sample_rows("v1", "users", 1000, 20).tolist() != sample_rows("v2", "users", 1000, 20).tolist()
    assert sample_rows("v1", "users", 5, 20).tolist() == [0, 1, 2, 3, 4]
    assert sample_rows("v1", "users", 0, 20).tolist() == []


def test_slates_of_the_same_version_are_the_same_and_others_are_not():
    projection = _projection()
    assert slate_overlap(replace(projection, version="v2"), projection) == 1.0
    assert slate_overlap(replace(projection, users=-projection.users), projection) < 0.5
    strangers = tuple(replace(payload, user_id=f"x{payload.user_id}") for payload in projection.user_payloads)
    assert slate_overlap(replace(projection, user_payloads=strangers), projection) is None


def test_a_checksum_sees_a_single_bit():
    vectors = _projection().items
    changed = vectors.copy()
    changed[3, 2] = np.nextafter(changed[3, 2], np.float32(9))
    assert checksum(vectors) == checksum(vectors.copy()) != checksum(changed)


def _failed(candidate, serving=None, n_catalog=26, limits=PublicationLimits()):  # noqa: B008 -- frozen
    return {
        (result.expectation, result.severity)
        for result in check_projection(candidate, n_catalog, serving, limits)
        if not result.passed
    }


def test_a_good_version_passes():
    assert _failed(_projection(), _projection("v0")) == set()


def test_each_fault_fails_its_check_and_says_what_to_do():
    good = _projection()
    nan = good.items.copy()
    nan[2, 5] = np.nan
    assert ("fused vectors are finite", "stop") in _failed(replace(good, items=nan))
    long = good.items * 2
    assert _failed(replace(good, items=long)) == {("text blocks have unit length, or are empty", "stop")}
    silent = good.items.copy()
    silent[:20] = 0
    assert ("items have something to be found by", "stop") in _failed(replace(good, items=silent))
    wordless = good.items.copy()
    wordless[:20, :4] = 0
    assert _failed(replace(good, items=wordless)) == {("items have a text embedding", "stop")}
    assert _failed(replace(good, items=wordless), limits=PublicationLimits(min_text_coverage=0.1)) == set()
    assert _failed(good, n_catalog=100) == {("the version holds the catalog", "stop")}
    few = replace(good, items=good.items[:10], item_payloads=good.item_payloads[:10])
    assert ("the catalog did not shrink since the serving version", "stop") in _failed(few, good, n_catalog=8)
    lost = replace(good, users=good.users[:5], user_payloads=good.user_payloads[:5], user_text=good.user_text[:5])
    assert _failed(lost, good) == {("users were not lost since the serving version", "warn")}
    for result in check_projection(replace(good, items=nan), 26, good, PublicationLimits()):
        assert result.advice


def test_a_version_without_items_fails():
    good = _projection()
    empty = replace(good, items=good.items[:0], item_payloads=())
    assert ("items have a text embedding", "stop") in _failed(empty, good)


def test_counts_and_canaries():
    assert check_counts((5, 3), (5, 4)).passed
    assert not check_counts((5, 3), (5, 2)).passed
    assert not check_counts((5, 3), (6, 3)).passed
    assert check_canaries([1.0, 0.9], 0.95).passed
    assert not check_canaries([1.0, 0.8], 0.95).passed
    assert check_canaries([], 0.95).passed
