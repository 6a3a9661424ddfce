"""Answers requests: a slate for a user, for a free text, for some liked items, or of items like one item.

It knows nothing of HTTP or the command line. Every function resolves the serving version once and reads that version
alone. A language model is only asked for free text.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.errors import InputError, NotFoundError, SettingsError
from tasks.domain.explanations import name_reasons, split_by_reason
from tasks.domain.fusion import fuse_queries, split_scores
from tasks.domain.ports import Resources, VectorIndex, Warehouse
from tasks.domain.profiles import Histories, ItemSpace, Profiles, compute_profiles, request_histories
from tasks.domain.ranking import check_slate_length, mean_block_cosine, only_attributes, popular_where_empty
from tasks.domain.records import IndexFilter, ItemPayload, Recommendation, Slate, SlateSource
from tasks.model_state import (
    ModelVersion,
    attributes_of,
    load_histories,
    load_history_rows,
    load_item_space,
    load_version,
)
from tasks.refresh import serving_version
from warehouse.catalog import query_sql

Floats = npt.NDArray[np.float32]
NAMED_REASONS = 5
"""Reasons that an explained item names one by one; the others are added up."""
TIE_MARGIN = 50
"""Hits beyond the slate, so that equal scores at its end are ordered by id and not by the index."""
MIN_CANDIDATES = 100
CANDIDATES_PER_ITEM = 4


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


def recommend_to_user(resources: Resources, user_id: str, *, k: int = 10, explain: bool = False) -> Slate:
    """``k`` available items that the user has not met yet, best first.

    The query is the user's vector in the index; a user who is not there is solved from their history. One without any
    history gets what their attributes speak for (source ``attributes``), or what is popular (``popular``). With
    ``explain`` each item names its reasons; together with the prior they add up to its score. Raises InputError for
    ``k`` outside 1 to 500 and NotFoundError before the first publication.
    """
    check_slate_length(k)
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        serving = _Serving(index, warehouse, load_version(warehouse, serving_version(index)))
        return _answer(serving, _ask_for_user(serving, user_id, explain), k)


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
        _check_known(item_ids, items.index, serving.model.version)
        ask = _ask_from(serving, request_histories(items, item_ids), items, "liked_items", explain)
        return _answer(serving, replace(ask, exclude=frozenset(item_ids)), k)


def similar_items(resources: Resources, item_id: str, *, k: int = 10) -> Slate:
    """``k`` available items that are most like one item: the mean of the cosines of their texts and their factors.

    An item without text is compared by its factors alone, and one without factors by its text. Candidates are the
    best by text and the best by factors (dot product), four times ``k`` and at least 100 of each. The parts of a score
    are the shares of the two blocks. Raises NotFoundError for an item that the serving version does not know.
    """
    check_slate_length(k)
    with resources.index() as index:
        version = serving_version(index)
        stored = index.items(version, [item_id])
        _check_known([item_id], stored, version)
        vector = stored[item_id][1]
        with resources.warehouse(read_only=True) as warehouse:
            width = load_version(warehouse, version).text_width
        candidates = _alike_candidates(index, version, item_id, vector, width, k)
    alpha = 0.5 * (1 + bool(vector[:width].any()) - bool(vector[width:-1].any()))
    note = "" if vector[:-1].any() else "the item has neither text nor factors to be compared by"
    matrix = _stack(candidates, len(vector))
    text, factors = mean_block_cosine(vector, matrix, width)
    slate = _ranked([payload for payload, _ in candidates], text, factors, np.zeros_like(text))[:k]
    return Slate(version, "similar_item", alpha, 0.0, slate, note=note)


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
    items = _ranked([payload for payload, _ in found], parts.text[0], parts.factors[0], parts.prior[0])[:k]
    if ask.evidence is not None:
        items = _with_reasons(serving, ask.evidence, items)
    return Slate(version, ask.source, ask.alpha, ask.beta, items, ask.user_id, ask.n_history, ask.note)


def _ranked(
    payloads: Sequence[ItemPayload], text: Floats, factors: Floats, prior: Floats
) -> tuple[Recommendation, ...]:
    """By falling score, equal ones by id. An item without a title is called by its id."""
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


def _with_reasons(
    serving: _Serving, evidence: _Evidence, slate: tuple[Recommendation, ...]
) -> tuple[Recommendation, ...]:
    histories, profiles, items = evidence
    targets = np.array([items.index[item.item_id] for item in slate], np.int64)
    split = next(split_by_reason(histories, profiles, items, serving.model.recipe, [targets]))
    wanted = pa.table({"item_id": pa.array([items.item_ids[row] for row in split.item_rows], pa.string())})
    rows = serving.warehouse.read(query_sql("item_titles"), shadows={"wanted_items": wanted})
    titles = dict(zip(rows["item_id"].to_pylist(), rows["title"].to_pylist(), strict=True))
    return tuple(
        replace(item, because=name_reasons(split, target, item.score, items.item_ids, titles, NAMED_REASONS))
        for target, item in enumerate(slate)
    )


def _alike_candidates(
    index: VectorIndex, version: str, item_id: str, vector: Floats, text_width: int, k: int
) -> list[tuple[ItemPayload, Floats]]:
    """The best by the text block and the best by the factor block, without the item itself."""
    found: dict[str, None] = {}
    restrict = IndexFilter(exclude_items=frozenset([item_id]))
    for block in (slice(0, text_width), slice(text_width, len(vector) - 1)):
        query = np.zeros_like(vector)
        query[block] = vector[block]
        if query.any():
            hits = index.search(version, query, max(MIN_CANDIDATES, CANDIDATES_PER_ITEM * k), restrict)
            found.update(dict.fromkeys(hit.item_id for hit in hits))
    return list(index.items(version, list(found)).values())


def _check_known(item_ids: Sequence[str], known: Container[str], version: str) -> None:
    unknown = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise NotFoundError(
            f"The serving version {version} does not know {', '.join(map(repr, unknown[:5]))}{more}."
            " Look the id up in stg_items; an item that was imported since enters with the next daily batch."
        )


def _stack(found: Sequence[tuple[ItemPayload, Floats]], width: int) -> Floats:
    return np.array([vector for _, vector in found], np.float32).reshape(len(found), width)
