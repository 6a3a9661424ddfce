"""Fills the tables of the SQL models. It knows nothing of what a model means: that is its SQL and its contract."""

import hashlib
import json
import logging
import time
from dataclasses import asdict
from datetime import datetime

import pyarrow as pa

from tasks.domain.ports import Resources, Transaction, Warehouse
from tasks.domain.records import Receipt
from tasks.model_state import event_type_rows
from warehouse.catalog import model_sql, query_sql

MODELS = ("stg_items", "stg_events", "stg_users", "int_item_texts", "int_user_texts", "fct_interactions")
"""Tables that are filled from SQL, each after the ones it reads."""

logger = logging.getLogger(__name__)


def build_models(resources: Resources, *, now: datetime) -> Receipt:
    """Replace the table of every SQL model, all in one transaction.

    ``n_in`` counts raw rows and ``n_out`` rows of the models; the location lists the tables. If raw tables, settings
    and SQL are those of the last build, nothing is done and the receipt says ``reused``.
    """
    started = time.perf_counter()
    with resources.warehouse() as warehouse:
        n_in, inputs_hash = _inputs(warehouse, resources)
        last = warehouse.read(query_sql("last_build")).to_pylist()
        reused = bool(last) and last[0]["inputs_hash"] == inputs_hash
        if reused:
            n_out = int(last[0]["n_rows"])
        else:
            n_out = warehouse.commit(lambda transaction: _build(transaction, resources, inputs_hash, now))
    seconds = time.perf_counter() - started
    logger.info("build_models rows_in=%d rows_out=%d seconds=%.2f reused=%s", n_in, n_out, seconds, reused)
    note = "raw tables, settings and SQL are those of the last build" if reused else ""
    return Receipt("transform", n_in, n_out, ", ".join(MODELS), seconds, reused=reused, note=note)


def _inputs(warehouse: Warehouse, resources: Resources) -> tuple[int, str]:
    """Number of raw rows, and a hash of everything that the models are made from."""
    state = warehouse.read(query_sql("raw_state")).to_pylist()
    document = {
        "raw": state,
        "event_types": [asdict(event_type) for event_type in resources.event_types.values()],
        "half_life_days": resources.interaction_half_life_days,
        "sql": [model_sql(table) for table in MODELS],
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return sum(row["n_rows"] for row in state), digest


def _build(transaction: Transaction, resources: Resources, inputs_hash: str, now: datetime) -> int:
    shadows = {"event_types": event_type_rows(resources.event_types.values())}
    counts = []
    for table in MODELS:
        sql = model_sql(table)
        parameters = {"half_life_days": resources.interaction_half_life_days} if "$half_life_days" in sql else None
        transaction.execute(f"delete from {table}")  # noqa: S608 - a name of this module
        transaction.execute(f"insert into {table} by name {sql}", parameters, shadows)
        counted = transaction.read(f"select count(*) as n from {table}")  # noqa: S608 - likewise
        counts.append(int(counted["n"][0].as_py()))
    rows = {"built_at": now, "inputs_hash": inputs_hash}
    lines = [{**rows, "table_name": table, "n_rows": n} for table, n in zip(MODELS, counts, strict=True)]
    transaction.append("builds", pa.Table.from_pylist(lines))
    return sum(counts)
