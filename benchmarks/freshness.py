"""How soon an event counts: in the next request, and in the vector index.

    python -m benchmarks.freshness [--seconds 120] [--rates 100,1000] [--populations demo,100000] [--json]

All of ``nearline up`` runs on a home of its own (a copy of ``NEARLINE_HOME``, and a generated population, named so,
that is served from memory), refreshing every 15 seconds. Events stream in at each rate from another process. Beside the
stream, probes: a user is asked about, likes the item on top of the answer, and is asked about again at once; the write
was seen if the item is gone then and the answer is not stale. In the index an event is visible when its user's point
is true for the snapshot of its receipt; the probes look every 0.1 s. What the platform itself says (``nearline_runs``)
stands beside it. The last line is one JSON object.
"""

import argparse
import functools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.support.generated_platform import generated_home
from benchmarks.support.http_load import Ask, Service, load_process, send_load, summarize_answers
from benchmarks.support.measured_process import describe_machine
from benchmarks.support.running_platform import copy_home, make_key, running, wait_for_service
from infra.resources import build_resources
from infra.settings import load_settings
from tasks.domain.ports import Resources, VectorIndex, Warehouse

INTERVAL_SECONDS = 15
WARM_SECONDS = 30.0
BATCH_ROWS = 10
PROBES_PER_SECOND = 5.0
SETTLE_SECONDS = 40.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each rate")
    parser.add_argument("--rates", default="100,1000", help="events a second")
    parser.add_argument("--populations", default="demo,100000", help="demo, or a number of generated users")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    for population in arguments.populations.split(","):
        for rate in arguments.rates.split(","):
            with tempfile.TemporaryDirectory() as folder:
                home = _make_home(population, Path(folder))
                report[f"{population} at {rate}"] = found = measure(
                    home, float(rate), arguments.seconds, is_generated=population != "demo"
                )
            if not arguments.json:
                print(f"{population} at {rate}: {json.dumps(found)}")
    print(json.dumps({"benchmark": "freshness", "interval": INTERVAL_SECONDS, "machine": describe_machine(), **report}))


