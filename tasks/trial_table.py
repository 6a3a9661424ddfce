"""Trials and choices as rows of the warehouse. It knows nothing of how they are measured or made."""

import json
from datetime import datetime

import numpy as np
import pyarrow as pa

from tasks.domain.metrics import Interval
from tasks.domain.ports import Warehouse
from tasks.domain.splits import SplitName
from tasks.domain.tuning import Trial
from warehouse.catalog import query_sql


def load_trials(warehouse: Warehouse, study: str) -> list[Trial]:
    """The trials of a study, by number."""
    rows = warehouse.read(query_sql("trials_of_study"), {"study": study}).to_pylist()
    return [
        Trial(
            number=row["number"],
            origin=row["origin"],
            parameters=json.loads(row["parameters"]),
            values=None if row["user_ndcg"] is None else np.array(row["user_ndcg"], np.float32),
            seconds=row["seconds"],
            error=row["error"],
        )
        for row in rows
    ]


def load_earlier(warehouse: Warehouse, study: str, most: int) -> list[dict[str, float]]:
    """Parameters of the best trials of the last study before this one, best first."""
    rows = warehouse.read(query_sql("best_of_earlier_study"), {"study": study, "most": most})
    return [json.loads(parameters) for parameters in rows["parameters"].to_pylist()]


def write_trial(
    warehouse: Warehouse, study: str, trial: Trial, *, n_users: int, split: SplitName, snapshot: int, now: datetime
) -> None:
    """Put a trial into ``factor_trials``, in the place of one of the same number."""
    ndcg = trial.ndcg
    number = pa.float64()
    row = pa.table(
        {
            "study": [study],
            "number": pa.array([trial.number], pa.int32()),
            "origin": [trial.origin],
            "state": ["failed" if ndcg is None else "complete"],
            "parameters": [json.dumps(dict(trial.parameters), sort_keys=True)],
            "ndcg_at_10": pa.array([None if ndcg is None else ndcg.value], number),
            "ci_low": pa.array([None if ndcg is None else ndcg.low], number),
            "ci_high": pa.array([None if ndcg is None else ndcg.high], number),
            "n_users": [n_users],
            "user_ndcg": pa.array([None if trial.values is None else trial.values.tolist()], pa.list_(pa.float32())),
            "split": [split],
            "snapshot": [snapshot],
            "seconds": pa.array([trial.seconds], number),
            "error": [trial.error],
            "created_at": pa.array([now], pa.timestamp("us", tz="UTC")),
        }
    )
    key = {"study": study, "number": trial.number}
    warehouse.commit(lambda transaction: transaction.replace("factor_trials", row, key))


def write_choice(
    warehouse: Warehouse, study: str, trial: Trial, current: Trial, difference: Interval, *, now: datetime
) -> str:
    """Put a trial that was measured into ``factor_choices``; returns the id of the choice."""
    choice = f"{study}-{trial.number}"
    row = {
        "choice": choice,
        "study": study,
        "number": trial.number,
        "parameters": json.dumps(dict(trial.parameters), sort_keys=True),
        "ndcg_at_10": trial.mean,
        "current_ndcg_at_10": current.mean,
        "difference": difference.value,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "n_users": 0 if trial.values is None else len(trial.values),
        "chosen_at": now,
    }
    table = pa.Table.from_pylist([row])
    warehouse.commit(lambda transaction: transaction.replace("factor_choices", table, {"choice": choice}))
    return choice
