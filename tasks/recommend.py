"""Answers requests: a slate for a user, for a free text, or for some liked items.

It knows nothing of HTTP or the command line. Every function resolves the serving version once and reads that version
alone. A language model is only asked for free text.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.errors import InputError, NotFoundError, SettingsError
from tasks.domain.explanations import Split, name_reasons, split_by_reason
from tasks.domain.fusion import fuse_queries, split_scores
from tasks.domain.neighbours import score_by_neighbours, split_by_neighbour
from tasks.domain.ports import Resources, VectorIndex, Warehouse
from tasks.domain.profiles import Histories, ItemSpace, Profiles, compute_profiles, request_histories, weigh_recency
from tasks.domain.ranking import check_slate_length, only_attributes, popular_where_empty
from tasks.domain.records import IndexFilter, ItemPayload, Recommendation, Slate, SlateMethod, SlateSource
from tasks.model_state import (
    ModelVersion,
    attributes_of,
    load_histories,
    load_history_rows,
    load_item_space,
    load_version,
)
from tasks.neighbours import load_neighbours
from tasks.refresh import serving_version
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
NAMED_REASONS = 5
"""Reasons that an explained item names one by one; the others are added up."""
TIE_MARGIN = 50
"""Hits beyond the slate, so that equal scores at its end are ordered by id and not by the index."""


class _Evidence(NamedTuple):
    """What a query was made from, kept to explain it: one user's history, their profile, and the items."""

    histories: Histories
    profiles: Profiles
    items: ItemSpace


@dataclass(frozen=True)
class _Ask:
    """One request, ready for the search: ``query`` is (width,)."""

    source: SlateSource
    query: Floats
    alpha: float
    beta: float
    n_history: int = 0
    user_id: str | None = None
    exclude: frozenset[str] = frozenset()
    note: str = ""
    evidence: _Evidence | None = None


@dataclass(frozen=True)
class _Serving:
    """The serving version as one request sees it."""

    index: VectorIndex
    warehouse: Warehouse
    model: ModelVersion


def recommend_to_user(
    resources: Resources, user_id: str, *, k: int = 10, explain: bool = False, method: SlateMethod = "fused"
) -> Slate:
    """``k`` available items that the user has not met yet, best first.

    The query is the user's vector in the index; a user who is not there is solved from their history. One without any
    history gets what their attributes speak for (source ``attributes``), or what is popular (``popular``). With
    ``explain`` each item names its reasons; together with the prior they add up to its score.

    With the method ``neighbours`` the score is the sum of the strengths of what the user liked up to now, and an item
    without a neighbour among that is not shown; where there is none at all, the slate is the fused one, and says so.
    Raises InputError for ``k`` outside 1 to 500, and NotFoundError before the first publication or for a version
    without neighbours.
    """
    check_slate_length(k)
    if method not in get_args(SlateMethod):
        raise InputError(
            f"A slate was asked for by the method {method!r}. Methods: {', '.join(get_args(SlateMethod))}."
        )
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        serving = _Serving(index, warehouse, load_version(warehouse, serving_version(index)))
        slate = _by_neighbours(serving, user_id, k, explain) if method == "neighbours" else None
        if slate is not None and slate.items:
            return slate
        fused = _answer(serving, _ask_for_user(serving, user_id, explain), k)
        return fused if slate is None else replace(fused, note="; ".join(filter(None, (slate.note, fused.note))))


def recommend_for_text(resources: Resources, text: str, *, k: int = 10, explain: bool = False) -> Slate:
    """``k`` available items for somebody of whom only this text is known.

    Raises InputError for an empty text, SettingsError if the serving version was made with another language model.
    """
    check_slate_length(k)
    if not text.strip():
        raise InputError("A slate for a text was asked for, and the text is empty. Write what you are looking for.")
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        serving = _Serving(index, warehouse, load_version(warehouse, serving_version(index)))
        items = load_item_space(warehouse, serving.model.version)
        histories = request_histories(items, texts=_embed(resources, serving.model, text.strip()))
        histories = replace(histories, text_labels=(text.strip(),))
        return _answer(serving, _ask_from(serving, histories, items, "text", explain), k)


