"""Why an item was recommended: scores split exactly over what a user liked, wrote and told of themselves, in words.

It knows nothing of where histories come from or who reads the words.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.attribution import attribute_scores
from tasks.domain.profiles import (
    Histories,
    ItemSpace,
    Profiles,
    Recipe,
    TextCoefficients,
    text_coefficients,
    text_terms,
    weigh_recency,
)
from tasks.domain.records import Because, Recommendation, SimilarUser

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
UNNAMED_TEXT = "a text"
_NOTHING = 1e-12
_LONGEST_LABEL = 40


class Split(NamedTuple):
    """What each thing in one user's history adds to the scores of some items.

    ``item_rows`` (n_history,) are rows of the item space; ``text_labels`` are the user's distinct texts;
    ``attribute_labels`` are their known attributes as one text, or nothing; ``values`` (n_history + n_texts +
    n_attributes, n_targets) float64. A column adds up to the text part and the factors part of its target.
    """

    item_rows: Rows
    text_labels: tuple[str, ...]
    values: Doubles
    attribute_labels: tuple[str, ...] = ()


def split_by_reason(
    histories: Histories, profiles: Profiles, items: ItemSpace, recipe: Recipe, targets: Sequence[Rows]
) -> Iterator[Split]:
    """Split the scores of each user's ``targets`` (rows of ``items``), user by user.

    The text part goes to the members of the text mean, by their coefficient and cosine; the factors part goes to the
    history by Hu, Koren and Volinsky 2008, section 5. ``profiles`` must have been computed from ``histories`` (rows in
    the same order), and the columns of each history must ascend.
    """
    recent, _ = weigh_recency(histories, items, recipe)
    coefficients = text_coefficients(recent, items)
    fixed = items.fixed(recipe.factor_parameters)
    terms, features = text_terms(recent, items), histories.features
    attributed = attribute_scores(
        recent.interactions, fixed, list(targets), texts=terms, features=features, feature_map=items.user_map
    )
    described = _described(histories, items)
    for user, (rows, by_factors) in enumerate(zip(targets, attributed, strict=True)):
        start, end = histories.interactions.indptr[user : user + 2]
        history = histories.interactions.indices[start:end].astype(np.int64)
        texts = np.flatnonzero(histories.text_user == user)
        alpha = float(profiles.alpha[user])
        item_text, text_text = _text_shares(coefficients, user, history, texts, histories, items, rows)
        factor_weight = (1 - alpha) * recipe.fusion.scale
        item_values = alpha * item_text + factor_weight * by_factors.items.T
        text_values = alpha * text_text + factor_weight * by_factors.texts.T
        labels = [histories.text_labels[text] if histories.text_labels else UNNAMED_TEXT for text in texts]
        distinct, merged = _merge_equal(labels, text_values)
        told = np.tile(factor_weight * by_factors.features, (len(described[user]), 1))
        yield Split(history, distinct, np.concatenate([item_values, merged, told]), described[user])


def name_reasons(
    split: Split, target: int, score: float, item_ids: Sequence[str], titles: Mapping[str, str], limit: int
) -> tuple[Because, ...]:
    """The ``limit`` strongest reasons of one target (a column of ``split``), then the rest as one.

    Strongest by size, so that what speaks against an item is named too. Shares are over the size of the score.
    ``titles`` maps item ids to titles; an item without one is called by its id.
    """
    values = split.values[:, target]
    order = np.argsort(-np.abs(values), kind="stable")
    order = order[np.abs(values[order]) > _NOTHING]
    named = [_reason(split, int(source), values, score, item_ids, titles) for source in order[:limit]]
    rest = order[limit:]
    if len(rest):
        total = float(values[rest].sum())
        named.append(Because("rest", f"{len(rest)} more", _share(total, score), contribution=total))
    return tuple(named)


def phrase_reasons(item: Recommendation, limit: int = 2) -> str:
    """One sentence for people, such as ``Because of Heat (41%) and your words "crime drama" (22%)``.

    Names up to ``limit`` reasons that speak for the item and, from 10 % on, the strongest one against it. An item
    that the prior alone carries is called popular; no reason at all gives an empty text.
    """
    known = sorted((b for b in item.because if b.kind != "rest"), key=lambda b: -b.share)
    raising = [f"{_called(b)} ({_percent(b.share)})" for b in known if b.share > 0][:limit]
    prior_share = _share(item.prior_part, item.score)
    if prior_share > 0 and (not raising or prior_share >= max(b.share for b in known)):
        raising.insert(0, f"its popularity ({_percent(prior_share)})" if raising else "its popularity")
    if not raising:
        return ""
    sentence = "Because of " + _joined(raising)
    if known and known[-1].share <= -0.1:
        sentence += f", in spite of {_called(known[-1])} ({_percent(known[-1].share)})"
    return sentence


def phrase_shared(user: SimilarUser) -> str:
    """One sentence for people, such as ``both liked Heat, Ronin and 12 more``."""
    if not user.shared:
        return "nothing that both liked"
    names = [shorten(item.title, _LONGEST_LABEL, placeholder="…") for item in user.shared]
    n_more = user.n_shared - len(names)
    return "both liked " + _joined([*names, f"{n_more} more"] if n_more else names)


def reasons_to_json(reasons: Sequence[Because]) -> str:
    """As stored in ``mart_recommendations.reason``: a list of objects with the fields of ``Because``."""
    rows = [
        {
            "kind": reason.kind,
            "label": reason.label,
            "share": round(reason.share, 4),
            "item_id": reason.item_id,
            "contribution": round(reason.contribution, 6),
        }
        for reason in reasons
    ]
    return json.dumps(rows, ensure_ascii=False)


def _described(histories: Histories, items: ItemSpace) -> list[tuple[str, ...]]:
    """The attributes of each user that the version knows, in words: one text, or none."""
    if histories.features is None or items.user_map is None:
        return [()] * len(histories.user_ids)
    return [(label,) if label else () for label in items.user_space.describe(histories.features)]


def _text_shares(
    coefficients: TextCoefficients,
    user: int,
    history: Rows,
    texts: Rows,
    histories: Histories,
    items: ItemSpace,
    targets: Rows,
) -> tuple[Doubles, Doubles]:
    """Shares of ``<t_u, t_i>``: (n_history, n_targets) and (n_texts, n_targets)."""
    target_text = items.text[targets].T.astype(np.float64)
    item_part = _row_values(coefficients.items, user, history)
    text_part = _row_values(coefficients.texts, user, texts)
    return (
        item_part[:, None] * (items.text[history] @ target_text),
        text_part[:, None] * (histories.texts[texts] @ target_text),
    )


def _row_values(matrix: sparse.csr_matrix, row: int, columns: Rows) -> Doubles:
    """Values of one CSR row at ``columns``, which ascend and hold all of its entries."""
    start, end = matrix.indptr[row : row + 2]
    values = np.zeros(len(columns))
    values[np.searchsorted(columns, matrix.indices[start:end])] = matrix.data[start:end]
    return values


def _merge_equal(labels: Sequence[str], values: Doubles) -> tuple[tuple[str, ...], Doubles]:
    """Texts that were written several times, as one reason each, in the order they first came."""
    distinct = list(dict.fromkeys(labels))
    merged = np.zeros((len(distinct), values.shape[1]))
    np.add.at(merged, [distinct.index(label) for label in labels], values)
    return tuple(distinct), merged


def _reason(
    split: Split, source: int, values: Doubles, score: float, item_ids: Sequence[str], titles: Mapping[str, str]
) -> Because:
    value = float(values[source])
    share = _share(value, score)
    n_items, n_texts = len(split.item_rows), len(split.text_labels)
    if source >= n_items + n_texts:
        return Because("attributes", split.attribute_labels[source - n_items - n_texts], share, contribution=value)
    if source >= n_items:
        return Because("text", split.text_labels[source - n_items], share, contribution=value)
    item_id = item_ids[split.item_rows[source]]
    return Because("item", titles.get(item_id) or item_id, share, item_id, value)


def _share(part: float, score: float) -> float:
    """Keeps the sign of ``part`` whatever the sign of the score; 0 where the score is nothing."""
    return part / abs(score) if abs(score) > _NOTHING else 0.0


def _called(reason: Because) -> str:
    label = shorten(reason.label, _LONGEST_LABEL, placeholder="…")
    if reason.kind == "attributes":
        return f"what you told us: {label}"
    return f'your words "{label}"' if reason.kind == "text" else label


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("-", "−")


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
