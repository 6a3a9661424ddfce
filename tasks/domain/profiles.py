"""From a history to a profile: the text mean, the factors, the drift and the weights of a user.

The nightly batch, the nearline refresh and an online request all call ``compute_profiles``. It knows nothing of
where histories are read or profiles are written.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.factor_model import FactorParameters, ItemWeights
from tasks.domain.features import NO_FEATURES, FeatureSpace
from tasks.domain.fold_in import FixedItems, TextTerms, fold_in
from tasks.domain.fusion import Fusion
from tasks.domain.records import EventType
from tasks.domain.vectors import unit_rows

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
FAST_HALF_LIFE = 8.0
"""Interactions over which the fast decay halves. These three were measured: ``docs/decisions``."""
SLOW_HALF_LIFE = 200.0
"""Interactions over which the slow decay halves."""
FAST_SHARE = 0.85
"""Part of the fast decay in the weight of a history, before drift moves it."""
_NO_LENGTH = 1e-9


@dataclass(frozen=True)
class ItemSpace:
    """The items of one model version, row by row, sorted by id.

    ``text`` (n, text_width) float32, unit rows or zero where an item has no text; ``factors`` (n, n_factors) float32;
    ``prior`` (n,) float32; ``text_map`` (text_width, n_factors) float32 predicts factors from text; ``weights`` are
    what the items weigh in a user's half-step. ``user_map`` (width, n_factors) float32 predicts the factors of users
    from their attributes, whose columns ``user_space`` names; None where the
    version knows no attributes. ``item_map`` is the same for what is known of an item beside its text.
    """

    item_ids: tuple[str, ...]
    text: Floats
    factors: Floats
    prior: Floats
    text_map: Floats
    weights: ItemWeights
    user_map: Floats | None = None
    user_space: FeatureSpace = NO_FEATURES
    item_map: Floats | None = None

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each item."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    def fixed(self, parameters: FactorParameters) -> FixedItems:
        """The factors, ready for users to be solved against them; kept for the next call."""
        if parameters not in self._fixed:
            self._fixed[parameters] = FixedItems(self.factors, self.weights, parameters)
        return self._fixed[parameters]

    @cached_property
    def _fixed(self) -> dict[FactorParameters, FixedItems]:
        return {}


@dataclass(frozen=True)
class Histories:
    """What some users did, up to one snapshot.

    ``interactions`` is (n_users, n_items) CSR float32 over the columns of an ``ItemSpace``: confidence, above 0 liked,
    an explicit 0 only seen, below 0 disliked. ``ages`` has the same sparsity structure: 0 for the user's newest
    interaction, 1 for the one before, and so on. ``texts`` are the embeddings of what a user wrote, oldest first:
    (n_texts, text_width) with ``text_user`` (n_texts,) rows of ``user_ids``, ``text_weight`` (n_texts,) and
    ``text_age`` (n_texts,), the number of interactions that came after the text. ``text_labels`` are the words
    themselves, for explanations; they may be left out. ``features`` (n_users, width) CSR are the users' attributes in
    the columns of the model version; None where it knows none, or where nothing is known of these users.
    """

    user_ids: tuple[str, ...]
    interactions: sparse.csr_matrix
    ages: sparse.csr_matrix
    texts: Floats
    text_user: npt.NDArray[np.int64]
    text_weight: Floats
    text_age: Floats
    text_labels: tuple[str, ...] = ()
    features: sparse.csr_matrix | None = None

    @property
    def has_text(self) -> npt.NDArray[np.bool_]:
        """(n_users,) whether a user wrote something."""
        return np.bincount(self.text_user, minlength=len(self.user_ids)) > 0

    @property
    def has_features(self) -> npt.NDArray[np.bool_]:
        """(n_users,) whether an attribute of a user is known."""
        if self.features is None:
            return np.zeros(len(self.user_ids), bool)
        known: npt.NDArray[np.bool_] = np.diff(self.features.indptr) > 0
        return known


@dataclass(frozen=True)
class Profiles:
    """Profiles of some users, row by row as in ``Histories``.

    ``text`` (n, text_width) unit rows or zero; ``factors`` (n, n_factors); ``n_history`` positive interactions;
    ``alpha``, ``beta`` and ``drift`` (n,) float32. ``seen`` are the items that each user has met, by id, whatever they
    thought of them; empty as a whole where that was not asked for.
    """

    user_ids: tuple[str, ...]
    text: Floats
    factors: Floats
    n_history: npt.NDArray[np.int64]
    alpha: Floats
    beta: Floats
    drift: Floats
    seen: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Everything frozen in a model version that profiles depend on beside the items.

    ``fast_half_life`` and ``slow_half_life`` are counted in interactions, ``interaction_half_life_days`` in days.
    ``fast_share``, in [0, 1], is the fast decay's part in the weight of a history before drift moves it.
    """

    factor_parameters: FactorParameters
    fusion: Fusion
    fast_half_life: float
    slow_half_life: float
    interaction_half_life_days: float
    event_types: tuple[EventType, ...]
    fast_share: float = FAST_SHARE

    def to_json(self) -> str:
        """As stored in ``model_versions.recipe``: everything but the fusion, which has its own column."""
        document = asdict(self)
        del document["fusion"]
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, recipe: str, fusion: str) -> "Recipe":
        """The inverse of ``to_json`` and ``Fusion.to_json``."""
        document = json.loads(recipe)
        parameters = {"popularity_discount": 0.0, **document["factor_parameters"]}  # versions before it was known
        document["factor_parameters"] = FactorParameters(**parameters)
        document["event_types"] = tuple(EventType(**event_type) for event_type in document["event_types"])
        return cls(fusion=Fusion.from_json(fusion), **document)


