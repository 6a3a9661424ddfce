"""Reads the files that people bring: CSV, JSON lines, Parquet. It knows nothing of what the columns mean.

Values of CSV and JSON files come out as text, so that ids stay as they were written ("007" stays "007").
"""

import codecs
import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

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
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_HALF_CHARACTER = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_NOT_PLAIN = r"^([\[{]|(true|false)$|[-+]?[0-9.]*[.eE]|[-+]?([nN][aA][nN]|[iI][nN][fF]))"
"""How the text of a JSON value begins that may be neither a text nor a whole number; its type is looked at then."""


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
        content = _content(path)
        _check_encoding(path, content)
        if suffix in _CSV:
            rows, unreadable = _read_csv(path, content, suffix)
        else:
            rows, unreadable, kinds = _read_json_lines(path, content)
            return self._whole(path, rows, unreadable, kinds)
        return self._whole(path, rows, unreadable)

    def _whole(
        self,
        path: Path,
        rows: pa.Table,
        unreadable: Sequence[tuple[int, str, str]] = (),
        kinds: Mapping[str, pa.ChunkedArray] | None = None,
    ) -> SourceRows:
        """Add the positions: those that unreadable rows do not take, in order."""
        taken = pa.array([position for position, _, _ in unreadable], pa.int64())
        every = pa.array(range(1, rows.num_rows + len(taken) + 1), pa.int64())
        positions = every.filter(pc.invert(pc.is_in(every, value_set=taken)))
        return SourceRows(path.name, self.content_hash(path), rows, positions, tuple(unreadable), kinds or {})


def _suffix(path: Path) -> str:
    """The ending that says the format, without .gz; empty if it is none that can be read."""
    name = path.name.lower().removesuffix(".gz")
    readable = _CSV + _JSON + (() if path.name.lower().endswith(".gz") else _PARQUET)
    return next((suffix for suffix in readable if name.endswith(suffix) and not name.startswith(".")), "")


def _content(path: Path) -> bytes:
    if not path.name.lower().endswith(".gz"):
        return path.read_bytes()
    try:
        with gzip.open(path, "rb") as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be unpacked: {error}. It is cut off or is no gzip file: send it again, or, if it is not "
            "packed, take .gz off its name."
        ) from None


def _check_encoding(path: Path, content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = _BYTE_ORDER_MARKS.get(content[:2], "latin1")
        raise InputError(
            f"{path} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}. Save it as UTF-8, for "
            f"example: iconv -f {encoding} -t utf-8 '{path.name}' > 'utf8-{path.name}' ({encoding} is a guess)"
        ) from None


def _read_csv(path: Path, content: bytes, suffix: str) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    content = content.removeprefix(codecs.BOM_UTF8)
    first_line = content.split(b"\n", 1)[0].decode().rstrip("\r")
    delimiter = "\t" if suffix == ".tsv" else max(_DELIMITERS, key=first_line.count)
    _check_quotes(path, content, delimiter)
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


def _check_quotes(path: Path, content: bytes, delimiter: str) -> None:
    """A quote that opens a value and is not closed before the next one would swallow the rows between, unseen.

    A quote within a value that does not begin with one is a character like any other (5" disk).
    """
    if b'"' not in content:
        return
    d = re.escape(delimiter.encode())
    quoted = rb'"[^"]*+(?:""[^"]*+)*+"(?=[' + d + rb"\r\n]|\Z)"
    plain = rb'[^"' + d + rb"\r\n][^" + d + rb"\r\n]*+"
    well_formed = re.match(rb"(?:" + quoted + rb"|" + plain + rb"|[" + d + rb"\r\n])*+", content)
    stopped = well_formed.end() if well_formed else 0
    if stopped < len(content):
        line = content.count(b"\n", 0, stopped) + 1
        raise InputError(
            f"{path} has a double quote in line {line} that opens a value and is not closed before the next "
            f"{delimiter!r} or line break. A value with one of these, or that begins with a quote, stands in double "
            'quotes, and a quote inside is doubled: "say ""hi""". Correct the line, or export the file again.'
        )


def _named(path: Path, header: list[str]) -> list[str]:
    """Column names: a nameless one (the index that pandas writes) gets a number."""
    names = [name.strip() or f"column_{number}" for number, name in enumerate(header, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"these columns stand there twice: {', '.join(twice)}" if twice else "the first line is empty"
        raise InputError(f"{path} has no usable header: {what}. The first line must name each column once.")
    return names


def _read_json_lines(
    path: Path, content: bytes
) -> tuple[pa.Table, list[tuple[int, str, str]], dict[str, pa.ChunkedArray]]:
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
        rows, kinds = _json_columns(connection)
    return rows, [(position, line, _why_unreadable(line)) for position, line in bad], kinds


def _why_unreadable(line: str) -> str:
    if _HALF_CHARACTER.search(line):
        return "the line is not a JSON object of whole characters: it holds half of one (a lone surrogate)"
    return "the line is not a JSON object"


def _json_columns(connection: duckdb.DuckDBPyConnection) -> tuple[pa.Table, dict[str, pa.ChunkedArray]]:
    """Every key of any object in ``parsed`` as a text column, in the order of their first lines; and the JSON types of
    values that are neither texts nor whole numbers, by column."""
    keys = connection.execute(
        "select key from (select unnest(json_keys(line)) as key, position from parsed where is_object)"
        " group by key order by min(position), key"
    ).fetchall()
    names = [key for (key,) in keys]
    pointers = ["/" + name.replace("~", "~0").replace("/", "~1") for name in names]
    values = "".join(f", json_extract_string(line, ${n}) as column_{n}" for n in range(1, len(names) + 1))
    kinds = "".join(
        f", case when regexp_matches(column_{n}, '{_NOT_PLAIN}')"
        f" then nullif(nullif(json_type(line, ${n}), 'VARCHAR'), 'NULL') end as kind_{n}"
        for n in range(1, len(names) + 1)
    )
    rows = connection.execute(
        f"select * exclude (line){kinds} from"  # noqa: S608 - numbered names
        f" (select position, line{values} from parsed where is_object) order by position",
        pointers,
    ).to_arrow_table()
    found = {name: rows[f"kind_{n}"] for n, name in enumerate(names, 1) if rows[f"kind_{n}"].null_count < len(rows)}
    return rows.select([f"column_{n}" for n in range(1, len(names) + 1)]).rename_columns(names), found


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path} is not a Parquet file that can be read: {error}. Write it again, or export CSV or JSON lines."
        ) from error
