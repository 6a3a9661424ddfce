"""What ``nearline import`` shows before it imports: columns, a proposed mapping, and mapping files.

It knows nothing of how rows are checked or stored.
"""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.domain.errors import InputError
from tasks.domain.mappings import SourceKind, propose_mapping
from tasks.domain.ports import Resources

N_EXAMPLES = 3
MAX_EXAMPLE = 40


def propose(resources: Resources, kind: SourceKind, paths: Sequence[Path], console: Console) -> dict[str, str]:
    """The mapping that the columns of the files suggest, shown with examples from the first file.

    Raises InputError if the files have different columns.
    """
    files = resources.source_files()
    found = files.find(paths)
    first = files.read(found[0])
    header = first.rows.column_names
    for path in found[1:]:
        other = files.read(path).rows.column_names
        if other != header:
            raise InputError(
                f"{path} has the columns {', '.join(other)}, and {found[0]} has {', '.join(header)}. "
                "Import files of one shape at a time."
            )
    mapping = propose_mapping(kind, header)
    table = Table("column", "becomes", "for example", box=None, header_style="dim")
    for name in header:
        values = [str(value) for value in first.rows[name].slice(0, N_EXAMPLES).to_pylist() if value is not None]
        table.add_row(Text(name), _becomes(name, mapping), Text(", ".join(values)[:MAX_EXAMPLE], style="dim"))
    for column, value in mapping.items():
        if value.startswith("="):
            table.add_row(Text("(every row)", style="dim"), Text(column, style="green"), Text(value[1:], style="dim"))
    console.print(table)
    return mapping


def mapping_text(mapping: Mapping[str, str]) -> str:
    """A mapping as a YAML file, to be kept and corrected."""
    return yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True)


def read_mapping(path: Path) -> dict[str, str]:
    """A mapping from a YAML, JSON or TOML file. Raises InputError if it is not one flat table of texts."""
    readers: dict[str, Callable[[str], Any]] = {
        ".yml": yaml.safe_load,
        ".yaml": yaml.safe_load,
        ".json": json.loads,
        ".toml": tomllib.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        why = "there is no such file" if reader else "its name ends in something else"
        raise InputError(f"The mapping {path} cannot be read: {why}. It must be a .yml, .json or .toml file.")
    try:
        document = reader(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"The mapping {path} cannot be read: {error}. See docs/import.md for an example.") from None
    if not isinstance(document, Mapping) or not all(isinstance(value, str) for value in document.values()):
        raise InputError(
            f"The mapping {path} must hold lines such as `item_id: movieId`, every value a text. See docs/import.md."
        )
    return {str(name): value for name, value in document.items()}


def _becomes(name: str, mapping: Mapping[str, str]) -> Text:
    column = next((column for column, source in mapping.items() if source == name), None)
    if column is not None:
        return Text(column, style="green")
    return Text("(attributes)" if mapping.get("attributes") == "*" else "(left out)", style="dim")
