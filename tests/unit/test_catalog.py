import re
from importlib.resources import files

import pytest

from tasks.transform import MODELS
from warehouse.catalog import GATES, LAYERS, Check, Contract, contract, contracts, model_sql, query_sql
from warehouse.dictionary import PAGE, render_dictionary

QUERIES = sorted(entry.name.removesuffix(".sql") for entry in (files("warehouse") / "queries").iterdir())


@pytest.mark.parametrize("found", contracts().values(), ids=lambda found: found.table)
def test_contract_is_whole(found: Contract):
    names = [column.name for column in found.columns]
    assert len(set(names)) == len(names)
    assert set(found.key) <= set(names)
    assert found.grain
    assert found.description.strip().endswith(".")
    assert all(column.description for column in found.columns)
    assert set(found.gates) <= set(GATES)
    for check in found.checks:
        assert check.gate in GATES
        assert check.advice, f"{found.table}: {check.expectation} says nothing of what to do"
        if check.query:
            assert f" as {check.columns[0]}" in query_sql(check.query)
        else:
            assert set(check.columns) <= {*names, *found.derived}


def test_contracts_come_in_the_order_of_the_layers():
    order = [LAYERS.index(found.layer) for found in contracts().values()]
    assert order == sorted(order)


def test_every_model_has_sql_and_every_sql_is_run():
    folders = [files("warehouse") / "models" / layer for layer in LAYERS]
    written = {
        entry.name.removesuffix(".sql") for folder in folders for entry in folder.iterdir() if ".sql" in entry.name
    }
    assert written == set(MODELS)


def test_a_model_reads_only_its_own_layer_or_those_before_and_only_what_is_filled():
    for position, table in enumerate(MODELS):
        read = {name for name in contracts() if re.search(rf"\b(from|join) {name}\b", model_sql(table))}
        layers = [LAYERS.index(contract(name).layer) for name in read]
        assert all(layer <= LAYERS.index(contract(table).layer) for layer in layers), table
        assert {name for name in read if name in MODELS} <= set(MODELS[:position]), table


def test_a_table_of_a_gate_is_checked_for_key_and_required_columns():
    for found in contracts().values():
        for gate in GATES:
            checks = found.gate_checks(gate)
            if not [check for check in checks if not check.query]:
                continue
            assert gate in found.gates, f"{found.table} takes part in {gate} and must list it under gates"
            expectations = {(check.expectation, check.columns) for check in checks if check.severity == "stop"}
            unique = {"expect_column_values_to_be_unique", "expect_compound_columns_to_be_unique"}
            assert any(name in unique and set(columns) == set(found.key) for name, columns in expectations)
            for column in found.columns:
                if column.required and not column.type.endswith("[]"):
                    assert ("expect_column_values_to_not_be_null", (column.name,)) in expectations


def test_implied_checks_come_only_at_the_gates_of_the_table():
    assert contract("stg_items").gate_checks("slates") == ()
    assert contract("quarantine").gate_checks("ingest") == ()


def test_columns_of_a_check():
    assert Check("e", "stop", "train", {"column_A": "a", "column_B": "b"}).columns == ("a", "b")
    assert Check("e", "stop", "train", {"column_list": ["a", "b"]}).columns == ("a", "b")
    assert Check("e", "stop", "train", {"min_value": 1}).columns == ()


@pytest.mark.parametrize("name", QUERIES)
def test_line_one_of_a_query_says_what_a_row_is(name):
    first, *rest = query_sql(name).splitlines()
    assert first.startswith("-- ")
    is_statement = next(line for line in rest if line and not line.startswith("--")).split()[0] in ("update", "delete")
    assert is_statement or "one row" in first.lower()


def test_an_unknown_table_is_named_with_the_known_ones():
    with pytest.raises(KeyError, match=r"stg_itmes.*stg_items"):
        contract("stg_itmes")


def test_the_committed_data_dictionary_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render_dictionary(), "run `make docs` and commit docs/data-dictionary.md"


def test_the_dictionary_names_every_table_column_and_check():
    page = render_dictionary()
    for found in contracts().values():
        assert f"### {found.table}\n" in page
        assert all(f"| `{column.name}` | {column.type} |" in page for column in found.columns)
        assert all(" ".join(check.advice.split()).replace("|", "\\|") in page for check in found.checks)
