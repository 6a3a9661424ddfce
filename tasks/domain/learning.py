"""Learns the items of a model version and the weights that join its blocks, from the log of a training part.

The protocol: fit on the first part of the log, choose the weights on its validation part (the tail of each user) with
history lengths, popularity and text map from the first part alone; then fit on all of it with the weights frozen. It
knows nothing of test parts, ids or storage.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.factor_model import Sweep, best_sweep
from tasks.domain.fusion import Bucket, Fusion
from tasks.domain.half_steps import RowSolver
from tasks.domain.histories import InteractionLog, TextLog, build_histories, select_users, truncate_histories
from tasks.domain.item_fit import MAX_USERS, MIN_ROWS, Catalog, fit_items, sample_users
from tasks.domain.profiles import Histories, ItemSpace, Recipe, compute_profiles, history_lengths
from tasks.domain.splits import split_user_tail

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BUCKET_STARTS = (1, 3, 6, 11, 21, 51)
"""Positive interactions from which on a bucket's weights hold; users without any have a bucket of their own."""
_CHUNK_CELLS = 2_000_000
_ALPHAS = np.array([0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8], np.float32)
_BETAS = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1, 1.5, 2.2, 3.2], np.float32)
_BUCKET_DECAY = 0.8
_ENOUGH = 0.9
_USUAL_SPREAD = 0.1
_FALLBACK = (0.1, 0.45)
_TEXT_ALPHAS = np.array([1, 0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
_TEXT_BETAS = np.array([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3], np.float32)
_TEXT_FALLBACK = (0.8, 0.1)
_ATTRIBUTE_FALLBACK = 0.7
UNLEARNED = Fusion(1.0, (Bucket(0, 0.0, 1.0),), Bucket(0, 1.0, 0.0), 1.0, 1.0)
"""Stands in a recipe until its weights are learned."""


class Learned(NamedTuple):
    """A recipe with its fusion and its number of sweeps, and what the sweeps came to."""

    recipe: Recipe
    sweeps: tuple[Sweep, ...]


def learn_recipe(
    log: InteractionLog,
    texts: TextLog,
    catalog: Catalog,
    draft: Recipe,
    *,
    on_sweep: Callable[[Sweep], None] | None = None,
    solver: RowSolver | None = None,
    n_threads: int = 1,
) -> Learned:
    """Learn how many sweeps a fit needs, scale, alpha and beta of every bucket, and the weights of requests by text or
    attributes alone.

    ``draft`` is the recipe without its fusion, which is not read. A bucket gets the highest alpha that reaches nine
    tenths of what can be gained in NDCG@10 over factors alone on the validation part: items that nobody has met are
    never relevant there, and only their text can bring them up. Every bucket also learns from users with longer
    histories, cut to their newest interactions, and from the other buckets, at 0.8 of the weight for each step between
    them; the surface over the weights is smoothed. Validation users are a sample that the seed of the factor parameters
    fixes.
    """
    split, parameters = split_user_tail(log, texts), draft.factor_parameters
    items, sweeps = fit_items(
        split.train, catalog, parameters, validation=split.test, on_sweep=on_sweep, solver=solver, n_threads=n_threads
    )
    trial = _Trial(split.train, split.texts, split.test, items, replace(draft, fusion=UNLEARNED), n_threads)
    fusion = Fusion(
        scale=trial.scale,
        buckets=(Bucket(0, 0.0, 1.0), *_learn_buckets(trial)),
        text_request=_learn_text_request(trial),
        factor_block=_inverse_mean(np.linalg.norm(items.factors, axis=1)),
        prior_block=_inverse_mean(np.abs(items.prior)),
        attribute_request=None if items.user_map is None else _learn_attribute_request(trial),
    )
    n_sweeps = best_sweep(sweeps) if sweeps else parameters.n_sweeps
    recipe = replace(draft, fusion=fusion, factor_parameters=replace(parameters, n_sweeps=n_sweeps))
    return Learned(recipe, sweeps)


class _Trial:
    """The validation users, ready to be scored. ``unit`` is the weight that gives the prior the text's spread."""

    def __init__(
        self,
        train: InteractionLog,
        texts: TextLog,
        test: InteractionLog,
        items: ItemSpace,
        recipe: Recipe,
        n_threads: int,
    ) -> None:
        self.items, self.recipe, self.n_threads = items, recipe, n_threads
        everybody = build_histories(train, texts, [""] * train.n_users)
        chosen = sample_users(train, test, recipe.factor_parameters.seed)
        self.histories = select_users(everybody, chosen)
        self.lengths = history_lengths(self.histories.interactions)
        self.seen = train.matrix()[chosen]
        self.wanted = test.select(test.weight > 0).matrix()[chosen]
        text, factors = self.spreads(self.histories if len(chosen) else _first_active(everybody))
        self.scale = text / factors if text and factors else 1.0
        spread = float(items.prior.std())
        self.unit = (text or factors or _USUAL_SPREAD) / spread if spread else 1.0

    def spreads(self, histories: Histories) -> tuple[float, float]:
        """Mean standard deviation over the catalog of the text scores and of the factor scores."""
        parts = [(text.std(axis=1), factors.std(axis=1)) for _, text, factors in self._scores(histories)]
        if not parts:
            return 0.0, 0.0
        text, factors = (np.concatenate(column) for column in zip(*parts, strict=True))
        return float(text.mean()), float(factors.mean())

    def search(self, rows: Integers, histories: Histories, combinations: Floats) -> Floats:
        """NDCG@10 (n_rows, n_combinations) of the validation users ``rows``, who have the given histories."""
        from tasks.domain.weight_search import search_weights

        def measure(part: tuple[slice, Floats, Floats]) -> Floats:
            users, text, factors = part
            blocked, wanted = _dense(self.seen[rows[users]]), _dense(self.wanted[rows[users]])
            return search_weights(text, factors, self.items.prior, blocked, wanted, combinations)

        with ThreadPoolExecutor(self.n_threads) as pool:
            found = list(pool.map(measure, self._scores(histories)))
        return np.concatenate([np.zeros((0, len(combinations)), np.float32), *found])

    def _scores(self, histories: Histories) -> Iterator[tuple[slice, Floats, Floats]]:
        profiles = compute_profiles(histories, self.items, self.recipe, n_threads=self.n_threads)
        step = max(1, _CHUNK_CELLS // max(1, len(self.items.item_ids)))
        for start in range(0, len(histories.user_ids), step):
            users = slice(start, start + step)
            text = profiles.text[users] @ self.items.text.T
            yield users, text, profiles.factors[users] @ self.items.factors.T


def _learn_buckets(trial: _Trial) -> list[Bucket]:
    alphas = _ALPHAS if trial.items.text.any() else _ALPHAS[:1]
    combinations = _combinations(alphas, _BETAS, trial)
    surfaces, counts = [], []
    for start, end in zip(BUCKET_STARTS, (*BUCKET_STARTS[1:], None), strict=True):
        rows, histories = _bucket_rows(trial, start, end)
        found = trial.search(rows, histories, combinations)
        surfaces.append(found.sum(axis=0).reshape(len(alphas), len(_BETAS)))
        counts.append(len(rows))
    buckets, weights = [], _FALLBACK
    for number, start in enumerate(BUCKET_STARTS):
        if counts[number] >= MIN_ROWS:
            shares = _BUCKET_DECAY ** np.abs(np.arange(len(surfaces)) - number)
            row, column = _choose(_smooth(np.tensordot(shares, surfaces, axes=1)), alphas)
            weights = _plain(alphas[row]), _plain(_BETAS[column])
        alpha = weights[0] if len(alphas) > 1 else 0.0
        buckets.append(Bucket(start, alpha, weights[1] * trial.unit))
    return buckets


def _bucket_rows(trial: _Trial, start: int, end: int | None) -> tuple[Integers, Histories]:
    """Users of the bucket, and users with longer histories cut to lengths that go through the bucket's in turn."""
    rows = np.flatnonzero(trial.lengths >= start)
    if end is None:
        return rows, select_users(trial.histories, rows)
    cut = np.where(trial.lengths[rows] < end, trial.lengths[rows], start + np.arange(len(rows)) % (end - start))
    return rows, truncate_histories(select_users(trial.histories, rows), cut)


def _learn_text_request(trial: _Trial) -> Bucket:
    """Weights of somebody of whom only a text is known, learned from users whose text is that of the item they liked
    last. The answer must be about the text, though what is popular would score higher: text keeps at least half of the
    weight, the prior has at most 0.3 of the text's spread, and the highest alpha that gains nine tenths over text alone
    is taken."""
    rows, histories = _text_requests(trial)
    alpha, beta = _TEXT_FALLBACK
    if len(rows) >= MIN_ROWS:
        found = trial.search(rows, histories, _combinations(_TEXT_ALPHAS, _TEXT_BETAS, trial))
        surface = found.sum(axis=0).reshape(len(_TEXT_ALPHAS), len(_TEXT_BETAS))
        row, column = _choose(_smooth(surface), _TEXT_ALPHAS)
        alpha, beta = _plain(_TEXT_ALPHAS[row]), _plain(_TEXT_BETAS[column])
    return Bucket(0, alpha, beta * trial.unit)


def _text_requests(trial: _Trial) -> tuple[Integers, Histories]:
    liked = trial.histories.interactions
    user = np.repeat(np.arange(liked.shape[0]), np.diff(liked.indptr))
    told = np.flatnonzero((liked.data > 0) & trial.items.text[liked.indices].any(axis=1))
    newest = told[np.lexsort((trial.histories.ages.data[told], user[told]))]
    rows, first = np.unique(user[newest], return_index=True)
    spoken = trial.items.text[liked.indices[newest[first]]]
    empty = sparse.csr_matrix((len(rows), liked.shape[1]), dtype=np.float32)
    ones, zeros = np.ones(len(rows), np.float32), np.zeros(len(rows), np.float32)
    return rows, Histories(("",) * len(rows), empty, empty, spoken, np.arange(len(rows)), ones, zeros)


def _learn_attribute_request(trial: _Trial) -> Bucket:
    """Weights of somebody of whom only attributes are known, learned from users whose history is left out. What is
    popular is the safe answer to somebody new, so the prior gets the highest weight of those that reach nine tenths of
    what can be gained over the attributes alone."""
    rows = np.flatnonzero(trial.histories.has_features)
    beta = _ATTRIBUTE_FALLBACK
    if len(rows) >= MIN_ROWS:
        nothing = truncate_histories(select_users(trial.histories, rows), np.zeros(len(rows), np.int64))
        found = trial.search(rows, nothing, _combinations(_ALPHAS[:1], _BETAS, trial))
        gain = _smooth(found.sum(axis=0)[None])[0]
        beta = _plain(_BETAS[np.flatnonzero(gain >= gain[0] + _ENOUGH * (gain.max() - gain[0]))[-1]])
    return Bucket(0, 0.0, beta * trial.unit)


def _combinations(alphas: Floats, betas: Floats, trial: _Trial) -> Floats:
    """(n_alphas * n_betas, 3): the weights of the text, factor and prior parts."""
    alpha, beta = (grid.ravel() for grid in np.meshgrid(alphas, betas, indexing="ij"))
    return np.stack([alpha, (1 - alpha) * trial.scale, beta * trial.unit], axis=1).astype(np.float32)


def _choose(surface: npt.NDArray[np.float64], alphas: Floats) -> tuple[int, int]:
    """Of the points that have nine tenths of the highest point's gain over the first, those with the highest alpha,
    and of these the one with the smallest beta. Rows are ``alphas``, columns rising betas."""
    enough = surface >= surface[0, 0] + _ENOUGH * (surface.max() - surface[0, 0])
    rows = np.flatnonzero(enough.any(axis=1))
    row = int(rows[alphas[rows].argmax()])
    return row, int(enough[row].argmax())


def _smooth(surface: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Each point becomes the mean of itself (twice) and its neighbours, along both axes."""
    smooth = np.asarray(surface, np.float64)
    for axis in (0, 1):
        wide = np.pad(smooth, [(int(axis == 0),) * 2, (int(axis == 1),) * 2], mode="edge")
        n = smooth.shape[axis]
        before, after = (np.take(wide, np.arange(shift, shift + n), axis=axis) for shift in (0, 2))
        smooth = (before + 2 * smooth + after) / 4
    return smooth


def _first_active(histories: Histories) -> Histories:
    """The first users who liked anything, where nobody can be tested."""
    return select_users(histories, np.flatnonzero(history_lengths(histories.interactions))[:MAX_USERS])


def _dense(entries: sparse.csr_matrix) -> Flags:
    dense = np.zeros(entries.shape, bool)
    dense[np.repeat(np.arange(entries.shape[0]), np.diff(entries.indptr)), entries.indices] = True
    return dense


def _plain(value: np.float32) -> float:
    """A grid value without the noise of single precision."""
    return round(float(value), 6)


def _inverse_mean(values: Floats) -> float:
    mean = float(values.mean()) if len(values) else 0.0
    return 1 / mean if mean > 0 else 1.0
