"""From a request to the vector that is searched with, and to what that vector is made of.

The plain request takes the user's stored vector as it is. Any other is a history of its own: what the user did, then
what the request names, through ``compute_profiles`` like every history. It knows nothing of search.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from tasks.domain.boosts import check_boosts
from tasks.domain.diversity import check_diversity
from tasks.domain.errors import InputError, NotFoundError
from tasks.domain.fusion import fuse_queries
from tasks.domain.histories import InteractionLog, TextLog, build_histories
from tasks.domain.online import SlateRequest
from tasks.domain.profiles import Histories, Profiles, compute_profiles
from tasks.domain.ranking import check_slate_length, only_attributes, popular_where_empty
from tasks.domain.records import SlateMethod, SlateSource
from tasks.model_state import HistoryRows, attributes_of, encode_rows
from tasks.online.state import ServingState, UserView

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
LIKED, DISLIKED = 1.0, -1.0
"""Weights of items that a request names."""
WRITTEN = 1.0
"""Weight of the text of a request."""
UNKNOWN, POPULAR = "nothing is known of this user yet", "these are the popular items"


@dataclass(frozen=True)
class Reasons:
    """The history that a query was made from, and its profile, one row each: enough to explain a score."""

    histories: Histories
    profiles: Profiles


@dataclass(frozen=True)
class Asked:
    """A request as the search sees it: ``query`` is (width,), ``exclude`` are items that must not come back."""

    source: SlateSource
    query: Floats
    alpha: float
    beta: float
    n_history: int = 0
    exclude: frozenset[str] = frozenset()
    note: str = ""
    fallbacks: tuple[str, ...] = ()
    reasons: Reasons | None = None


def check_request(request: SlateRequest) -> None:
    """Raises InputError for what no state could answer."""
    check_slate_length(request.k)
    check_diversity(request.diversity)
    check_boosts(request.boosts)
    if request.method not in get_args(SlateMethod):
        known = ", ".join(get_args(SlateMethod))
        raise InputError(f"A slate was asked for by the method {request.method!r}. Methods: {known}.")
    if request.text is not None and not request.text.strip():
        raise InputError("A slate for a text was asked for, and the text is empty. Write what you are looking for.")
    both = sorted(set(request.liked) & set(request.disliked))
    if both:
        raise InputError(
            f"A slate was asked for with {', '.join(map(repr, both[:5]))} both liked and disliked. Name each item once."
        )


def ask(state: ServingState, request: SlateRequest, user: UserView | None, embed: Callable[[str], Floats]) -> Asked:
    """The query of a request and where it comes from.

    ``user`` is None where nobody is named or nothing is known of them; ``embed`` gives the vector (text_width,) of a
    text and is only called if the request has one. Raises NotFoundError that names the items which are unknown.
    """
    named = [*request.liked, *request.disliked]
    check_known(named, state.items.index, state.model.version)
    if named or request.text is not None or (user is not None and request.explain):
        asked = _ask_by_history(state, request, user, embed)
    elif user is not None:
        stored = Asked("profile", user.query, user.alpha, user.beta, user.n_history)
        asked = _name_source(state, stored, UNKNOWN)
    else:
        asked = ask_for_popular(state)
        if request.user_id is not None:
            asked = replace(asked, note=f"{UNKNOWN}: {POPULAR}")
    asked = replace(asked, fallbacks=_fallbacks(state, request, user))
    met = user.seen if user is not None else frozenset[str]()
    exclude = met.union(named) if request.exclude_seen else frozenset[str]()
    return replace(asked, exclude=exclude.union(request.exclude_items))


def ask_for_popular(state: ServingState) -> Asked:
    """For whoever asks without saying anything: the prior, with the weight it has for those without a history."""
    first = state.model.recipe.fusion.buckets[0]
    query = np.zeros(state.vectors.shape[1], np.float32)
    query[-1] = first.beta / state.model.recipe.fusion.prior_block
    asked = Asked("popular", query, first.alpha, first.beta)
    return _name_source(state, asked, "nothing was named to go by")


def check_known(item_ids: Sequence[str], known: Container[str], version: str) -> None:
    """Raises NotFoundError that names the items which are not in ``known``, those of the serving ``version``."""
    unknown = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise NotFoundError(
            f"The serving version {version} does not know {', '.join(map(repr, unknown[:5]))}{more}."
            " Look the id up in stg_items; an item that was imported since enters with the next refresh or batch."
        )


def stored_log(state: ServingState, user: UserView, rows: HistoryRows) -> tuple[InteractionLog, TextLog, int]:
    """What one user did as logs over the items of the state, and how many of their texts are not embedded yet.

    As ``tasks.model_state.load_histories`` makes it, for one user, and without looking at every item.
    """
    index, model = state.items.index, state.model
    met = sorted({item_id for item_id in rows.interactions["item_id"].to_pylist() if item_id in index})
    known = user.load_embeddings(rows.texts["content_hash"]) if rows.texts.num_rows else {}
    log, texts, n_missing = encode_rows(rows, met, [user.user_id], known, model.text_width)
    places = np.array([index[item_id] for item_id in met], np.int64)
    told = attributes_of(rows, [user.user_id])
    features = None if model.user_map is None else model.user_space.encode(told)
    log = replace(log, item=places[log.item], n_items=len(index), user_features=features)
    return log, texts, n_missing


def _ask_by_history(
    state: ServingState, request: SlateRequest, user: UserView | None, embed: Callable[[str], Floats]
) -> Asked:
    """By the same functions as batch and refresh, so that it can be explained like any history."""
    width = state.model.text_width
    log, texts = _no_log(len(state.items.index)), _no_texts(width)
    if user is not None:
        log, texts, _ = stored_log(state, user, user.load_history())
    now = 1 + max([*log.last_at.tolist(), *texts.written_at.tolist()], default=0)
    named = [state.items.index[item_id] for item_id in _distinct(request)]
    log = _with_items(log, np.array(named, np.int64), len(set(request.disliked)), now)
    if request.text is not None:
        text = request.text.strip()
        texts = _with_text(texts, text, np.reshape(embed(text), (1, width)), now + len(named))
    histories = build_histories(log, texts, [request.user_id or ""])
    recipe = state.model.recipe
    profiles = compute_profiles(histories, state.items, recipe)
    query = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, recipe.fusion)[0]
    alpha, beta, n_history = float(profiles.alpha[0]), float(profiles.beta[0]), int(profiles.n_history[0])
    source: SlateSource = "profile"
    if user is None or not user.query[:-1].any():
        source = "liked_items" if request.liked else "text" if request.text is not None else "profile"
    reasons = Reasons(histories, profiles) if request.explain else None
    asked = Asked(source, query, alpha, beta, n_history, reasons=reasons)
    return _name_source(state, asked, UNKNOWN)


def _fallbacks(state: ServingState, request: SlateRequest, user: UserView | None) -> tuple[str, ...]:
    """What the slate has to do without."""
    if user is None:
        return ("unknown_user",) if request.user_id is not None else ()
    did_nothing = user.n_history == 0 and not user.query[: state.model.text_width].any()
    return ("empty_history",) if did_nothing else ()


def _name_source(state: ServingState, asked: Asked, nothing_known: str) -> Asked:
    """The source of a query that no history speaks for; one that holds nothing asks for what is popular."""
    model, fusion = state.model, state.model.recipe.fusion
    if only_attributes(asked.query[None], np.array([asked.n_history]), model.text_width)[0]:
        note = "this user has done nothing yet: these are the items that their attributes speak for"
        return replace(asked, source="attributes", note=note)
    queries, is_empty = popular_where_empty(asked.query[None], fusion)
    if not is_empty[0]:
        return asked
    beta = float(queries[0, -1] * fusion.prior_block)
    return replace(asked, source="popular", query=queries[0], beta=beta, note=f"{nothing_known}: {POPULAR}")


def _distinct(request: SlateRequest) -> list[str]:
    """The items that a request names, each once: those disliked, then those liked, the last one last."""
    return [*dict.fromkeys(request.disliked), *reversed(dict.fromkeys(reversed(request.liked)))]


def _with_items(log: InteractionLog, item: Integers, n_disliked: int, now: int) -> InteractionLog:
    """The log with more items, newer than all else and the last one newest; the first ``n_disliked`` are not liked.

    As in ``fct_interactions``, the newest event decides whether an item is liked, and what agrees with it adds up.
    """
    weight = np.where(np.arange(len(item)) < n_disliked, DISLIKED, LIKED).astype(np.float32)
    before = dict(zip(log.item.tolist(), log.weight.tolist(), strict=True))
    known = np.array([before.get(row, 0.0) for row in item.tolist()], np.float32)
    weight += np.where(known * weight > 0, known, 0)
    kept = log.select(~np.isin(log.item, item))
    return replace(
        kept,
        user=np.concatenate([kept.user, np.zeros(len(item), np.int64)]),
        item=np.concatenate([kept.item, item]),
        weight=np.concatenate([kept.weight, weight]),
        last_at=np.concatenate([kept.last_at, now + np.arange(len(item))]),
    )


def _with_text(texts: TextLog, text: str, vector: Floats, written_at: int) -> TextLog:
    return TextLog(
        np.concatenate([texts.vectors, vector.astype(np.float32)]),
        np.append(texts.user, 0),
        np.append(texts.weight, np.float32(WRITTEN)),
        np.append(texts.written_at, written_at),
        (*texts.labels, text),
    )


def _no_log(n_items: int) -> InteractionLog:
    none = np.zeros(0, np.int64)
    return InteractionLog(none, none, np.zeros(0, np.float32), none, 1, n_items)


def _no_texts(width: int) -> TextLog:
    none = np.zeros(0, np.int64)
    return TextLog(np.zeros((0, width), np.float32), none, np.zeros(0, np.float32), none)
