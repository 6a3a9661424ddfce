"""Copies a DuckLake's SQLite catalog as of one moment, while others write to it, and lists the files that it names.

A process of its own does it: two copies of SQLite in one process, DuckDB's and Python's, undo each other's locks on the
file. It knows nothing of the tables.
"""

import contextlib
import json
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.domain.errors import TerminalError

_SCHEMA = "select schema_uuid from ducklake_schema order by schema_id limit 1"
_SNAPSHOT = "select max(snapshot_id) from ducklake_snapshot"
_FILES = """
select distinct schemas.path, schemas.path_is_relative, tables.path, tables.path_is_relative, files.path,
    files.path_is_relative, files.file_size_bytes
from (
    select table_id, path, path_is_relative, file_size_bytes from ducklake_data_file
    union all select table_id, path, path_is_relative, file_size_bytes from ducklake_delete_file
) as files
join ducklake_table as tables on tables.table_id = files.table_id
join ducklake_schema as schemas on schemas.schema_id = tables.schema_id
order by files.path
"""


@dataclass(frozen=True)
class CatalogCopy:
    """What the copy holds: ``files`` are paths below the lake's data folder with their bytes."""

    lake: str
    snapshot: int
    files: dict[str, int]


def copy_catalog(source: Path, target: Path, busy_seconds: float) -> CatalogCopy:
    """Write the catalog ``source`` to the empty file ``target``, every committed transaction whole.

    Raises TerminalError if it stays busy for longer than that, is damaged, or names files outside its folder.
    """
    command = [sys.executable, "-m", "infra.catalog_copy", str(source), str(target), str(busy_seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        why = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TerminalError(
            f"The warehouse's catalog {source} could not be copied to {target}: {why}. See that the disk has room and "
            "the catalog is whole, then run this again."
        )
    document = json.loads(ended.stdout)
    return CatalogCopy(document["lake"], document["snapshot"], document["files"])


def main() -> None:
    """Copy, check, and print what the copy holds as JSON."""
    source, target, seconds = sys.argv[1:]
    closing = contextlib.closing
    with closing(sqlite3.connect(source, timeout=float(seconds))) as catalog, closing(sqlite3.connect(target)) as copy:
        catalog.backup(copy)
        copy.execute("pragma journal_mode = wal")  # as DuckLake opens it; closing leaves no log beside it
        (verdict,) = copy.execute("pragma quick_check(1)").fetchone()
        if verdict != "ok":
            raise SystemExit(verdict)
        (lake,), (snapshot,) = copy.execute(_SCHEMA).fetchone(), copy.execute(_SNAPSHOT).fetchone()
        files = {_below(row[:6]): row[6] for row in copy.execute(_FILES)}
    print(json.dumps({"lake": lake, "snapshot": snapshot, "files": files}))  # noqa: T201 - what the parent reads


def _below(row: tuple[str, int, str, int, str, int]) -> str:
    """The path of a file below the data folder, from those of its schema, its table and its own."""
    if not all((row[1], row[3], row[5])):
        raise SystemExit(f"it names a file outside its own folder: {row[4]}")
    return str(PurePosixPath(row[0], row[2], row[4]))


if __name__ == "__main__":
    main()
