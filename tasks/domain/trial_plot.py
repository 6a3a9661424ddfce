"""Draws a study as one SVG picture: how the best value came about, and each parameter against the metric.

It knows nothing of where the picture is shown. Names of parameters are text, never markup.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from tasks.domain.parameter_space import is_logarithmic
from tasks.domain.tuning import Trial, best_trial

_WIDTH, _COLUMNS = 900, 3
_PANEL, _HISTORY = 170, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 28
_COLORS = {"defaults": "#ea580c", "current": "#7e22ce", "earlier": "#0f766e", "search": "#64748b"}
_BEST = "#15803d"


class _Frame(NamedTuple):
    """A panel's place and the values at its ends."""

    x: float
    y: float
    width: float
    height: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The point of two values."""
        across = (x - self.x_low) / ((self.x_high - self.x_low) or 1)
        up = (y - self.y_low) / ((self.y_high - self.y_low) or 1)
        return self.x + across * self.width, self.y + (1 - up) * self.height


def draw_trials(trials: Sequence[Trial], title: str) -> str:
    """The picture of a study's trials, by number. Failed ones are crosses at the foot of the history, and those far
    below the others lie at the foot of their panel."""
    measured = [trial for trial in trials if trial.mean is not None]
    names = sorted({name for trial in measured for name in trial.parameters})
    rows = -(-len(names) // _COLUMNS)
    height = _TOP + _HISTORY + _BOTTOM + rows * (_PANEL + 14) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="#334155">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    if measured:
        parts += _history(trials, measured)
        for place, name in enumerate(names):
            parts += _panel(measured, name, place)
    else:
        parts.append(f'<text x="{_LEFT}" y="60">no trial was measured</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _history(trials: Sequence[Trial], measured: Sequence[Trial]) -> Iterator[str]:
    low, high = _range(measured)
    last = max(trial.number for trial in trials)
    frame = _Frame(_LEFT, _TOP, _WIDTH - _LEFT - _RIGHT, _HISTORY - 20, -0.5, last + 0.5, low, high)
    yield from _axes(frame, "trial", "0", str(last))
    defaults = next((trial for trial in measured if trial.origin == "defaults"), None)
    if defaults is not None and defaults.mean is not None:
        (x1, y), (x2, _) = frame.at(frame.x_low, defaults.mean), frame.at(frame.x_high, defaults.mean)
        line = f'd="M{x1:.1f} {y:.1f}H{x2:.1f}" stroke="{_COLORS["defaults"]}"'
        yield f'<path {line} stroke-dasharray="4 3" fill="none"/>'
    yield _steps(frame, measured)
    for trial in _in_order(measured):
        yield _dot(frame, trial.number, trial, measured, f"trial {trial.number}: {trial.mean:.4f}")
    yield from (_cross(frame, trial) for trial in trials if trial.mean is None)
    yield from _legend(frame)


def _panel(measured: Sequence[Trial], name: str, place: int) -> Iterator[str]:
    chosen = [trial for trial in measured if name in trial.parameters]
    values = [trial.parameters[name] for trial in chosen]
    is_log = is_logarithmic(name) and min(values) > 0
    width = (_WIDTH - _RIGHT) / _COLUMNS
    x, y = place % _COLUMNS * width + _LEFT, _TOP + _HISTORY + _BOTTOM + place // _COLUMNS * (_PANEL + 14)
    first, last = (math.log(value) if is_log else value for value in (min(values), max(values)))
    low, high = _range(measured)
    frame = _Frame(x, y + 10, width - _LEFT - 6, _PANEL - 44, first, last, low, high)
    label = f"{name} (log)" if is_log else name
    yield from _axes(frame, label, f"{min(values):.4g}", f"{max(values):.4g}")
    for trial in _in_order(chosen):
        value = trial.parameters[name]
        yield _dot(frame, math.log(value) if is_log else value, trial, measured)


def _in_order(trials: Sequence[Trial]) -> list[Trial]:
    """What is marked is drawn over the rest, and the best trial over all."""
    best = best_trial(trials)
    return sorted(trials, key=lambda trial: (trial is best, trial.origin != "search", trial.number))


def _range(measured: Sequence[Trial]) -> tuple[float, float]:
    """From the lowest to the highest mean. Trials that went badly wrong would press all others into one line: the
    lower end is cut at twice the distance between the best and the middle one."""
    means = sorted(trial.mean for trial in measured if trial.mean is not None)
    low = max(means[0], means[-1] - 3 * max(means[-1] - means[len(means) // 2], 1e-6))
    margin = 0.06 * (means[-1] - low) or 0.01
    return low - margin, means[-1] + margin


def _axes(frame: _Frame, label: str, first: str, last: str) -> Iterator[str]:
    left, right, foot = frame.x, frame.x + frame.width, frame.y + frame.height
    yield (
        f'<rect x="{left:.1f}" y="{frame.y:.1f}" width="{frame.width:.1f}" height="{frame.height:.1f}" fill="#f8fafc" '
        'stroke="#cbd5e1"/>'
    )
    for value, y in ((frame.y_high, frame.y + 9), (frame.y_low, foot)):
        yield f'<text x="{left - 5:.1f}" y="{y:.1f}" text-anchor="end" font-size="10">{value:.3f}</text>'
    middle = (left + right) / 2
    yield f'<text x="{middle:.1f}" y="{foot + 14:.1f}" text-anchor="middle">{escape(label)}</text>'
    yield f'<text x="{left:.1f}" y="{foot + 14:.1f}" font-size="10">{first}</text>'
    yield f'<text x="{right:.1f}" y="{foot + 14:.1f}" text-anchor="end" font-size="10">{last}</text>'


def _steps(frame: _Frame, measured: Sequence[Trial]) -> str:
    """The best so far."""
    path, best = "", -math.inf
    for trial in measured:
        if trial.mean is not None and trial.mean > best:
            x, y = frame.at(trial.number, max(trial.mean, frame.y_low))
            path += f"M{x:.1f} {y:.1f}" if not path else f"H{x:.1f}V{y:.1f}"
            best = trial.mean
    return f'<path d="{path}H{frame.x + frame.width:.1f}" stroke="{_BEST}" fill="none"/>'


def _dot(frame: _Frame, x: float, trial: Trial, measured: Sequence[Trial], title: str = "") -> str:
    across, down = frame.at(x, max(trial.mean or 0.0, frame.y_low))
    if trial is best_trial(measured):
        look = f'r="5" fill="{_BEST}"'
    elif trial.origin == "search":
        look = f'r="3" fill="{_COLORS["search"]}" opacity=".6"'
    else:
        look = f'r="4" fill="{_COLORS[trial.origin]}"'
    inside = f"><title>{title}</title></circle>" if title else "/>"
    return f'<circle cx="{across:.1f}" cy="{down:.1f}" {look}{inside}'


def _cross(frame: _Frame, trial: Trial) -> str:
    x, y = frame.at(trial.number, frame.y_low)
    return (
        f'<path d="M{x - 3:.1f} {y - 7:.1f}l6 6m0 -6l-6 6" stroke="#b91c1c" fill="none"><title>trial {trial.number} '
        f"failed: {escape(trial.error[:200])}</title></path>"
    )


def _legend(frame: _Frame) -> Iterator[str]:
    x, y = frame.x + frame.width - 330, frame.y - 8
    for name, color in {"best": _BEST, **_COLORS, "failed": "#b91c1c"}.items():
        yield f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="3" fill="{color}"/>'
        yield f'<text x="{x + 7:.1f}" y="{y:.1f}" font-size="10">{name}</text>'
        x += 18 + 6.2 * len(name)