class TextCoefficients(NamedTuple):
    """What each item and each text weighs in a user's text mean: ``t_u = items @ ItemSpace.text + texts @
    Histories.texts``. ``items`` (n_users, n_items) and ``texts`` (n_users, n_texts) CSR."""

    items: sparse.csr_matrix
    texts: sparse.csr_matrix


def compute_profiles(histories: Histories, items: ItemSpace, recipe: Recipe, *, n_threads: int = 1) -> Profiles:
    """Profiles from full histories. The result for a user does not depend on who else is in the call (to 1e-5).

    A user without positive interactions gets the weights of a text request if they wrote something, else those of an
    attribute request if an attribute of theirs is known, else those of the first bucket.
    """
    recent, drift = weigh_recency(histories, items, recipe)
    coefficients = text_coefficients(recent, items)
    text = _product(coefficients.items, items.text) + _product(coefficients.texts, histories.texts)
    terms = text_terms(recent, items)
    fixed = items.fixed(recipe.factor_parameters)
    known = {"features": histories.features, "feature_map": items.user_map}
    factors = fold_in(recent.interactions, fixed, texts=terms, **known, n_threads=n_threads)
    lengths = history_lengths(histories.interactions)
    alpha, beta = _weights(lengths, histories, recipe.fusion)
    return Profiles(
        user_ids=histories.user_ids,
        text=np.asarray(text, np.float32),
        factors=factors,
        n_history=lengths,
        alpha=alpha,
        beta=beta,
        drift=drift,
        seen=_seen(histories.interactions, items),
    )


def join_profiles(parts: Sequence[Profiles]) -> Profiles:
    """Profiles of several groups of users, one after the other; ``parts`` must not be empty."""
    arrays = ("text", "factors", "n_history", "alpha", "beta", "drift")
    return Profiles(
        user_ids=tuple(chain.from_iterable(part.user_ids for part in parts)),
        seen=tuple(chain.from_iterable(part.seen for part in parts)),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
    )


def weigh_recency(histories: Histories, items: ItemSpace, recipe: Recipe) -> tuple[Histories, Floats]:
    """The histories with weights that decay with age, and the drift of each user, (n_users,) in [0, 2].

    A weight is multiplied by ``(1 - g) * 0.5 ** (age / slow) + g * 0.5 ** (age / fast)``. Drift is the cosine distance
    of the means of the texts under either decay alone, and ``g = min(1, fast_share + drift)``: a user whose newest
    interest has left the older one is followed faster. The signs of the weights, and zeros, stay.
    """
    drift = _drift(histories, items, recipe)
    share = np.minimum(1, recipe.fast_share + drift)
    rows = _rows(histories.interactions)
    weight = histories.interactions.data * _decay(histories.ages.data, share[rows], recipe)
    decayed = sparse.csr_matrix(
        (weight.astype(np.float32), histories.interactions.indices, histories.interactions.indptr),
        shape=histories.interactions.shape,
    )
    text_weight = histories.text_weight * _decay(histories.text_age, share[histories.text_user], recipe)
    recent = replace(histories, interactions=decayed, text_weight=text_weight.astype(np.float32))
    return recent, drift.astype(np.float32)


def history_lengths(interactions: sparse.csr_matrix) -> npt.NDArray[np.int64]:
    """Positive interactions of each user, (n_users,)."""
    return np.bincount(_rows(interactions)[interactions.data > 0], minlength=interactions.shape[0]).astype(np.int64)


def text_terms(recent: Histories, items: ItemSpace) -> TextTerms:
    """The users' texts as terms of the factor half-step; ``recent`` comes from ``weigh_recency``."""
    return TextTerms(recent.texts @ items.text_map, recent.text_user, recent.text_weight)


