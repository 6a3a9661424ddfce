"""Reads the files that people bring: CSV, JSON lines, Parquet. It knows nothing of what the columns mean.

Values of CSV and JSON files come out as text, so that ids stay as they were written ("007" stays "007").
"""

import csv
import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from tasks.domain.errors import InputError
from tasks.domain.ports import SourceRows

_CSV = (".csv", ".tsv", ".txt")
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")
_FORMATS = "CSV (.csv, .tsv, .txt), JSON lines (.jsonl, .ndjson, .json), both also as .gz, or Parquet (.parquet, .pq)"
_DELIMITERS = (",", ";", "\t", "|")


class LocalSourceFiles:
    """Implements ``tasks.domain.ports.SourceFiles`` on the local file system. A file is held in memory whole."""

    def find(self, paths: Sequence[Path]) -> list[Path]:
        """The files themselves: a folder stands for those in it that can be read, by name."""
        found: list[Path] = []
        for path in paths:
            if path.is_dir():
                inside = sorted(entry for entry in path.iterdir() if entry.is_file() and _suffix(entry))
                if not inside:
                    raise InputError(f"The folder {path} holds no file that can be imported. Formats: {_FORMATS}.")
                found += inside
            elif path.is_file():
                found.append(path)
            else:
                raise InputError(f"There is no file or folder {path}. Check the name; the working folder is {Path()}.")
        return found

    def content_hash(self, path: Path) -> str:
        """SHA-256 of the file's bytes."""
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read(self, path: Path) -> SourceRows:
        """All rows of one file."""
        suffix = _suffix(path)
        if not suffix:
            raise InputError(f"{path} cannot be imported: its name has no ending that says what it is. Use {_FORMATS}.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: it has not even a header. Export it again, or leave it out.")
        if suffix in _PARQUET:
            return self._whole(path, _read_parquet(path))
        with _opened(path) as stream:
            content = stream.read()
        _check_encoding(path, content)
        if suffix in _CSV:
            rows, unreadable = _read_csv(path, content, suffix)
        else:
            rows, unreadable = _read_json_lines(path, content)
        return self._whole(path, rows, unreadable)

    def _whole(self, path: Path, rows: pa.Table, unreadable: Sequence[tuple[int, str, str]] = ()) -> SourceRows:
        """Add the positions: those that unreadable rows do not take, in order."""
        taken = pa.array([position for position, _, _ in unreadable], pa.int64())
        every = pa.array(range(1, rows.num_rows + len(taken) + 1), pa.int64())
        positions = every.filter(pc.invert(pc.is_in(every, value_set=taken)))
        return SourceRows(path.name, self.content_hash(path), rows, positions, tuple(unreadable))


def _suffix(path: Path) -> str:
    """The ending that says the format, without .gz; empty if it is none that can be read."""
    name = path.name.lower().removesuffix(".gz")
    readable = _CSV + _JSON + (() if path.name.lower().endswith(".gz") else _PARQUET)
    return next((suffix for suffix in readable if name.endswith(suffix) and not name.startswith(".")), "")


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb"))


def _check_encoding(path: Path, content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}. Save it as UTF-8, for "
            f"example: iconv -f latin1 -t utf-8 '{path.name}' > 'utf8-{path.name}'"
        ) from None


def _read_csv(path: Path, content: bytes, suffix: str) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    _check_quotes(path, content)
    first_line = content.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    delimiter = "\t" if suffix == ".tsv" else max(_DELIMITERS, key=first_line.count)
    header = _named(path, next(csv.reader([first_line], delimiter=delimiter), []))
    unreadable: list[tuple[int, str, str]] = []

    def keep(row: pa_csv.InvalidRow) -> str:
        why = f"the row has {row.actual_columns} values where the header has {row.expected_columns} columns"
        unreadable.append((row.number - 1, row.text, why))
        return "skip"

    try:
        rows = pa_csv.read_csv(
            io.BytesIO(content),
            read_options=pa_csv.ReadOptions(column_names=header, skip_rows=1, use_threads=False),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} cannot be read as CSV with {delimiter!r} between values: {error}.") from error
    return rows, unreadable


def _check_quotes(path: Path, content: bytes) -> None:
    """A quote that is never closed would swallow every row after it."""
    if content.count(b'"') % 2 == 0:
        return
    odd = next(number for number, line in enumerate(content.split(b"\n"), 1) if line.count(b'"') % 2)
    raise InputError(
        f"{path} has a double quote without its partner; the first line with an odd number of them is {odd}. "
        'A value with a comma, a line break or a quote stands in double quotes, and a quote inside is doubled: "".'
    )


def _named(path: Path, header: list[str]) -> list[str]:
    """Column names: a nameless one (the index that pandas writes) gets a number."""
    names = [name.strip() or f"column_{number}" for number, name in enumerate(header, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"these columns stand there twice: {', '.join(twice)}" if twice else "the first line is empty"
        raise InputError(f"{path} has no usable header: {what}. The first line must name each column once.")
    return names


def _read_json_lines(path: Path, content: bytes) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    text = content.decode("utf-8-sig")
    if text.lstrip().startswith("["):
        raise InputError(
            f"{path} holds one JSON array; JSON lines have one object on each line. Convert it: "
            f"jq -c '.[]' '{path.name}' > rows.jsonl"
        )
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no row. Export it again, or leave it out.")
    with duckdb.connect() as connection:
        connection.register("lines", pa.table({"position": range(1, len(lines) + 1), "line": lines}))
        connection.execute(
            "create temp table parsed as select position, line,"
            " json_type(try_cast(line as json)) is not distinct from 'OBJECT' as is_object from lines"
        )
        bad = connection.execute("select position, line from parsed where not is_object order by position").fetchall()
        rows = _json_columns(connection)
    return rows, [(position, line, "the line is not a JSON object") for position, line in bad]


def _json_columns(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Every key of any object in ``parsed`` as a text column, in the order of their first lines."""
    keys = connection.execute(
        "select key from (select unnest(json_keys(line)) as key, position from parsed where is_object)"
        " group by key order by min(position), key"
    ).fetchall()
    names = [key for (key,) in keys]
    pointers = ["/" + name.replace("~", "~0").replace("/", "~1") for name in names]
    values = "".join(f", json_extract_string(line, ${n}) as column_{n}" for n in range(1, len(names) + 1))
    sql = f"select position{values} from parsed where is_object order by position"  # noqa: S608 - numbered names
    rows = connection.execute(sql, pointers).to_arrow_table()
    return rows.drop_columns("position").rename_columns(names)


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path} is not a Parquet file that can be read: {error}. Write it again, or export CSV or JSON lines."
        ) from error
