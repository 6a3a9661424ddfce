"""Answers requests from one state: a slate for whoever asks, what is like an item, what is popular, what is new.

It knows nothing of HTTP, of the warehouse or of where users come from. Every function takes one ``ServingState``, so an
answer is all of one version.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.domain.attribute_terms import terms_of
from tasks.domain.boosts import boost_reason, boost_shares
from tasks.domain.diversity import diversify, item_likeness
from tasks.domain.errors import IndexUnavailableError, InputError
from tasks.domain.explanations import name_reasons, split_by_reason
from tasks.domain.fusion import split_scores
from tasks.domain.online import SlateRequest
from tasks.domain.ranking import check_slate_length, mean_block_cosine
from tasks.domain.records import Because, IndexFilter, Likeness, Recommendation, Slate
from tasks.online.asking import Asked, Reasons, ask, ask_for_popular, check_known, check_request
from tasks.online.exact_search import best_rows
from tasks.online.state import ServingState, UserView

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
NAMED_REASONS = 5
"""Reasons that an explained item names one by one; the others are added up."""
TIE_MARGIN = 50
"""Hits beyond the slate, so that equal scores at its end are ordered by id and not by the index."""
MIN_CANDIDATES, CANDIDATES_PER_ITEM = 100, 4
"""Candidates of an order by unlikeness, or of a likeness by two blocks."""


class _Ranked(NamedTuple):
    """Items (rows of the state) with the parts of their scores, (n,) each; their sum is the score."""

    rows: Rows
    text: Floats
    factors: Floats
    prior: Floats
    boost: Floats

    @property
    def scores(self) -> Doubles:
        return self.text.astype(np.float64) + self.factors + self.prior + self.boost

    def take(self, places: Rows) -> "_Ranked":
        rows, text, factors, prior, boost = self
        return _Ranked(rows[places], text[places], factors[places], prior[places], boost[places])

    def best_first(self) -> "_Ranked":
        """Equal scores go by item, as rows do."""
        return self.take(np.lexsort((self.rows, -self.scores)))


def recommend(
    state: ServingState, request: SlateRequest, user: UserView | None, embed: Callable[[str], Floats]
) -> Slate:
    """The slate of a request; ``user`` is None where nobody is named, or where nothing is known of them.

    A user alone is answered from their vector. A text, liked or disliked items, or ``explain``, load what the user did
    and solve the profile again with what the request adds. ``embed`` gives the vector (text_width,) of a text.
    With an index that is away the items of the state are searched, exactly. Raises InputError for a request that cannot
    be answered from a state, and NotFoundError that names liked or disliked items which the version does not know.
    """
    check_request(request)
    if request.method == "neighbours":
        raise InputError(
            "A slate by the method 'neighbours' was asked for. Neighbours are in the warehouse and not in the serving"
            " state: ask with the method 'fused', or run `nearline recommend --user ID --method neighbours`."
        )
    answer = _answer(state, request, ask(state, request, user, embed))
    if user is None:
        return replace(answer, user_id=request.user_id)
    return replace(
        answer,
        user_id=user.user_id,
        as_of_snapshot=user.as_of_snapshot,
        n_pending_events=user.n_pending_events,
        stale_seconds=user.stale_seconds,
    )


def popular(state: ServingState, request: SlateRequest) -> Slate:
    """The ``k`` items with the highest prior under the request's filters, whoever asks."""
    check_request(request)
    return _answer(state, request, replace(ask_for_popular(state), note=""))


def latest(state: ServingState, request: SlateRequest) -> Slate:
    """The ``k`` items under the request's filters that came into the catalog last, the newest first; equal ones go by
    id. Their scores are 0."""
    check_request(request)
    rows = best_rows(state.first_seen_at, request.k, state.terms.allowed(item_filter(request, frozenset())))
    nothing = np.zeros(len(rows), np.float32)
    asked = Asked("latest", np.zeros(state.vectors.shape[1], np.float32), 0.0, 0.0)
    return _slate(state, asked, _Ranked(rows, nothing, nothing, nothing, nothing), request.k, None, ())


