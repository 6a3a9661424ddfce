"""A gate over many rows leaves none of them in memory."""

import gc
from dataclasses import replace

import pandas as pd
import pyarrow as pa

from infra.expectations import ExpectationsValidator
from warehouse.catalog import contracts

N_ROWS = 150_000


def test_the_rows_of_a_gate_are_let_go(tmp_path):
    contract = contracts()["stg_events"]
    checks = [check for check in contract.gate_checks("transform") if not check.query][:2]
    names = {name for check in checks for name in check.columns}
    rows = pa.table({name: [f"{name} {number}" for number in range(N_ROWS)] for name in names})
    results = ExpectationsValidator(tmp_path).validate(replace(contract, checks=tuple(checks)), rows)
    assert len(results) == 2
    assert not [kept for kept in gc.get_objects() if type(kept) is pd.DataFrame and len(kept) == N_ROWS]
