"""Names, order, text and contracts of the tables. It knows nothing of a database connection."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Layer = Literal["raw", "staging", "intermediate", "marts", "outputs"]
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

    ``gate`` names the moment at which it runs; ``advice`` is what a person should do when it fails.
    """

    expectation: str
    severity: Literal["stop", "warn"]
    gate: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True)
class Contract:
    """What one table promises. ``key`` are the columns that identify a row."""

    table: str
    layer: Layer
    grain: str
    description: str
    owner: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: tuple[Check, ...] = ()


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
    )
