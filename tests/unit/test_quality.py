"""Gates with a validator that computes nothing: what is asked, what is written, what stops."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from infra.resources import LocalResources
from tasks import quality
from tasks.domain.errors import GateError, InputError, NotFoundError
from tasks.domain.records import CheckResult
from tasks.quality import check_gate, record_checks

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PASSED = CheckResult("stg_items", "expect_rows", None, "stop", True, "3 rows", "at least 1")
WARNED = CheckResult("stg_items", "expect_texts", "title", "warn", False, "1 of 3", "all", 1, (2,), "Write titles.")
STOPPED = CheckResult("stg_events", "expect_keys", "event_id", "stop", False, "2 of 9", "all", 2, (0, 1), "Send once.")


@dataclass
class ScriptedValidator:
    """Fails the checks whose column is in ``failing`` and keeps what it was asked."""

    failing: set = field(default_factory=set)
    asked: list = field(default_factory=list)

    def validate(self, contract, rows, *, parameters=None):
        self.asked.append((contract, rows, parameters))
        return [
            CheckResult(
                contract.table,
                check.expectation,
                ", ".join(check.columns) or None,
                check.severity,
                not self.failing & set(check.columns),
                f"{rows.num_rows} rows",
                "all",
                len(self.failing & set(check.columns)),
                advice=check.advice,
            )
            for check in contract.checks
        ]

    def write_docs(self):
        return None


@dataclass(frozen=True)
class ScriptedResources(LocalResources):
    scripted: ScriptedValidator = field(default_factory=ScriptedValidator, compare=False)

    def validator(self):
        return self.scripted


@pytest.fixture
def resources(local_resources):
    return ScriptedResources(local_resources.settings)


def written(resources, run_id="r"):
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(
            "from gate_results where run_id = $run_id order by table_name", {"run_id": run_id}
        ).to_pylist()


def test_outcomes_are_written_and_a_failed_stop_raises_with_everything_to_know(resources):
    with pytest.raises(GateError) as raised:
        record_checks(resources, "transform", [PASSED, WARNED, STOPPED], run_id="r", now=NOW, version="v1")
    message = str(raised.value)
    for words in ("'transform'", "1 of 3 checks failed", "stg_events.event_id", "2 of 9", "Send once.", "still serves"):
        assert words in message
    assert "Write titles" not in message
    assert "where run_id = 'r'" in message
    rows = written(resources)
    assert {(row["table_name"], row["passed"], row["severity"]) for row in rows} == {
        ("stg_events", False, "stop"),
        ("stg_items", True, "stop"),
        ("stg_items", False, "warn"),
    }
    assert {(row["version"], row["checked_at"], row["gate"]) for row in rows} == {("v1", NOW, "transform")}


def test_a_warning_is_logged_and_goes_on(resources, caplog):
    record_checks(resources, "transform", [PASSED, WARNED], run_id="r", now=NOW)
    assert "table=stg_items column=title" in caplog.text
    assert len(written(resources)) == 2


def test_a_second_try_of_a_run_replaces_its_outcomes_and_no_others(resources):
    record_checks(resources, "transform", [PASSED], run_id="r", now=NOW)
    record_checks(resources, "transform", [WARNED], run_id="r", now=NOW)
    record_checks(resources, "transform", [replace(PASSED, observed="4 rows")], run_id="r", now=NOW)
    record_checks(resources, "embed", [PASSED], run_id="r", now=NOW)
    seen = sorted((row["gate"], row["expectation"], row["observed"]) for row in written(resources))
    assert seen == [
        ("embed", "expect_rows", "3 rows"),
        ("transform", "expect_rows", "4 rows"),
        ("transform", "expect_texts", "1 of 3"),
    ]


def test_without_checks_nothing_is_written(resources):
    record_checks(resources, "transform", [], run_id="r", now=NOW)
    assert written(resources) == []


def test_a_gate_asks_only_for_the_columns_that_its_checks_need(resources):
    check_gate(resources, "transform", run_id="r", now=NOW)
    asked = {contract.table: rows for contract, rows, _ in resources.scripted.asked if not contract.checks[0].query}
    assert set(asked["int_item_texts"].column_names) == {
        "item_id",
        "text",
        "content_hash",
        "template_version",
        "text_length",
    }
    assert "categories" not in asked["stg_items"].column_names
    assert "description" in asked["stg_items"].column_names
    assert {contract.checks[0].query for contract, _, _ in resources.scripted.asked} >= {"gate_row_drop", ""}
    assert len(written(resources)) == sum(len(contract.checks) for contract, _, _ in resources.scripted.asked)


def test_limits_of_the_settings_and_parameters_reach_the_checks(resources):
    check_gate(resources, "transform", run_id="r", now=NOW, parameters={"extra": 1})
    given = resources.scripted.asked[0][2]
    assert given["max_row_drop"] == resources.settings.gates.max_row_drop
    assert given["extra"] == 1


def test_given_rows_stand_in_for_the_table_and_only_they_are_checked(resources):
    rows = pa.table({"event_id": ["a"], "user_id": ["u"], "event_type": ["view"], "occurred_at": [NOW]})
    results = check_gate(resources, "transform", run_id="r", now=NOW, rows={"stg_events": rows})
    assert {result.table for result in results} == {"stg_events"}
    own = [asked for contract, asked, _ in resources.scripted.asked if not contract.checks[0].query]
    assert [asked["event_id"].to_pylist() for asked in own] == [["a"]]


def test_given_rows_without_a_row_or_a_column(resources):
    rows = pa.table({"version": pa.array([], pa.string())})
    results = check_gate(resources, "slates", run_id="r", now=NOW, version="v", rows={"mart_recommendations": rows})
    assert {result.observed for result in results if result.column == "rank"} == {"0 rows"}


def test_of_a_versioned_table_only_the_version_is_checked(resources):
    def profiles(version):
        return pa.table(
            {
                "version": [version],
                "user_id": ["u"],
                "factors": pa.array([[1.0]], pa.list_(pa.float32())),
            }
        )

    with resources.warehouse() as warehouse:
        for version in ("v1", "v2"):
            warehouse.commit(lambda transaction, v=version: transaction.append("user_factors", profiles(v)))
    check_gate(resources, "train", run_id="r", now=NOW, version="v2")
    asked = {contract.table: rows for contract, rows, _ in resources.scripted.asked if not contract.checks[0].query}
    assert asked["user_factors"]["version"].to_pylist() == ["v2"]
    assert asked["user_factors"]["factors_norm"].to_pylist() == [1.0]


def test_a_large_table_is_checked_in_batches_in_which_equal_keys_meet(resources, monkeypatch):
    monkeypatch.setattr(quality, "BATCH_ROWS", 10)
    ids = [f"e{n % 40}" for n in range(60)]
    rows = pa.table({"event_id": ids, "user_id": ids, "event_type": ["view"] * 60, "occurred_at": [NOW] * 60})
    resources.scripted.failing.add("user_id")
    with pytest.raises(GateError, match="in one of 6 batches"):
        check_gate(resources, "transform", run_id="r", now=NOW, rows={"stg_events": rows})
    batches = [
        rows["event_id"].to_pylist() for contract, rows, _ in resources.scripted.asked if not contract.checks[0].query
    ]
    assert len(batches) == 6
    assert sorted(event for batch in batches for event in batch) == sorted(ids)
    assert sum(len(set(batch)) for batch in batches) == 40
    failed = [row for row in written(resources) if not row["passed"]]
    assert [row["n_failed"] for row in failed] == [6]


def test_unknown_gates_and_tables(resources):
    with pytest.raises(InputError, match="transform"):
        check_gate(resources, "transforms", run_id="r", now=NOW)
    with pytest.raises(NotFoundError, match="no_table"):
        check_gate(resources, "transform", run_id="r", now=NOW, rows={"no_table": pa.table({})})
