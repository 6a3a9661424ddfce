"""Names, order, text and contracts of the tables. It knows nothing of a database connection."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Layer = Literal["raw", "staging", "intermediate", "marts", "outputs"]
Severity = Literal["stop", "warn"]
GATES = ("ingest", "transform", "embed", "tune", "quality", "train", "publish", "slates", "nearline")
"""The moments at which rows are checked, in the order of a batch."""
_FAULT = "This is a fault of the program that filled the table: run the stage again, and report it if it repeats."
LAYERS: tuple[Layer, ...] = ("raw", "staging", "intermediate", "marts", "outputs")


@dataclass(frozen=True)
class Column:
    """One column: its DuckDB type, whether null is refused, and what it means (with its unit)."""

    name: str
    type: str
    description: str
    required: bool = False


@dataclass(frozen=True)
class Check:
    """One check of a contract: a Great Expectations expectation, its arguments and its strength.

    ``gate`` names the moment at which it runs; ``advice`` is what a person should do when it fails. An argument
    ``"$name"`` is filled with the limit of that name in the settings, or with a parameter of the gate. With ``query``
    the check looks at the answer of that query of ``warehouse/queries`` and not at the table's own rows; the query may
    use ``$version`` and ``$table_name``.
    """

    expectation: str
    severity: Severity
    gate: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""
    query: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that its arguments name."""
        single = (self.arguments.get(name) for name in ("column", "column_A", "column_B"))
        return (*(name for name in single if name), *self.arguments.get("column_list", ()))


@dataclass(frozen=True)
class Contract:
    """What one table promises. ``key`` are the columns that identify a row.

    ``gates`` are the moments at which its key and its required columns are checked, without a line in ``checks``.
    ``derived`` are SQL expressions over a row, by name, that checks may use like columns: for vectors, which cannot be
    checked as they are.
    """

    table: str
    layer: Layer
    grain: str
    description: str
    owner: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: tuple[Check, ...] = ()
    gates: tuple[str, ...] = ()
    derived: Mapping[str, str] = field(default_factory=dict)

    def gate_checks(self, gate: str) -> tuple[Check, ...]:
        """The checks of one gate: the ones that follow from key and required columns, then the declared ones."""
        implied = self._implied_checks(gate) if gate in self.gates else ()
        return (*implied, *(check for check in self.checks if check.gate == gate))

    def _implied_checks(self, gate: str) -> tuple[Check, ...]:
        expectation = "expect_compound_columns_to_be_unique"
        arguments: dict[str, Any] = {"column_list": list(self.key)}
        if len(self.key) == 1:
            expectation, arguments = "expect_column_values_to_be_unique", {"column": self.key[0]}
        unique = Check(expectation, "stop", gate, arguments, f"One row must be {self.grain}. {_FAULT}")
        present = (
            Check("expect_column_values_to_not_be_null", "stop", gate, {"column": column.name}, _FAULT)
            for column in self.columns
            if column.required and not column.type.endswith("[]")
        )
        return (unique, *present)


@cache
def contracts() -> dict[str, Contract]:
    """Contracts of all tables by name, in the order of the layers."""
    found: dict[str, Contract] = {}
    for layer in LAYERS:
        folder = files("warehouse") / "models" / layer
        for entry in sorted(folder.iterdir(), key=lambda e: e.name):
            if entry.name.endswith(".yml"):
                found[entry.name.removesuffix(".yml")] = _parse(entry.name, layer, yaml.safe_load(entry.read_text()))
    return found


def contract(table: str) -> Contract:
    """The contract of one table. Raises KeyError with the known names."""
    known = contracts()
    if table not in known:
        raise KeyError(f"Table {table!r} has no contract. Known: {', '.join(known)}. See warehouse/models/.")
    return known[table]


def model_sql(table: str) -> str:
    """The SELECT that fills ``table``; its inputs are unqualified table names and ``$name`` parameters."""
    return (files("warehouse") / "models" / contract(table).layer / f"{table}.sql").read_text()


def query_sql(name: str) -> str:
    """A named query of ``warehouse/queries``."""
    return (files("warehouse") / "queries" / f"{name}.sql").read_text()


def _parse(file_name: str, layer: Layer, document: Mapping[str, Any]) -> Contract:
    table = file_name.removesuffix(".yml")
    columns = tuple(Column(**column) for column in document["columns"])
    checks = tuple(Check(**check) for check in document.get("checks", ()))
    return Contract(
        table=table,
        layer=layer,
        grain=document["grain"],
        description=document["description"],
        owner=document["owner"],
        key=tuple(document["key"]),
        columns=columns,
        checks=checks,
        gates=tuple(document.get("gates", ())),
        derived=document.get("derived", {}),
    )
