"""Answers for the command line: one request each, from the warehouse and the index.

The answers themselves are made in ``tasks/online``, as for a service; here the serving state is loaded for one call. It
knows nothing of HTTP or of how a slate is printed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.errors import InputError, NotFoundError, SettingsError
from tasks.domain.explanations import Split, name_reasons
from tasks.domain.neighbours import score_by_neighbours, split_by_neighbour
from tasks.domain.online import SlateRequest
from tasks.domain.ports import Resources, Warehouse
from tasks.domain.profiles import compute_profiles, weigh_recency
from tasks.domain.records import Recommendation, Slate, SlateMethod, UserPayload
from tasks.model_state import (
    HistoryRows,
    ModelVersion,
    attributes_of,
    encode_histories,
    load_histories,
    load_history_rows,
    load_text_embeddings,
)
from tasks.neighbours import load_neighbours
from tasks.online.answers import NAMED_REASONS, item_filter, recommend
from tasks.online.asking import check_request
from tasks.online.state import ServingState, UserView, load_state
from tasks.profile_rows import user_points
from tasks.refresh import serving_version

Floats = npt.NDArray[np.float32]


def recommend_to_user(
    resources: Resources, user_id: str, *, k: int = 10, explain: bool = False, method: SlateMethod = "fused"
) -> Slate:
    """``k`` available items that the user has not met yet, best first; see ``answer``."""
    return answer(resources, SlateRequest(user_id=user_id, k=k, explain=explain, method=method))


def recommend_for_text(resources: Resources, text: str, *, k: int = 10, explain: bool = False) -> Slate:
    """``k`` available items for somebody of whom only this text is known; see ``answer``."""
    return answer(resources, SlateRequest(text=text, k=k, explain=explain))


def answer(resources: Resources, request: SlateRequest) -> Slate:
    """The slate of one request from the serving version.

    A user's query is their vector in the index; one who is not there is solved from their history. What they met is
    left out up to this moment. With ``explain`` each item names its reasons, from the history that the vector was made
    of; together with the prior they add up to its score.

    With the method ``neighbours`` the score is the sum of the strengths of what the user liked up to now, and an item
    without a neighbour among that is not shown; where there is none at all, the slate is the fused one, and says so.
    Raises InputError for a request that cannot be answered, NotFoundError before the first publication, for unknown
    items and for a version without neighbours, and SettingsError for a text if the serving version was made with
    another language model.
    """
    check_request(request)
    with open_state(resources) as (state, warehouse):
        slate = _by_neighbours(state, warehouse, request) if request.method == "neighbours" else None
        if slate is not None and slate.items:
            return slate
        user = None if request.user_id is None else load_user(state, warehouse, request.user_id)
        embed = partial(embed_text, resources, state.model)
        fused = recommend(state, replace(request, method="fused"), user, embed)
        return fused if slate is None else replace(fused, note="; ".join(filter(None, (slate.note, fused.note))))


@contextmanager
def open_state(resources: Resources) -> Iterator[tuple[ServingState, Warehouse]]:
    """The serving version for one call, and the warehouse. Raises NotFoundError before the first publication."""
    with resources.index() as index:
        version = serving_version(index)
        with resources.warehouse(read_only=True) as warehouse:
            yield load_state(warehouse, version, index), warehouse


def load_user(state: ServingState, warehouse: Warehouse, user_id: str) -> UserView | None:
    """A user as the index and the warehouse know them now; None of whom nothing is known."""
    latest = warehouse.latest_snapshot()
    met = _rows_at(state.model, warehouse, latest, user_id)
    stored = state.index.users(state.model.version, [user_id]).get(user_id)
    known = met.interactions.num_rows or met.texts.num_rows or any(attributes_of(met, [user_id]))
    if stored is None and not known:
        return None
    payload, query = stored or _solve(state, warehouse, met, user_id, latest)
    return UserView(
        user_id=user_id,
        query=query,
        alpha=payload.alpha,
        beta=payload.beta,
        n_history=payload.n_history,
        seen=frozenset(met.interactions["item_id"].to_pylist()),
        as_of_snapshot=payload.as_of_snapshot,
        n_pending_events=0,
        stale_seconds=0.0,
        load_history=lambda: met if stored is None else _history(state, warehouse, payload.as_of_snapshot, user_id),
        load_embeddings=lambda hashes: _embeddings(state.model, warehouse, hashes),
    )


def embed_text(resources: Resources, model: ModelVersion, text: str) -> Floats:
    """The vector (text_width,) of a text. Raises SettingsError if the settings name another encoder than the version's:
    the vectors could not be compared."""
    encoder = resources.encoder()
    if encoder.encoder_id != model.encoder_id:
        raise SettingsError(
            f"A slate for a text was asked for. The serving version {model.version} was made with the encoder"
            f" {model.encoder_id!r}, and the settings name {encoder.encoder_id!r}: their vectors cannot be compared."
            " Set the encoder back, or run `nearline run daily_batch` to publish a version of the new one."
        )
    vector: Floats = encoder.encode_queries([text])[0]
    return vector


def _rows_at(model: ModelVersion, warehouse: Warehouse, snapshot: int, user_id: str) -> HistoryRows:
    recipe = model.recipe
    return load_history_rows(warehouse, recipe.event_types, recipe.interaction_half_life_days, snapshot, [user_id])


def _history(state: ServingState, warehouse: Warehouse, snapshot: int, user_id: str) -> HistoryRows:
    """What the stored vector was made from, or the newest there is where that snapshot has expired."""
    try:
        return _rows_at(state.model, warehouse, snapshot, user_id)
    except NotFoundError:
        return _rows_at(state.model, warehouse, warehouse.latest_snapshot(), user_id)


def _embeddings(model: ModelVersion, warehouse: Warehouse, hashes: pa.ChunkedArray) -> dict[str, Floats]:
    return load_text_embeddings(warehouse, hashes, model.encoder_id, model.text_width)


def _solve(
    state: ServingState, warehouse: Warehouse, rows: HistoryRows, user_id: str, snapshot: int
) -> tuple[UserPayload, Floats]:
    """What the index will hold of a user who is not in it yet."""
    model = state.model
    embeddings = _embeddings(model, warehouse, rows.texts["content_hash"])
    histories, _ = encode_histories(rows, model, state.items, [user_id], embeddings)
    vectors, payloads = user_points(compute_profiles(histories, state.items, model.recipe), model, snapshot)
    return payloads[0], vectors[0]


def _by_neighbours(state: ServingState, warehouse: Warehouse, request: SlateRequest) -> Slate:
    """Exact, from the warehouse alone; equal scores are ordered by id."""
    user_id, items, k = _only_user(request), state.items, request.k
    histories, _ = load_histories(warehouse, state.model, items, warehouse.latest_snapshot(), [user_id])
    recent = weigh_recency(histories, items, state.model.recipe)[0].interactions
    history, weights = recent.indices.astype(np.int64), recent.data
    liked = [items.item_ids[row] for row in history[weights > 0]]
    found = load_neighbours(warehouse, state.model.version, items, liked)
    scores = score_by_neighbours(recent, found.strengths)
    is_shown = state.terms.allowed(item_filter(request, frozenset(items.item_ids[row] for row in history)))
    shown = is_shown[scores.indices]
    rows, values = scores.indices[shown].astype(np.int64), scores.data[shown]
    order = np.lexsort((rows, -values))[:k]
    split = Split(history, (), split_by_neighbour(history, weights, found.strengths, rows[order]))
    titles = {items.item_ids[row]: state.payloads[row].title for row in history}
    slate = []
    for place, (row, score) in enumerate(zip(rows[order], values[order].tolist(), strict=True)):
        payload = state.payloads[row]
        title = payload.title or payload.item_id
        because = name_reasons(split, place, score, items.item_ids, titles, NAMED_REASONS) if request.explain else ()
        parts = {"neighbours_part": score, "categories": payload.categories}
        slate.append(Recommendation(payload.item_id, title, place + 1, score, 0.0, 0.0, 0.0, because, **parts))
    missing = "nothing that this user liked has a neighbour to be shown: this is the fused slate"
    note = "" if len(slate) == k else f"only {len(slate)} items have a neighbour among what this user liked"
    return Slate(
        version=state.model.version,
        source="neighbours",
        alpha=0.0,
        beta=0.0,
        items=tuple(slate),
        user_id=user_id,
        n_history=len(liked),
        note=note if slate else missing,
    )


def _only_user(request: SlateRequest) -> str:
    """The user of a request by neighbours. Raises InputError where there is none, or for what has no meaning then."""
    if request.user_id is None or request.text is not None or request.liked or request.disliked:
        raise InputError(
            "A slate by the method 'neighbours' was asked for, and not for a user alone. Only a user has a history that"
            " neighbours are found for: name one, without a text or items."
        )
    if request.boosts or request.diversity:
        raise InputError(
            "A slate by the method 'neighbours' was asked for with boosts or diversity. Its scores are sums over the"
            " history alone: ask without these, or with the method 'fused'."
        )
    return request.user_id
