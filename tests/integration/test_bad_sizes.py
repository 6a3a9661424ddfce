"""Lopsided data through the whole batch: one item in all, a user with 50,000 events, an item that nearly all are of."""

import duckdb
import pyarrow as pa
import pytest

from infra.settings import load_settings
from tasks.domain.vectors import lists_from_matrix
from tasks.evaluate import evaluate_version
from tasks.ingest import import_files
from tasks.publish import publish_version
from tasks.quality import check_gate
from tasks.recommend import recommend_to_user
from tasks.train import learn_version, plan_version, refit_version
from tasks.transform import build_models
from tests.conftest import SmallResources, SmallWorld

HOT_EVENTS = 200_000
"""Of the hot item. Two million were measured by hand: docs/bad-input.md."""
EVENT = "'like' as event_type, timestamp '2026-01-01' + to_seconds(n) as occurred_at"


def batch(folder, items, events):
    """A world in which the rows of two queries were imported, built, trained, evaluated and published."""
    world = SmallWorld(SmallResources(load_settings(home=folder / "var")))
    for kind, sql in (("items", items), ("events", events)):
        path = folder / f"{kind}.parquet"
        duckdb.sql(f"copy ({sql}) to '{path}' (format parquet)")
        import_files(world.resources, kind, [path], now=world.tick())
    build_models(world.resources, now=world.tick())
    assert check_gate(world.resources, "transform", run_id="r", now=world.tick())
    embed(world)
    plan = plan_version(world.resources, now=world.tick())
    learn_version(world.resources, plan, now=world.tick())
    evaluate_version(world.resources, plan, now=world.tick())
    refit_version(world.resources, plan, now=world.tick())
    publish_version(world.resources, plan.version, now=world.tick())
    return world


def embed(world):
    """Embeddings of all item texts, as the embed stage leaves them."""
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


def catalog(n_items):
    return f"select 'i' || n as item_id, 'space robot ' || n as title from range({n_items}) t(n)"  # noqa: S608 - numbers of this test


def read(world, sql):
    with world.resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(sql).to_pylist()


def test_a_catalog_of_one_item(tmp_path):
    events = f"select 'u' || n as user_id, 'i0' as item_id, {EVENT} from range(60) t(n)"  # noqa: S608
    world = batch(tmp_path, catalog(1), events)
    assert recommend_to_user(world.resources, "u1").items == (), "who has seen all of it is shown nothing again"
    assert [item.item_id for item in recommend_to_user(world.resources, "newcomer").items] == ["i0"]


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    """The user ``heavy`` has 50,000 events with 200 of 300 items; all other events but a few are of ``i0``."""
    events = f"""
        select 'heavy' as user_id, 'i' || (n % 200) as item_id, {EVENT} from range(50000) t(n)
        union all
        select 'u' || (n % 300), 'i0', {EVENT} from range({HOT_EVENTS}) t(n)
        union all
        select 'u' || (n % 300), 'i' || (hash(n) % 300), {EVENT} from range(3000) t(n)"""  # noqa: S608
    return batch(tmp_path_factory.mktemp("lopsided"), catalog(300), events)


def test_a_user_with_50_000_events(lopsided):
    (row,) = read(
        lopsided, "select count(*) as n, sum(n_events) as events from fct_interactions where user_id = 'heavy'"
    )
    assert row == {"n": 200, "events": 50_000}
    items = recommend_to_user(lopsided.resources, "heavy", k=10, explain=True).items
    assert len(items) == 10
    assert all(200 <= int(item.item_id[1:]) < 300 for item in items)


def test_an_item_that_nearly_all_events_are_of(lopsided):
    (row,) = read(
        lopsided, "select sum(n_events) as n from fct_interactions where item_id = 'i0' and user_id <> 'heavy'"
    )
    assert row["n"] >= HOT_EVENTS
    assert len(recommend_to_user(lopsided.resources, "u1", k=10).items) == 10
    assert recommend_to_user(lopsided.resources, "newcomer", k=1).items[0].item_id == "i0"
