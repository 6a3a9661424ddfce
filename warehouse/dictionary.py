"""Writes the data dictionary, ``docs/data-dictionary.md``, from the contracts: ``python -m warehouse.dictionary``.

It knows nothing of a database connection.
"""

from collections.abc import Iterator
from pathlib import Path

from warehouse.catalog import GATES, LAYERS, Check, Contract, Layer, contracts

PAGE = Path(__file__).parents[1] / "docs" / "data-dictionary.md"
"""Where the page lies in a checkout."""

_LAYERS: dict[Layer, str] = {
    "raw": "Facts as received. Rows are only added.",
    "staging": "The latest valid item and user, and each event once. Filled by SQL, replaced as a whole.",
    "intermediate": "Texts that are embedded. Filled by SQL, replaced as a whole.",
    "marts": "What learning reads. Filled by SQL, replaced as a whole.",
    "outputs": "What the platform computed, decided and did.",
}


def render_dictionary() -> str:
    """The page as Markdown: every table with its grain, columns and checks, in the order of the layers."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Data dictionary"
    yield ""
    yield "Written by `make docs` from the contracts in `warehouse/models/`; change those, not this page. The same"
    yield "descriptions are in the warehouse as comments on tables and columns. How to query: [sql.md](sql.md)."
    for layer in LAYERS:
        tables = [contract for contract in contracts().values() if contract.layer == layer]
        yield ""
        yield f"## {layer.capitalize()}"
        yield ""
        yield _LAYERS[layer]
        for contract in tables:
            yield from _table_lines(contract)


def _table_lines(contract: Contract) -> Iterator[str]:
    yield ""
    yield f"### {contract.table}"
    yield ""
    yield f"One row is {contract.grain}. {contract.description.strip()}"
    yield ""
    yield f"Key: {', '.join(f'`{name}`' for name in contract.key)}. Owner: {contract.owner}."
    yield ""
    yield "| column | type | required | meaning |"
    yield "| --- | --- | --- | --- |"
    for column in contract.columns:
        yield f"| `{column.name}` | {column.type} | {'yes' if column.required else ''} | {_cell(column.description)} |"
    if contract.gates:
        yield ""
        yield f"Key and required columns are checked at: {', '.join(contract.gates)}."
    if contract.checks:
        yield ""
        yield "| gate | check | when it fails | what to do |"
        yield "| --- | --- | --- | --- |"
        for check in sorted(contract.checks, key=lambda check: GATES.index(check.gate)):
            strength = "stops the flow" if check.severity == "stop" else "warns"
            yield f"| {check.gate} | {_cell(_check(contract, check))} | {strength} | {_cell(check.advice)} |"


def _check(contract: Contract, check: Check) -> str:
    """Such as ``embedding_norm: values to be between (min_value 0.99, max_value 1.01)``."""
    words = check.expectation.removeprefix("expect_").removeprefix("column_").replace("_", " ")
    limits = ", ".join(f"{name} {value}" for name, value in check.arguments.items() if not name.startswith("column"))
    subject = ", ".join(f"`{name}`" for name in check.columns)
    source = f" (query `{check.query}`)" if check.query else ""
    meaning = "".join(f", where `{n}` is `{contract.derived[n]}`" for n in check.columns if n in contract.derived)
    return f"{subject}{': ' if subject else ''}{words}{f' ({limits})' if limits else ''}{source}{meaning}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render_dictionary(), encoding="utf-8")
