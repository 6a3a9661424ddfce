"""What becomes of an item that came, and what it changes for users who have not met it."""

from datetime import UTC, datetime

import numpy as np
import pytest
from scipy import sparse

from tasks.domain.arrivals import NO_TEXT, ArrivedItem, check_arrivals, choose_texts, text_hash
from tasks.domain.factor_model import FactorParameters, weigh_items
from tasks.domain.factors import fit_factors
from tasks.domain.fold_in import FixedItems, fold_in
from tasks.domain.item_fit import fit_without_history
from tasks.domain.vectors import unit_rows

PARAMETERS = FactorParameters(
    n_factors=12, regularization=0.05, unobserved_weight=0.1, popularity_discount=0.4, text_prior=0.7, n_sweeps=6
)


def item(item_id="a", text="something", **changes):
    row = {
        "item_id": item_id, "title": item_id, "categories": [], "attributes": None, "available": True,
        "first_seen_at": datetime(2026, 3, 1, tzinfo=UTC), "text": text, "content_hash": f"hash of {text}",
        "template_version": "v1", "held_hash": None, "is_added": False, "is_embedded": False,
    }  # fmt: skip
    return ArrivedItem(**{**row, **changes})


def likes(n_users=200, n_items=60, seed=3):
    rng = np.random.default_rng(seed)
    matrix = sparse.random(n_users, n_items, 0.15, format="csr", random_state=rng, dtype=np.float32)
    matrix.data[:] = rng.choice([1, 1, 2, -1], matrix.nnz)
    return matrix, unit_rows(rng.standard_normal((n_items, 16))).astype(np.float32)


def test_a_new_item_gets_what_the_fit_gives_an_item_that_has_just_come():
    matrix, text = likes()
    rng = np.random.default_rng(4)
    beside = sparse.csr_matrix(0.3 * (rng.random((61, 5)) < 0.4), dtype=np.float32)
    texts = np.vstack([text, unit_rows(rng.standard_normal((1, 16)))]).astype(np.float32)
    features = np.hstack([texts, beside.toarray()]).astype(np.float32)
    opportunity = np.r_[np.ones(60), 0].astype(np.float32)
    wide = sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(200, 61))
    fit = fit_factors(wide, features, PARAMETERS, opportunity=opportunity)
    maps = fit.item_map[:16], fit.item_map[16:]
    found = fit_without_history(texts[-1:], beside[-1:], *maps, PARAMETERS)
    assert np.abs(fit.items[-1]).max() > 0.01
    np.testing.assert_allclose(found, fit.items[-1:], atol=1e-5)
    without = fit_without_history(texts[-1:], None, maps[0], None, PARAMETERS)
    assert np.abs(without - found).max() > 1e-3


def test_without_a_text_prior_or_text_nothing_is_known():
    text = np.eye(3, dtype=np.float32)
    text_map = np.ones((3, 4), np.float32)
    assert not fit_without_history(text, None, text_map, None, FactorParameters(text_prior=0)).any()
    assert not fit_without_history(0 * text, None, text_map, None, FactorParameters()).any()


def test_added_items_change_no_bit_for_users_who_have_not_met_them():
    matrix, text = likes()
    fit = fit_factors(matrix, text, PARAMETERS)
    n_likes = np.asarray((matrix > 0).sum(axis=0)).ravel()
    before = FixedItems(fit.items, weigh_items(n_likes, PARAMETERS), PARAMETERS)
    place = np.sort(np.random.default_rng(6).choice(90, 60, replace=False))
    n_wide, factors = np.zeros(90, np.int64), np.ones((90, 12), np.float32)
    n_wide[place], factors[place] = n_likes, fit.items
    fitted = np.isin(np.arange(90), place)
    weights = weigh_items(n_wide, PARAMETERS, fitted.astype(np.float32), fitted)
    after = FixedItems(factors, weights, PARAMETERS)
    wide = sparse.csr_matrix((matrix.data, place[matrix.indices], matrix.indptr), shape=(200, 90))
    np.testing.assert_array_equal(weights.confidence[place], before.weights.confidence)
    np.testing.assert_array_equal(after.basis.spectrum, before.basis.spectrum)
    np.testing.assert_array_equal(fold_in(wide, after), fold_in(matrix, before))


def test_without_the_number_of_fitted_items_the_penalty_would_grow():
    matrix, text = likes()
    fit = fit_factors(matrix, text, PARAMETERS)
    weights = weigh_items(np.asarray((matrix > 0).sum(axis=0)).ravel(), PARAMETERS)
    users = fold_in(matrix, FixedItems(fit.items, weights, PARAMETERS))
    fewer = fold_in(matrix, FixedItems(fit.items, weights._replace(n_fitted=30), PARAMETERS))
    assert np.abs(users - fewer).max() > 1e-3


def test_what_wants_a_vector():
    assert item().wants_vector
    assert item(held_hash="hash of another", is_added=True).wants_vector
    assert not item(held_hash="hash of something", is_added=True).wants_vector
    assert not item(held_hash="hash of another").wants_vector


def test_the_text_in_a_vector():
    assert text_hash(item(), {"hash of something"}, ()) == "hash of something"
    assert text_hash(item(), (), ()) is None
    assert text_hash(item(), (), {"hash of something"}) == NO_TEXT
    assert text_hash(item(text=" "), (), ()) == NO_TEXT


@pytest.mark.parametrize(
    ("n_items", "n_users", "expected"),
    [(3, 2, (3, 2)), (20, 0, (8, 0)), (0, 20, (0, 8)), (20, 20, (4, 4)), (2, 20, (2, 6)), (20, 1, (7, 1))],
)
def test_items_and_users_share_the_texts_of_a_call(n_items, n_users, expected):
    items = [item(f"i{n}", f"text {n}") for n in range(n_items)]
    chosen, n_chosen = choose_texts(items, n_users, 8)
    assert (len(chosen), n_chosen) == expected


def test_a_text_is_chosen_once_and_only_if_it_waits():
    items = [
        item("a"),
        item("b"),
        item("c", " "),
        item("d", "known", is_embedded=True),
        item("e", "trained", held_hash="hash of another"),
    ]
    chosen, _ = choose_texts(items, 0, 8)
    assert [one.text for one in chosen] == ["something"]


def test_vectors_that_are_not_sound_do_not_pass():
    text, factors = np.eye(3, dtype=np.float32), np.ones((3, 2), np.float32)
    assert all(check.passed for check in check_arrivals(text, factors, 3, 2))
    spoiled = factors.copy()
    spoiled[1, 0] = np.nan
    results = {
        "vector_widths": check_arrivals(text, factors, 4, 2),
        "finite_values": check_arrivals(text, spoiled, 3, 2),
        "unit_or_zero_length": check_arrivals(text * 2, factors, 3, 2),
    }
    for name, checks in results.items():
        assert [check.expectation for check in checks if not check.passed] == [name]