def text_coefficients(recent: Histories, items: ItemSpace) -> TextCoefficients:
    """Weights of the text mean over what was liked and written; ``recent`` comes from ``weigh_recency``."""
    likes, texts = _liked(recent)
    norms = np.linalg.norm(_mean(likes, texts, recent, items), axis=1)
    inverse = sparse.diags_array(np.divide(1, norms, out=np.zeros_like(norms), where=norms > _NO_LENGTH))
    return TextCoefficients(sparse.csr_matrix(inverse @ likes), sparse.csr_matrix(inverse @ texts))


def request_histories(
    items: ItemSpace, item_ids: Sequence[str] = (), texts: Floats | None = None, user_id: str = ""
) -> Histories:
    """The history of one request without a stored profile: liked items (each once, with weight 1, the last one newest)
    and texts (n_texts, text_width). Raises KeyError for an unknown item."""
    columns = np.array([items.index[item_id] for item_id in dict.fromkeys(item_ids)], np.int64)
    ages = np.arange(len(columns))[::-1].astype(np.float32)
    indptr, order = np.array([0, len(columns)]), np.argsort(columns, kind="stable")
    shape = (1, len(items.item_ids))
    written = np.zeros((0, items.text.shape[1]), np.float32) if texts is None else texts
    return Histories(
        user_ids=(user_id,),
        interactions=sparse.csr_matrix((np.ones(len(columns), np.float32), columns[order], indptr), shape=shape),
        ages=sparse.csr_matrix((ages[order], columns[order], indptr), shape=shape),
        texts=written,
        text_user=np.zeros(len(written), np.int64),
        text_weight=np.ones(len(written), np.float32),
        text_age=np.zeros(len(written), np.float32),
    )


def _drift(histories: Histories, items: ItemSpace, recipe: Recipe) -> Doubles:
    likes, texts = _liked(histories)
    means = []
    for half_life in (recipe.slow_half_life, recipe.fast_half_life):
        by_item, by_text = likes.copy(), texts.copy()
        by_item.data *= 0.5 ** (histories.ages.data / half_life)
        by_text.data *= 0.5 ** (histories.text_age[by_text.indices] / half_life)
        means.append(unit_rows(_mean(by_item, by_text, histories, items)))
    slow, fast = means
    known = slow.any(axis=1) & fast.any(axis=1)
    return np.where(known, 1 - np.einsum("nd,nd->n", slow, fast), 0).clip(0, 2)


def _decay(ages: Floats, fast_share: Doubles, recipe: Recipe) -> Doubles:
    slow, fast = 0.5 ** (ages / recipe.slow_half_life), 0.5 ** (ages / recipe.fast_half_life)
    decay: Doubles = (1 - fast_share) * slow + fast_share * fast
    return decay


def _liked(histories: Histories) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Positive weights (n_users, n_items), in the structure of the interactions, and of texts (n_users, n_texts)."""
    likes = histories.interactions
    weight = np.maximum(likes.data, 0).astype(np.float64)
    cells = (histories.text_weight.astype(np.float64), (histories.text_user, np.arange(len(histories.text_user))))
    texts = sparse.csr_matrix(cells, shape=(likes.shape[0], len(histories.text_user)))
    return sparse.csr_matrix((weight, likes.indices, likes.indptr), shape=likes.shape), texts


def _mean(likes: sparse.csr_matrix, texts: sparse.csr_matrix, histories: Histories, items: ItemSpace) -> Doubles:
    mean = likes.astype(np.float32) @ items.text + texts.astype(np.float32) @ histories.texts
    return np.asarray(mean, np.float64)


def _product(weights: sparse.csr_matrix, rows: Floats) -> Doubles:
    """``weights @ rows`` in double precision. Only rows that have a weight are converted: a request has few of many."""
    used, columns = np.unique(weights.indices, return_inverse=True)
    compact = sparse.csr_matrix((weights.data, columns, weights.indptr), shape=(weights.shape[0], len(used)))
    return np.asarray(compact @ rows[used].astype(np.float64), np.float64)


def _weights(lengths: npt.NDArray[np.int64], histories: Histories, fusion: Fusion) -> tuple[Floats, Floats]:
    buckets = [*fusion.buckets, fusion.text_request, fusion.attribute_request or fusion.buckets[0]]
    starts = np.array([bucket.min_history for bucket in fusion.buckets])
    chosen = np.searchsorted(starts, lengths, side="right") - 1
    chosen[(lengths == 0) & histories.has_features] = len(buckets) - 1
    chosen[(lengths == 0) & histories.has_text] = len(buckets) - 2
    alpha, beta = (np.array([getattr(b, name) for b in buckets], np.float32)[chosen] for name in ("alpha", "beta"))
    return alpha, beta


def _seen(interactions: sparse.csr_matrix, items: ItemSpace) -> tuple[tuple[str, ...], ...]:
    ids = list(map(items.item_ids.__getitem__, interactions.indices.tolist()))
    return tuple(tuple(ids[start:end]) for start, end in pairwise(interactions.indptr.tolist()))


def _rows(matrix: sparse.csr_matrix) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
