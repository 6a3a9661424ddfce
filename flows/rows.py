"""Rows of any query for a terminal or another program. It treats values as text, never as markup."""

import csv
import json
from collections.abc import Sequence
from typing import Any, TextIO

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.settings_docs import EffectiveSetting

MAX_CELL = 120


def print_table(rows: pa.Table, limit: int, console: Console) -> None:
    """The first ``limit`` rows as a table, with the number of all of them."""
    table = Table(box=None, header_style="bold")
    for column in rows.schema:
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        table.add_column(Text(column.name), justify="right" if is_number else "left")
    for row in rows.slice(0, limit).to_pylist():
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(table)
    more = f", {limit} of them shown (--limit, --csv or --json for more)" if rows.num_rows > limit else ""
    console.print(Text(f"{rows.num_rows:,} rows{more}", style="dim"))


def print_json(rows: pa.Table, output: TextIO) -> None:
    """One JSON object on each line."""
    for row in rows.to_pylist():
        output.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")


def print_csv(rows: pa.Table, output: TextIO) -> None:
    """A header and all rows; lists and objects as JSON."""
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(rows.column_names)
    for row in rows.to_pylist():
        writer.writerow([_text(value) for value in row.values()])


def settings_table(settings: Sequence[EffectiveSetting]) -> Table:
    """Settings with their values; those that are not the default stand out."""
    table = Table("setting", "value", "from", box=None, header_style="dim")
    for setting in settings:
        style = "" if setting.source == "default" else "bold green"
        value = Text(setting.value, style=style)
        table.add_row(Text(setting.name, style=style), value, Text(setting.source, style="dim"))
    return table


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else _text(value)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, default=_plain) if isinstance(value, list | dict) else _plain(value)


def _plain(value: Any) -> str:
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
