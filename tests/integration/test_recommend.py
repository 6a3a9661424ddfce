import numpy as np
import pytest

from tasks.domain.errors import InputError, NotFoundError, SettingsError
from tasks.domain.fusion import fuse_items, fuse_queries, split_scores
from tasks.domain.online import SlateRequest
from tasks.domain.profiles import compute_profiles
from tasks.model_state import load_histories, load_item_space, load_profiles, load_version
from tasks.recommend import answer, recommend_for_text, recommend_to_user


def adds_up(slate):
    for item in slate.items:
        assert item.text_part + item.factors_part + item.prior_part == pytest.approx(item.score, abs=1e-4)
        explained = sum(because.contribution for because in item.because) + item.prior_part
        assert explained == pytest.approx(item.score, abs=1e-4)
        shares = sum(because.share for because in item.because) + item.prior_part / abs(item.score)
        assert shares == pytest.approx(np.sign(item.score), abs=1e-3)


def seen_by(world, user_id):
    with world.resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read("select item_id from fct_interactions where user_id = $u", {"u": user_id})
    return set(rows["item_id"].to_pylist())


def test_slate_of_a_user_is_exact_search_over_the_warehouse(small_world):
    slate = recommend_to_user(small_world.resources, "u01", k=8)
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, "v1"), load_item_space(warehouse, "v1")
        profile = load_profiles(warehouse, "v1", ["u01"])
    fusion = model.recipe.fusion
    query = fuse_queries(profile.text, profile.factors, profile.alpha, profile.beta, fusion)
    parts = split_scores(query, fuse_items(items.text, items.factors, items.prior, fusion), model.text_width)
    scores = dict(zip(items.item_ids, (parts.text + parts.factors + parts.prior)[0], strict=True))
    open_ids = set(scores) - seen_by(small_world, "u01") - {"i39"}
    expected = sorted(open_ids, key=lambda item_id: -scores[item_id])[:8]
    assert [item.item_id for item in slate.items] == expected
    for item in slate.items:
        row = items.index[item.item_id]
        assert item.score == pytest.approx(scores[item.item_id], abs=1e-4)
        assert item.text_part == pytest.approx(parts.text[0, row], abs=1e-4)
        assert item.factors_part == pytest.approx(parts.factors[0, row], abs=1e-4)
        assert item.prior_part == pytest.approx(parts.prior[0, row], abs=1e-4)
    assert [item.rank for item in slate.items] == list(range(1, 9))
    assert (slate.version, slate.source, slate.user_id) == ("v1", "profile", "u01")


def test_seen_disliked_and_unavailable_items_are_left_out(small_world):
    for user_id in ("u00", "u01", "u12"):
        ids = {item.item_id for item in recommend_to_user(small_world.resources, user_id, k=40).items}
        assert not ids & seen_by(small_world, user_id)
        assert "i39" not in ids
        assert len(ids) == 40 - len(seen_by(small_world, user_id) | {"i39"})


def test_an_item_met_since_the_last_refresh_is_left_out_at_once(small_world):
    first = recommend_to_user(small_world.resources, "u01", k=1).items[0].item_id
    small_world.add_events(small_world.event("u01", first, "view"))
    assert recommend_to_user(small_world.resources, "u01", k=1).items[0].item_id != first


@pytest.mark.parametrize("user_id", ["u00", "u07", "u20"])
def test_explained_slate_is_the_same_slate_and_adds_up(small_world, user_id):
    plain = recommend_to_user(small_world.resources, user_id)
    explained = recommend_to_user(small_world.resources, user_id, explain=True)
    assert [item.item_id for item in explained.items] == [item.item_id for item in plain.items]
    assert [i.score for i in explained.items] == pytest.approx([i.score for i in plain.items], abs=1e-4)
    adds_up(explained)
    assert all(len(item.because) > 1 for item in explained.items)
    assert all(item.because == () for item in plain.items)


def test_reasons_are_items_and_texts_of_the_user_by_name(small_world):
    slate = recommend_to_user(small_world.resources, "u00", explain=True)
    reasons = [because for item in slate.items for because in item.because]
    assert {r.item_id for r in reasons if r.kind == "item"} <= seen_by(small_world, "u00")
    assert {r.label for r in reasons if r.kind == "text"} == {"space stories"}
    assert all(r.label.startswith("The ") for r in reasons if r.kind == "item")


def test_explanation_holds_to_the_snapshot_of_the_profile(small_world):
    before = recommend_to_user(small_world.resources, "u01", explain=True)
    small_world.add_events(
        small_world.event("u01", "i00", "impression"), small_world.event("u01", None, "search", text="x")
    )
    after = recommend_to_user(small_world.resources, "u01", explain=True)
    assert [i.because for i in after.items] == [i.because for i in before.items]


