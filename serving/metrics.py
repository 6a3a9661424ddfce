"""What Prometheus reads: requests, rows, the gauges of the online side, and the figures of the warehouse.

It knows no user, item or text: every label is one of a set that the code closes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tasks.domain.online import IntakeKind, IntakeReceipt
from tasks.figures import Figures

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one service. ``gauges`` gives numbers by name; each becomes ``nearline_<name>``. ``figures`` gives
    what is known of the warehouse at once, or None."""

    def __init__(
        self, gauges: Callable[[], Mapping[str, float]], figures: Callable[[], Figures | None] = lambda: None
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        labels = ("method", "route", "status")
        self._requests = Counter("nearline_http_requests", "Requests.", labels, registry=self._registry)
        self._seconds = Histogram(
            "nearline_http_request_seconds", "Time to answer.", labels, buckets=BUCKETS, registry=self._registry
        )
        self._rows = Counter("nearline_intake_rows", "Rows sent.", ("kind", "outcome"), registry=self._registry)
        self._registry.register(_Gauges(gauges))
        self._registry.register(_FigureGauges(figures))
        ProcessCollector(registry=self._registry)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered; ``route`` is the template, never the path."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route, str(status)).observe(seconds)

    def count_rows(self, kind: IntakeKind, receipt: IntakeReceipt) -> None:
        """What became of the rows of one request."""
        self._rows.labels(kind, "accepted").inc(receipt.n_accepted)
        self._rows.labels(kind, "duplicate").inc(receipt.n_duplicates)
        self._rows.labels(kind, "rejected").inc(len(receipt.rejected))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, value in self._gauges().items():
            if math.isfinite(value):
                yield GaugeMetricFamily(f"nearline_{name}", "A gauge of the online side.", value=float(value))


class _FigureGauges(Collector):
    def __init__(self, figures: Callable[[], Figures | None]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        if (figures := self._figures()) is not None:
            yield from _whole(figures)
            yield from _flows(figures)
            yield from _stages(figures)
            yield from _gates(figures)


Labelled = Iterable[tuple[tuple[str, ...], float | None]]


def _gauge(name: str, about: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"nearline_{name}", about, labels=labels)
    for key, value in values:
        if value is not None:
            family.add_metric(key, float(value))
    return family


def _whole(figures: Figures) -> Iterator[Metric]:
    times = {
        "figures_read_timestamp_seconds": ("When the figures of the warehouse were read.", figures.read_at),
        "version_published_timestamp_seconds": ("When the serving version was switched to.", figures.published_at),
        "refresh_last_timestamp_seconds": ("When the last refresh with events ended.", figures.refreshed_at),
    }
    for name, (about, at) in times.items():
        yield _gauge(name, about, (), [((), at.timestamp() if at else None)])
    yield _gauge("quarantine_rows", "Rows that were refused and are kept.", (), [((), figures.n_quarantined)])
    lags = [((quantile,), seconds) for quantile, seconds in figures.lags.items()]
    about = "From an event's arrival to its being served: the worst refresh of the last hour."
    yield _gauge("refresh_lag_seconds", about, ("quantile",), lags)


def _flows(figures: Figures) -> Iterator[Metric]:
    flows, label = figures.flows, ("flow",)
    ended = [((f.flow,), f.finished_at.timestamp()) for f in flows]
    good = [((f.flow,), f.succeeded_at.timestamp() if f.succeeded_at else None) for f in flows]
    yield _gauge("flow_last_run_timestamp_seconds", "When the last run ended.", label, ended)
    yield _gauge("flow_last_success_timestamp_seconds", "When the last good run ended.", label, good)
    yield _gauge("flow_last_run_seconds", "What the last run took.", label, [((f.flow,), f.seconds) for f in flows])
    states = [((f.flow,), float(f.succeeded)) for f in flows]
    yield _gauge("flow_last_run_succeeded", "1 if the last run did not fail.", label, states)


def _stages(figures: Figures) -> Iterator[Metric]:
    stages = figures.stages
    seconds = [((s.flow, s.stage), s.seconds) for s in stages]
    yield _gauge("stage_last_seconds", "What a stage took when it ran last.", ("flow", "stage"), seconds)
    rows = [((s.flow, s.stage, way), n) for s in stages for way, n in (("in", s.n_in), ("out", s.n_out))]
    yield _gauge("stage_last_rows", "Rows of a stage when it ran last.", ("flow", "stage", "direction"), rows)


def _gates(figures: Figures) -> Iterator[Metric]:
    outcomes = [
        ((gate.gate, result), n)
        for gate in figures.gates
        for result, n in (("passed", gate.n_passed), ("warned", gate.n_warned), ("failed", gate.n_failed))
    ]
    yield _gauge("gate_checks", "Checks of a gate's last run.", ("gate", "result"), outcomes)
    at = [((gate.gate,), gate.checked_at.timestamp()) for gate in figures.gates]
    yield _gauge("gate_last_run_timestamp_seconds", "When a gate ran last.", ("gate",), at)
