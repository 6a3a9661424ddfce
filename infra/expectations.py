"""The gates' engine: Great Expectations over pandas batches, with Data Docs on disk and no usage data sent.

It knows nothing of where rows come from or of what a failed check stops.
"""

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.process_memory import release_memory
from tasks.domain.errors import InputError
from tasks.domain.records import CheckResult
from warehouse.catalog import Check, Contract

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext

KEPT_REPORTS = 200
"""Validations that stay in the Data Docs; older ones are deleted. All outcomes stay in ``gate_results``."""

_MANY_ROWS = 100_000
"""From here on the memory of a validation is worth a search for what can be freed."""
_SHOWN_ROWS = 1000
_SHOWN_VALUES = 3
_HTML = str.maketrans({"<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
_SEVERITIES = {"stop": "critical", "warn": "warning"}


class ExpectationsValidator:
    """Implements ``tasks.domain.ports.Validator``; results and Data Docs lie under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._context: EphemeralDataContext | None = None

    def validate(
        self, contract: Contract, rows: pa.Table, *, parameters: Mapping[str, Any] | None = None
    ) -> list[CheckResult]:
        """One result for each check of the contract, in its order; ``failed_rows`` are positions in ``rows``.

        ``rows`` need the columns that the checks name and no list columns. Raises InputError for a check whose
        expectation, arguments or parameters are not understood.
        """
        if not contract.checks:
            return []
        arguments = [_filled(contract, check, parameters or {}) for check in contract.checks]
        results = self._run(contract, rows, arguments)
        if rows.num_rows > _MANY_ROWS:  # the library leaves the frame in a cycle
            release_memory()
        return [
            _check_result(contract.table, check, filled, result, _single_value(rows, check))
            for check, filled, result in zip(contract.checks, arguments, results, strict=True)
        ]

    def write_docs(self) -> Path | None:
        """Write the Data Docs of the newest validations and return their first page; None if there are none."""
        stored = sorted((self._folder / "results").rglob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in stored[:-KEPT_REPORTS]:
            path.unlink(missing_ok=True)
        if not stored:
            return None
        for path in stored[-KEPT_REPORTS:]:
            _make_harmless(path)
        self._open_context().build_data_docs()
        return self._folder / "site" / "index.html"

    def _run(
        self, contract: Contract, rows: pa.Table, arguments: Sequence[Mapping[str, Any]]
    ) -> list["ExpectationValidationResult"]:
        context = self._open_context()
        import great_expectations as gx

        name = f"{contract.checks[0].gate}.{contract.table}"
        suite = gx.ExpectationSuite(name=name)
        for position, (check, filled) in enumerate(zip(contract.checks, arguments, strict=True)):
            suite.add_expectation(_expectation(contract, check, filled, position))
        context.suites.add_or_update(suite)
        source = context.data_sources.add_or_update_pandas(name)
        batch = source.add_dataframe_asset(contract.table).add_batch_definition_whole_dataframe("rows")
        definition = context.validation_definitions.add_or_update(
            gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        outcome = definition.run(batch_parameters={"dataframe": rows.to_pandas()}, result_format="COMPLETE")
        context.data_sources.delete(name)  # or it keeps the frame
        return sorted(outcome.results, key=_position)

    def _open_context(self) -> "EphemeralDataContext":
        if self._context is None:
            os.environ["GX_ANALYTICS_ENABLED"] = "False"  # read by the library, beside its own configuration below
            with warnings.catch_warnings():  # 1.24 imports a deprecated module of the standard library
                warnings.simplefilter("ignore", DeprecationWarning)
                import great_expectations as gx
            from great_expectations.data_context.types.base import DataContextConfig, ProgressBarsConfig

            logging.getLogger("great_expectations").setLevel(logging.WARNING)
            config = DataContextConfig(
                analytics_enabled=False, progress_bars=ProgressBarsConfig(globally=False), **_stores(self._folder)
            )
            self._context = gx.get_context(mode="ephemeral", project_config=config)
        return self._context


def _make_harmless(path: Path) -> None:
    """Great Expectations 1.24 writes values of rows into its pages as they are: here they lose their HTML.

    A second pass changes nothing, as the ampersand stays. Half a report, which a kill left, is deleted.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        path.unlink()
        return
    escaped = _escaped(document)
    if escaped != document:
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps(escaped), encoding="utf-8")
        whole.replace(path)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(_HTML)
    if isinstance(value, list):
        return [_escaped(part) for part in value]
    if isinstance(value, dict):
        return {name: _escaped(part) for name, part in value.items()}
    return value


def _stores(folder: Path) -> dict[str, Any]:
    """Definitions stay in memory; results and the site are folders."""
    memory = {"class_name": "InMemoryStoreBackend"}
    results = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder / "results")}
    site = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder / "site")}
    return {
        "expectations_store_name": "expectations",
        "validation_results_store_name": "results",
        "checkpoint_store_name": "checkpoints",
        "stores": {
            "expectations": {"class_name": "ExpectationsStore", "store_backend": memory},
            "validation_definition_store": {"class_name": "ValidationDefinitionStore", "store_backend": memory},
            "checkpoints": {"class_name": "CheckpointStore", "store_backend": memory},
            "results": {"class_name": "ValidationResultsStore", "store_backend": results},
        },
        "data_docs_sites": {
            "local_site": {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "store_backend": site,
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            }
        },
    }