def test_a_user_who_is_not_in_the_index_is_solved_from_their_history(small_world):
    small_world.add_events(*(small_world.event("new", item_id) for item_id in ("i20", "i21", "i25", "i30")))
    slate = recommend_to_user(small_world.resources, "new", k=8, explain=True)
    assert slate.source == "profile"
    assert slate.n_history == 4
    adds_up(slate)
    with small_world.resources.warehouse(read_only=True) as warehouse:
        model, items = load_version(warehouse, "v1"), load_item_space(warehouse, "v1")
        histories, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot(), ["new"])
    profiles = compute_profiles(histories, items, model.recipe)
    assert slate.alpha == pytest.approx(float(profiles.alpha[0]))
    of_their_kind = [item for item in slate.items[:5] if item.item_id >= "i20"]
    assert len(of_their_kind) >= 4


def test_nobody_gets_the_popular_items_by_name(small_world):
    slate = recommend_to_user(small_world.resources, "nobody", explain=True)
    assert slate.source == "popular"
    assert "popular" in slate.note
    with small_world.resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read("select item_id from item_factors where item_id <> 'i39' order by prior desc, item_id")
    assert [item.item_id for item in slate.items] == rows["item_id"].to_pylist()[:10]
    assert all(item.score == pytest.approx(item.prior_part) for item in slate.items)


def test_popular_even_where_the_prior_has_no_weight(small_world):
    small_world.train("v2", beta=0.0)
    small_world.publish("v2")
    slate = recommend_to_user(small_world.resources, "nobody")
    assert slate.version == "v2"
    assert slate.source == "popular"
    assert slate.beta == pytest.approx(1)
    assert slate.items[0].score > slate.items[9].score


def test_slate_for_a_text(small_world):
    slate = recommend_for_text(small_world.resources, "  a robot in space ", explain=True)
    assert slate.source == "text"
    assert slate.alpha == pytest.approx(0.8)
    assert {"robot", "space"} & set(slate.items[0].title.split())
    adds_up(slate)
    assert {because.label for item in slate.items for because in item.because} == {"a robot in space"}


def test_slate_for_a_text_needs_the_encoder_of_the_version(small_world, monkeypatch):
    monkeypatch.setattr(type(small_world.resources.encoder()), "encoder_id", "other@1")
    with pytest.raises(SettingsError, match=r"'words@1'.*'other@1'"):
        recommend_for_text(small_world.resources, "space")


def test_slate_for_liked_items(small_world):
    slate = answer(small_world.resources, SlateRequest(liked=("i20", "i24", "i28", "i20"), explain=True))
    assert slate.source == "liked_items"
    assert slate.n_history == 3
    assert not {"i20", "i24", "i28", "i39"} & {item.item_id for item in slate.items}
    assert sum(item.item_id >= "i20" for item in slate.items[:5]) >= 4
    adds_up(slate)


def test_unknown_liked_items_are_named(small_world):
    with pytest.raises(NotFoundError, match=r"'x/1', '没有'"):
        answer(small_world.resources, SlateRequest(liked=("i20", "x/1", "没有")))


@pytest.mark.parametrize("k", [0, 501])
def test_slate_length_is_checked(small_world, k):
    for ask in (
        lambda: recommend_to_user(small_world.resources, "u01", k=k),
        lambda: recommend_for_text(small_world.resources, "space", k=k),
        lambda: answer(small_world.resources, SlateRequest(liked=("i01",), k=k)),
    ):
        with pytest.raises(InputError, match="from 1 to 500"):
            ask()


def test_an_empty_text_is_refused(small_world):
    with pytest.raises(InputError, match="text is empty"):
        recommend_for_text(small_world.resources, " \n")


def test_before_the_first_publication(empty_world):
    with pytest.raises(NotFoundError, match="nearline run daily_batch"):
        recommend_to_user(empty_world.resources, "u01")


def test_a_request_with_filters_and_diversity(small_world):
    request = SlateRequest(user_id="u01", k=10, diversity=0.7)
    slate = answer(small_world.resources, request)
    plain = recommend_to_user(small_world.resources, "u01")
    assert slate.items[0] == plain.items[0]
    assert slate.items != plain.items
    none = answer(small_world.resources, SlateRequest(user_id="u01", categories=("no such",)))
    assert (none.items, none.fallbacks) == ((), ("fewer_than_k",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": "space"}, "for a user alone"),
        ({"user_id": "u01", "liked": ("i01",)}, "for a user alone"),
        ({"user_id": "u01", "diversity": 0.5}, "boosts or diversity"),
    ],
)
def test_neighbours_are_for_a_user_alone(small_world, options, said):
    with pytest.raises(InputError, match=said):
        answer(small_world.resources, SlateRequest(method="neighbours", **options))
