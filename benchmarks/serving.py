"""What the HTTP service holds: requests at a steady rate while events come in, and at twice what it can take.

    python -m benchmarks.serving [--seconds 20] [--rate 50] [--sizes demo,100000] [--json]

The service runs in a process of its own, as ``nearline serve`` starts it, on a copy of ``NEARLINE_HOME`` (the demo) and
on a generated catalog of 100,000 items and 20,000 users, named so. The load comes from another process and is open:
times count from when a request was due. Events come in beside it, ten a second, so that some users always have events
that no refresh has covered. Every kind of request is asked for the same time, explained ones at a fifth of the rate;
then the highest rate that is answered within 50 ms (p99) is searched for, and twice of it sent. The last line is one
JSON object.
"""

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from benchmarks.support.generated_platform import generated_home
from benchmarks.support.http_load import Ask, Service, load_process, send_load, summarize_answers
from benchmarks.support.measured_process import describe_machine
from benchmarks.support.running_platform import copy_home, make_key, resident_mb, running, wait_for_service
from infra.resources import build_resources
from infra.settings import load_settings

KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "filtered": {"filtered": True},
    "diverse": {"diversity": 0.3},
    "explained": {"explain": "true"},
    "everything": {"filtered": True, "diversity": 0.3, "explain": "true"},
}
EXPLAINED_SHARE = 0.2
"""Part of the rate at which explained slates are asked for: each reads a history."""
WARM_SECONDS = 30.0
"""The service loads its language model within this time."""
EVENTS_PER_SECOND = 10.0
TARGET_MS = 50.0
MAX_USERS = 5000
STEPS = (50, 100, 200, 400, 800)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each kind of request")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--sizes", default="demo,100000", help="demo, or a number of generated items")
    arguments = parser.parse_args()
    report = {}
    for size in arguments.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            home = _make_home(size, Path(folder))
            report[size] = measure(home, arguments.seconds, arguments.rate, show=not arguments.json)
    machine = describe_machine("fastapi", "uvicorn")
    print(json.dumps({"benchmark": "serving", "rate": arguments.rate, "machine": machine, "sizes": report}))


def measure(home: Path, seconds: float, rate: float, *, show: bool) -> dict[str, Any]:
    """All kinds of requests on one home."""
    users, items, categories = _population(home)
    key = make_key(home)
    with running(home, "serve", "--port", "0") as process, load_process() as loader, load_process() as writer:
        service = wait_for_service(home, key)
        time.sleep(WARM_SECONDS)
        found: dict[str, Any] = {"n_items": len(items), "idle_mb": round(resident_mb(process.pid), 1)}
        for kind, options in KINDS.items():
            ask = functools.partial(_recommendation, users, categories, dict(options))
            own_rate = rate * (EXPLAINED_SHARE if "explain" in options else 1)
            found[kind] = _answered(service, ask, items, users, own_rate, seconds, loader, writer)
            if show:
                print(f"  {kind}: {found[kind]}")
        found["most"] = _find_most(service, functools.partial(_recommendation, users, categories, {}), seconds, loader)
        if show:
            print(f"  most: {found['most']}")
        found["mb"] = round(resident_mb(process.pid), 1)
    return found


def _answered(
    service: Service,
    ask: Callable[[int], Ask],
    items: list[str],
    users: list[str],
    rate: float,
    seconds: float,
    loader: ProcessPoolExecutor,
    writer: ProcessPoolExecutor,
) -> dict[str, Any]:
    """Requests while events come in from another process."""
    send = functools.partial(_event, users, items)
    events = writer.submit(send_load, service, send, EVENTS_PER_SECOND, seconds)
    found = summarize_answers(loader.submit(send_load, service, ask, rate, seconds, _about).result())
    return {**found, "events": summarize_answers(events.result())}


def _find_most(service: Service, ask: Callable[[int], Ask], seconds: float, loader: ProcessPoolExecutor) -> Any:
    """The highest rate of ``STEPS`` whose p99 keeps the target, and what twice of it comes to."""
    best, tried = 0.0, {}
    for rate in STEPS:
        tried[str(rate)] = loader.submit(send_load, service, ask, rate, min(seconds, 10.0)).result()
        found = summarize_answers(tried[str(rate)])
        tried[str(rate)] = found
        if (found["p99_ms"] or np.inf) > TARGET_MS:
            break
        best = float(rate)
    twice = loader.submit(send_load, service, ask, max(2 * best, 100.0), min(seconds, 10.0)).result()
    return {"per_second": best, "tried": tried, "at_twice": summarize_answers(twice)}


def _recommendation(users: list[str], categories: list[str], options: dict[str, Any], number: int) -> Ask:
    rng = np.random.default_rng(number)
    asked = {name: value for name, value in options.items() if name != "filtered"} | {"k": 10}
    if options.get("filtered") and categories:
        asked["category"] = categories[number % len(categories)]
    user = users[int(rng.integers(len(users)))]
    return Ask("GET", f"/v1/users/{quote(user, safe='')}/recommendations?{urlencode(asked)}")


def _event(users: list[str], items: list[str], number: int) -> Ask:
    rng = np.random.default_rng([1, number])
    user, item = users[int(rng.integers(len(users)))], items[int(rng.integers(len(items)))]
    row = {"user_id": user, "item_id": item, "event_type": "view", "occurred_at": "2026-11-01T00:00:00Z"}
    return Ask("POST", "/v1/events", [{**row, "event_id": f"load-{rng.integers(2**62)}"}])


def _about(document: Any) -> Any:
    return None if document is None else document.get("pending_events")


def _make_home(size: str, folder: Path) -> Path:
    if size == "demo":
        return copy_home(load_settings().home, folder / "home")
    return generated_home(folder / "home", n_items=int(size), n_users=20_000, n_events=1_000_000)


def _population(home: Path) -> tuple[list[str], list[str], list[str]]:
    """Some users and items of the serving version, and its categories."""
    resources = build_resources(load_settings(home=home))
    with resources.warehouse(read_only=True) as warehouse:
        users = warehouse.read("select distinct user_id from user_profiles order by hash(user_id)")
        items = warehouse.read("select item_id from stg_items where available order by item_id")
        categories = warehouse.read("select distinct unnest(categories) as category from stg_items order by category")
    return (
        users["user_id"].to_pylist()[:MAX_USERS],
        items["item_id"].to_pylist(),
        categories["category"].to_pylist(),
    )


if __name__ == "__main__":
    main()
