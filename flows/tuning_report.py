"""What a tuning tells people: a line for each trial, a table of the best ones, and where its picture lies.

It computes nothing, and treats names of parameters as text.
"""

from collections.abc import Sequence
from pathlib import Path

from prefect.logging import get_run_logger

from tasks.domain.metrics import Interval
from tasks.domain.trial_plot import draw_trials
from tasks.domain.tuning import Trial, best_trial
from tasks.progress import StageEvent, tell
from tasks.tune import TrialNews

N_BEST = 10
_MARKS = ("**best**", "defaults", "in force")


def say_trial(news: TrialNews) -> None:
    """Tell whoever watches, and the run's log, what a trial came to."""
    line = trial_line(news)
    get_run_logger().info(line)
    tell(StageEvent("run_study", "progress", done=news.n_done, total=news.max_trials, note=line))


def trial_line(news: TrialNews) -> str:
    """Such as ``trial   7  NDCG@10 0.1844  best 0.1871    3.2 s  4.1 min left``."""
    trial = news.trial
    best = "" if news.best is None else f"  best {news.best:.4f}"
    found = f"NDCG@10 {trial.mean:.4f}" if trial.mean is not None else f"failed: {_first_line(trial.error)}"
    marks = {"defaults": "  (the defaults)", "current": "  (in force)", "earlier": "  (of the study before)"}
    left = f"{news.seconds_left / 60:.1f} min left"
    return f"trial {trial.number:>3}  {found}{best}  {trial.seconds:5.1f} s  {left}{marks.get(trial.origin, '')}"


def trials_table(trials: Sequence[Trial], in_force: int | None) -> str:
    """The best trials, and the defaults and trial ``in_force`` wherever they rank, as a Markdown table."""
    measured = sorted((t for t in trials if t.mean is not None), key=lambda t: (-(t.mean or 0.0), t.number))
    names = list(dict.fromkeys(name for trial in measured for name in trial.parameters))
    shown = [t for rank, t in enumerate(measured) if rank < N_BEST or t.origin == "defaults" or t.number == in_force]
    header = ["trial", "", "NDCG@10", "95 %", *names, "seconds"]
    lines = [_row(header), _row(["---"] * len(header))]
    best = best_trial(measured)
    for trial in shown:
        is_marked = (trial is best, trial.origin == "defaults", trial.number == in_force)
        mark = ", ".join(name for name, holds in zip(_MARKS, is_marked, strict=True) if holds)
        value, low, high = trial.ndcg or Interval(0, 0, 0)
        numbers = [f"{trial.parameters[name]:.4g}" for name in names]
        ndcg = (f"{value:.4f}", f"{low:.4f} to {high:.4f}")
        lines.append(_row([str(trial.number), mark, *ndcg, *numbers, f"{trial.seconds:.1f}"]))
    n_failed = len(trials) - len(measured)
    failed = f", {n_failed} of them failed (`factor_trials.error` says why)" if n_failed else ""
    return "\n".join([*lines, "", f"{len(trials)} trials{failed}."])


def write_picture(home: Path, study: str, trials: Sequence[Trial]) -> Path:
    """Write the picture of a study under ``home/reports``, whole or not at all."""
    folder = home / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tuning-{study}.svg"
    partial = path.with_suffix(".partial")
    partial.write_text(draw_trials(trials, f"Study {study}: NDCG@10 of the validation users"), encoding="utf-8")
    partial.replace(path)
    return path


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0][:160]