def _position(result: "ExpectationValidationResult") -> int:
    assert result.expectation_config is not None
    return int(result.expectation_config.meta["position"])


def _filled(contract: Contract, check: Check, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a check with its ``$name``s replaced."""
    filled = {}
    for name, value in check.arguments.items():
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in parameters:
                raise InputError(
                    f"The check {check.expectation} of {contract.table} needs the parameter {value}, which the gate "
                    f"{check.gate} did not give. Given: {', '.join(parameters) or 'none'}."
                )
            value = parameters[value[1:]]
        filled[name] = value
    return filled


def _expectation(contract: Contract, check: Check, arguments: Mapping[str, Any], position: int) -> Any:
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.registry import get_expectation_impl

    try:
        kind = get_expectation_impl(check.expectation)
        return kind(
            **arguments,
            severity=FailureSeverity(_SEVERITIES[check.severity]),
            notes=check.advice or None,
            meta={"position": position},
        )
    except (ExpectationNotFoundError, ValueError, TypeError) as error:
        raise InputError(
            f"The check {check.expectation} of {contract.table} with {dict(arguments)} is not one that Great "
            f"Expectations knows: {error}. Correct it in warehouse/models/{contract.layer}/{contract.table}.yml."
        ) from error


def _check_result(
    table: str, check: Check, arguments: Mapping[str, Any], result: "ExpectationValidationResult", value: str | None
) -> CheckResult:
    rows = result.result.get("unexpected_index_list") or ()
    n_failed = int(result.result.get("unexpected_count") or 0)
    return CheckResult(
        table=table,
        expectation=check.expectation,
        column=", ".join(check.columns) or None,
        severity=check.severity,
        passed=bool(result.success),
        observed=_observed(result) if value is None else value,
        allowed=_allowed(check, arguments),
        n_failed=n_failed if n_failed or result.success else 1,
        failed_rows=tuple(int(row) for row in rows[:_SHOWN_ROWS]),
        advice=check.advice,
    )


def _single_value(rows: pa.Table, check: Check) -> str | None:
    """The value itself where a check looks at the one row that a query answered."""
    if not check.query or rows.num_rows != 1 or len(check.columns) != 1 or check.columns[0] not in rows.column_names:
        return None
    value = rows[check.columns[0]][0].as_py()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _observed(result: "ExpectationValidationResult") -> str:
    errors = [result.exception_info, *result.exception_info.values()]
    raised = [error for error in errors if isinstance(error, dict) and error.get("raised_exception")]
    if raised:
        return f"could not be checked: {raised[0].get('exception_message')}"
    if "observed_value" in result.result:
        return str(result.result["observed_value"])
    n_rows, n_failed = result.result.get("element_count", 0), result.result.get("unexpected_count", 0)
    values = dict.fromkeys(
        _short(value) for value in result.result.get("partial_unexpected_list") or () if value == value
    )
    examples = ", ".join(list(values)[:_SHOWN_VALUES])
    return f"{n_failed} of {n_rows} rows fail" + (f", such as {examples}" if n_failed and examples else "")


def _short(value: object) -> str:
    text = ", ".join(str(part) for part in value.values()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed(check: Check, arguments: Mapping[str, Any]) -> str:
    """Such as ``column values to be between: min_value 0, max_value 1``."""
    limits = [f"{name} {value}" for name, value in arguments.items() if not name.startswith("column")]
    words = check.expectation.removeprefix("expect_").replace("_", " ")
    return f"{words}: {', '.join(limits)}" if limits else words