def recommend_like(resources: Resources, item_ids: Sequence[str], *, k: int = 10, explain: bool = False) -> Slate:
    """``k`` available items for somebody who likes these items, the last one newest; these are left out.

    Raises InputError for no item and NotFoundError that names the items which the serving version does not know.
    """
    check_slate_length(k)
    if not item_ids:
        raise InputError("A slate for liked items was asked for without an item. Name at least one item id.")
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        serving = _Serving(index, warehouse, load_version(warehouse, serving_version(index)))
        items = load_item_space(warehouse, serving.model.version)
        check_known(item_ids, items.index, serving.model.version)
        ask = _ask_from(serving, request_histories(items, item_ids), items, "liked_items", explain)
        return _answer(serving, replace(ask, exclude=frozenset(item_ids)), k)


def check_known(item_ids: Sequence[str], known: Container[str], version: str) -> None:
    """Raises NotFoundError that names the items which are not in ``known``, those of the serving ``version``."""
    unknown = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise NotFoundError(
            f"The serving version {version} does not know {', '.join(map(repr, unknown[:5]))}{more}."
            " Look the id up in stg_items; an item that was imported since enters with the next daily batch."
        )


def rank_payloads(
    payloads: Sequence[ItemPayload], text: Floats, factors: Floats, prior: Floats
) -> tuple[Recommendation, ...]:
    """A slate of stored items with their parts, (n_items,) each: by falling score, equal ones by id.

    An item without a title is called by its id.
    """
    scores = text.astype(np.float64) + factors + prior
    order = sorted(range(len(payloads)), key=lambda row: (-scores[row], payloads[row].item_id))
    return tuple(
        Recommendation(
            item_id=payloads[row].item_id,
            title=payloads[row].title or payloads[row].item_id,
            rank=rank,
            score=float(scores[row]),
            text_part=float(text[row]),
            factors_part=float(factors[row]),
            prior_part=float(prior[row]),
        )
        for rank, row in enumerate(order, start=1)
    )


def _by_neighbours(serving: _Serving, user_id: str, k: int, explain: bool) -> Slate:
    """Exact, from the warehouse alone; equal scores are ordered by id."""
    model, warehouse = serving.model, serving.warehouse
    items = load_item_space(warehouse, model.version)
    histories, _ = load_histories(warehouse, model, items, warehouse.latest_snapshot(), [user_id])
    recent = weigh_recency(histories, items, model.recipe)[0].interactions
    history, weights = recent.indices.astype(np.int64), recent.data
    liked = [items.item_ids[row] for row in history[weights > 0]]
    found = load_neighbours(warehouse, model.version, items, liked)
    scores = score_by_neighbours(recent, found.strengths)
    is_new = ~np.isin(scores.indices, history)
    rows, values = scores.indices[is_new].astype(np.int64), scores.data[is_new]
    order = np.lexsort((rows, -values))[:k]
    split = Split(history, (), split_by_neighbour(history, weights, found.strengths, rows[order]))
    titles = _titles(warehouse, liked) if explain else {}
    slate = []
    for place, (row, score) in enumerate(zip(rows[order], values[order].tolist(), strict=True)):
        item_id = items.item_ids[row]
        because = name_reasons(split, place, score, items.item_ids, titles, NAMED_REASONS) if explain else ()
        title = found.titles[item_id] or item_id
        slate.append(Recommendation(item_id, title, place + 1, score, 0.0, 0.0, 0.0, because, neighbours_part=score))
    missing = "nothing that this user liked has a neighbour to be shown: this is the fused slate"
    note = "" if len(slate) == k else f"only {len(slate)} items have a neighbour among what this user liked"
    return Slate(
        model.version, "neighbours", 0.0, 0.0, tuple(slate), user_id, len(liked), note=note if slate else missing
    )


def _ask_for_user(serving: _Serving, user_id: str, explain: bool) -> _Ask:
    model, warehouse = serving.model, serving.warehouse
    latest = warehouse.latest_snapshot()
    recipe = model.recipe
    met = load_history_rows(warehouse, recipe.event_types, recipe.interaction_half_life_days, latest, [user_id])
    exclude = frozenset(met.interactions["item_id"].to_pylist())
    stored = serving.index.users(model.version, [user_id]).get(user_id)
    if stored is not None and not explain:
        payload, query = stored
        ask = _Ask("profile", query, payload.alpha, payload.beta, payload.n_history)
    elif stored is None and not exclude and met.texts.num_rows == 0 and not any(attributes_of(met, [user_id])):
        first = recipe.fusion.buckets[0]
        query = np.zeros(model.text_width + model.n_factors + 1, np.float32)
        query[-1] = first.beta / recipe.fusion.prior_block
        ask = _Ask("profile", query, first.alpha, first.beta)
    else:
        items = load_item_space(warehouse, model.version)
        histories = _history_of(serving, items, user_id, latest if stored is None else stored[0].as_of_snapshot)
        ask = _ask_from(serving, histories, items, "profile", explain)
    return _named(replace(ask, user_id=user_id, exclude=exclude), model)