def measure(home: Path, rate: float, seconds: float, *, is_generated: bool) -> dict[str, Any]:
    """One rate on one home."""
    resources = build_resources(load_settings(home=home))
    key, (users, items) = make_key(home), _population(resources)
    with _platform(home, is_generated), load_process() as loader:
        service = wait_for_service(home, key)
        time.sleep(WARM_SECONDS)
        before = len(_runs(resources))
        make = functools.partial(_batch, users[len(users) // 10 :], items)
        stream = loader.submit(send_load, service, make, rate / BATCH_ROWS, seconds)
        probes = _Probes(service, resources, users[: len(users) // 10], is_generated)
        probes.run(seconds)
        sent = summarize_answers(stream.result())
        probes.settle(SETTLE_SECONDS)
        probes.end()
        runs = _runs(resources)[before:]
    return {
        "intake": sent,
        "next_request": probes.next_request(),
        "index": probes.index_lag(),
        "refreshes": _summarize_runs(runs),
    }


@dataclass
class _Probes:
    """Writes of single users that are followed through."""

    service: Service
    resources: Resources
    users: list[str]
    is_generated: bool
    seen: list[bool] = field(default_factory=list)
    next_seconds: list[float] = field(default_factory=list)
    waiting: dict[str, tuple[float, int]] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, seconds: float) -> None:
        """Probe for this time, and watch the index beside it."""
        threading.Thread(target=self._watch, daemon=True).start()
        started = time.monotonic()
        for number, user in enumerate(self.users * 100):
            due = started + number / PROBES_PER_SECOND
            if max(due, time.monotonic()) > started + seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            self._probe(user, number)

    def settle(self, seconds: float) -> None:
        """Wait until every probe is in the index, at most this long."""
        deadline = time.monotonic() + seconds
        while self.waiting and time.monotonic() < deadline:
            time.sleep(0.1)

    def end(self) -> None:
        """Look no more."""
        self.ended.set()

    def next_request(self) -> dict[str, Any]:
        """Share of writes that the next request saw, and how long write and request took together."""
        quantiles = np.percentile(self.next_seconds, [50, 95, 99]) * 1000 if self.next_seconds else [0, 0, 0]
        p50, p95, p99 = (round(float(q), 1) for q in quantiles)
        return {
            "probes": len(self.seen), "refused": self.refused,
            "seen": round(float(np.mean(self.seen)), 4) if self.seen else None,
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
        }  # fmt: skip

    def index_lag(self) -> dict[str, Any]:
        """Seconds from the receipt of an event to its user's point being true for it."""
        p50, p95, p99 = (round(float(q), 2) for q in np.percentile(self.lags or [np.nan], [50, 95, 99]))
        return {"probes": len(self.lags), "never": len(self.waiting), "p50_s": p50, "p95_s": p95, "p99_s": p99}

    def _probe(self, user: str, number: int) -> None:
        path = f"/v1/users/{quote(user, safe='')}/recommendations?k=10"
        status, first = self.service.ask(Ask("GET", path))
        if status != 200 or not first["items"]:
            self.seen.append(False)
            return
        item = first["items"][0]["item_id"]
        row = {"user_id": user, "item_id": item, "event_type": "like", "event_id": f"probe-{number}-{time.time_ns()}"}
        row["occurred_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status, receipt = self.service.ask(Ask("POST", "/v1/events", [row]))
        answered_at = time.time()
        if status != 200:
            self.refused += 1
            return
        began = time.perf_counter()
        status, second = self.service.ask(Ask("GET", path))
        self.next_seconds.append(time.perf_counter() - began)
        counted = second.get("stale_seconds") == 0
        self.seen.append(status == 200 and counted and item not in {row["item_id"] for row in second["items"]})
        with self.lock:
            self.waiting.setdefault(user, (answered_at, receipt["snapshot"]))

    def _watch(self) -> None:
        with self.resources.index() if not self.is_generated else self.resources.warehouse(read_only=True) as place:
            while not self.ended.is_set():
                with self.lock:
                    asked = dict(self.waiting)
                covered = _covered_in_table(place, list(asked)) if self.is_generated else _covered(place, list(asked))
                now = time.time()
                for user, (answered_at, snapshot) in asked.items():
                    if covered.get(user, -1) >= snapshot:
                        self.lags.append(now - answered_at)
                        with self.lock:
                            self.waiting.pop(user)
                time.sleep(0.1)


def _covered(index: VectorIndex, user_ids: list[str]) -> dict[str, int]:
    """What each user's point is true for."""
    version = index.serving_version() or ""
    return {user: payload.as_of_snapshot for user, (payload, _) in index.users(version, user_ids).items()}


def _covered_in_table(warehouse: Warehouse, user_ids: list[str]) -> dict[str, int]:
    """What each user's profile in the warehouse is true for."""
    sql = "select user_id, as_of_snapshot from user_profiles where user_id in (select unnest($user_ids))"
    rows = warehouse.read(sql, {"user_ids": user_ids})
    return dict(zip(rows["user_id"].to_pylist(), rows["as_of_snapshot"].to_pylist(), strict=True))


@contextmanager
def _platform(home: Path, is_generated: bool) -> Iterator[None]:
    """All of ``nearline up``; for a generated population the service, and refreshes that write no index."""
    if not is_generated:
        with running(home, "up"):
            yield
        return
    loop = (str(home), str(INTERVAL_SECONDS))
    with running(home, "serve", "--port", "0"), running(home, *loop, module="benchmarks.support.generated_platform"):
        yield


def _batch(users: list[str], items: list[str], number: int) -> Ask:
    rng = np.random.default_rng([2, number])
    chosen = zip(rng.integers(len(users), size=BATCH_ROWS), rng.integers(len(items), size=BATCH_ROWS), strict=True)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    rows = [
        {"event_id": f"stream-{number}-{place}", "user_id": users[user], "item_id": items[item],
         "event_type": "view", "occurred_at": at}
        for place, (user, item) in enumerate(chosen)
    ]  # fmt: skip
    return Ask("POST", "/v1/events", rows)


def _population(resources: Resources) -> tuple[list[str], list[str]]:
    with resources.warehouse(read_only=True) as warehouse:
        users = warehouse.read("select distinct user_id from user_profiles order by hash(user_id)")
        items = warehouse.read("select item_id from stg_items where available order by item_id")
    return users["user_id"].to_pylist(), items["item_id"].to_pylist()


def _runs(resources: Resources) -> list[dict[str, Any]]:
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read("select * from nearline_runs order by finished_at").to_pylist()


def _summarize_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the platform wrote down of its refreshes."""
    seconds = [(run["finished_at"] - run["started_at"]).total_seconds() for run in runs]
    users = [run["n_users"] for run in runs]
    return {
        "runs": len(runs),
        "users": users,
        "seconds": np.round(seconds, 2).tolist(),
        "lag_p95_s": [round(run["lag_p95_seconds"], 2) for run in runs if run["lag_p95_seconds"] is not None],
        "stage_seconds": [json.loads(run["stage_seconds"]) for run in runs[-3:]],
    }


def _make_home(population: str, folder: Path) -> Path:
    if population == "demo":
        return copy_home(load_settings().home, folder / "home")
    n_users = int(population)
    return generated_home(folder / "home", n_items=20_000, n_users=n_users, n_events=20 * n_users)


if __name__ == "__main__":
    main()
