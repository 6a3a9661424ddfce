"""Kills at random moments under load, and then the books.

    python -m benchmarks.chaos [--kills 50] [--seed 0] [--json]

All of ``nearline up`` runs on a copy of ``NEARLINE_HOME`` with two published versions. One process sends events, each
with an id, and repeats a batch until it is acknowledged; another asks for recommendations. Meanwhile
the service, the process that refreshes and the worker get SIGKILL at random moments (``up`` starts them again), and the
serving version is switched back and forth. Afterwards, once everything has been refreshed:

- every acknowledged event stands in the events exactly once, and nothing that was never sent;
- every profile of the serving version, in the warehouse and in the index, equals one computed from scratch to 1e-5;
- every answer is of one version: its prior parts are those of the version that it names.

The last line is one JSON object.
"""

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.support.http_load import Ask, Service
from benchmarks.support.measured_process import describe_machine
from benchmarks.support.running_platform import children_of, copy_home, make_key, running, wait_for_service
from flows.clock import utc_now
from infra.resources import build_resources
from infra.settings import load_settings
from tasks.domain.errors import TransientError
from tasks.domain.fusion import fuse_queries
from tasks.domain.ports import Resources
from tasks.domain.profiles import compute_profiles
from tasks.model_state import load_histories, load_item_space, load_profiles, load_version
from tasks.publish import rollback
from tasks.refresh import read_watermark, refresh

TARGETS = {"service": "flows.cli serve", "refresh": "flows.resident", "worker": "worker start"}
BATCH_ROWS = 10
BATCHES_PER_SECOND = 10.0
ASKS_PER_SECOND = 10.0
SWITCH_EVERY = 10
"""Kills between two switches of the serving version."""
MAX_WAIT_SECONDS = 90.0


