"""Searches for better parameters of the factor model: proposes, measures on workers, and keeps every trial.

The table ``factor_trials`` is the only memory of a study. A study is known by a hash of everything that it depends on,
so that one which was killed, or ran out of time, is found again and goes on; a trial that was under way is measured
anew. It knows nothing of how a version is trained or published.
"""

import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from tasks.domain.errors import ComputeLostError, InputError, TrainingError
from tasks.domain.learning import UNLEARNED
from tasks.domain.parameter_search import ParameterSearch
from tasks.domain.parameter_space import Space, Values, apply_values, build_space, read_values
from tasks.domain.ports import Resources, Warehouse
from tasks.domain.profiles import Recipe
from tasks.domain.records import Receipt
from tasks.domain.tuning import (
    Origin,
    Trial,
    TuningSplit,
    best_trial,
    compare_trials,
    is_better,
    mean_history,
    split_for_tuning,
)
from tasks.training_inputs import build_draft, hash_inputs, load_choice, load_inputs
from tasks.trial_table import load_earlier, load_trials, write_choice, write_trial
from tasks.trials import TrialWork, count_events, load_fit_events, run_trial, write_trial_files

N_EARLIER = 3
"""Best trials of the study before that are measured again at the beginning."""
_CODE = ("domain/tuning.py", "domain/parameter_space.py", "domain/evaluation.py", "trials.py")

logger = logging.getLogger(__name__)


class TrialNews(NamedTuple):
    """A trial that ended: how many have, the best mean so far (None before the first), and the seconds in which trials
    may still begin."""

    trial: Trial
    n_done: int
    max_trials: int
    best: float | None
    seconds_left: float


class StudyOutcome(NamedTuple):
    """What a study came to. ``choice`` names what it chose (a row of ``factor_choices``), or is None if nothing was
    clearly better than the parameters in force, which trial ``in_force`` measured; ``message`` says it in words."""

    receipt: Receipt
    study: str
    in_force: int | None
    choice: str | None
    message: str


OnTrial = Callable[[TrialNews], None]


def run_study(
    resources: Resources,
    *,
    now: datetime,
    clock: Callable[[], datetime],
    minutes: float = 30.0,
    max_trials: int = 200,
    seed: int = 0,
    max_factors: int = 128,
    on_trial: OnTrial | None = None,
) -> StudyOutcome:
    """Measure parameters on workers until the time is over or the study has ``max_trials`` trials, then choose.

    The defaults come first, then what is in force, then the best of the study before, then proposals. ``minutes`` after
    ``now``, by ``clock``, no trial is begun; those under way are finished. Each is committed when it ends. A trial that
    fails is kept with its reason and the others go on; only if the defaults fail, TrainingError says why. Also raises
    TrainingError if there is too little to measure on, InputError for arguments out of range, and ComputeLostError.
    """
    _check(minutes, max_trials, max_factors)
    began = time.perf_counter()
    setup, write_files = _prepare(resources, seed, max_factors)
    folder = resources.home / "staging" / "tuning" / setup.study
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        study = _Study(resources, setup, folder, _Budget(clock, now + timedelta(minutes=minutes), max_trials))
        n_before = len(study.trials)
        try:
            if study.goes_on():
                write_files(folder)
                del write_files  # with it go the inputs, which only workers need from here on
                study.run(seed, on_trial)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        in_force, choice, message = _choose(resources, study, now)
    seconds, n_all = time.perf_counter() - began, len(study.trials)
    logger.info("run_study study=%s trials=%d before=%d seconds=%.1f", setup.study, n_all, n_before, seconds)
    note, reused = f"study {setup.study}: {message}", n_all == n_before
    receipt = Receipt("tune", n_all - n_before, n_all, "factor_trials", seconds, reused=reused, note=note)
    return StudyOutcome(receipt, setup.study, in_force, choice, message)


@dataclass(frozen=True)
class _Setup:
    """Everything that a study is about: ``defaults`` is the recipe of engine and settings, ``current`` are the values
    of the recipe that a nightly run would train with."""

    study: str
    snapshot: int
    space: Space
    split: TuningSplit
    defaults: Recipe
    current: Values
    earlier: tuple[Values, ...]


