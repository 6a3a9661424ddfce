"""Fits the items of a model version to a log: their factors, the maps to them, and their prior.

It knows nothing of the weights that join the blocks, of ids or of storage.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tasks.domain.factor_model import FactorParameters, Sweep, weigh_items
from tasks.domain.factors import fit_factors
from tasks.domain.half_steps import RowSolver
from tasks.domain.histories import InteractionLog
from tasks.domain.metrics import rank_users
from tasks.domain.profiles import ItemSpace

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

PRIOR_HALF_LIFE = 0.1
"""Share of the log over which the weight of an interaction in an item's popularity halves."""
NEW_PRIOR = 0.0
"""Prior of an item that nobody has liked, as ``compute_prior`` has it."""
MIN_ROWS = 30
"""A bucket with fewer users to learn from takes the weights of the one before it."""
PATIENCE = 3
"""Sweeps without a new best on the validation part after which a fit ends."""
MAX_USERS = 1000
MAX_CELLS = 20_000_000


class Catalog(NamedTuple):
    """The items, row by row: ids in ascending order, text embeddings (n_items, text_width), zero without text, and
    what is known beside the text, (n_items, width) CSR, or None. Factors lean on both. ``arrived_at`` (n_items,), in
    microseconds, is when an item came; those that were always there have the lowest value there is, all of them if
    None."""

    item_ids: tuple[str, ...]
    text: Floats
    features: sparse.csr_matrix | None = None
    arrived_at: Integers | None = None


class FittedItems(NamedTuple):
    """Items that were fitted to a log, and what each sweep of the fit came to."""

    items: ItemSpace
    sweeps: tuple[Sweep, ...]


def fit_items(
    log: InteractionLog,
    catalog: Catalog,
    parameters: FactorParameters,
    *,
    validation: InteractionLog | None = None,
    start: Floats | None = None,
    on_sweep: Callable[[Sweep], None] | None = None,
    solver: RowSolver | None = None,
    n_threads: int = 1,
) -> FittedItems:
    """Factors, text map and prior of all items, from one log.

    With a ``validation`` part, whose interactions are not in the log, every sweep is measured by the NDCG@10 of the
    factors, and the fit ends when it no longer rises. A log without a positive interaction gives zeros: such a version
    serves by text alone. The other arguments are those of ``fit_factors``, and so are the errors.
    """
    prior = compute_prior(log)
    if not prior.any() and np.isfinite(log.weight).all():
        factors = np.zeros((len(catalog.item_ids), parameters.n_factors), np.float32)
        text_map = np.zeros((catalog.text.shape[1], parameters.n_factors), np.float32)
        user_map, item_map = (
            None if features is None else np.zeros((features.shape[1], parameters.n_factors), np.float32)
            for features in (log.user_features, catalog.features)
        )
        nothing = ItemSpace(
            catalog.item_ids, catalog.text, factors, prior, text_map, weigh_items(prior, parameters), user_map,
            item_map=item_map,
        )  # fmt: skip
        return FittedItems(nothing, ())
    matrix = log.matrix()
    matrix.eliminate_zeros()
    fit = fit_factors(
        matrix,
        _item_features(catalog),
        parameters,
        user_features=log.user_features,
        opportunity=compute_opportunity(log, catalog.arrived_at),
        start=start,
        measure=None if validation is None else _ndcg_of_factors(log, validation, parameters.seed),
        patience=PATIENCE,
        on_sweep=on_sweep,
        solver=solver,
        n_threads=n_threads,
    )
    text_map, item_map = np.split(fit.item_map, [catalog.text.shape[1]])
    space = ItemSpace(
        catalog.item_ids, catalog.text, fit.items, prior, text_map, fit.weights,
        user_map=None if log.user_features is None else fit.user_map,
        item_map=None if catalog.features is None else item_map,
    )  # fmt: skip
    return FittedItems(space, fit.sweeps)


def fit_without_history(
    text: Floats,
    features: sparse.csr_matrix | None,
    text_map: Floats,
    item_map: Floats | None,
    parameters: FactorParameters,
) -> Floats:
    """Factors (n, n_factors) that a fit gives items that have just come: nobody has met them.

    ``text`` (n, text_width) and ``features`` (n, width) are those of a ``Catalog``, and the maps those of the fit's
    ``ItemSpace``. The half-step has no interaction, and without exposure no unobserved pair either, so its penalty
    alone decides: the share ``text_prior`` of it pulls toward what text and features predict, the rest toward zero.
    """
    predicted = text @ text_map
    if features is not None and item_map is not None:
        predicted = predicted + features @ item_map
    factors: Floats = (np.float32(parameters.text_prior) * predicted).astype(np.float32)
    return factors


def compute_opportunity(log: InteractionLog, arrived_at: Integers | None) -> Floats | None:
    """Share of the log that came with or after the arrival of each item, (n_items,) in [0, 1]; None for all of it.

    An item that was met before it arrived has been there since then.
    """
    if arrived_at is None:
        return None
    since = arrived_at.copy()
    np.minimum.at(since, log.item, log.last_at)
    times = np.sort(log.last_at)
    share: Floats = ((len(times) - np.searchsorted(times, since)) / max(len(times), 1)).astype(np.float32)
    return share


def compute_prior(log: InteractionLog) -> Floats:
    """Log popularity of each item, (n_items,) in [0, 1], 1 for the most popular; zeros without a positive interaction.

    Newer interactions count more: a weight halves over each ``PRIOR_HALF_LIFE`` of the log, counted back in positive
    interactions, so that the measure needs no clock and fits slow and busy catalogs alike.
    """
    liked = log.weight > 0
    last_at = np.sort(log.last_at[liked])
    newer = (len(last_at) - np.searchsorted(last_at, log.last_at[liked], side="right")) / max(len(last_at), 1)
    logged = np.log1p(np.bincount(log.item[liked], 0.5 ** (newer / PRIOR_HALF_LIFE), minlength=log.n_items))
    return (logged / (logged.max(initial=0) or 1)).astype(np.float32)


def _item_features(catalog: Catalog) -> Floats:
    """Text and the rest side by side, (n_items, text_width + width)."""
    return catalog.text if catalog.features is None else np.hstack([catalog.text, catalog.features.toarray()])


def _ndcg_of_factors(
    log: InteractionLog, validation: InteractionLog, seed: int
) -> Callable[[Floats, Floats], float] | None:
    """The mean NDCG@10 of the validation users, from the factors as a sweep left them; None if there are too few."""
    users = sample_users(log, validation, seed)
    if len(users) < MIN_ROWS:
        return None
    seen, wanted = log.matrix()[users], validation.select(validation.weight > 0).matrix()[users]
    return lambda factors, items: float(np.nanmean(rank_users(factors[users] @ items.T, seen, wanted).ndcg_at_10))


def sample_users(train: InteractionLog, test: InteractionLog, seed: int) -> Integers:
    """Users with something to be found and a history to find it with, at most so many that they can be scored."""
    wanted = np.unique(test.user[test.weight > 0])
    users = np.intersect1d(wanted, np.unique(train.user[train.weight > 0]))
    limit = int(np.clip(MAX_CELLS // max(1, train.n_items), 100, MAX_USERS))
    if len(users) <= limit:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, limit, replace=False))
