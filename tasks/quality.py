"""Runs the checks of a gate, keeps their outcomes, and stops the flow. It knows nothing of how a check is computed.

What a gate checks stands in the contracts under ``warehouse/models``; ``docs/gates.md`` says how to add a check.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from typing import Any

import pyarrow as pa

from tasks.domain.errors import GateError, InputError, NotFoundError
from tasks.domain.ports import Resources, Transaction, Validator, Warehouse
from tasks.domain.records import CheckResult
from warehouse.catalog import GATES, Check, Contract, contracts, query_sql

BATCH_ROWS = 1_000_000
"""Rows that are checked at once. A larger table is split by the hash of its key, so that equal keys meet."""

_ARROW_TYPES = {
    "BIGINT": pa.int64(),
    "BOOLEAN": pa.bool_(),
    "DOUBLE": pa.float64(),
    "FLOAT[]": pa.list_(pa.float32()),
    "INTEGER": pa.int32(),
    "TIMESTAMPTZ": pa.timestamp("us", "UTC"),
    "VARCHAR": pa.string(),
    "VARCHAR[]": pa.list_(pa.string()),
}

logger = logging.getLogger(__name__)


def check_gate(
    resources: Resources,
    gate: str,
    *,
    run_id: str,
    now: datetime,
    version: str | None = None,
    rows: Mapping[str, pa.Table] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> list[CheckResult]:
    """Run every check that the contracts declare for ``gate``, over the tables or, where given, over ``rows``.

    ``rows`` are tables in memory by name; then only those are checked (a column that they lack counts as null). Of a
    table with a column ``version`` only the rows of ``version`` are read, where it is given. ``parameters`` go beside
    the limits of the settings. The outcomes are written to ``gate_results``. Raises GateError if a check with
    severity stop failed.
    """
    results = list(_outcomes(resources, gate, rows, _given(resources, gate, version, parameters), _all_checks))
    record_checks(resources, gate, results, run_id=run_id, now=now, version=version)
    return results


def check_gate_in_parts(
    resources: Resources,
    gate: str,
    parts: Iterable[Mapping[str, pa.Table]],
    *,
    run_id: str,
    now: datetime,
    version: str | None = None,
) -> list[CheckResult]:
    """``check_gate`` over rows that are made on the way, and are too many to be held together.

    Checks on rows look at each of ``parts`` as it comes; after one in which a check with severity stop failed, no other
    is asked for. Checks with a query look at all parts at the end, of which the columns that the query names are kept.
    """
    given = _given(resources, gate, version, None)
    seen: list[Mapping[str, pa.Table]] = []
    outcomes: list[list[CheckResult]] = []
    for rows in parts:
        outcomes.append(list(_outcomes(resources, gate, rows, given, _checks_on_rows)))
        seen.append({table: _in_queries(contracts()[table], gate, part) for table, part in rows.items()})
        if _stopping(outcomes[-1]):
            break
    results = [_joined(same) for same in zip(*outcomes, strict=True)]
    if seen and not _stopping(results):
        whole = {table: pa.concat_tables(rows[table] for rows in seen) for table in seen[0]}
        results += _outcomes(resources, gate, whole, given, _checks_with_queries)
    record_checks(resources, gate, results, run_id=run_id, now=now, version=version)
    return results


def _given(
    resources: Resources, gate: str, version: str | None, parameters: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    if gate not in GATES:
        raise InputError(f"There is no gate {gate!r}. Gates: {', '.join(GATES)}.")
    return {"version": version, **resources.gate_limits, **(parameters or {})}


def _outcomes(
    resources: Resources,
    gate: str,
    rows: Mapping[str, pa.Table] | None,
    given: Mapping[str, Any],
    chosen: Callable[[Contract, str], Sequence[Check]],
) -> Iterator[CheckResult]:
    rows = None if rows is None else {table: _completed(table, part) for table, part in rows.items()}
    validator = resources.validator()
    with resources.warehouse(read_only=True) as warehouse:
        for contract in _contracts_of(gate, rows):
            for part in _parts(chosen(contract, gate)):
                asked = replace(contract, checks=part)
                batches = (
                    _answer(warehouse, asked, given, rows) if part[0].query else _batches(warehouse, asked, given, rows)
                )
                yield from _validated(validator, asked, batches, given)


def _all_checks(contract: Contract, gate: str) -> Sequence[Check]:
    return contract.gate_checks(gate)


def _checks_on_rows(contract: Contract, gate: str) -> Sequence[Check]:
    return [check for check in contract.gate_checks(gate) if not check.query]


def _checks_with_queries(contract: Contract, gate: str) -> Sequence[Check]:
    return [check for check in contract.gate_checks(gate) if check.query]


def _in_queries(contract: Contract, gate: str, rows: pa.Table) -> pa.Table:
    """The columns of a table that the queries of its checks name."""
    sql = " ".join(query_sql(check.query) for check in _checks_with_queries(contract, gate))
    return rows.select([name for name in rows.column_names if name in sql])


def _stopping(results: Sequence[CheckResult]) -> list[CheckResult]:
    return [result for result in results if not result.passed and result.severity == "stop"]


def record_checks(
    resources: Resources,
    gate: str,
    results: Sequence[CheckResult],
    *,
    run_id: str,
    now: datetime,
    version: str | None = None,
) -> None:
    """Write the outcomes of checks to ``gate_results``, in place of earlier ones of the same run.

    If a check with severity stop failed, a candidate ``version`` is rejected in the same commit, and GateError says
    what was seen, what is allowed and what to do.
    """
    if not results:
        return
    failed = _stopping(results)

    def write(transaction: Transaction) -> None:
        write_checks(transaction, gate, results, run_id=run_id, now=now, version=version)
        if failed and version:
            transaction.execute(query_sql("mark_rejected"), {"version": version})

    with resources.warehouse() as warehouse:
        warehouse.commit(write)
    for result in results:
        if not result.passed:  # what was seen stays in gate_results: it may be a value of a row
            where = (result.table, result.column or "-", result.expectation, result.severity, result.n_failed)
            logger.warning("gate=%s table=%s column=%s expectation=%s severity=%s failed_rows=%d", gate, *where)
    logger.info("gate=%s run=%s checks=%d stopped=%d", gate, run_id, len(results), len(failed))
    if failed:
        raise GateError(_message(gate, run_id, failed, len(results)))


def write_checks(
    transaction: Transaction,
    gate: str,
    results: Sequence[CheckResult],
    *,
    run_id: str,
    now: datetime,
    version: str | None = None,
) -> None:
    """Write the outcomes of checks inside a commit, in place of earlier ones of the same run."""
    table = result_rows(gate, results, run_id, now, version)
    same = {name: sorted(set(table[name].to_pylist())) for name in ("table_name", "expectation")}
    transaction.replace("gate_results", table, {"run_id": run_id, "gate": gate, **same})


def _completed(table: str, rows: pa.Table) -> pa.Table:
    """The rows with every column of their contract; one that was left out is null."""
    if table not in contracts():
        raise NotFoundError(f"There is no contract for {table!r}. Tables: {', '.join(contracts())}.")
    for column in contracts()[table].columns:
        if column.name not in rows.column_names:
            rows = rows.append_column(column.name, pa.nulls(rows.num_rows, _ARROW_TYPES[column.type]))
    return rows


def _contracts_of(gate: str, rows: Mapping[str, pa.Table] | None) -> list[Contract]:
    wanted = contracts().values() if rows is None else [contracts()[table] for table in rows]
    return [contract for contract in wanted if contract.gate_checks(gate)]


def _parts(checks: Sequence[Check]) -> list[tuple[Check, ...]]:
    """The checks of one table, by what they look at: its own rows, or the answer of a query."""
    ordered = sorted(checks, key=lambda check: check.query)
    return [tuple(part) for _, part in groupby(ordered, key=lambda check: check.query)]


def _validated(
    validator: Validator, contract: Contract, batches: Iterator[pa.Table], given: Mapping[str, Any]
) -> list[CheckResult]:
    """One result for each check, over all batches together."""
    outcomes = [validator.validate(contract, batch, parameters=given) for batch in batches]
    return [_joined(parts) for parts in zip(*outcomes, strict=True)]


def _joined(parts: tuple[CheckResult, ...]) -> CheckResult:
    if len(parts) == 1:
        return parts[0]
    shown = next((part for part in parts if not part.passed), parts[0])
    n_failed = sum(part.n_failed for part in parts)
    return replace(
        shown, observed=f"{shown.observed} (in one of {len(parts)} batches)", n_failed=n_failed, failed_rows=()
    )


def _answer(
    warehouse: Warehouse, contract: Contract, given: Mapping[str, Any], rows: Mapping[str, pa.Table] | None
) -> Iterator[pa.Table]:
    sql = query_sql(contract.checks[0].query)
    yield warehouse.read(sql, _used(sql, {**given, "table_name": contract.table}), rows)


def _batches(
    warehouse: Warehouse, contract: Contract, given: Mapping[str, Any], rows: Mapping[str, pa.Table] | None
) -> Iterator[pa.Table]:
    """The columns that the checks need, at most about ``BATCH_ROWS`` rows at a time."""
    table = _quoted(contract.table)
    names = dict.fromkeys(name for check in contract.checks for name in check.columns)
    derived = contract.derived
    columns = ", ".join(f"{derived[n]} as {_quoted(n)}" if n in derived else _quoted(n) for n in names) or "1 as row"
    own_version = given["version"] is not None and any(column.name == "version" for column in contract.columns)
    condition = "version = $version" if own_version else "true"
    parameters: dict[str, object] = {"version": given["version"]} if own_version else {}
    counted = warehouse.read(f"select count(*) as n from {table} where {condition}", parameters, rows)  # noqa: S608
    n_batches = max(1, -(-counted["n"][0].as_py() // BATCH_ROWS))
    key = ", ".join(_quoted(name) for name in contract.key)
    for number in range(n_batches):
        chosen = condition if n_batches == 1 else f"{condition} and hash({key}) % {n_batches} = {number}"
        yield warehouse.read(f"select {columns} from {table} where {chosen}", parameters, rows)  # noqa: S608


def _used(sql: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if f"${name}" in sql}


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def result_rows(gate: str, results: Sequence[CheckResult], run_id: str, now: datetime, version: str | None) -> pa.Table:
    """Outcomes of checks as rows of ``gate_results``."""
    rows = [
        {
            "run_id": run_id,
            "gate": gate,
            "table_name": result.table,
            "expectation": result.expectation,
            "column_name": result.column,
            "severity": result.severity,
            "passed": result.passed,
            "observed": result.observed,
            "allowed": result.allowed,
            "n_failed": result.n_failed,
            "advice": result.advice,
            "version": version,
            "checked_at": now,
        }
        for result in results
    ]
    return pa.Table.from_pylist(rows)


def _line(result: CheckResult) -> str:
    where = f"{result.table}.{result.column}" if result.column else result.table
    return f"{where}: {result.expectation}: seen: {result.observed}; allowed: {result.allowed}"


def _message(gate: str, run_id: str, failed: Sequence[CheckResult], n_checks: int) -> str:
    lines = [f"The gate {gate!r} stopped the flow: {len(failed)} of {n_checks} checks failed."]
    for result in failed:
        lines.append(f"- {_line(result)}")
        if result.advice:
            lines.append(f"  What to do: {result.advice}")
    lines.append("Nothing was published: the version that served before still serves.")
    look = f"nearline sql \"select * from gate_results where run_id = '{run_id}'\""  # noqa: S608 - shown, not run
    lines.append(f"All outcomes: {look}")
    return "\n".join(lines)