@dataclass(frozen=True)
class _Budget:
    clock: Callable[[], datetime]
    ends_at: datetime
    max_trials: int

    def left(self) -> float:
        """Seconds in which trials may still begin."""
        return max(0.0, (self.ends_at - self.clock()).total_seconds())


def _check(minutes: float, max_trials: int, max_factors: int) -> None:
    if not (minutes > 0 and max_trials >= 1 and max_factors >= 1):
        raise InputError(
            f"Tuning was asked for {minutes:g} minutes, {max_trials} trials and up to {max_factors} factors. Allowed "
            "are more than 0 minutes, at least 1 trial and at least 1 factor."
        )


def _prepare(resources: Resources, seed: int, max_factors: int) -> tuple[_Setup, Callable[[Path], None]]:
    """Read what there is to learn from at the newest snapshot, cut it, and lay out the space. Also returns what writes
    the files of the workers."""
    encoder, defaults = resources.encoder(), build_draft(resources, UNLEARNED)
    with resources.warehouse(read_only=True) as warehouse:
        snapshot = warehouse.latest_snapshot()
        current = build_draft(resources, UNLEARNED, load_choice(warehouse))
        inputs = load_inputs(warehouse, defaults, snapshot, encoder.encoder_id, encoder.width)
        split = split_for_tuning(inputs.log, inputs.texts, seed=seed)
        with warehouse.at(snapshot) as past:
            events = load_fit_events(past, defaults, inputs, split.split.train)
        space = build_space(
            defaults,
            count_events(events),
            has_item_features=bool(inputs.catalog.text.any()) or inputs.catalog.features is not None,
            has_user_features=inputs.log.user_features is not None,
            history=mean_history(split.split.train),
            n_items=len(inputs.catalog.item_ids),
            max_factors=max_factors,
            fixed=resources.fixed_parameters,
        )
        study = _name_study(hash_inputs(warehouse, defaults, snapshot, encoder), space, split, seed)
        earlier = tuple(load_earlier(warehouse, study, N_EARLIER))
    setup = _Setup(study, snapshot, space, split, defaults, read_values(current), earlier)
    return setup, lambda folder: write_trial_files(folder, events, inputs, split)


def _name_study(inputs_hash: str, space: Space, split: TuningSplit, seed: int) -> str:
    document = {
        "inputs": inputs_hash,
        "space": asdict(space),
        "split": split.name,
        "seed": seed,
        "code": [(files("tasks") / name).read_text() for name in _CODE],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]


