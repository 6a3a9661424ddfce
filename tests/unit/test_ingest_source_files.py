import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.source_files import LocalSourceFiles
from tasks.domain.errors import InputError
from tasks.domain.source_text import check_id_types, rows_as_text

FILES = LocalSourceFiles()


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(path):
    return FILES.read(path).rows.to_pylist()


def test_csv_values_stay_text(write):
    path = write("a.csv", 'id,n,note\n007,1.50,"x, ""y""\nz"\n,,\n')
    assert rows(path) == [{"id": "007", "n": "1.50", "note": 'x, "y"\nz'}, {"id": None, "n": None, "note": None}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "a;b\n1;x,y\n"),
        ("a.csv", "a|b\n1|x,y\n"),
        ("a.tsv", "a\tb\n1\tx,y\n"),
        ("a.txt", 'a,b\r\n1,"x,y"\r\n'),
        ("a.csv", "\ufeffa;b\n1;x,y\n"),
        ("a.csv.gz", gzip.compress(b"a;b\n1;x,y\n", mtime=0)),
        ("a.jsonl", '{"a": "1", "b": "x,y"}\n'),
        ("a.ndjson", '\n{"a": 1, "b": "x,y"}\n\n'),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1, "b": "x,y"}', mtime=0)),
    ],
)
def test_formats(write, name, content):
    assert rows(write(name, content)) == [{"a": "1", "b": "x,y"}]


def test_rows_of_another_length_are_set_aside_with_their_positions(write):
    source = FILES.read(write("a.csv", 'a,b\n1,"x\ny"\n2\n3,z\n4,5,6\n5,w\n'))
    assert source.rows["a"].to_pylist() == ["1", "3", "5"]
    assert source.positions.to_pylist() == [1, 3, 5]
    assert [(position, text) for position, text, _ in source.unreadable] == [(2, "2"), (4, "4,5,6")]
    assert "3 values where the header has 2" in source.unreadable[1][2]


def test_json_lines_of_any_shape(write):
    source = FILES.read(
        write("a.jsonl", '{"a/b": [1, "x"], "é": 7}\nnot json\n[1]\n{"é": null, "z": {"q": "\\u4e2d"}}\n{"é": "007"}\n')
    )
    assert source.rows.column_names == ["a/b", "é", "z"]
    assert source.rows["é"].to_pylist() == ["7", None, "007"]
    assert source.rows["a/b"].to_pylist() == ['[1,"x"]', None, None]
    assert source.rows["z"].to_pylist() == [None, '{"q":"中"}', None]
    assert source.positions.to_pylist() == [1, 4, 5]
    assert [position for position, _, _ in source.unreadable] == [2, 3]


def test_parquet_keeps_its_types_and_becomes_text_later(tmp_path):
    table = pa.table(
        {
            "id": pa.array([7, None], pa.int64()),
            "at": pa.array([datetime(2026, 1, 2, 3, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "tags": pa.array([["a", "ü"], None], pa.list_(pa.string())),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "value": pa.array([float("nan"), 0.5]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = FILES.read(tmp_path / "a.parquet")
    assert source.rows.schema.field("id").type == pa.int64()
    text = rows_as_text(source.rows).to_pydict()
    assert text["id"] == ["7", None]
    assert text["at"][0].startswith("2026-01-02 03:00:00")
    assert text["tags"] == ['["a", "ü"]', None]
    assert text["kind"] == ["x", "y"]
    assert text["value"] == ["nan", "0.5"]


def test_ids_with_decimals_are_refused():
    with pytest.raises(InputError, match="Int64"):
        check_id_types(pa.table({"movie": [7.0, None]}), {"item_id": "movie"}, "f.parquet")
    check_id_types(pa.table({"movie": [7, None]}), {"item_id": "movie", "user_id": "=all"}, "f.parquet")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "is empty"),
        ("a.parquet", "", "is empty"),
        ("a.jsonl", "\n\n", "holds no row"),
        ("a.parquet", "PAR1 but not really", "not a Parquet file"),
        ("a.csv", "a,b\nx,\xe9\n".encode("latin1"), r"line 2 has the byte 0xe9.*iconv"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
        ("a.csv", "a,a\n1,2\n", "stand there twice: a"),
        ("a.csv", "\n1,2\n", "first line is empty"),
        ("a.csv", 'a,b\n1,"2\n3,4\n', "double quote in line 2"),
        ("a.csv", 'a,b\n1,"open\n2,ok\n3,"x"\n4,y"\n', "double quote in line 2"),
        ("a.csv", 'a,b\n1,"say "hi" now"\n', "double quote in line 2"),
        ("a.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "cut off"),
        ("a.csv.gz", "a,b\n1,2\n", "is no gzip file"),
        ("b.csv", "a,b\n1,2\n".encode("utf-16"), "iconv -f utf-16"),
        ("a.json", '[{"a": 1}]', "jq -c"),
        ("a.xlsx", "PK", "Parquet"),
        ("a.parquet.gz", "PK", "Parquet"),
    ],
)
def test_files_that_cannot_be_read(write, name, content, words):
    path = write(name, content)
    with pytest.raises(InputError, match=words) as raised:
        FILES.read(path)
    assert str(path) in str(raised.value)


def test_a_header_without_rows_is_no_error(write, tmp_path):
    assert rows(write("a.csv", "a,b\n")) == []
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "b.parquet")
    assert rows(tmp_path / "b.parquet") == []


def test_the_index_column_of_pandas_gets_a_name(write):
    assert rows(write("a.csv", ",a\n0,x\n")) == [{"column_1": "0", "a": "x"}]


def test_a_folder_stands_for_its_files_by_name(write, tmp_path):
    for name in ("b.csv", "a.jsonl", "_SUCCESS", ".hidden.csv", "notes.md"):
        write(name, "x")
    (tmp_path / "inner.csv").mkdir()
    assert [path.name for path in FILES.find([tmp_path, tmp_path / "b.csv"])] == ["a.jsonl", "b.csv", "b.csv"]


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="no file that can be imported"):
        FILES.find([tmp_path])
    with pytest.raises(InputError, match="no file or folder"):
        FILES.find([tmp_path / "nope.csv"])


def test_the_hash_is_that_of_the_content(write):
    first, second, other = write("a.csv", "a\n1\n"), write("b.csv", "a\n1\n"), write("c.csv", "a\n2\n")
    assert FILES.content_hash(first) == FILES.content_hash(second) == FILES.read(first).content_hash
    assert FILES.content_hash(first) != FILES.content_hash(other)


def test_relative_paths_work(write, monkeypatch, tmp_path):
    write("a.csv", "a\n1\n")
    monkeypatch.chdir(tmp_path)
    assert rows(FILES.find([Path("a.csv")])[0]) == [{"a": "1"}]
