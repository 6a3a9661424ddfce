"""Matrix factorization from implicit feedback, with factors that lean on what the text of an item predicts.

Alternating least squares as in Hu, Koren and Volinsky 2008 ("Collaborative Filtering for Implicit Feedback
Datasets"), with the frequency-scaled penalty and the separate weight of unobserved pairs of Rendle, Krichene, Zhang
and Koren 2021 ("Revisiting the Performance of iALS on Item Recommendation Benchmarks"). What is ours: signed confidence
weights, which may fall with the popularity of the item; unobserved pairs that weigh less where an item is new; and a
share ``s = text_prior`` of a row's penalty that pulls it toward ``B' t_i``, what a linear map of its features predicts:

    L = sum_observed |w| (p - <x, f>)^2  +  a * sum_ui e_i <x, f>^2  +  sum_u l_u |x_u|^2
        + sum_i l_i ((1 - s) |f_i|^2 + s |f_i - B' t_i|^2)  +  s * r * |B|^2

The preference is ``p = 1`` for a weight above 0 and ``p = 0`` below. A weight ``w`` is the given one times
``(likes of i)^-g / mean``. The exposure ``e_i``, in [0, 1], is the share of everything that was seen in which i could
have been seen, so 0 for a new item. A penalty is ``l = regularization * (sum |w| + a * n)^h`` over the row's entries,
with n rows on the other side. Users may have features too, with a map of their own; their term is like that of the
items. A map is the ridge regression over rows with some history; for the others its pull is not part of L, they follow.
Every half-step lowers L over its block, so L never rises. It knows nothing of ids, time or storage.
"""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.errors import TrainingError
from tasks.domain.factor_model import (
    FactorModel,
    FactorParameters,
    ItemWeights,
    Sweep,
    best_sweep,
    discount,
    item_side,
    user_side,
    weigh_items,
)
from tasks.domain.feature_maps import FeatureMap
from tasks.domain.half_steps import (
    Basis,
    Features,
    RowSolver,
    Side,
    ThreadedSolver,
    rotate,
    rotated_map,
    threads,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_BLOCK_ROWS = 8192
_BLOCK_ENTRIES = 100_000
_BLOCK_CELLS = 2**18


def fit_factors(
    interactions: sparse.csr_matrix,
    item_features: Features,
    parameters: FactorParameters,
    *,
    user_features: Features | None = None,
    opportunity: Floats | None = None,
    start: Floats | None = None,
    measure: Callable[[Floats, Floats], float] | None = None,
    patience: int = 2,
    on_sweep: Callable[[Sweep], None] | None = None,
    solver: RowSolver | None = None,
    n_threads: int = 1,
) -> FactorModel:
    """Fit user and item factors.

    ``interactions`` is (n_users, n_items) CSR of signed confidence weights; equal pairs are added up. ``item_features``
    (n_items, width) have unit or zero rows, or no column; so do ``user_features`` (n_users, width). Items without
    interactions get the solution of the same half-step, so the pull of their features alone. ``opportunity`` (n_items,)
    is the exposure e of the module docstring, in [0, 1], 1 if None. ``start`` (n_items, d) are item factors to go on
    from, zero for new items. ``measure(users, items)`` is called after each sweep; without a new best for ``patience``
    sweeps the fit ends. ``on_sweep`` is called after each sweep. ``solver`` does the half-steps, on ``n_threads``
    threads by default. The result depends on the seed, and neither on threads nor workers. The last user half-step is
    exact, as ``fold_in`` is. Raises TrainingError for parameters, weights or start
    values out of range, for a matrix without a positive weight, and for a fit that diverges.
    """
    matrix = _checked(interactions, item_features, user_features, parameters)
    weights = weigh_items(_count_likes(matrix), parameters, opportunity)
    fit = _Fit(
        matrix, item_features, user_features, weights, parameters, solver or ThreadedSolver(n_threads), n_threads
    )
    fit.begin(_start(matrix.shape[1], parameters, start), warm=start is not None)
    sweeps: list[Sweep] = []
    for number in range(1, parameters.n_sweeps + 1):
        began = time.perf_counter()
        loss = fit.sweep()
        metric = None if measure is None else measure(fit.users, fit.items)
        sweeps.append(Sweep(number, loss, time.perf_counter() - began, metric))
        _check_loss(sweeps, parameters)
        if on_sweep is not None:
            on_sweep(sweeps[-1])
        if best_sweep(sweeps) <= number - patience:
            break
    return fit.finish(tuple(sweeps))


class _Fit:
    """The state of a fit. Users, items and maps share one basis, which every half-step turns; ``_turned`` says how."""

    users: Floats
    items: Floats

    def __init__(
        self,
        matrix: sparse.csr_matrix,
        item_features: Features,
        user_features: Features | None,
        weights: ItemWeights,
        parameters: FactorParameters,
        solver: RowSolver,
        n_threads: int,
    ) -> None:
        self._parameters, self._solver, self._weights, self._n_threads = parameters, solver, weights, n_threads
        matrix = discount(matrix, weights)
        by_item = matrix.T.tocsr()
        self._users_side = user_side(matrix, weights.exposure, parameters, _given(user_features, parameters.user_prior))
        self._items_side = item_side(
            by_item, weights.exposure, parameters, _given(item_features, parameters.text_prior)
        )
        self._user_ridge = _ridge(self._users_side, parameters.user_prior * parameters.text_ridge)
        self._item_ridge = _ridge(self._items_side, parameters.text_prior * parameters.text_ridge)
        self._widths = item_features.shape[1], 0 if user_features is None else user_features.shape[1]
        self._item_map: Floats | None = None
        self._user_map: Floats | None = None

    def begin(self, items: Floats, *, warm: bool) -> None:
        d = items.shape[1]
        self.items, self.users = items, np.full((self._users_side.n_rows, d), 0, np.float32)
        self._turned = np.eye(d)
        if warm:
            self._turn(self._solver(self._users_side, self.items, self.users, None, exact=True))

    def sweep(self) -> float:
        """One pass over users and items; returns the loss after it."""
        if self._user_ridge is not None:
            self._user_map = self._user_ridge.solve(self.users)
        self._turn(self._solver(self._users_side, self.items, self.users, self._user_map))
        if self._item_ridge is not None:
            self._item_map = self._item_ridge.solve(self.items)
        basis = self._solver(self._items_side, self.users, self.items, self._item_map)
        self._turn(basis)
        return self._loss(basis)

    def finish(self, sweeps: tuple[Sweep, ...]) -> FactorModel:
        """The last user half-step, exactly, and everything turned back to the basis of the start."""
        self._turn(self._solver(self._users_side, self.items, self.users, self._user_map, exact=True))
        back = self._turned.T
        with threads(self._n_threads) as run:
            rotate(self.items, back, run)
            rotate(self.users, back, run)
        maps = [
            np.zeros((width, len(back)), np.float32) if learned is None else (learned @ back).astype(np.float32)
            for learned, width in zip((self._item_map, self._user_map), self._widths, strict=True)
        ]
        return FactorModel(self.users, self.items, self._weights, maps[0], maps[1], sweeps)

    def _turn(self, basis: Basis) -> None:
        """Follow a half-step into its basis with what it did not turn itself."""
        self._turned = self._turned @ basis.rotation
        self._item_map = rotated_map(self._item_map, basis)
        self._user_map = rotated_map(self._user_map, basis)

    def _loss(self, basis: Basis) -> float:
        """The objective; ``basis`` is that of the users, in which the unobserved part needs no matrix product."""
        per_factor = _weighted_squares(self.items, self._items_side.unobserved)
        loss = _observed_loss(self._items_side, self.users, self.items, self._n_threads) + float(
            basis.spectrum @ per_factor
        )
        for share, side, rows, learned in (
            (self._parameters.user_prior, self._users_side, self.users, self._user_map),
            (self._parameters.text_prior, self._items_side, self.items, self._item_map),
        ):
            loss += _penalty_loss(side, rows, learned)
            if learned is not None:
                ridge = share * self._parameters.text_ridge
                loss += ridge * float(np.sum(learned.astype(np.float64) ** 2))
        return loss


def _given(features: Features | None, share: float) -> Features | None:
    return features if features is not None and features.shape[1] and share else None


def _ridge(side: Side, ridge: float) -> FeatureMap | None:
    if side.features is None or side.pull is None:
        return None
    known = np.diff(side.interactions.indptr) > 0
    weight = np.where(known, side.pull, 0)
    return FeatureMap(side.features, weight, ridge)


def _observed_loss(side: Side, fixed: Floats, rows: Floats, n_threads: int) -> float:
    from tasks.domain.least_squares import sum_observed

    entries = side.interactions
    indptr, indices = entries.indptr.astype(np.int64), entries.indices.astype(np.int32, copy=False)
    with threads(n_threads) as run:
        total = run(lambda chunk: sum_observed(chunk, indptr, indices, entries.data, fixed, rows), side.chunks)
    return float(total)


def _penalty_loss(side: Side, rows: Floats, learned: Floats | None) -> float:
    """Penalties of the rows with some history; what the others cost is not part of the objective."""
    known = np.flatnonzero(np.diff(side.interactions.indptr) > 0)
    total = 0.0
    size = max(128, _BLOCK_CELLS // rows.shape[1])
    for start in range(0, len(known), size):
        some = known[start : start + size]
        part, target = rows[some].astype(np.float64), side.target(some, learned)
        total += float(side.penalty[some] @ np.einsum("nd,nd->n", part, part))
        if len(target) and side.pull is not None:  # l |f|^2 - 2 <f, q> + |q|^2 / q's weight, with q = s l B' t
            total += float(np.sum(-2 * part * target + target.astype(np.float64) ** 2 / side.pull[some, None]))
    return total


def _weighted_squares(rows: Floats, weight: Floats) -> Doubles:
    total = np.zeros(rows.shape[1])
    size = max(128, _BLOCK_CELLS // rows.shape[1])
    for start in range(0, len(rows), size):
        some = slice(start, start + size)
        total += np.einsum("nd,nd,n->d", rows[some], rows[some], weight[some])
    return total


def _start(n_items: int, parameters: FactorParameters, given: Floats | None) -> Floats:
    """Small random values, and ``given`` where it is not zero."""
    shape = n_items, parameters.n_factors
    if given is not None and (given.shape != shape or not np.isfinite(given).all()):
        raise TrainingError(
            f"The factor fit got start values of shape {given.shape} for {shape[0]} items and {shape[1]} factors. They"
            " must be finite and have one row for each item, zero for a new one: bring the factors of the earlier"
            " version into the order of this catalog, or start without them."
        )
    rng = np.random.default_rng(parameters.seed)
    items: Floats = rng.standard_normal(shape, np.float32)
    items *= np.float32(0.1 / np.sqrt(shape[1]))
    if given is not None:
        known = given.any(axis=1)
        items[known] = given[known]
    return items


def _count_likes(interactions: sparse.csr_matrix) -> npt.NDArray[np.int64]:
    counts = np.zeros(interactions.shape[1], np.int64)
    for start in range(0, interactions.nnz, _BLOCK_ENTRIES):
        some = slice(start, start + _BLOCK_ENTRIES)
        liked = interactions.indices[some][interactions.data[some] > 0]
        counts += np.bincount(liked, minlength=len(counts))
    return counts


def _checked(
    interactions: sparse.csr_matrix,
    item_features: Features,
    user_features: Features | None,
    parameters: FactorParameters,
) -> sparse.csr_matrix:
    _check_parameters(parameters)
    for name, features, n_rows in (
        ("items", item_features, interactions.shape[1]),
        ("users", user_features, interactions.shape[0]),
    ):
        if features is not None and features.shape[0] != n_rows:
            raise TrainingError(
                f"The factor fit got features of {features.shape[0]} {name}, and interactions of {n_rows}."
                f" There must be one row of features for each of the {name}, zeros where nothing is known."
            )
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
    matrix = interactions.astype(np.float32, copy=False)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def _check_parameters(parameters: FactorParameters) -> None:
    allowed = (
        ("n_factors", parameters.n_factors >= 1, "at least 1"),
        ("n_sweeps", parameters.n_sweeps >= 1, "at least 1"),
        ("regularization", 0 < parameters.regularization < np.inf, "above 0"),
        ("unobserved_weight", 0 <= parameters.unobserved_weight < np.inf, "at least 0"),
        ("frequency_exponent", bool(np.isfinite(parameters.frequency_exponent)), "a finite number"),
        ("popularity_discount", bool(np.isfinite(parameters.popularity_discount)), "a finite number"),
        ("text_prior", 0 <= parameters.text_prior <= 1, "between 0 and 1"),
        ("user_prior", 0 <= parameters.user_prior <= 1, "between 0 and 1"),
        ("text_ridge", 0 < parameters.text_ridge < np.inf, "above 0"),
    )
    for name, is_allowed, range_ in allowed:
        if not is_allowed:
            raise TrainingError(
                f"A factor fit was asked for with {name} = {getattr(parameters, name)}. It must be {range_}:"
                " correct the settings of the factors."
            )


def _check_loss(sweeps: list[Sweep], parameters: FactorParameters) -> None:
    first, last = sweeps[0].loss, sweeps[-1].loss
    if not np.isfinite(last) or last > 2 * first:
        raise TrainingError(
            f"The factor fit diverged in sweep {len(sweeps)}: its loss went from {first:.4g} to {last:.4g}."
            f" It must stay finite and not rise. Raise the regularization (now {parameters.regularization:g}) or the"
            f" unobserved weight (now {parameters.unobserved_weight:g}), and look at the weights of the interactions."
        )