def similar(state: ServingState, item_id: str, *, k: int = 10, by: Likeness = "factors") -> Slate:
    """``k`` available items that are most like one item, by the cosine of their factors, of their texts, or the mean of
    ``both``.

    Factors say who likes an item and lean on its text, and they predict best what somebody likes next
    (``docs/decisions``); an item without them is compared by its text, and one without text by its factors, whatever
    was asked for, and the note says so. Candidates are the best by dot product, four times ``k`` and at least 100 for
    each block. The parts of a score are the shares of the two blocks, ``alpha`` is the weight of the text. Raises
    InputError for ``k`` outside 1 to 500, NotFoundError for an item that the serving version does not know.
    """
    check_slate_length(k)
    check_known([item_id], state.items.index, state.model.version)
    width = state.model.text_width
    query, note = _asked_blocks(state.vectors[state.items.index[item_id]], width, by)
    restrict = IndexFilter(exclude_items=frozenset([item_id]))
    n_wanted = max(MIN_CANDIDATES, CANDIDATES_PER_ITEM * k)
    found, fallbacks = np.zeros(0, np.int64), tuple[str, ...]()
    for block in (slice(0, width), slice(width, len(query) - 1)):
        part = np.zeros_like(query)
        part[block] = query[block]
        if part.any():
            rows, fallbacks = _search(state, part, n_wanted, restrict)
            found = np.union1d(found, rows)
    text, factors = mean_block_cosine(query, state.vectors[found], width)
    nothing = np.zeros(len(found), np.float32)
    slate = _Ranked(found, text, factors, nothing, nothing).best_first().take(np.arange(min(k, len(found))))
    alpha = 0.5 * (1 + bool(query[:width].any()) - bool(query[width:-1].any()))
    return _slate(state, Asked("similar_item", query, alpha, 0.0, note=note), slate, k, None, fallbacks)


def item_filter(request: SlateRequest, exclude: frozenset[str]) -> IndexFilter:
    """What may be shown: what the request asks for, without ``exclude``."""
    groups = tuple(terms_of(name, values) for name, values in request.attributes.items())
    return IndexFilter(request.categories, groups, exclude, request.only_available)


def _answer(state: ServingState, request: SlateRequest, asked: Asked) -> Slate:
    restrict = item_filter(request, asked.exclude)
    found, fallbacks = _find(state, asked, request, restrict)
    slate = _ordered(state, found, request)
    because = _explain(state, slate, asked.reasons, request) if request.explain else None
    return _slate(state, asked, slate, request.k, because, fallbacks)


def _find(
    state: ServingState, asked: Asked, request: SlateRequest, restrict: IndexFilter
) -> tuple[_Ranked, tuple[str, ...]]:
    """Enough candidates for what follows, best first."""
    n_wanted = request.k + TIE_MARGIN
    if request.diversity > 0:
        n_wanted = max(n_wanted, MIN_CANDIDATES, CANDIDATES_PER_ITEM * request.k)
    fallbacks: tuple[str, ...] = ()
    if request.boosts:
        rows, boost = _search_boosted(state, asked, request, restrict, n_wanted)
    else:
        rows, fallbacks = _search(state, asked.query, n_wanted, restrict)
        boost = np.zeros(len(rows), np.float32)
    parts = split_scores(asked.query[None], state.vectors[rows], state.model.text_width)
    return _Ranked(rows, parts.text[0], parts.factors[0], parts.prior[0], boost).best_first(), fallbacks


def _search(state: ServingState, query: Floats, n: int, restrict: IndexFilter) -> tuple[Rows, tuple[str, ...]]:
    """Rows of the best items by the index, or by exact search if it is away; items that came since are left out."""
    try:
        hits = state.index.search(state.model.version, query, n, restrict)
    except IndexUnavailableError:
        return best_rows(state.vectors @ query, n, state.terms.allowed(restrict)), ("index_away",)
    index = state.items.index
    return np.array([index[hit.item_id] for hit in hits if hit.item_id in index], np.int64), ()


