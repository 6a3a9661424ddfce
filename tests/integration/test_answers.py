"""Answers from a serving state: what a service says, without the service."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from infra.memory_index import MemoryIndex
from tasks.domain.errors import IndexUnavailableError, InputError, NotFoundError
from tasks.domain.fusion import fuse_queries
from tasks.domain.online import Boost, SlateRequest
from tasks.domain.profiles import compute_profiles, request_histories
from tasks.domain.vectors import unit_rows
from tasks.model_state import load_histories
from tasks.online.answers import latest, popular, recommend, similar
from tasks.online.beliefs import believe
from tasks.online.state import load_state
from tasks.recommend import load_user, recommend_to_user

GENRES = ("drama", "war", "comedy")


class AbsentIndex(MemoryIndex):
    def search(self, *args, **options):
        raise IndexUnavailableError("the index is away")


def searched(state, index):
    """The state with its items in an index in memory."""
    version = state.model.version
    index.create_version(version, state.vectors.shape[1])
    index.upsert_items(version, state.vectors, state.payloads)
    index.switch(version)
    return replace(state, index=index)


@pytest.fixture(scope="module")
def serving(trained_home):
    """The state of the small world, its films with genres and languages, and a way to look its users up."""
    _, world = trained_home
    with world.resources.index() as index, world.resources.warehouse(read_only=True) as warehouse:
        state = load_state(warehouse, "v1", index)
        users = {user_id: load_user(state, warehouse, user_id) for user_id in ("u00", "u01", "u05", "u07", "nobody")}
        for user in users.values():
            if user is not None:
                rows, hashes = user.load_history(), user.load_history().texts["content_hash"]
                known = user.load_embeddings(hashes)
                users[user.user_id] = replace(user, load_history=lambda r=rows: r, load_embeddings=lambda _, k=known: k)
    payloads = tuple(
        replace(payload, categories=(GENRES[row % 3],), attributes=(f"language={('en', 'fr')[row % 2]}", f"year={row}"))
        for row, payload in enumerate(state.payloads)
    )
    arrived = np.arange(len(payloads)) * 10
    return searched(replace(state, payloads=payloads, first_seen_at=arrived), MemoryIndex()), users


@pytest.fixture
def words(trained_home):
    """The vector of a text."""
    encoder = trained_home[1].resources.encoder()
    return lambda text: encoder.encode([text])[0]


@pytest.fixture
def asked(serving, words):
    """``asked(user_id, **request)``: the slate."""
    state, users = serving

    def ask(user_id=None, *, of=state, **options):
        return recommend(of, SlateRequest(user_id=user_id, **options), users.get(user_id), words)

    return ask


def ids(slate):
    return [item.item_id for item in slate.items]


def adds_up(slate):
    for item in slate.items:
        parts = item.text_part + item.factors_part + item.prior_part + item.boost_part
        assert parts == pytest.approx(item.score, abs=1e-4)
        if item.because:
            explained = sum(because.contribution for because in item.because) + item.prior_part
            assert explained == pytest.approx(item.score, abs=1e-4)


def best_by_hand(state, query, exclude, k):
    scores = state.vectors @ query
    shown = [i for i, p in enumerate(state.payloads) if p.available and p.item_id not in exclude]
    return [state.items.item_ids[row] for row in sorted(shown, key=lambda row: (-scores[row], row))[:k]]


def test_a_user_alone_is_answered_from_their_vector(serving):
    state, users = serving
    user = replace(users["u01"], load_history=None, load_embeddings=None, n_pending_events=3, stale_seconds=1.5)
    slate = recommend(state, SlateRequest(user_id="u01", k=8), user, None)
    assert ids(slate) == best_by_hand(state, user.query, user.seen, 8)
    assert (slate.source, slate.fallbacks, slate.note) == ("profile", (), "")
    assert (slate.as_of_snapshot, slate.n_pending_events, slate.stale_seconds) == (user.as_of_snapshot, 3, 1.5)
    assert (slate.alpha, slate.beta, slate.n_history) == (user.alpha, user.beta, user.n_history)
    assert [item.rank for item in slate.items] == list(range(1, 9))
    assert slate.items[0].categories == state.payloads[state.items.index[slate.items[0].item_id]].categories
    adds_up(slate)


@pytest.mark.parametrize("user_id", ["u00", "u01", "u05", "u07"])
def test_an_explained_slate_is_the_plain_one_and_adds_up(asked, user_id):
    plain, explained = asked(user_id), asked(user_id, explain=True)
    assert ids(explained) == ids(plain)
    assert [i.score for i in explained.items] == pytest.approx([i.score for i in plain.items], abs=1e-4)
    assert all(item.because for item in explained.items)
    adds_up(explained)


def test_a_text_or_liked_items_alone_are_a_history_of_their_own(serving, asked, words):
    state, _ = serving
    for request, made_of, source in (
        ({"text": " space stories "}, {"texts": words("space stories")[None]}, "text"),
        ({"liked": ("i20", "i24")}, {"item_ids": ["i20", "i24"]}, "liked_items"),
        ({"liked": ("i20",), "text": "love"}, {"item_ids": ["i20"], "texts": words("love")[None]}, "liked_items"),
    ):
        slate = asked(**request, explain=True, k=6)
        profile = compute_profiles(request_histories(state.items, **made_of), state.items, state.model.recipe)
        fusion = state.model.recipe.fusion
        query = fuse_queries(profile.text, profile.factors, profile.alpha, profile.beta, fusion)[0]
        assert ids(slate) == best_by_hand(state, query, made_of.get("item_ids", ()), 6)
        assert slate.source == source
        assert slate.fallbacks == ()
        adds_up(slate)


def test_the_last_liked_item_is_the_newest(asked):
    first, second = asked(liked=("i01", "i21"), k=5), asked(liked=("i21", "i01"), k=5)
    assert ids(first) != ids(second)
    assert ids(asked(liked=("i21", "i01", "i21"), k=5)) == ids(first)


def test_what_a_request_adds_counts_like_events(small_world, words):
    with small_world.resources.index() as index, small_world.resources.warehouse(read_only=True) as warehouse:
        state = load_state(warehouse, "v1", index)
        user = load_user(state, warehouse, "u01")
        request = SlateRequest(user_id="u01", liked=("i05", "i24"), disliked=("i30",), text="robot stories", k=30)
        slate = recommend(state, request, user, words)
        met = set(user.load_history().interactions["item_id"].to_pylist())
    late = small_world.clock + timedelta(days=1)
    small_world.add_events(
        small_world.event("u01", "i30", "dislike", at=late),
        small_world.event("u01", "i05", at=late + timedelta(seconds=1)),
        small_world.event("u01", "i24", at=late + timedelta(seconds=2)),
        small_world.event("u01", None, "search", at=late + timedelta(seconds=3), text="robot stories"),
    )
    with small_world.resources.warehouse(read_only=True) as warehouse:
        histories, n_missing = load_histories(warehouse, state.model, state.items, warehouse.latest_snapshot(), ["u01"])
    profile = compute_profiles(histories, state.items, state.model.recipe)
    fusion = state.model.recipe.fusion
    query = fuse_queries(profile.text, profile.factors, profile.alpha, profile.beta, fusion)[0]
    assert n_missing == 0
    assert "i24" in met, "an item that was liked before is liked again"
    assert ids(slate) == best_by_hand(state, query, met | {"i05", "i24", "i30"}, 30)
    scores = state.vectors @ query
    assert [i.score for i in slate.items] == pytest.approx([scores[state.items.index[i]] for i in ids(slate)], abs=2e-3)
    assert (slate.source, slate.n_history) == ("profile", int(profile.n_history[0]))


def test_a_disliked_item_lowers_what_is_like_it(asked):
    plain = {item.item_id: item.score for item in asked("u01", k=30).items}
    best = max(plain, key=plain.get)
    after = asked("u01", k=30, disliked=(best,), explain=True)
    assert best not in ids(after)
    alike = {item.item_id: item.factors_part for item in after.items}
    before = {item.item_id: item.factors_part for item in asked("u01", k=30).items}
    nearest = max(before.keys() & alike.keys(), key=before.get)
    assert alike[nearest] < before[nearest]
    adds_up(after)


def test_unknown_items_are_named(asked):
    with pytest.raises(NotFoundError, match=r"'x/1', 'y'"):
        asked("u01", liked=("i01", "x/1"), disliked=("y",))


def test_fallbacks_are_named(serving, asked, words):
    state, users = serving
    nothing = asked()
    assert (nothing.source, nothing.fallbacks) == ("popular", ())
    assert "popular" in nothing.note
    unknown = asked("nobody")
    assert (unknown.source, unknown.fallbacks, unknown.user_id) == ("popular", ("unknown_user",), "nobody")
    assert ids(unknown) == ids(nothing)
    assert asked("nobody", text="space").fallbacks == ("unknown_user",)
    assert asked("nobody", text="space").source == "text"
    query = np.zeros_like(users["u01"].query)
    silent = replace(users["u01"], query=query, n_history=0, seen=frozenset())
    slate = recommend(state, SlateRequest(user_id="u01"), silent, words)
    assert (slate.source, slate.fallbacks, ids(slate)) == ("popular", ("empty_history",), ids(nothing))
    query[state.model.text_width : -1] = users["u01"].query[state.model.text_width : -1]
    slate = recommend(state, SlateRequest(user_id="u01"), replace(silent, query=query), words)
    assert (slate.source, slate.fallbacks) == ("attributes", ("empty_history",))
    assert asked("u01", categories=("war",), k=40).fallbacks == ("fewer_than_k",)


@pytest.mark.parametrize(
    "request_of",
    [{}, {"categories": ("war", "comedy"), "attributes": {"language": ("fr",)}}, {"diversity": 0.5}, {"text": "love"}],
)
def test_an_index_that_is_away_is_named_and_the_answer_is_the_same(serving, asked, request_of):
    state, _ = serving
    away = searched(state, AbsentIndex())
    slate, whole = asked("u01", of=away, k=5, **request_of), asked("u01", k=5, **request_of)
    assert (slate.fallbacks, whole.fallbacks) == (("index_away",), ())
    assert ids(slate) == ids(whole)
    assert similar(away, "i20").fallbacks == ("index_away",)
    assert ids(similar(away, "i20")) == ids(similar(state, "i20"))


def test_filters(serving, asked):
    state, users = serving
    rows = {item_id: row for row, item_id in enumerate(state.items.item_ids)}
    everything = ids(asked("u01", k=40))
    dramas = ids(asked("u01", k=40, categories=("drama", "no such"), attributes={"language": ("en", "de")}))
    assert dramas == [i for i in everything if rows[i] % 3 == 0 and rows[i] % 2 == 0]
    years = ids(asked("u01", k=40, attributes={"year": ("4", "5.0", 6), "language": ("en",)}))
    assert set(years) == {"i04", "i06"} - users["u01"].seen
    assert asked("u01", attributes={"year": ()}).items == ()
    assert "i39" not in everything
    assert "i39" in ids(asked("u01", k=40, only_available=False, exclude_seen=False))
    assert set(ids(asked("u01", k=40, exclude_seen=False))) >= users["u01"].seen - {"i39"}
    assert everything[0] not in ids(asked("u01", exclude_items=(everything[0], "no such item")))


def test_a_diverse_slate_keeps_the_scores_and_changes_the_order(asked):
    plain, diverse = asked("u01", k=10), asked("u01", k=10, diversity=0.6)
    assert ids(diverse) != ids(plain)
    assert ids(diverse)[0] == ids(plain)[0]
    scores = {item.item_id: item.score for item in asked("u01", k=40).items}
    for item in diverse.items:
        assert item.score == pytest.approx(scores[item.item_id], abs=1e-6)
    kinds = [{item.title.rpartition(" ")[0] for item in slate.items} for slate in (plain, diverse)]
    assert len(kinds[1]) > len(kinds[0])
    adds_up(asked("u01", diversity=1.0, explain=True))


def test_a_boosted_item_comes_up_from_far_down(asked):
    plain = asked("u01", k=40)
    last, best = plain.items[-1], plain.items[0].score
    boosted = asked("u01", k=20, boosts=(Boost("item", last.item_id, 1.0),), explain=True)
    item = next(item for item in boosted.items if item.item_id == last.item_id)
    assert item.boost_part == pytest.approx(abs(best), abs=1e-5)
    assert item.score == pytest.approx(last.score + abs(best), abs=1e-4)
    assert (item.because[-1].kind, item.because[-1].label) == ("boost", f"the boost of {last.item_id}")
    adds_up(boosted)


def test_boosts_raise_lower_and_stay_in_bounds(asked):
    plain = {item.item_id: item.score for item in asked("u01", k=40).items}
    size = abs(max(plain.values()))
    boosts = (Boost("category", "war", 0.8), Boost("attribute", "language=fr", 0.5), Boost("category", "drama", -1))
    slate = asked("u01", k=40, boosts=boosts)
    rows = {item.item_id: int(item.item_id[1:]) for item in slate.items}
    for item in slate.items:
        share = 0.8 * (rows[item.item_id] % 3 == 1) + 0.5 * (rows[item.item_id] % 2) - (rows[item.item_id] % 3 == 0)
        assert item.boost_part == pytest.approx(min(share, 1) * size, abs=1e-4)
        assert item.score == pytest.approx(plain[item.item_id] + item.boost_part, abs=1e-4)
    assert [i.score for i in slate.items] == sorted((i.score for i in slate.items), reverse=True)
    assert set(ids(slate)) == set(plain)


def test_popular_and_latest(serving):
    state, _ = serving
    best = sorted(range(39), key=lambda row: (-state.items.prior[row], row))
    assert [int(i[1:]) for i in ids(popular(state, SlateRequest(k=39)))] == best
    assert popular(state, SlateRequest()).source == "popular"
    assert [int(i[1:]) for i in ids(popular(state, SlateRequest(k=3, categories=("war",))))] == [
        r for r in best if r % 3 == 1
    ][:3]
    newest = latest(state, SlateRequest(k=3))
    assert (ids(newest), newest.source) == (["i38", "i37", "i36"], "latest")
    assert newest.items[0].title == "i38", "it has no title"
    assert ids(latest(state, SlateRequest(k=2, only_available=False))) == ["i39", "i38"]
    assert ids(latest(state, SlateRequest(k=2, attributes={"language": ("fr",)}))) == ["i37", "i35"]
    assert latest(state, SlateRequest(k=50)).fallbacks == ("fewer_than_k",)


def test_similar_items(serving):
    state, _ = serving
    units = unit_rows(state.items.factors.astype(np.float64))
    cosines = units @ units[20]
    slate = similar(state, "i20", k=5)
    order = sorted(set(range(39)) - {20}, key=lambda row: -cosines[row])[:5]
    assert [int(i[1:]) for i in ids(slate)] == order
    with pytest.raises(NotFoundError, match="'no/such'"):
        similar(state, "no/such")


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        ({"k": 0}, "from 1 to 500"),
        ({"k": 501}, "from 1 to 500"),
        ({"text": " \n"}, "text is empty"),
        ({"diversity": 1.2}, "diversity"),
        ({"boosts": (Boost("item", "i01", 2.0),)}, "boost"),
        ({"liked": ("i01",), "disliked": ("i01",)}, "both liked and disliked"),
        ({"method": "magic"}, "fused, neighbours"),
        ({"method": "neighbours"}, "nearline recommend --user ID --method neighbours"),
    ],
)
def test_what_cannot_be_answered_is_refused(asked, request_of, said):
    with pytest.raises(InputError, match=said):
        asked("u01", **request_of)


def test_what_is_believed_and_from_what(serving):
    state, users = serving
    user = replace(users["u00"], n_pending_events=2)
    rows = user.load_history().interactions.to_pylist()
    newest = max(row["last_at"] for row in rows)
    found = believe(state, user, newest + timedelta(hours=5))
    assert (found.version, found.n_pending_events, found.n_history) == ("v1", 2, user.n_history)
    assert (found.alpha, found.beta) == (pytest.approx(user.alpha), pytest.approx(user.beta))
    assert 0 <= found.drift <= 2
    assert found.n_evidence == len(found.evidence) == len(rows) + 1
    assert [e.at for e in found.evidence] == sorted((e.at for e in found.evidence), reverse=True)
    weights = {e.item_id: e.weight for e in found.evidence if e.kind == "item"}
    assert weights == {row["item_id"]: row["weight"] for row in rows}
    assert [e.label for e in found.evidence if e.kind == "text"] == ["space stories"]
    liked = {row["item_id"]: row["weight"] for row in rows if row["weight"] > 0}
    for name, share in found.categories:
        of_it = sum(w for i, w in liked.items() if GENRES[int(i[1:]) % 3] == name)
        assert share == pytest.approx(of_it / sum(liked.values()), abs=1e-5)
    assert sum(share for _, share in found.categories) == pytest.approx(1)
    assert [share for _, share in found.categories] == sorted((s for _, s in found.categories), reverse=True)
    assert "hours old" in found.note


def test_the_newest_hundred_are_listed_and_what_is_unknown_is_counted(serving):
    state, users = serving
    user = users["u00"]
    rows = user.load_history()
    many = rows.texts.to_pylist()[0]
    texts = [{**many, "event_id": f"e{n}", "occurred_at": many["occurred_at"] + timedelta(n)} for n in range(120)]
    unknown = {**rows.interactions.to_pylist()[0], "item_id": "gone"}
    interactions = rows.interactions.from_pylist([*rows.interactions.to_pylist(), unknown], rows.interactions.schema)
    rows = rows._replace(interactions=interactions, texts=rows.texts.from_pylist(texts, rows.texts.schema))
    found = believe(state, replace(user, load_history=lambda: rows), many["occurred_at"])
    assert (len(found.evidence), found.n_evidence) == (100, 120 + rows.interactions.num_rows - 1)
    assert found.evidence[0].at == texts[-1]["occurred_at"]
    assert "1 more items were met that the version does not know" in found.note
    missing = believe(
        state, replace(user, load_history=lambda: rows, load_embeddings=lambda _: {}), many["occurred_at"]
    )
    assert "120 more texts were written that are not embedded yet" in missing.note


def test_what_somebody_told_is_evidence(told_world, words):
    with told_world.resources.index() as index, told_world.resources.warehouse(read_only=True) as warehouse:
        state = load_state(warehouse, "v2", index)
        silent = load_user(state, warehouse, "silent")
        found = believe(state, silent, told_world.clock)
        slate = recommend(state, SlateRequest(user_id="silent", liked=("i01",), explain=True), silent, words)
    (told,) = found.evidence
    assert (told.kind, told.at) == ("attribute", None)
    assert "job cook" in told.label
    assert "attributes" in {because.kind for item in slate.items for because in item.because}
    adds_up(slate)


def test_the_command_line_says_the_same(small_world, asked):
    assert ids(recommend_to_user(small_world.resources, "u01")) == ids(asked("u01"))
