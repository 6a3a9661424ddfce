"""Matrix factorization from implicit feedback, with item factors that lean on what their text predicts.

Alternating least squares as in Hu, Koren and Volinsky 2008 ("Collaborative Filtering for Implicit Feedback
Datasets"), with the frequency-scaled penalty and the separate weight of unobserved pairs of Rendle, Krichene, Zhang
and Koren 2021 ("Revisiting the Performance of iALS on Item Recommendation Benchmarks"). What is ours: signed
confidence weights, and a share ``s = text_prior`` of an item's penalty that pulls it toward ``B' t_i``:

    L = sum_observed |w| (p - <x, f>)^2  +  a * sum_all <x, f>^2  +  sum_u l_u |x_u|^2
        + sum_i l_i ((1 - s) |f_i|^2 + s |f_i - B' t_i|^2)  +  s * r * |B|^2

with preference ``p = 1`` for a weight above 0 and ``p = 0`` below, and ``l = regularization * (sum |w| + a * n)^e``.
B is the ridge regression over items with some history; for the others its pull is not part of L, they follow.
Every half-step minimises L over its block, so L never rises. It knows nothing of ids, time or storage.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from tasks.domain.errors import TrainingError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_CHUNK_ROWS = 256


@dataclass(frozen=True)
class FactorParameters:
    """Parameters of a fit. ``docs/decisions`` says how the defaults were measured."""

    n_factors: int = 64
    """Length of a factor."""
    regularization: float = 0.25
    """Strength of the penalty of users and items."""
    frequency_exponent: float = 0.5
    """How the penalty grows with the size of a history: 0 not at all, 1 in proportion."""
    unobserved_weight: float = 0.2
    """Weight of every pair, seen or not, as one of preference 0."""
    text_prior: float = 1.0
    """Share, in [0, 1], of an item's penalty that pulls it toward its text instead of zero."""
    text_ridge: float = 10.0
    """Strength of the ridge of the map from text to factors."""
    user_text_weight: float = 1.0
    """Confidence of a user's text as a term of their half-step, times the weight of its event."""
    n_sweeps: int = 12
    """Passes over users and items."""
    seed: int = 0
    """Seed of the start values."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class FactorModel(NamedTuple):
    """A fit: ``users`` (n_users, n_factors) and ``items`` (n_items, n_factors) float32, ``text_map`` B
    (text_width, n_factors) float32, and the loss after each sweep."""

    users: Floats
    items: Floats
    text_map: Floats
    losses: tuple[float, ...]


class TextTerms(NamedTuple):
    """What users wrote, as terms of their half-step: each text stands for an item that has the factors its words
    predict. ``factors`` (n_texts, n_factors), ``user`` (n_texts,) rows of the interactions, ``weight`` (n_texts,)."""

    factors: Floats
    user: npt.NDArray[np.int64]
    weight: Floats


def fit_factors(
    interactions: sparse.csr_matrix,
    texts: Floats,
    parameters: FactorParameters,
    *,
    n_threads: int = 1,
    on_sweep: Callable[[int, float], None] | None = None,
) -> FactorModel:
    """Fit user and item factors.

    ``interactions`` is (n_users, n_items) CSR of signed confidence weights, ``texts`` (n_items, text_width) with unit
    or zero rows. Items without interactions get the solution of the same half-step, so the pull of their text alone.
    The result depends on the seed and not on ``n_threads``. ``on_sweep(sweep, loss)`` is called after each sweep.
    The last user half-step is ``fold_in``. Raises TrainingError for weights that are not finite, for a matrix without
    a positive weight and for a fit that diverges.
    """
    matrix = _checked(interactions)
    by_item = matrix.T.tocsr()
    text_step = _TextStep(texts, by_item, parameters)
    rng = np.random.default_rng(parameters.seed)
    items = rng.normal(0, 0.1 / np.sqrt(parameters.n_factors), (matrix.shape[1], parameters.n_factors))
    losses: list[float] = []
    for sweep in range(parameters.n_sweeps):
        users = half_step(matrix, items, parameters, n_threads=n_threads)
        text_map, predicted = text_step.solve(items)
        items = half_step(by_item, users, parameters, pull=text_step.weight[:, None] * predicted, n_threads=n_threads)
        losses.append(compute_loss(matrix, users, items, predicted, text_map, parameters))
        _check_loss(losses, parameters)
        if on_sweep is not None:
            on_sweep(sweep, losses[-1])
    stored = items.astype(np.float32)
    last = fold_in(matrix, stored, parameters, n_threads=n_threads)
    return FactorModel(last, stored, text_map.astype(np.float32), tuple(losses))


def fold_in(
    interactions: sparse.csr_matrix,
    items: Floats,
    parameters: FactorParameters,
    *,
    texts: TextTerms | None = None,
    n_threads: int = 1,
) -> Floats:
    """Solve users against fixed items, exactly: the user half-step of the training.

    ``interactions`` (n_users, n_items) CSR of full histories; returns (n_users, n_factors) float32. A user with
    neither history nor text gets zeros. A row does not depend on the other rows.
    """
    fixed = items.astype(np.float64)
    if texts is not None and len(texts.weight):
        weight = texts.weight * np.float32(parameters.user_text_weight)
        cells = (weight, (texts.user, np.arange(len(weight))))
        block = sparse.csr_matrix(cells, shape=(interactions.shape[0], len(weight)), dtype=np.float32)
        interactions = sparse.hstack([interactions, block], format="csr")
        fixed = np.concatenate([fixed, texts.factors.astype(np.float64)])
    solved = half_step(interactions, fixed, parameters, n_catalog=len(items), n_threads=n_threads)
    return solved.astype(np.float32)


class Attribution(NamedTuple):
    """Shares of ``<f_u, f_i>``: of the history items (n_targets, n_history) and of the texts (n_targets, n_texts).
    A row adds up to the score of its target."""

    items: Doubles
    texts: Doubles


def attribute_scores(
    history: npt.NDArray[np.int64],
    weights: Floats,
    items: Floats,
    targets: npt.NDArray[np.int64],
    parameters: FactorParameters,
    *,
    texts: TextTerms | None = None,
    gram: Doubles | None = None,
) -> Attribution:
    """Split one user's factor scores exactly over their history (Hu, Koren and Volinsky 2008, section 5).

    ``history`` (n_history,) and ``targets`` (n_targets,) are rows of ``items``; ``weights`` (n_history,) signed
    confidences. What was only seen or disliked has the share 0: it acts through the shares of the others. ``gram``
    is ``items.T @ items`` in double precision, given where many users are split against the same items.
    """
    gram = items.T.astype(np.float64) @ items if gram is None else gram
    text_factors = np.zeros((0, items.shape[1])) if texts is None else texts.factors.astype(np.float64)
    text_weight = np.zeros(0) if texts is None else texts.weight.astype(np.float64) * parameters.user_text_weight
    terms = np.concatenate([items[history].astype(np.float64), text_factors])
    confidence = np.concatenate([weights.astype(np.float64), text_weight])
    size = np.abs(confidence)
    system = parameters.unobserved_weight * gram + (terms.T * size) @ terms
    system[np.diag_indices_from(system)] += _penalty(size.sum(), len(items), parameters)
    solved = _solve(system, items[targets].T.astype(np.float64))
    shares = solved.T @ terms.T * np.maximum(confidence, 0)
    return Attribution(shares[:, : len(history)], shares[:, len(history) :])


def half_step(
    interactions: sparse.csr_matrix,
    fixed: Doubles,
    parameters: FactorParameters,
    *,
    pull: Doubles | None = None,
    n_catalog: int | None = None,
    n_threads: int = 1,
) -> Doubles:
    """Solve every row of ``interactions`` against the ``fixed`` factors (n_columns, n_factors) of its columns.

    ``pull`` (n_rows, n_factors) is added to the right side of each row (nothing if None). The first ``n_catalog``
    fixed rows (all if None) make up the unobserved part. Rows are solved one by one, so threads change nothing.
    """
    n_rows, n_factors = interactions.shape[0], fixed.shape[1]
    catalog = fixed[:n_catalog]
    base = parameters.unobserved_weight * (catalog.T @ catalog)
    sizes = np.asarray(abs(interactions).sum(axis=1), np.float64).ravel()
    penalty = _penalty(sizes, len(catalog), parameters)
    drawn = np.zeros((n_rows, n_factors)) if pull is None else pull
    out = np.zeros((n_rows, n_factors))
    empty = np.diff(interactions.indptr) == 0
    if drawn[empty].any():  # rows without an entry have one matrix in common
        system = base + _penalty(0.0, len(catalog), parameters) * np.eye(n_factors)
        out[empty] = _solve(system, drawn[empty].T).T
    rows = np.flatnonzero(~empty)
    weights = interactions.data.astype(np.float64)
    indptr, indices = interactions.indptr.astype(np.int64), interactions.indices.astype(np.int64)
    solve = partial(_solve_rows(), rows, indptr, indices, weights, fixed, base, penalty, drawn, out)
    _in_chunks(solve, len(rows), n_threads)
    return out


def compute_loss(
    interactions: sparse.csr_matrix,
    users: Doubles,
    items: Doubles,
    predicted: Doubles,
    text_map: Doubles,
    parameters: FactorParameters,
) -> float:
    """The objective of the module docstring; ``predicted`` (n_items, n_factors) is ``B' t_i``."""
    rows = np.repeat(np.arange(interactions.shape[0]), np.diff(interactions.indptr))
    scores = np.einsum("nd,nd->n", users[rows], items[interactions.indices])
    weight, size = interactions.data.astype(np.float64), abs(interactions)
    observed = np.sum(np.abs(weight) * ((weight > 0) - scores) ** 2)
    everywhere = parameters.unobserved_weight * np.sum((users.T @ users) * (items.T @ items))
    l_users = _penalty(np.asarray(size.sum(axis=1), np.float64).ravel(), len(items), parameters)
    l_items = _penalty(np.asarray(size.sum(axis=0), np.float64).ravel(), len(users), parameters)
    share = parameters.text_prior
    away = (1 - share) * (items**2).sum(axis=1) + share * ((items - predicted) ** 2).sum(axis=1)
    map_term = share * parameters.text_ridge * np.sum(text_map**2)
    return float(observed + everywhere + l_users @ (users**2).sum(axis=1) + l_items @ away + map_term)


