"""A training from plan to refit, and its evaluation, on a small real warehouse."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

import tasks.train
from tasks.domain.errors import NotFoundError, TrainingError
from tasks.domain.evaluation import EvaluationReport, MetricValue
from tasks.domain.factor_model import FactorParameters
from tasks.domain.profiles import compute_profiles
from tasks.domain.vectors import lists_from_matrix, matrix_from_lists
from tasks.evaluate import evaluate_version, quality_checks
from tasks.model_state import load_histories, load_item_space, load_profiles, load_version
from tasks.publish import publish_version
from tasks.train import learn_version, plan_version, refit_version
from tasks.transform import build_models


def train(world, *, evaluate=True):
    """What the nightly flow does between the embed and the publish gate."""
    build_models(world.resources, now=world.tick())
    plan = plan_version(world.resources, now=world.tick())
    learn_version(world.resources, plan, now=world.tick())
    report = evaluate_version(world.resources, plan, now=world.tick()) if evaluate else None
    refit_version(world.resources, plan, now=world.tick())
    return plan, report


def embed_catalog(world):
    """Embeddings of all item texts, as the embed stage leaves them."""
    build_models(world.resources, now=world.tick())
    encoder = world.resources.encoder()
    with world.resources.warehouse() as warehouse:
        texts = warehouse.read("select distinct content_hash, text, template_version from int_item_texts")
        rows = pa.table({
            "content_hash": texts["content_hash"],
            "encoder_id": [encoder.encoder_id] * texts.num_rows,
            "template_version": texts["template_version"],
            "embedding": lists_from_matrix(encoder.encode(texts["text"].to_pylist())),
            "embedded_at": [world.tick()] * texts.num_rows,
        })  # fmt: skip
        warehouse.commit(lambda transaction: transaction.append("item_embeddings", rows))


def read(world, sql, **parameters):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql, parameters).to_pylist()


def counts(world, version):
    tables = ("model_versions", "item_factors", "user_factors", "user_profiles", "watermarks", "eval_metrics")
    sql = "select count(*) as n from {} where version = $v"
    return {table: read(world, sql.format(table), v=version)[0]["n"] for table in tables}


def test_a_training_writes_a_whole_version(small_world):
    plan, report = train(small_world)
    found = counts(small_world, plan.version)
    assert found == {
        "model_versions": 1, "item_factors": 40, "user_factors": 30, "user_profiles": 30, "watermarks": 1,
        "eval_metrics": len(report.metrics),
    }  # fmt: skip
    (mark,) = read(small_world, "select snapshot from watermarks where version = $v", v=plan.version)
    assert mark["snapshot"] == plan.snapshot
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model = load_version(warehouse, plan.version)
    assert model.training_snapshot == plan.snapshot
    assert model.state == "candidate"
    assert np.abs(model.text_map).max() > 0
    assert json.loads(read(small_world, "select metrics from model_versions where version = $v", v=plan.version)[0][
        "metrics"
    ])["user_tail"]["fused"] == pytest.approx(report.find("user_tail", "fused").value, abs=1e-6)  # fmt: skip


@pytest.mark.parametrize("chunk_users", [tasks.train.CHUNK_USERS, 7])
def test_profiles_of_the_training_are_those_of_a_refresh_at_its_snapshot(chunk_users, small_world, monkeypatch):
    """The same SQL and the same functions feed both; the last user half-step is the fold-in."""
    monkeypatch.setattr(tasks.train, "CHUNK_USERS", chunk_users)
    plan, _ = train(small_world, evaluate=False)
    small_world.add_events(small_world.event("u03", "i05"))  # after the training's snapshot
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, plan.version), load_item_space(warehouse, plan.version)
        histories, missing = load_histories(warehouse, model, items, plan.snapshot)
        stored = load_profiles(warehouse, plan.version)
        alone, _ = load_histories(warehouse, model, items, plan.snapshot, ["u03"])
        rows = warehouse.read(
            "select user_id, factors from user_factors where version = $v order by user_id", {"v": plan.version}
        )
    assert missing == 0
    refreshed = compute_profiles(histories, items, model.recipe)
    assert stored.user_ids == refreshed.user_ids
    assert np.abs(stored.factors - refreshed.factors).max() < 1e-5
    assert np.abs(stored.text - refreshed.text).max() < 1e-5
    assert np.abs(stored.alpha - refreshed.alpha).max() < 1e-6
    row = stored.user_ids.index("u03")
    assert np.abs(stored.factors[row] - compute_profiles(alone, items, model.recipe).factors[0]).max() < 1e-5
    assert np.abs(matrix_from_lists(rows["factors"], model.n_factors) - stored.factors).max() < 1e-6


def test_equal_inputs_are_unchanged_and_new_events_are_not(small_world):
    plan, _ = train(small_world, evaluate=False)
    assert plan.unchanged is None
    publish_version(small_world.resources, plan.version, now=small_world.tick())
    again = plan_version(small_world.resources, now=small_world.tick())
    assert again.unchanged == plan.version
    assert again.inputs_hash == plan.inputs_hash
    small_world.add_events(small_world.event("u03", "i05"))
    later = plan_version(small_world.resources, now=small_world.tick())
    assert later.unchanged is None


def test_a_version_gets_a_free_name(small_world):
    now = small_world.tick()
    first = plan_version(small_world.resources, now=now)
    learn_version(small_world.resources, first, now=now)
    assert plan_version(small_world.resources, now=now).version == f"{first.version}-2"


def test_training_again_replaces_what_it_wrote(small_world):
    plan, report = train(small_world)
    before = counts(small_world, plan.version)
    factors = read(small_world, "select * from item_factors where version = $v order by item_id", v=plan.version)
    learn_version(small_world.resources, plan, now=small_world.tick())
    again = evaluate_version(small_world.resources, plan, now=small_world.tick())
    refit_version(small_world.resources, plan, now=small_world.tick())
    assert counts(small_world, plan.version) == before
    assert again.metrics == report.metrics
    same = read(small_world, "select * from item_factors where version = $v order by item_id", v=plan.version)
    assert same == factors


def test_events_after_the_snapshot_change_nothing(small_world):
    build_models(small_world.resources, now=small_world.tick())
    plan = plan_version(small_world.resources, now=small_world.tick())
    learn_version(small_world.resources, plan, now=small_world.tick())
    small_world.add_events(*(small_world.event(f"late{n}", "i05") for n in range(5)))
    build_models(small_world.resources, now=small_world.tick())
    refit_version(small_world.resources, plan, now=small_world.tick())
    assert counts(small_world, plan.version)["user_profiles"] == 30


def test_the_champion_is_measured_beside_the_candidate(two_versions):
    plan, report = train(two_versions)
    assert report.champion == "v2"
    champion = report.find("user_tail", "champion")
    difference = report.find("user_tail", "fused", "ndcg_at_10_minus_champion")
    assert difference.value == pytest.approx(report.find("user_tail", "fused").value - champion.value)
    assert difference.n_users == champion.n_users
    assert any("champion" in check.expectation for check in quality_checks(report, 0.0))
    assert counts(two_versions, plan.version)["eval_metrics"] == len(report.metrics)


def test_a_catalog_without_events_can_serve_by_text(empty_world):
    empty_world.add_items(("a", "space robot", True), ("b", "paris love", True), ("c", "", True))
    embed_catalog(empty_world)
    plan, report = train(empty_world)
    assert report.metrics == ()
    assert len(report.notes) == 2
    assert all(check.severity == "warn" and not check.passed for check in quality_checks(report, 0.0))
    with empty_world.resources.warehouse(read_only=True) as warehouse:
        items = load_item_space(warehouse, plan.version)
    assert not items.factors.any()
    assert items.text[0].any()
    assert not items.text[2].any()  # no title, no text


def test_one_user_with_one_event_and_no_text_anywhere(empty_world):
    empty_world.add_items(("a", "", True), ("b", "", True))
    empty_world.add_events(empty_world.event("only", "a"))
    plan, report = train(empty_world)
    assert report.metrics == ()
    with empty_world.resources.warehouse(read_only=True) as warehouse:
        profiles = load_profiles(warehouse, plan.version)
        items = load_item_space(warehouse, plan.version)
    assert profiles.user_ids == ("only",)
    assert profiles.n_history.tolist() == [1]
    assert np.isfinite(profiles.factors).all()
    assert items.prior.tolist() == [1, 0]


def test_an_empty_catalog_is_an_error(empty_world):
    build_models(empty_world.resources, now=empty_world.tick())
    plan = plan_version(empty_world.resources, now=empty_world.tick())
    with pytest.raises(TrainingError, match="the catalog has no items"):
        learn_version(empty_world.resources, plan, now=empty_world.tick())


def test_a_version_that_was_not_learned_cannot_be_fitted(small_world):
    plan = plan_version(small_world.resources, now=small_world.tick())
    with pytest.raises(NotFoundError, match="does not exist"):
        refit_version(small_world.resources, plan, now=small_world.tick())


@dataclass(frozen=True)
class Diverging:
    """Resources whose parameters cannot work."""

    inner: object

    def __getattr__(self, name):
        return getattr(self.inner, name)

    @property
    def factor_parameters(self):
        return FactorParameters(n_factors=4, regularization=-5.0)


def test_a_fit_that_diverges_publishes_nothing(small_world):
    resources = Diverging(small_world.resources)
    plan = plan_version(resources, now=small_world.tick())
    with pytest.raises(TrainingError, match=r"regularization = -5\.0"):
        learn_version(resources, plan, now=small_world.tick())
    assert set(counts(small_world, plan.version).values()) == {0}


def report_of(low, high, *, n_users=500, champion=0.2):
    def metric(policy, name, value, low, high):
        return MetricValue("user_tail", policy, "all", name, value, low, high, n_users)

    middle = (low + high) / 2
    rows = [metric("fused", "ndcg_at_10", champion + middle, 0.1, 0.3)]
    for policy in ("champion", "popularity", "factors", "text", "neighbours"):
        rows.append(metric(policy, "ndcg_at_10", champion, 0.1, 0.3))
        rows.append(metric("fused", f"ndcg_at_10_minus_{policy}", middle, low, high))
    return EvaluationReport("v9", tuple(rows), (), "v8")


def failures(report, max_drop=0.0):
    return {(c.expectation, c.severity) for c in quality_checks(report, max_drop) if not c.passed}


def test_only_a_clear_drop_against_the_champion_stops():
    stop = ("NDCG@10 on user_tail is not below that of champion", "stop")
    assert stop in failures(report_of(-0.03, -0.01))
    assert stop not in failures(report_of(-0.03, 0.001))  # not by a hair
    assert stop not in failures(report_of(-0.03, -0.01), max_drop=0.1)  # 0.02 of 0.2 are allowed
    assert failures(report_of(0.01, 0.03)) == set()


def test_other_policies_and_few_users_only_warn():
    assert {severity for name, severity in failures(report_of(-0.03, -0.01)) if "champion" not in name} == {"warn"}
    assert {severity for _, severity in failures(report_of(-0.03, -0.01, n_users=29))} == {"warn"}


def test_a_failed_check_says_what_was_seen_and_what_to_do():
    (check,) = [c for c in quality_checks(report_of(-0.03, -0.01), 0.0) if "champion" in c.expectation]
    assert "0.1800 against 0.2000: difference -0.0200 (95 % from -0.0300 to -0.0100, 500 users)" in check.observed
    assert "max_quality_drop" in check.advice