def _search_boosted(
    state: ServingState, asked: Asked, request: SlateRequest, restrict: IndexFilter, n: int
) -> tuple[Rows, Floats]:
    """Rows of the best items with the boosts added, and what these add: exact over every item, for a boosted one may
    come from far down."""
    allowed = state.terms.allowed(restrict)
    scores = state.vectors @ asked.query
    best = abs(float(scores[allowed].max())) if allowed.any() else 0.0
    added = np.float32(best or 1.0) * boost_shares(request.boosts, len(scores), state.terms.boosted)
    rows = best_rows(scores + added, n, allowed)
    return rows, added[rows]


def _ordered(state: ServingState, found: _Ranked, request: SlateRequest) -> _Ranked:
    if request.diversity == 0:
        return found.take(np.arange(min(request.k, len(found.rows))))
    vectors, width = state.vectors[found.rows], state.model.text_width
    likeness = item_likeness(vectors[:, :width], vectors[:, width:-1])
    return found.take(diversify(found.scores, likeness, request.k, request.diversity))


def _explain(
    state: ServingState, slate: _Ranked, reasons: Reasons | None, request: SlateRequest
) -> list[tuple[Because, ...]]:
    """Why each item is there: its parts by what the user did, then its boosts."""
    because: list[tuple[Because, ...]] = [()] * len(slate.rows)
    scores = slate.scores.tolist()
    if reasons is not None and len(slate.rows):
        recipe = state.model.recipe
        split = next(split_by_reason(reasons.histories, reasons.profiles, state.items, recipe, [slate.rows]))
        ids = state.items.item_ids
        titles = {ids[row]: state.payloads[row].title for row in split.item_rows.tolist()}
        because = [name_reasons(split, n, score, ids, titles, NAMED_REASONS) for n, score in enumerate(scores)]
    for place, (row, added) in enumerate(zip(slate.rows.tolist(), slate.boost.tolist(), strict=True)):
        boosted = boost_reason(request.boosts, state.payloads[row], added, scores[place])
        because[place] += () if boosted is None else (boosted,)
    return because


def _slate(
    state: ServingState,
    asked: Asked,
    ranked: _Ranked,
    k: int,
    because: Sequence[tuple[Because, ...]] | None,
    fallbacks: tuple[str, ...],
) -> Slate:
    """The answer in the order of ``ranked``; an item without a title is called by its id."""
    reasons = because or [()] * len(ranked.rows)
    columns = (column.tolist() for column in (ranked.rows, ranked.scores, *ranked[1:]))
    items = tuple(
        Recommendation(
            item_id=state.payloads[row].item_id,
            title=state.payloads[row].title or state.payloads[row].item_id,
            rank=rank,
            score=score,
            text_part=text,
            factors_part=factors,
            prior_part=prior,
            because=why,
            boost_part=boost,
            categories=state.payloads[row].categories,
        )
        for rank, (row, score, text, factors, prior, boost, why) in enumerate(zip(*columns, reasons, strict=True), 1)
    )
    fewer = ("fewer_than_k",) if len(items) < k else ()
    return Slate(
        version=state.model.version,
        source=asked.source,
        alpha=asked.alpha,
        beta=asked.beta,
        items=items,
        n_history=asked.n_history,
        note=asked.note,
        fallbacks=(*asked.fallbacks, *fallbacks, *fewer),
    )


def _asked_blocks(vector: Floats, text_width: int, by: Likeness) -> tuple[Floats, str]:
    """The stored vector without a block that was not asked for, unless that is all there is; and what to say of it."""
    blocks = {"text": slice(0, text_width), "factors": slice(text_width, len(vector) - 1)}
    if by not in (*blocks, "both"):
        raise InputError(
            f"Similar items were asked for by {by!r}. Allowed are both, factors and text: name one of them."
        )
    known = [name for name, block in blocks.items() if vector[block].any()]
    used = [name for name in known if by in (name, "both")] or known
    asked = np.zeros_like(vector)
    for name in used:
        asked[blocks[name]] = vector[blocks[name]]
    if not known:
        return asked, "the item has neither text nor factors to be compared by"
    missing = sorted({"both": {"factors", "text"}}.get(by, {by}) - set(used))
    return asked, f"the item has no {missing[0]}: it is compared by its {used[0]}" if missing else ""