class _TextStep:
    """The ridge regression from text to factors over items with some history; its matrix never changes.

    ``weight`` (n_items,) is how strongly each item is pulled toward its prediction.
    """

    def __init__(self, texts: Floats, by_item: sparse.csr_matrix, parameters: FactorParameters) -> None:
        self._texts = texts.astype(np.float64)
        sizes = np.asarray(abs(by_item).sum(axis=1), np.float64).ravel()
        share = parameters.text_prior
        self.weight: Doubles = share * _penalty(sizes, by_item.shape[1], parameters)
        self._known = np.flatnonzero((sizes > 0) & texts.any(axis=1) & (share > 0))
        if len(self._known):
            known = self._texts[self._known]
            weighted = known * self.weight[self._known, None]
            system = known.T @ weighted + share * parameters.text_ridge * np.eye(texts.shape[1])
            self._solver = _solve(system, weighted.T)

    def solve(self, items: Doubles) -> tuple[Doubles, Doubles]:
        """B, and what it predicts for every item."""
        if not len(self._known):
            return np.zeros((self._texts.shape[1], items.shape[1])), np.zeros_like(items)
        text_map: Doubles = self._solver @ items[self._known]
        return text_map, self._texts @ text_map


def _solve(system: Doubles, side: Doubles) -> Doubles:
    """Solve a symmetric positive definite system for the columns of ``side``."""
    try:
        solved: Doubles = linalg.cho_solve(linalg.cho_factor(system), side)
    except (linalg.LinAlgError, ValueError) as error:
        raise TrainingError(
            f"The factor fit could not solve a system of {len(system)} equations: {error}. Its matrix must be finite"
            " and positive definite. Raise the regularization or the unobserved weight, and look at the weights of the"
            " interactions."
        ) from error
    return solved


