"""What is like an item, and who is like a user."""

import numpy as np
import pytest

from tasks.domain.errors import InputError, NotFoundError
from tasks.domain.vectors import lists_from_matrix, unit_rows
from tasks.model_state import load_item_space, load_profiles
from tasks.refresh import refresh
from tasks.similar import similar_items, similar_users


def item_space(world):
    with world.resources.warehouse(read_only=True) as warehouse:
        return load_item_space(warehouse, "v1")


def liked_by(world, user_id):
    sql = "select item_id from fct_interactions where user_id = $u and weight > 0"
    with world.resources.warehouse(read_only=True) as warehouse:
        return set(warehouse.read(sql, {"u": user_id})["item_id"].to_pylist())


@pytest.mark.parametrize(("by", "alpha"), [("factors", 0.0), ("text", 1.0), ("both", 0.5)])
def test_similar_items_by_the_cosine_of_what_was_asked_for(small_world, by, alpha):
    slate = similar_items(small_world.resources, "i20", k=39, by=by)
    items = item_space(small_world)
    row = items.index["i20"]
    text, factors = (unit_rows(block) @ unit_rows(block)[row] for block in (items.text, items.factors))
    expected = alpha * text + (1 - alpha) * factors
    assert {item.item_id for item in slate.items} == set(items.item_ids) - {"i20", "i39"}
    for item in slate.items:
        assert item.score == pytest.approx(expected[items.index[item.item_id]], abs=1e-4)
        assert item.text_part + item.factors_part == pytest.approx(item.score, abs=1e-5)
    assert [i.score for i in slate.items] == sorted((i.score for i in slate.items), reverse=True)
    assert (slate.alpha, slate.note) == (alpha, "")


def test_factors_are_compared_where_nothing_is_asked(small_world):
    assert similar_items(small_world.resources, "i20") == similar_items(small_world.resources, "i20", by="factors")
    assert "love" in similar_items(small_world.resources, "i20", k=1, by="text").items[0].title


def test_an_item_is_compared_by_what_it_has(small_world):
    no_text = similar_items(small_world.resources, "i38", by="text")
    assert no_text.note == "the item has no text: it is compared by its factors"
    assert no_text.alpha == 0
    assert {item.text_part for item in no_text.items} == {0}
    assert similar_items(small_world.resources, "i38", by="both").note == no_text.note
    assert similar_items(small_world.resources, "i38").note == ""


def test_an_item_without_factors_is_compared_by_its_text(small_world):
    with small_world.resources.warehouse() as warehouse:
        row = warehouse.read("from item_factors where version = 'v1' and item_id = 'i37'")
        row = row.set_column(row.schema.get_field_index("factors"), "factors", lists_from_matrix(np.zeros((1, 6))))
        key = {"version": "v1", "item_id": "i37"}
        warehouse.commit(lambda transaction: transaction.replace("item_factors", row, key))
    slate = similar_items(small_world.resources, "i37")
    assert (slate.note, slate.alpha) == ("the item has no factors: it is compared by its text", 1.0)
    assert "kiss" in slate.items[0].title


def test_an_unknown_way_of_comparing_is_refused(small_world):
    with pytest.raises(InputError, match=r"'price'.*both, factors and text"):
        similar_items(small_world.resources, "i20", by="price")


def test_similar_users_by_the_cosine_of_their_factors(small_world):
    found = similar_users(small_world.resources, "u01", k=29)
    with small_world.resources.warehouse(read_only=True) as warehouse:
        profiles = load_profiles(warehouse, "v1")
    units = unit_rows(profiles.factors.astype(np.float64))
    cosines = dict(zip(profiles.user_ids, units @ units[profiles.user_ids.index("u01")], strict=True))
    assert (found.version, found.user_id, found.by, found.note) == ("v1", "u01", "factors", "")
    assert {user.user_id for user in found.users} == set(profiles.user_ids) - {"u01"}
    for rank, user in enumerate(found.users, start=1):
        assert user.rank == rank
        assert user.similarity == pytest.approx(cosines[user.user_id], abs=1e-5)
    assert [u.similarity for u in found.users] == sorted((u.similarity for u in found.users), reverse=True)
    assert all(int(user.user_id[1:]) % 2 == 1 for user in found.users[:5]), "the others like the other kind"


