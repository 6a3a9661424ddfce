"""Matrix factorization from implicit feedback, with item factors that lean on what their text predicts.

Alternating least squares as in Hu, Koren and Volinsky 2008 ("Collaborative Filtering for Implicit Feedback
Datasets"), with the frequency-scaled penalty and the separate weight of unobserved pairs of Rendle, Krichene, Zhang
and Koren 2021 ("Revisiting the Performance of iALS on Item Recommendation Benchmarks"). What is ours: signed
confidence weights, and a share ``s = text_prior`` of an item's penalty that pulls it toward ``B' t_i``:

    L = sum_observed |w| (p - <x, f>)^2  +  a * sum_all <x, f>^2  +  sum_u l_u |x_u|^2
        + sum_i l_i ((1 - s) |f_i|^2 + s |f_i - B' t_i|^2)  +  s * r * |B|^2

with preference ``p = 1`` for a weight above 0 and ``p = 0`` below, and ``l = regularization * (sum |w| + a * n)^e``.
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
    regularization: float = 0.003
    frequency_exponent: float = 1.0
    unobserved_weight: float = 0.1
    text_prior: float = 1.0
    text_ridge: float = 1.0
    user_text_weight: float = 1.0
    n_sweeps: int = 15
    seed: int = 0

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
    scale = 0.1 / np.sqrt(parameters.n_factors)
    items: Floats = rng.normal(0, scale, (matrix.shape[1], parameters.n_factors)).astype(np.float32)
    losses: list[float] = []
    for sweep in range(parameters.n_sweeps):
        users = half_step(matrix, items, parameters, n_threads=n_threads)
        text_map, pull = text_step.solve(items)
        items = half_step(by_item, users, parameters, pull=pull, n_threads=n_threads)
        losses.append(compute_loss(matrix, users, items, texts, text_map, parameters))
        _check_finite(losses, sweep, parameters)
        if on_sweep is not None:
            on_sweep(sweep, losses[-1])
    return FactorModel(fold_in(matrix, items, parameters, n_threads=n_threads), items, text_map, tuple(losses))


def fold_in(
    interactions: sparse.csr_matrix,
    items: Floats,
    parameters: FactorParameters,
    *,
    texts: TextTerms | None = None,
    n_threads: int = 1,
) -> Floats:
    """Solve users against fixed items, exactly: the half-step of the training, in double precision.

    ``interactions`` (n_users, n_items) CSR of full histories; returns (n_users, n_factors) float32. A user with
    neither history nor text gets zeros. A row does not depend on the other rows.
    """
    fixed = items.astype(np.float64)
    if texts is not None and len(texts.weight):
        weight = texts.weight * np.float32(parameters.user_text_weight)
        columns = (weight, (texts.user, np.arange(len(weight))))
        block = sparse.csr_matrix(columns, shape=(interactions.shape[0], len(weight)), dtype=np.float32)
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
    solved = linalg.solve(system, items[targets].T.astype(np.float64), assume_a="pos")
    shares = solved.T @ terms.T * np.maximum(confidence, 0)
    return Attribution(shares[:, : len(history)], shares[:, len(history) :])


def half_step(
    interactions: sparse.csr_matrix,
    fixed: npt.NDArray[Any],
    parameters: FactorParameters,
    *,
    pull: npt.NDArray[Any] | None = None,
    n_catalog: int | None = None,
    n_threads: int = 1,
) -> npt.NDArray[Any]:
    """Solve every row of ``interactions`` against the ``fixed`` factors of its columns, in the dtype of ``fixed``.

    ``pull`` (n_rows, n_factors) is where the penalty draws each row (zero if None). The first ``n_catalog`` fixed
    rows (all if None) make up the unobserved part. Rows are solved one by one, so threads change nothing.
    """
    n_rows, n_factors = interactions.shape[0], fixed.shape[1]
    catalog = fixed[:n_catalog].astype(np.float64)
    base = (parameters.unobserved_weight * (catalog.T @ catalog)).astype(fixed.dtype)
    sizes = np.asarray(abs(interactions).sum(axis=1)).ravel()
    penalty = _penalty(sizes, len(catalog), parameters).astype(fixed.dtype)
    drawn = np.zeros((n_rows, n_factors), fixed.dtype) if pull is None else pull.astype(fixed.dtype, copy=False)
    out = np.empty((n_rows, n_factors), fixed.dtype)
    empty = np.diff(interactions.indptr) == 0
    if empty.any():
        out[empty] = _solve_empty(base, _penalty(0.0, len(catalog), parameters), drawn[empty])
    rows = np.flatnonzero(~empty)
    solve = partial(
        _kernel(),
        rows,
        interactions.indptr.astype(np.int64),
        interactions.indices.astype(np.int64),
        interactions.data.astype(fixed.dtype),
        np.ascontiguousarray(fixed),
        base,
        penalty,
        drawn,
        out,
    )
    starts = range(0, len(rows), _CHUNK_ROWS)
    if n_threads == 1:
        solve(0, len(rows))
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(lambda start: solve(start, min(start + _CHUNK_ROWS, len(rows))), starts))
    return out


def _solve_empty(base: npt.NDArray[Any], penalty: float, pull: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows without an entry have one matrix in common."""
    if not pull.any():
        return np.zeros_like(pull)
    system = base.astype(np.float64) + penalty * np.eye(len(base))
    return linalg.solve(system, pull.T.astype(np.float64), assume_a="pos").T.astype(pull.dtype)