def _history_of(serving: _Serving, items: ItemSpace, user_id: str, snapshot: int) -> Histories:
    """The history that the stored vector was made from, or the newest one where that snapshot has expired."""
    try:
        return load_histories(serving.warehouse, serving.model, items, snapshot, [user_id])[0]
    except NotFoundError:
        latest = serving.warehouse.latest_snapshot()
        return load_histories(serving.warehouse, serving.model, items, latest, [user_id])[0]


def _ask_from(serving: _Serving, histories: Histories, items: ItemSpace, source: SlateSource, explain: bool) -> _Ask:
    """The query of one history, by the same function as batch and refresh."""
    profiles = compute_profiles(histories, items, serving.model.recipe)
    fusion = serving.model.recipe.fusion
    query = fuse_queries(profiles.text, profiles.factors, profiles.alpha, profiles.beta, fusion)[0]
    evidence = _Evidence(histories, profiles, items) if explain else None
    alpha, beta, n_history = float(profiles.alpha[0]), float(profiles.beta[0]), int(profiles.n_history[0])
    return _Ask(source, query, alpha, beta, n_history, evidence=evidence)


def _named(ask: _Ask, model: ModelVersion) -> _Ask:
    """The named source of a user who has no history; a slate of popular items where nothing is known."""
    fusion = model.recipe.fusion
    if only_attributes(ask.query[None], np.array([ask.n_history]), model.text_width)[0]:
        note = "this user has done nothing yet: these are the items that their attributes speak for"
        return replace(ask, source="attributes", note=note)
    queries, is_empty = popular_where_empty(ask.query[None], fusion)
    if not is_empty[0]:
        return ask
    note = "nothing is known of this user yet: these are the popular items"
    return replace(ask, source="popular", query=queries[0], beta=float(queries[0, -1] * fusion.prior_block), note=note)


def _embed(resources: Resources, model: ModelVersion, text: str) -> Floats:
    encoder = resources.encoder()
    if encoder.encoder_id != model.encoder_id:
        raise SettingsError(
            f"A slate for a text was asked for. The serving version {model.version} was made with the encoder"
            f" {model.encoder_id!r}, and the settings name {encoder.encoder_id!r}: their vectors cannot be compared."
            " Set the encoder back, or run `nearline run daily_batch` to publish a version of the new one."
        )
    return encoder.encode([text])


def _answer(serving: _Serving, ask: _Ask, k: int) -> Slate:
    """Search, split the scores into their parts, and explain where there is evidence."""
    version = serving.model.version
    hits = serving.index.search(version, ask.query, k + TIE_MARGIN, IndexFilter(exclude_items=ask.exclude))
    stored = serving.index.items(version, [hit.item_id for hit in hits])
    found = [stored[hit.item_id] for hit in hits if hit.item_id in stored]
    parts = split_scores(ask.query[None], _stack(found, len(ask.query)), serving.model.text_width)
    items = rank_payloads([payload for payload, _ in found], parts.text[0], parts.factors[0], parts.prior[0])[:k]
    if ask.evidence is not None:
        items = _with_reasons(serving, ask.evidence, items)
    return Slate(version, ask.source, ask.alpha, ask.beta, items, ask.user_id, ask.n_history, ask.note)


def _with_reasons(
    serving: _Serving, evidence: _Evidence, slate: tuple[Recommendation, ...]
) -> tuple[Recommendation, ...]:
    histories, profiles, items = evidence
    targets = np.array([items.index[item.item_id] for item in slate], np.int64)
    split = next(split_by_reason(histories, profiles, items, serving.model.recipe, [targets]))
    titles = _titles(serving.warehouse, [items.item_ids[row] for row in split.item_rows])
    return tuple(
        replace(item, because=name_reasons(split, target, item.score, items.item_ids, titles, NAMED_REASONS))
        for target, item in enumerate(slate)
    )


def _titles(warehouse: Warehouse, item_ids: Sequence[str]) -> dict[str, str]:
    wanted = pa.table({"item_id": pa.array(item_ids, pa.string())})
    rows = warehouse.read(query_sql("item_titles"), shadows={"wanted_items": wanted})
    return dict(zip(rows["item_id"].to_pylist(), rows["title"].to_pylist(), strict=True))


def _stack(found: Sequence[tuple[ItemPayload, Floats]], width: int) -> Floats:
    return np.array([vector for _, vector in found], np.float32).reshape(len(found), width)
