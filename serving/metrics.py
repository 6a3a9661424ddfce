"""What Prometheus reads: requests, rows, and the gauges of the online side. It knows no user, item or text."""

import math
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tasks.domain.online import IntakeKind, IntakeReceipt

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one service. ``gauges`` gives numbers by name; each becomes ``nearline_<name>``."""

    def __init__(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        labels = ("method", "route", "status")
        self._requests = Counter("nearline_http_requests", "Requests.", labels, registry=self._registry)
        self._seconds = Histogram(
            "nearline_http_request_seconds", "Time to answer.", labels, buckets=BUCKETS, registry=self._registry
        )
        self._rows = Counter("nearline_intake_rows", "Rows sent.", ("kind", "outcome"), registry=self._registry)
        self._registry.register(_Gauges(gauges))
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