def compute_loss(
    interactions: sparse.csr_matrix,
    users: Floats,
    items: Floats,
    texts: Floats,
    text_map: Floats,
    parameters: FactorParameters,
) -> float:
    """The objective of the module docstring."""
    x, f = users.astype(np.float64), items.astype(np.float64)
    rows = np.repeat(np.arange(interactions.shape[0]), np.diff(interactions.indptr))
    predicted = np.einsum("nd,nd->n", users[rows], items[interactions.indices], dtype=np.float64)
    weight = interactions.data.astype(np.float64)
    observed = np.sum(np.abs(weight) * ((weight > 0) - predicted) ** 2)
    everywhere = parameters.unobserved_weight * np.sum((x.T @ x) * (f.T @ f))
    size = abs(interactions)
    l_users = _penalty(np.asarray(size.sum(axis=1)).ravel(), len(items), parameters)
    l_items = _penalty(np.asarray(size.sum(axis=0)).ravel(), len(users), parameters)
    share = parameters.text_prior
    away = ((f - texts @ text_map.astype(np.float64)) ** 2).sum(axis=1)
    item_terms = l_items @ ((1 - share) * (f**2).sum(axis=1) + share * away)
    map_term = share * parameters.text_ridge * np.sum(text_map.astype(np.float64) ** 2)
    return float(observed + everywhere + l_users @ (x**2).sum(axis=1) + item_terms + map_term)


class _TextStep:
    """The ridge regression from text to factors over items with some history; its matrix never changes."""

    def __init__(self, texts: Floats, by_item: sparse.csr_matrix, parameters: FactorParameters) -> None:
        self._texts, self._share = texts, parameters.text_prior
        sizes = np.asarray(abs(by_item).sum(axis=1)).ravel()
        self._penalty = _penalty(sizes, by_item.shape[1], parameters)
        if self._active:
            weighted = np.where(sizes > 0, self._penalty, 0)[:, None] * texts
            system = texts.T.astype(np.float64) @ weighted + parameters.text_ridge * np.eye(texts.shape[1])
            self._solver = linalg.cho_solve(linalg.cho_factor(system), weighted.T).astype(np.float32)

    @property
    def _active(self) -> bool:
        return self._share > 0 and self._texts.shape[1] > 0 and bool(self._texts.any())

    def solve(self, items: Floats) -> tuple[Floats, Floats]:
        """B, and the pull ``l_i * s * B' t_i`` of every item."""
        if not self._active:
            return np.zeros((self._texts.shape[1], items.shape[1]), np.float32), np.zeros_like(items)
        text_map = self._solver @ items
        return text_map, (self._penalty * self._share)[:, None].astype(np.float32) * (self._texts @ text_map)


def _penalty(size: Any, n_other: int, parameters: FactorParameters) -> Any:
    spread = size + parameters.unobserved_weight * n_other
    return parameters.regularization * spread**parameters.frequency_exponent


def _checked(interactions: sparse.csr_matrix) -> sparse.csr_matrix:
    if not np.isfinite(interactions.data).all():
        raise TrainingError(
            f"The factor fit got {int((~np.isfinite(interactions.data)).sum())} interaction weights that are not finite"
            " numbers. Weights must be finite; look at fct_interactions and at the weights of the event types."
        )
    if not (interactions.data > 0).any():
        raise TrainingError(
            f"The factor fit got no positive interaction among {interactions.nnz}. It needs at least one event of a"
            " positive type; import events, or look at the event types in the settings."
        )
    return interactions.astype(np.float32)


def _check_finite(losses: list[float], sweep: int, parameters: FactorParameters) -> None:
    if not np.isfinite(losses[-1]) or losses[-1] > 10 * losses[0] + 1:
        raise TrainingError(
            f"The factor fit diverged in sweep {sweep + 1}: its loss went from {losses[0]:.4g} to {losses[-1]:.4g}."
            f" It must stay finite and not rise. Raise the regularization (now {parameters.regularization:g}) or the"
            f" unobserved weight (now {parameters.unobserved_weight:g})."
        )


def _kernel() -> Callable[..., None]:
    from tasks.domain.least_squares import solve_rows

    return solve_rows