def main() -> None:
    """Kill, settle, and audit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = copy_home(load_settings().home, Path(folder) / "home")
        report = run(home, arguments.kills, arguments.seed, show=not arguments.json)
    print(json.dumps({"benchmark": "chaos", "machine": describe_machine(), **report}))


def run(home: Path, n_kills: int, seed: int, *, show: bool) -> dict[str, Any]:
    """The whole measurement on one home."""
    resources = build_resources(load_settings(home=home))
    key, rng = make_key(home), np.random.default_rng(seed)
    with running(home, "up") as platform:
        service = wait_for_service(home, key)
        load = _Load(home, key, service, *_population(resources))
        load.start()
        killed = _kill_and_switch(home, key, platform.pid, resources, n_kills, rng, show)
        load.stop()
        wait_for_service(home, key)
    began = time.monotonic()
    while refresh(resources, now=utc_now()) is not None:
        pass
    caught_up = time.monotonic() - began
    return {
        "kills": killed,
        "events": _audit_events(resources, load.acknowledged, load.sent),
        "profiles": _audit_profiles(resources),
        "answers": _audit_answers(resources, load.answers),
        "statuses": dict(load.statuses),
        "caught_up_seconds": round(caught_up, 2),
    }


@dataclass
class _Load:
    """Two threads: one that writes and never gives up a batch, and one that asks."""

    home: Path
    key: str
    service: Service
    users: list[str]
    items: list[str]
    acknowledged: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    answers: list[dict[str, Any]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin."""
        self._threads = [threading.Thread(target=work) for work in (self._write, self._ask)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, once the last batch is acknowledged."""
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        rng, number = np.random.default_rng(7), 0
        while not self.stopping.is_set():
            rows = [self._row(rng, f"chaos-{number}-{place}") for place in range(BATCH_ROWS)]
            ids = {row["event_id"] for row in rows}
            self.sent |= ids
            while self._send(Ask("POST", "/v1/events", rows)) is None:
                time.sleep(0.2)
            self.acknowledged |= ids
            number += 1
            time.sleep(1 / BATCHES_PER_SECOND)

    def _ask(self) -> None:
        rng = np.random.default_rng(8)
        while not self.stopping.is_set():
            user = quote(self.users[int(rng.integers(len(self.users)))], safe="")
            document = self._send(Ask("GET", f"/v1/users/{user}/recommendations?k=5"))
            if document is not None:
                self.answers.append(document)
            time.sleep(1 / ASKS_PER_SECOND)

    def _row(self, rng: np.random.Generator, event_id: str) -> dict[str, Any]:
        user, item = self.users[int(rng.integers(len(self.users)))], self.items[int(rng.integers(len(self.items)))]
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"event_id": event_id, "user_id": user, "item_id": item, "event_type": "like", "occurred_at": at}

    def _send(self, ask: Ask) -> Any:
        with suppress(OSError, ValueError):
            self.service = Service(json.loads((self.home / "serving" / "address.json").read_text())["url"], self.key)
        try:
            status, document = self.service.ask(ask)
        except (OSError, ValueError) as error:
            self.statuses[f"{ask.method} {type(error).__name__}"] += 1
            return None
        except Exception as error:  # http.client has a tree of its own
            self.statuses[f"{ask.method} {type(error).__name__}"] += 1
            return None
        self.statuses[f"{ask.method} {status}"] += 1
        return document if status == 200 else None


def _kill_and_switch(
    home: Path, key: str, pid: int, resources: Resources, n_kills: int, rng: np.random.Generator, show: bool
) -> dict[str, int]:
    """Kill one of the targets, wait until it is back, and go on; switch the version now and then."""
    killed: Counter[str] = Counter()
    for number in range(n_kills):
        time.sleep(float(rng.uniform(0.5, 4.0)))
        name = sorted(TARGETS)[int(rng.integers(len(TARGETS)))]
        victim = _find(pid, TARGETS[name])
        if number % SWITCH_EVERY == SWITCH_EVERY - 1:
            switch = threading.Thread(target=_switch, args=(resources,))
            switch.start()
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
            killed[name] += 1
        _wait_for_other(pid, TARGETS[name], victim)
        wait_for_service(home, key)
        if show:
            print(f"  {number + 1}: {name}", flush=True)
        if number % SWITCH_EVERY == SWITCH_EVERY - 1:
            switch.join()
    return dict(killed)


def _switch(resources: Resources) -> None:
    """To the other published version; a kill of somebody else may end the attempt."""
    with resources.index() as index:
        other = next(version for version in index.versions() if version != index.serving_version())
    with suppress(TransientError):
        rollback(resources, other, now=utc_now())


def _find(pid: int, sign: str) -> int | None:
    return next((child for child, line in sorted(children_of(pid).items()) if sign in line), None)


def _wait_for_other(pid: int, sign: str, victim: int | None) -> None:
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while _find(pid, sign) in (None, victim) and time.monotonic() < deadline:
        time.sleep(0.1)


def _audit_events(resources: Resources, acknowledged: set[str], sent: set[str]) -> dict[str, int]:
    """The events as staging has them, and how often their rows stand in the raw table."""
    with resources.warehouse(read_only=True) as warehouse:
        raw = warehouse.read(
            "select event_id, count(*) as n from raw_events where event_id like 'chaos-%' group by all"
        )
    rows = dict(zip(raw["event_id"].to_pylist(), raw["n"].to_pylist(), strict=True))
    return {
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - rows.keys()),
        "never_sent": len(rows.keys() - sent),
        "rows_written_twice": sum(n - 1 for n in rows.values()),
    }


def _audit_profiles(resources: Resources) -> dict[str, Any]:
    """The largest difference between stored profiles and query vectors and those computed from scratch."""
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        version = index.serving_version() or ""
        model, items = load_version(warehouse, version), load_item_space(warehouse, version)
        stored = load_profiles(warehouse, version)
        histories, _ = load_histories(warehouse, model, items, read_watermark(warehouse, version))
        anew = compute_profiles(histories, items, model.recipe)
        place = {user: row for row, user in enumerate(anew.user_ids)}
        rows = [place[user] for user in stored.user_ids]
        vectors = fuse_queries(anew.text, anew.factors, anew.alpha, anew.beta, model.recipe.fusion)[rows]
        points = index.users(version, list(stored.user_ids))
    served = np.array([points[user][1] for user in stored.user_ids])
    differences = {
        "factors": float(np.abs(stored.factors - anew.factors[rows]).max()),
        "text": float(np.abs(stored.text - anew.text[rows]).max()),
        "query_vectors": float(np.abs(served - vectors).max()),
    }
    missing = len(set(anew.user_ids) - set(stored.user_ids))
    return {"users": len(rows), "missing": missing, "largest_difference": differences}


def _audit_answers(resources: Resources, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers whose prior parts are not those of their version."""
    priors: dict[str, dict[str, float]] = {}
    n_mixed = 0
    with resources.warehouse(read_only=True) as warehouse:
        for answer in answers:
            version = answer["version"]
            if version not in priors:
                items = load_item_space(warehouse, version)
                priors[version] = dict(zip(items.item_ids, items.prior.tolist(), strict=True))
            n_mixed += not all(
                np.isclose(
                    row["parts"]["prior"], answer["beta"] * priors[version].get(row["item_id"], np.nan), atol=1e-4
                )
                for row in answer["items"]
            )
    return {"answers": len(answers), "versions": len(priors), "mixed": n_mixed}


def _population(resources: Resources) -> tuple[list[str], list[str]]:
    with resources.warehouse(read_only=True) as warehouse:
        users = warehouse.read("select distinct user_id from user_profiles order by user_id")
        items = warehouse.read("select item_id from stg_items where available order by item_id")
    return users["user_id"].to_pylist(), items["item_id"].to_pylist()


if __name__ == "__main__":
    main()
