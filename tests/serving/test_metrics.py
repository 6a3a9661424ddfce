"""The figures of the warehouse as metrics: their names, their labels, and that no request waits for them."""

import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.figures import KeptFigures
from serving.metrics import Metrics
from tasks.domain.errors import WarehouseBusyError
from tasks.figures import Figures, FlowFigures, GateFigures, StageFigures
from tasks.online.service import OnlineService

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
FIGURES = Figures(
    flows=(
        FlowFigures("daily_batch", True, 91.5, NOW, NOW, None),
        FlowFigures("nearline", False, 0.5, NOW, NOW - timedelta(hours=1), "StorageError"),
    ),
    stages=(
        StageFigures("daily_batch", "refit_version", 12.5, 960, 140),
        StageFigures("nearline", "refresh feed", 0.1, None, None),
    ),
    gates=(GateFigures("publish", 7, 1, 2, NOW),),
    lags={"0.5": 4.0, "0.95": 12.0, "0.99": 14.0},
    refreshed_at=NOW,
    published_at=NOW - timedelta(hours=3),
    n_quarantined=9,
    read_at=NOW,
)


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def test_figures_are_gauges_with_labels_that_the_code_closes():
    text = Metrics(dict, lambda: FIGURES).text().decode()
    at = NOW.timestamp()
    for line in (
        'nearline_stage_last_seconds{flow="daily_batch",stage="refit_version"} 12.5',
        'nearline_stage_last_rows{direction="out",flow="daily_batch",stage="refit_version"} 140.0',
        'nearline_flow_last_run_succeeded{flow="nearline"} 0.0',
        'nearline_flow_last_run_succeeded{flow="daily_batch"} 1.0',
        'nearline_flow_last_run_seconds{flow="daily_batch"} 91.5',
        'nearline_gate_checks{gate="publish",result="failed"} 2.0',
        'nearline_gate_checks{gate="publish",result="warned"} 1.0',
        'nearline_refresh_lag_seconds{quantile="0.95"} 12.0',
        "nearline_quarantine_rows 9.0",
    ):
        assert line in text
    found = families(text.encode())["nearline_version_published_timestamp_seconds"]
    assert found.samples[0].value == at - 3 * 3600
    assert 'stage_last_rows{direction="in",flow="nearline"' not in text


def test_a_warehouse_that_nobody_used_has_no_figures_but_is_no_error():
    empty = Figures((), (), (), {}, None, None, 0, NOW)
    text = Metrics(dict, lambda: empty).text().decode()
    assert "nearline_quarantine_rows 0.0" in text
    assert "nearline_flow_last_run_succeeded{" not in text
    assert "nearline_quarantine_rows" not in Metrics(dict).text().decode()


def test_every_metric_of_the_documentation_is_there_and_every_one_is_documented(small_online):
    service, _ = small_online
    assert isinstance(service, OnlineService)
    metrics = Metrics(service.stats, lambda: FIGURES)
    metrics.count_request("GET", "/v1/health", 200, 0.01)
    told = {name for name in families(metrics.text()) if name.startswith("nearline_")}
    told = {name for name in told if not name.endswith("_created")}
    named = set(re.findall(r"\bnearline_[a-z_]+\b", DOCS.read_text()))
    named -= {"nearline_runs"}  # a table
    assert {re.sub(r"_total$", "", name) for name in named} == told


def test_names_follow_the_conventions_of_prometheus():
    for name, family in families(Metrics(dict, lambda: FIGURES).text()).items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert not re.search(r"_(ms|milliseconds|minutes|hours|kb|megabytes)$", name)
        assert family.documentation


def test_nobody_waits_for_figures(wait_until):
    loading, free, n_loads = threading.Event(), threading.Event(), []

    def load():
        n_loads.append(1)
        loading.set()
        free.wait(5)
        return FIGURES

    kept = KeptFigures(load, keep_seconds=60)
    assert kept.current() is None
    assert loading.wait(5)
    assert kept.current() is None
    free.set()
    wait_until(lambda: kept.current() is FIGURES)
    assert len(n_loads) == 1


@pytest.mark.parametrize("error", [WarehouseBusyError("held"), RuntimeError("odd")])
def test_figures_that_cannot_be_read_stay_as_they_were(error, wait_until, caplog):
    answers = [FIGURES, error]

    def load():
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    kept = KeptFigures(load, keep_seconds=0)
    wait_until(lambda: kept.current() is FIGURES)
    wait_until(lambda: "figures_not_read" in caplog.text or not kept.current())
    assert kept.current() is FIGURES
    kept.close()