def test_likeness_is_the_same_in_both_orders(small_world):
    likeness = {
        user_id: {user.user_id: user for user in similar_users(small_world.resources, user_id, k=29).users}
        for user_id in ("u01", "u04", "u15")
    }
    for one, other in (("u01", "u04"), ("u01", "u15"), ("u04", "u15")):
        there, back = likeness[one][other], likeness[other][one]
        assert there.similarity == pytest.approx(back.similarity, abs=1e-6)
        assert (there.n_shared, there.shared) == (back.n_shared, back.shared)


def test_what_both_liked_is_the_reason(small_world):
    for user in similar_users(small_world.resources, "u01", k=29).users:
        both = liked_by(small_world, "u01") & liked_by(small_world, user.user_id)
        assert user.n_shared == len(both)
        assert {item.item_id for item in user.shared} <= both
        assert len(user.shared) == min(3, len(both))
    with small_world.resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read("select item_id, n_interactions from item_factors").to_pylist()
    likes = {row["item_id"]: row["n_interactions"] for row in rows}
    named = [likes[item.item_id] for item in user.shared]
    assert named == sorted(named), "the item that the fewest like tells the most"


def test_what_was_liked_since_the_refresh_is_shared_already(small_world):
    before = similar_users(small_world.resources, "u01", k=1).users[0]
    new = sorted(liked_by(small_world, before.user_id) - liked_by(small_world, "u01"))[0]
    small_world.add_events(small_world.event("u01", new))
    after = similar_users(small_world.resources, "u01", k=1).users[0]
    assert (after.user_id, after.n_shared) == (before.user_id, before.n_shared + 1)


def test_a_user_without_factors_is_compared_by_text_and_one_without_either_with_nobody(small_world):
    with small_world.resources.warehouse() as warehouse:
        rows = warehouse.read("from user_profiles where version = 'v1' and user_id in ('u01', 'u02') order by user_id")
        zeros = lists_from_matrix(np.zeros((2, 6)))
        texts = np.zeros((2, 8))
        texts[0, 0] = 1
        for name, column in (("factors", zeros), ("text_embedding", lists_from_matrix(texts))):
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        key = {"version": "v1", "user_id": ["u01", "u02"]}
        warehouse.commit(lambda transaction: transaction.replace("user_profiles", rows, key))
    by_text = similar_users(small_world.resources, "u01", k=29)
    assert by_text.by == "text"
    assert "their text" in by_text.note
    assert "u02" not in {user.user_id for user in by_text.users}
    assert len(by_text.users) == 28
    nobody = similar_users(small_world.resources, "u02")
    assert (nobody.by, nobody.users) == ("nothing", ())
    assert "nothing is known" in nobody.note


def test_a_user_who_has_no_profile_yet_gets_one_with_the_next_refresh(small_world):
    small_world.add_events(small_world.event("new", "i21"), small_world.event("new", "i25"))
    with pytest.raises(NotFoundError, match=r"'new'.*nearline run nearline"):
        similar_users(small_world.resources, "new")
    refresh(small_world.resources, now=small_world.tick())
    assert similar_users(small_world.resources, "new", k=1).users[0].similarity > 0


def test_unknown_ids_and_lengths_are_refused(small_world, empty_world):
    with pytest.raises(NotFoundError, match="does not know 'no/such'"):
        similar_items(small_world.resources, "no/such")
    with pytest.raises(NotFoundError, match="no profile of that id"):
        similar_users(small_world.resources, "nobody'; drop table user_profiles")
    for ask, whom in ((similar_items, "i01"), (similar_users, "u01")):
        for k in (0, 501):
            with pytest.raises(InputError, match="from 1 to 500"):
                ask(small_world.resources, whom, k=k)
        with pytest.raises(NotFoundError, match="nearline run daily_batch"):
            ask(empty_world.resources, whom)
