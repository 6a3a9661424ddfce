"""Tunes both libraries alike: the same search, as many trials, the same held-out part, two parameters each.

It knows nothing of the test part.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from scipy import sparse

from benchmarks.support.full_ranking import measure_ranking
from benchmarks.support.ids_only import IDS_ONLY, fit_ids, sample_users
from benchmarks.support.interaction_files import hold_out
from benchmarks.support.parameter_search import Range, Search, Values
from benchmarks.support.peer_turns import ImplicitParameters, build_implicit
from tasks.domain.errors import TrainingError
from tasks.domain.factor_model import FactorParameters

OUR_RANGES = {"regularization": Range(0.001, 0.3), "unobserved_weight": Range(0.002, 0.5)}
IMPLICIT_RANGES = {"regularization": Range(0.01, 1000.0), "alpha": Range(1.0, 500.0)}
MOST_USERS = 8000


class Tuned(NamedTuple):
    """Values with the best NDCG@20 on the held-out part, and that."""

    values: Values
    ndcg_at_20: float


def tune_libraries(
    train: sparse.csr_matrix, n_factors: int, *, n_sweeps: int, n_trials: int, n_threads: int
) -> tuple[Tuned, Tuned]:
    """The best of ``n_trials`` for ours and for ``implicit``. Both searches begin at the library's own defaults."""
    fit_part, held = hold_out(train, 0.1, seed=1)
    held = sample_users(held, MOST_USERS)

    def try_ours(values: Values) -> float:
        parameters = our_parameters(values, n_factors, n_sweeps)
        try:
            model = fit_ids(fit_part, parameters, n_threads=n_threads)
        except TrainingError:
            return 0.0
        return measure_ranking(model.users, model.items, fit_part, held, n_threads=n_threads).ndcg_at_20

    def try_implicit(values: Values) -> float:
        from implicit.recommender_base import ModelFitError

        model = build_implicit(ImplicitParameters(**values), n_factors, n_sweeps, n_threads)
        try:
            model.fit(fit_part, show_progress=False)
        except ModelFitError:
            return 0.0
        return measure_ranking(model.user_factors, model.item_factors, fit_part, held, n_threads=n_threads).ndcg_at_20

    our_start = {name: getattr(IDS_ONLY, name) for name in OUR_RANGES}
    ours = _search("ours", try_ours, OUR_RANGES, our_start, n_trials)
    return ours, _search("implicit", try_implicit, IMPLICIT_RANGES, {"regularization": 0.01, "alpha": 1.0}, n_trials)


def our_parameters(values: Values, n_factors: int, n_sweeps: int) -> FactorParameters:
    """``IDS_ONLY`` with tuned values."""
    return replace(IDS_ONLY, n_factors=n_factors, n_sweeps=n_sweeps, **values)  # type: ignore[arg-type]


def _search(
    library: str, measure: Callable[[Values], float], ranges: Mapping[str, Range], start: Values, n_trials: int
) -> Tuned:
    search = Search(ranges, seed=0)
    best = Tuned(start, measure(start))
    search.learn(start, best.ndcg_at_20)
    for number in range(2, n_trials + 1):
        values = search.propose()
        ndcg = measure(values)
        search.tell(ndcg)
        best = max(best, Tuned(values, ndcg), key=lambda tuned: tuned.ndcg_at_20)
        print(f"{library}, trial {number}: {values} -> ndcg@20 {ndcg:.4f}", file=sys.stderr, flush=True)
    return best