class _Study:
    """The trials of one study, those that are under way, and what comes next."""

    def __init__(self, resources: Resources, setup: _Setup, folder: Path, budget: _Budget) -> None:
        self._resources, self._setup, self._folder, self._budget = resources, setup, folder, budget
        with resources.warehouse(read_only=True) as warehouse:
            self.trials = {trial.number: trial for trial in load_trials(warehouse, setup.study)}
        self._under_way: dict[int, TrialWork] = {}

    @property
    def setup(self) -> _Setup:
        """What it is about."""
        return self._setup

    def goes_on(self) -> bool:
        """Whether another trial may begin."""
        return self._budget.left() > 0 and len(self.trials) + len(self._under_way) < self._budget.max_trials

    def run(self, seed: int, on_trial: OnTrial | None) -> None:
        """Measure until the budget is spent. A fan-out that was lost is begun again, as long as each one gets
        something done."""
        search = ParameterSearch(self._setup.space, seed=seed)
        for _, trial in sorted(self.trials.items()):
            search.learn(trial.parameters, trial.mean)
        with self._resources.warehouse() as warehouse:
            while self.goes_on():
                n_before = len(self.trials)
                try:
                    self._fan_out(warehouse, search, on_trial)
                except ComputeLostError as error:
                    if len(self.trials) == n_before:
                        raise
                    self._give_up(warehouse, search, str(error))

    def _fan_out(self, warehouse: Warehouse, search: ParameterSearch, on_trial: OnTrial | None) -> None:
        with self._resources.compute() as workers:
            for trial in workers.map(run_trial, self._next(search), in_flight=1):
                self._keep(warehouse, search, trial)
                if on_trial is not None:
                    best = best_trial(self.trials.values())
                    mean = None if best is None else best.mean
                    news = TrialNews(trial, len(self.trials), self._budget.max_trials, mean, self._budget.left())
                    on_trial(news)

    def _next(self, search: ParameterSearch) -> Iterator[TrialWork]:
        """One piece of work for each worker that is free, as long as there is time. Numbers that are free come first:
        a trial that was under way when a study was killed has no row."""
        while self.goes_on():
            number = next(n for n in itertools.count() if n not in self.trials and n not in self._under_way)
            origin, values = self._given() or ("search", search.propose(number))
            recipe = apply_values(self._setup.defaults, values)
            work = TrialWork(self._resources, self._folder, number, origin, values, recipe)
            self._under_way[number] = work
            yield work

    def _given(self) -> tuple[Origin, Values] | None:
        """What is measured before anything is proposed, if it is not yet."""
        setup = self._setup
        begun: list[Mapping[str, float]] = [trial.parameters for trial in self.trials.values()]
        begun += [work.parameters for work in self._under_way.values()]
        wanted: list[tuple[Origin, Values]] = [("defaults", {}), ("current", setup.current)]
        for origin, values in (*wanted, *(("earlier", values) for values in setup.earlier)):
            chosen = setup.space.complete(values)
            is_inside = setup.space.to_search(chosen) is not None
            if chosen not in begun and (is_inside or origin == "current"):
                return origin, chosen
        return None

    def _keep(self, warehouse: Warehouse, search: ParameterSearch, trial: Trial) -> None:
        if trial.origin == "defaults" and trial.values is None:
            raise TrainingError(
                f"Tuning could not measure the defaults: {trial.error}. Nothing can be compared with them; correct "
                "that and run tune_factors again. Trials that ended are kept."
            )
        setup, now = self._setup, self._budget.clock()
        n_users, split, snapshot = len(setup.split.users), setup.split.name, setup.snapshot
        write_trial(warehouse, setup.study, trial, n_users=n_users, split=split, snapshot=snapshot, now=now)
        self.trials[trial.number] = trial
        del self._under_way[trial.number]
        if trial.origin == "search":
            search.tell(trial.number, trial.parameters, trial.mean)
        else:
            search.learn(trial.parameters, trial.mean)

    def _give_up(self, warehouse: Warehouse, search: ParameterSearch, why: str) -> None:
        """Trials whose workers were lost; one of them may be too large for the workers' memory."""
        for work in list(self._under_way.values()):
            if work.origin == "defaults":
                del self._under_way[work.number]
            else:
                self._keep(warehouse, search, Trial(work.number, work.origin, work.parameters, None, 0.0, why))


def _choose(resources: Resources, study: _Study, now: datetime) -> tuple[int | None, str | None, str]:
    """The number of the trial in force, and the best trial, if it is clearly better: it is written as a choice."""
    values = study.setup.space.complete(study.setup.current)
    current = next((trial for trial in study.trials.values() if trial.parameters == values), None)
    best = best_trial(study.trials.values())
    if current is None or current.mean is None or best is None or best.mean is None:
        return None, None, "those in force were not measured: give it more minutes, or look at factor_trials.error."
    if best is current:
        return current.number, None, f"of {len(study.trials)} trials none is better than those in force."
    found = compare_trials(best, current)
    said = (
        f"trial {best.number} reached NDCG@10 {best.mean:.4f}, those in force {current.mean:.4f}: difference "
        f"{found.value:+.4f} (95 % from {found.low:+.4f} to {found.high:+.4f})"
    )
    if not is_better(found):
        return current.number, None, f"{said}, not clearly better."
    with resources.warehouse() as warehouse:
        choice = write_choice(warehouse, study.setup.study, best, current, found, now=now)
    return current.number, choice, f"{said}."
