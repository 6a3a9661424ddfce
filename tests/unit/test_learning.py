from dataclasses import replace

import numpy as np
import pytest

from tasks.domain.errors import TrainingError
from tasks.domain.evaluation import EvaluationReport, evaluate_split, segment_name, summarize_split
from tasks.domain.factor_model import FactorParameters
from tasks.domain.histories import InteractionLog, TextLog
from tasks.domain.item_fit import Catalog, compute_prior, fit_items
from tasks.domain.learning import BUCKET_STARTS, UNLEARNED, learn_recipe
from tasks.domain.profiles import Recipe, compute_profiles, request_histories
from tasks.domain.splits import split_global_time, split_user_tail

N_KINDS, WIDTH = 5, 8
DRAFT = Recipe(FactorParameters(n_factors=8, n_sweeps=6), UNLEARNED, 4.0, 200.0, 3650.0, ())


def no_texts(width=WIDTH):
    empty = np.zeros(0, np.float32)
    return TextLog(np.zeros((0, width), np.float32), np.zeros(0, np.int64), empty, np.zeros(0, np.int64))


def taste_world(n_users=80, n_items=100, seed=0, *, telling=True, lengths=(4, 30)):
    """Users who like items of one kind of five; where texts are telling, they say the kind, else they are noise."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n_items) % N_KINDS
    text = rng.normal(size=(n_items, WIDTH)) * (0.3 if telling else 1.0)
    if telling:
        text[np.arange(n_items), kind] += 1
    text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)
    rows = []
    for user in range(n_users):
        likes = rng.permutation(np.flatnonzero(kind == user % N_KINDS))[: rng.integers(*lengths)]
        rows += [(user, item, 1.0, 1000 * user + step) for step, item in enumerate(likes)]
    user, item, weight, last_at = (np.array(column) for column in zip(*rows, strict=True))
    log = InteractionLog(user, item, weight.astype(np.float32), last_at, n_users, n_items)
    return log, Catalog(tuple(f"i{n:03}" for n in range(n_items)), text)


def learn(log, catalog, **changes):
    return learn_recipe(log, no_texts(catalog.text.shape[1]), catalog, replace(DRAFT, **changes)).recipe.fusion


def test_text_gets_more_weight_where_it_tells_more():
    """Histories are short and the catalog is wide, so behaviour alone says little."""
    parameters = replace(DRAFT.factor_parameters, text_prior=0.0)
    sparse_world = {"n_users": 60, "n_items": 300, "lengths": (5, 7)}
    telling = learn(*taste_world(telling=True, **sparse_world), factor_parameters=parameters)
    noise = learn(*taste_world(telling=False, **sparse_world), factor_parameters=parameters)
    assert [bucket.min_history for bucket in telling.buckets] == [0, *BUCKET_STARTS]
    assert telling.buckets[1].alpha > noise.buckets[1].alpha
    assert telling.buckets[1].alpha >= 0.3


def test_learning_is_deterministic_and_threads_change_nothing():
    log, catalog = taste_world()
    first = learn(log, catalog)
    assert first == learn(log, catalog)
    assert first == learn_recipe(log, no_texts(), catalog, DRAFT, n_threads=4).recipe.fusion


def test_blocks_come_to_the_length_of_the_text_block():
    log, catalog = taste_world()
    fusion = learn(log, catalog)
    items = fit_items(split_user_tail(log, no_texts()).train, catalog, DRAFT.factor_parameters).items
    assert np.linalg.norm(items.factors * fusion.factor_block, axis=1).mean() == pytest.approx(1, rel=1e-4)
    assert (items.prior * fusion.prior_block).mean() == pytest.approx(1, rel=1e-4)


def test_the_weights_do_not_see_what_comes_after_the_cut():
    """Another test part changes nothing that is learned before it."""
    log, catalog = taste_world()
    is_test = np.isin(log.last_at, split_user_tail(log, no_texts()).test.last_at)
    other = replace(log, item=np.where(is_test, (log.item + 1) % log.n_items, log.item))
    before, after = (split_user_tail(each, no_texts()) for each in (log, other))
    assert before.test.item.tolist() != after.test.item.tolist()
    assert learn(before.train, catalog) == learn(after.train, catalog)
    assert learn(log, catalog) != learn(other, catalog)


def test_few_users_get_the_usual_weights():
    fusion = learn(*taste_world(n_users=4))
    assert len({(b.alpha, b.beta) for b in fusion.buckets[1:]}) == 1
    assert fusion.buckets[1].beta > 0
    assert fusion.text_request.alpha == 0.8


def test_a_catalog_without_texts_gives_no_weight_to_them():
    log, catalog = taste_world()
    fusion = learn(log, catalog._replace(text=np.zeros_like(catalog.text)))
    assert {bucket.alpha for bucket in fusion.buckets} == {0.0}
    assert fusion.scale == 1


def test_no_events_at_all_leave_a_version_of_text():
    log, catalog = taste_world()
    empty = log.select(np.zeros(len(log.user), bool))
    items = fit_items(empty, catalog, DRAFT.factor_parameters).items
    fusion = learn(empty, catalog)
    assert not items.factors.any()
    assert not items.prior.any()
    request = request_histories(items, texts=catalog.text[[7]])
    profile = compute_profiles(request, items, replace(DRAFT, fusion=fusion))
    scores = profile.alpha[0] * items.text @ profile.text[0]
    assert scores.argmax() == 7
    assert fusion.text_request.alpha > 0


def test_one_user_with_one_event_is_enough():
    log, catalog = taste_world()
    one = log.select(np.arange(len(log.user)) == 0)
    fusion = learn(one, catalog)
    items = fit_items(one, catalog, DRAFT.factor_parameters).items
    assert np.isfinite([fusion.scale, *(b.beta for b in fusion.buckets)]).all()
    assert np.isfinite(items.factors).all()
    assert items.prior.max() == 1


def test_weights_that_are_not_finite_stop_the_training():
    log, catalog = taste_world()
    log.weight[3] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        fit_items(log, catalog, DRAFT.factor_parameters)


def test_different_texts_get_different_answers():
    log, catalog = taste_world()
    fusion = learn(log, catalog)
    items = fit_items(log, catalog, DRAFT.factor_parameters).items
    slates = []
    for kind in range(N_KINDS):
        text = np.zeros((1, WIDTH), np.float32)
        text[0, kind] = 1
        profile = compute_profiles(request_histories(items, texts=text), items, replace(DRAFT, fusion=fusion))
        scores = profile.alpha[0] * items.text @ profile.text[0] + profile.beta[0] * items.prior
        scores += (1 - profile.alpha[0]) * fusion.scale * items.factors @ profile.factors[0]
        slates.append(np.argsort(-scores)[:10] % N_KINDS)
    assert all((slate == kind).mean() >= 0.9 for kind, slate in enumerate(slates))


def test_the_prior_is_popularity_and_newer_likes_count_more():
    rows = [(u, 0, 1.0, u) for u in range(10)] + [(u, 1, 1.0, 1000 + u) for u in range(10)] + [(0, 2, -1.0, 5)]
    user, item, weight, last_at = (np.array(column) for column in zip(*rows, strict=True))
    prior = compute_prior(InteractionLog(user, item, weight.astype(np.float32), last_at, 10, 4))
    assert prior[1] == 1
    assert 0 < prior[0] < 1
    assert prior[2:].tolist() == [0, 0]  # disliked, and never met


def test_likes_at_one_moment_give_plain_popularity():
    item = np.repeat(np.arange(4), [3, 1, 2, 0])
    user = np.arange(6)
    log = InteractionLog(user, item, np.ones(6, np.float32), np.zeros(6, np.int64), 6, 4)
    assert np.allclose(compute_prior(log), np.log1p([3, 1, 2, 0]) / np.log1p(3))


@pytest.fixture(scope="module")
def measured():
    log, catalog = taste_world(n_users=100)
    split = split_user_tail(log, no_texts())
    recipe = learn_recipe(split.train, split.texts, catalog, DRAFT).recipe
    return evaluate_split(split, catalog, recipe)


def test_who_knows_the_tastes_ranks_better_than_popularity(measured):
    rows = summarize_split("user_tail", measured)
    report = EvaluationReport("v", tuple(rows))
    values = {policy: report.find("user_tail", policy).value for policy in ("fused", "factors", "text", "popularity")}
    assert values["fused"] > 2 * values["popularity"]
    assert values["fused"] >= 0.95 * max(values.values())
    difference = report.find("user_tail", "fused", "ndcg_at_10_minus_popularity")
    assert difference.value == pytest.approx(values["fused"] - values["popularity"])
    assert 0 < difference.ci_low < difference.value < difference.ci_high


def test_every_metric_has_its_interval_and_segments_add_up(measured):
    rows = summarize_split("user_tail", measured)
    for row in rows:
        assert row.ci_low <= row.value <= row.ci_high
    fused = [row for row in rows if row.policy == "fused" and row.metric == "ndcg_at_10"]
    segments = [row for row in fused if row.segment != "all"]
    (overall,) = [row for row in fused if row.segment == "all"]
    assert sum(row.n_users for row in segments) == overall.n_users
    assert sum(row.n_users * row.value for row in segments) / overall.n_users == pytest.approx(overall.value)
    assert {row.metric for row in rows} >= {"ndcg_at_10", "recall_at_10", "mrr", "coverage"}


def test_new_users_are_served_by_the_prior_on_a_time_split():
    log, catalog = taste_world()
    split = split_global_time(log, no_texts())
    result = evaluate_split(split, catalog, replace(DRAFT, fusion=UNLEARNED), ("fused", "popularity"))
    new = result.lengths == 0
    assert new.any()
    by_prior = np.argsort(-compute_prior(split.train), kind="stable")[:10]
    assert (result.rankings["fused"].slates[new] == by_prior).all()


def test_nothing_to_test_on_gives_no_result():
    log, catalog = taste_world()
    one = log.select(np.arange(len(log.user)) == 0)
    assert evaluate_split(split_user_tail(one, no_texts()), catalog, DRAFT) is None


def test_segments_are_named_for_people():
    assert [segment_name(0, 1), segment_name(1, 3), segment_name(51, None)] == [
        "history 0", "history 1-2", "history 51+",
    ]  # fmt: skip
