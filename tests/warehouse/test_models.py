"""Runs every SQL model over the folders of data beside this file, in an empty DuckDB.

A case is ``<model>/<case>/``: one ``<table>.yml`` or ``.csv`` for each input table (columns that are left out are
null; without ``event_types`` the default ones are taken), ``params.yml`` with the bound parameters, and ``expect.yml``
with the rows that come out, in any order (only the columns named there are compared).
"""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import yaml

from infra.settings import load_settings
from tasks.model_state import event_type_rows
from tasks.transform import MODELS
from warehouse.catalog import contract, model_sql

FOLDER = Path(__file__).parent
CASES = sorted(path.parent.relative_to(FOLDER) for path in FOLDER.glob("*/*/expect.yml"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_model_gives_the_expected_rows(case):
    model, folder = case.parts[0], FOLDER / case
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        load_inputs(connection, folder)
        rows = connection.execute(model_sql(model), parameters(folder) or None).to_arrow_table().to_pylist()
    expected = yaml.safe_load((folder / "expect.yml").read_text()) or []
    names = list(expected[0]) if expected else []
    seen = [{name: plain(row[name]) for name in names} for row in rows]
    assert by_text(seen) == by_text(expected)
    assert not expected or set(names) <= {column.name for column in contract(model).columns}


@pytest.mark.parametrize("model", MODELS)
def test_model_has_a_case_and_gives_the_columns_of_its_contract(model):
    case = next((case for case in CASES if case.parts[0] == model), None)
    assert case is not None, f"tests/warehouse/{model}/ holds no case"
    with duckdb.connect() as connection:
        load_inputs(connection, FOLDER / case)
        rows = connection.execute(model_sql(model), parameters(FOLDER / case) or None)
        types = {name: str(kind) for name, kind, *_ in rows.description}
    assert set(types) == {column.name for column in contract(model).columns}


@pytest.mark.parametrize("model", MODELS)
def test_line_one_says_what_a_row_is(model):
    sql = model_sql(model)
    assert sql.startswith("-- one row is ")
    assert sql.rstrip().endswith("select * from final")


def load_inputs(connection, folder):
    given = {path.stem: path for path in folder.iterdir() if path.stem not in ("params", "expect")}
    if "event_types" not in given:
        connection.register("event_types", event_type_rows(load_settings().all_event_types.values()))
    for table, path in given.items():
        if table == "event_types":
            connection.register(table, read_rows(path))
            continue
        columns = ", ".join(f'"{column.name}" {column.type}' for column in contract(table).columns)
        connection.execute(f"create table {table} ({columns})")
        rows = read_rows(path)
        if rows.num_rows:
            connection.execute(f"insert into {table} by name select * from rows")  # noqa: S608 - a name of this repository


def read_rows(path):
    if path.suffix == ".csv":
        return duckdb.read_csv(str(path)).to_arrow_table()
    rows = yaml.safe_load(path.read_text()) or []
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def parameters(folder):
    path = folder / "params.yml"
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def plain(value):
    if isinstance(value, float):
        return round(value, 9)
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def by_text(rows):
    return sorted(rows, key=lambda row: [str(value) for value in row.values() if not isinstance(value, float)])
