"""What filters need is written at a publication, compared at its verification, and in memory as in Qdrant."""

from dataclasses import replace

import numpy as np
import pytest

from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.domain.records import IndexFilter
from tasks.projection import load_projection, verify_projection, write_projection

ATTRIBUTES = """
update stg_items set categories = ['film'], attributes = '{"language": "' || if(item_id < 'i10', 'en', 'fr')
    || '", "year": ' || cast(substr(item_id, 2) as integer) || '.0, "cast": ["Kim", "' || item_id || '"]}'
"""


@pytest.fixture
def described(small_world):
    """The small world, in which items have attributes, with its projection."""
    with small_world.resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.execute(ATTRIBUTES))
        with warehouse.at(warehouse.latest_snapshot()) as view:
            return small_world, load_projection(view, "v1")


def test_payloads_have_attributes_and_what_users_have_seen(described):
    world, projection = described
    with world.resources.warehouse(read_only=True) as warehouse:
        met = warehouse.read("select user_id, list(distinct item_id order by item_id) as items from fct_interactions"
                             " group by user_id").to_pylist()  # fmt: skip

    assert projection.item_payloads[3].attributes == ("cast=Kim", "cast=i03", "language=en", "year=3")
    assert {p.user_id: set(p.seen) for p in projection.user_payloads} == {
        row["user_id"]: set(row["items"]) for row in met
    }
    assert all(len(set(payload.seen)) == len(payload.seen) for payload in projection.user_payloads)


def test_verification_compares_them(described):
    world, projection = described
    other_item = replace(projection.item_payloads[0], attributes=("language=de",))
    other_user = replace(projection.user_payloads[0], seen=())
    with world.resources.index() as index:
        index.create_version("v2", projection.width)
        index.upsert_items("v2", projection.items, (other_item, *projection.item_payloads[1:]))
        index.upsert_users("v2", projection.users, (other_user, *projection.user_payloads[1:]))
        wrong = verify_projection(index, replace(projection, version="v2"))
        index.create_version("v2", projection.width)
        write_projection(index, replace(projection, version="v2"))
        right = verify_projection(index, replace(projection, version="v2"))

    assert [result.passed for result in wrong] == [True, False, False, True]
    assert all(result.passed for result in right)


def test_the_serving_index_in_memory_answers_as_the_published_one(described):
    world, projection = described
    resources = world.resources
    restrict = IndexFilter(attributes=(("language=en", "language=it"), ("cast=Kim",)), categories=("film",))
    assert resources.serves_from_memory
    with resources.index() as index, resources.serving_index() as memory:
        assert memory.versions() == []
        for filled in (index, memory):
            write_projection(filled, replace(projection, version="v2"))
        assert all(result.passed for result in verify_projection(memory, replace(projection, version="v2")))
        for user in projection.users[:5]:
            ours, theirs = (filled.search("v2", user, 8, restrict) for filled in (memory, index))
            assert [hit.item_id for hit in ours] == [hit.item_id for hit in theirs]
            np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-5)
        assert {hit.item_id < "i10" for hit in ours} == {True}


def test_with_a_server_in_the_settings_requests_ask_it(tmp_path):
    settings = load_settings(home=tmp_path, index={"url": "http://localhost:1"})
    assert not LocalResources(settings).serves_from_memory
