"""A home with a generated population that is served from memory, and its refreshes.

Qdrant's local mode is not for that many users, so its folder only says which version serves, and refreshes write
profiles to the warehouse alone. It knows nothing of what is measured.
"""

import sys
import time
from pathlib import Path

from benchmarks.support.generated_lake import VERSION, LakeResources, LakeSize, generate_lake
from flows.clock import utc_now
from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.refresh import refresh


def generated_home(home: Path, *, n_items: int, n_users: int, n_events: int) -> Path:
    """Fill ``home`` with a generated lake whose version serves."""
    size = LakeSize(n_events=n_events, n_users=n_users, n_items=n_items)
    resources = LakeResources(load_settings(home=home))
    generate_lake(resources, size)
    with LocalResources(resources.settings).index() as index:
        index.create_version(VERSION, size.text_width + size.n_factors + 1)
        index.switch(VERSION)
    return home


def refresh_for_ever(home: Path, interval_seconds: float) -> None:
    """Refresh at every interval, as the deployment does, without an index to write to."""
    resources = LakeResources(load_settings(home=home))
    refresh(resources, now=utc_now())
    due = time.monotonic()
    while True:
        due = max(due + interval_seconds, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        refresh(resources, now=utc_now())


if __name__ == "__main__":
    refresh_for_ever(Path(sys.argv[1]), float(sys.argv[2]))