def _penalty(size: Any, n_other: int, parameters: FactorParameters) -> Any:
    spread = size + parameters.unobserved_weight * n_other
    return parameters.regularization * spread**parameters.frequency_exponent


def _checked(interactions: sparse.csr_matrix) -> sparse.csr_matrix:
    bad = int((~np.isfinite(interactions.data)).sum())
    if bad:
        raise TrainingError(
            f"The factor fit got {bad} interaction weights that are not finite numbers."
            " Weights must be finite; look at fct_interactions and at the weights of the event types."
        )
    if not (interactions.data > 0).any():
        raise TrainingError(
            f"The factor fit got no positive interaction among {interactions.nnz}. It needs at least one event of a"
            " positive type; import events, or look at the event types in the settings."
        )
    return interactions


def _check_loss(losses: list[float], parameters: FactorParameters) -> None:
    if not np.isfinite(losses[-1]) or losses[-1] > 2 * losses[0]:
        raise TrainingError(
            f"The factor fit diverged in sweep {len(losses)}: its loss went from {losses[0]:.4g} to {losses[-1]:.4g}."
            f" It must stay finite and not rise. Raise the regularization (now {parameters.regularization:g}) or the"
            f" unobserved weight (now {parameters.unobserved_weight:g})."
        )


def _in_chunks(solve: Callable[[int, int], None], n_rows: int, n_threads: int) -> None:
    if n_threads == 1:
        solve(0, n_rows)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        starts = range(0, n_rows, _CHUNK_ROWS)
        list(pool.map(lambda start: solve(start, min(start + _CHUNK_ROWS, n_rows)), starts))


def _solve_rows() -> Callable[..., None]:
    from tasks.domain.least_squares import solve_rows

    return solve_rows
