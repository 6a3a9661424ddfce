"""How many events are taken in, durable, and how long a sender waits; then everything is counted in the warehouse.

    python -m benchmarks.intake [--seconds 120] [--rate 1000] [--rows 10] [--home FOLDER] [--direct] [--json]

The HTTP service runs in a process of its own, as ``nearline serve`` starts it, on a copy of ``NEARLINE_HOME`` (the
demo) or of ``--home``; where that has no warehouse, on a generated platform of 1,700 items and 1,000 users. Another
process sends ``POST /v1/events`` with ``--rows`` events each, ``--rate`` events a second, of users and items of that
home. The load is open: times count from when a request was due. With ``--direct`` the intake itself is loaded, without
HTTP, from 16 threads that each send the next request when the last was answered, with 1, 10 and 100 rows. The last line
is one JSON object; the exit code is 1 if an acknowledged event is missing or one is there twice.
"""

import argparse
import functools
import json
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.generated_platform import generated_home
from benchmarks.support.http_load import Answer, Ask, load_process, send_load, summarize_answers
from benchmarks.support.measured_process import describe_machine
from benchmarks.support.running_platform import copy_home, make_key, resident_mb, running, wait_for_service
from flows.clock import utc_now
from infra.resources import build_resources
from infra.settings import load_settings
from tasks.intake import Intake

DIRECT_ROWS = (1, 10, 100)
DIRECT_THREADS = 16
MAX_USERS = 5000


def main() -> int:
    """Measure, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second")
    parser.add_argument("--rows", type=int, default=10, help="events in a request")
    parser.add_argument("--home", type=Path, help="home to copy [NEARLINE_HOME]")
    parser.add_argument("--direct", action="store_true", help="without HTTP")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        if arguments.direct:
            found = {f"rows_{rows}": measure_direct(home, arguments.seconds, rows) for rows in DIRECT_ROWS}
        else:
            _fill_home(home, arguments.home or load_settings().home)
            found = measure(home, arguments.seconds, arguments.rate, arguments.rows)
    if not arguments.json:
        print(json.dumps(found, indent=2))
    machine = describe_machine("duckdb", "fastapi", "uvicorn")
    print(json.dumps({"benchmark": "intake", "direct": arguments.direct, "machine": machine, **found}))
    counted = found.values() if arguments.direct else [found]
    return int(any(part["n_lost"] or part["n_double"] for part in counted))


def measure(home: Path, seconds: float, rate: float, n_rows: int) -> dict[str, Any]:
    """Load the service of ``home`` over HTTP and count."""
    users, items = _population(home)
    key, run = make_key(home), uuid.uuid4().hex[:8]
    with running(home, "serve", "--port", "0") as process, load_process() as loader:
        service = wait_for_service(home, key)
        idle_mb = resident_mb(process.pid)
        make = functools.partial(_request, run, users, items, n_rows)
        answers = loader.submit(send_load, service, make, rate / n_rows, seconds, _accepted).result()
        mb = resident_mb(process.pid)
    n_accepted = sum(answer.document or 0 for answer in answers if answer.status == 200)
    span = max(a.due_at + a.seconds for a in answers) - min(a.due_at for a in answers)
    return {
        "asked_events_per_second": rate,
        "rows_per_request": n_rows,
        "seconds": round(span, 1),
        "events_per_second": round(n_accepted / span, 1),
        **summarize_answers(answers),
        "n_accepted": n_accepted,
        "n_rejected": sum(n_rows - (a.document or 0) for a in answers if a.status == 200),
        "n_429": sum(answer.status == 429 for answer in answers),
        "idle_mb": round(idle_mb, 1),
        "mb": round(mb, 1),
        **count(home, _acknowledged(run, answers, n_rows)),
    }


def measure_direct(home: Path, seconds: float, n_rows: int) -> dict[str, Any]:
    """Load the intake itself and count."""
    resources, service = build_resources(load_settings(home=home)), load_settings().service
    run = uuid.uuid4().hex[:8]
    times: list[float] = []
    acknowledged: list[str] = []
    users, items = [f"u{n}" for n in range(1000)], [f"i{n}" for n in range(1700)]
    intake = Intake(
        resources,
        clock=utc_now,
        commit_seconds=service.commit_seconds,
        max_waiting_rows=service.max_waiting_rows,
    )

    def send(caller: int) -> None:
        number = caller
        while (started := time.monotonic()) < end:
            rows = _request(run, users, items, n_rows, number).body
            receipt = intake.accept("events", rows, source="benchmark", timeout_seconds=30.0)
            times.append(time.monotonic() - started)
            acknowledged.extend(row["event_id"] for row in rows if receipt.n_accepted == n_rows)
            number += DIRECT_THREADS

    with intake:
        cpu, end = time.process_time(), time.monotonic() + seconds
        threads = [threading.Thread(target=send, args=(caller,)) for caller in range(DIRECT_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cpu = time.process_time() - cpu
    return {
        "events_per_second": round(len(acknowledged) / seconds, 1),
        **{f"p{q}_ms": round(float(np.percentile(times, q)) * 1000, 1) for q in (50, 95, 99)},
        "cpu_seconds_per_second": round(cpu / seconds, 2),
        **count(home, acknowledged),
    }


def count(home: Path, acknowledged: Iterable[str]) -> dict[str, int]:
    """What of the acknowledged events is not in the warehouse, and how many of all events are there more than once."""
    with build_resources(load_settings(home=home)).warehouse(read_only=True) as warehouse:
        stored = warehouse.read("select event_id from raw_events")["event_id"].to_pylist()
        files = warehouse.read("select count(*) as n from ducklake_list_files('lake', 'raw_events')")["n"][0].as_py()
    wanted, found = set(acknowledged), set(stored)
    return {
        "n_acknowledged": len(wanted),
        "n_stored": len(stored),
        "n_lost": len(wanted - found),
        "n_double": len(stored) - len(found),
        "n_files": files,
    }


def _fill_home(home: Path, source: Path) -> None:
    if (source / "warehouse").is_dir():
        copy_home(source, home)
    else:
        generated_home(home, n_items=1700, n_users=1000, n_events=100_000)


def _population(home: Path) -> tuple[list[str], list[str]]:
    with build_resources(load_settings(home=home)).warehouse(read_only=True) as warehouse:
        users = warehouse.read(
            "select distinct user_id from raw_events order by hash(user_id), user_id limit $n", {"n": MAX_USERS}
        )
        items = warehouse.read("select distinct item_id from raw_items order by item_id")
    return users["user_id"].to_pylist(), items["item_id"].to_pylist()


def _request(run: str, users: list[str], items: list[str], n_rows: int, number: int) -> Ask:
    rng = np.random.default_rng([2, number])
    picked = zip(rng.integers(len(users), size=n_rows), rng.integers(len(items), size=n_rows), strict=True)
    rows = [
        {
            "event_id": f"intake-{run}-{number}-{row}",
            "user_id": users[user],
            "item_id": items[item],
            "event_type": "view",
            "occurred_at": "2026-11-01T00:00:00Z",
        }
        for row, (user, item) in enumerate(picked)
    ]
    return Ask("POST", "/v1/events", rows)


def _accepted(document: Any) -> int | None:
    return document.get("accepted") if isinstance(document, dict) else None


def _acknowledged(run: str, answers: Iterable[Answer], n_rows: int) -> list[str]:
    return [
        f"intake-{run}-{answer.number}-{row}"
        for answer in answers
        if answer.status == 200 and answer.document == n_rows
        for row in range(n_rows)
    ]


if __name__ == "__main__":
    sys.exit(main())
