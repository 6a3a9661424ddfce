"""What a run is given from outside: resources, its id, and files by their absolute names.

It knows nothing of what a run does.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from prefect.runtime import flow_run

from infra.resources import build_resources
from infra.settings import Settings, load_settings
from tasks.domain.errors import InputError
from tasks.domain.ports import Resources

_shared: ContextVar[Resources | None] = ContextVar("shared_resources", default=None)


@contextmanager
def share_resources(resources: Resources) -> Iterator[None]:
    """Give every run inside the context these resources, in a process that does many runs."""
    token = _shared.set(resources)
    try:
        yield
    finally:
        _shared.reset(token)


def open_resources() -> tuple[Resources, Settings]:
    """The resources and settings of this process's environment. Raises SettingsError."""
    settings = load_settings()
    if settings.log_level == "DEBUG":
        for name in ("tasks", "infra"):
            logging.getLogger(name).setLevel(logging.DEBUG)
    return _shared.get() or build_resources(settings), settings


def run_id() -> str:
    """The id of this flow run, under which its gate results are stored."""
    return str(flow_run.id)


def absolute_paths(names: Sequence[str]) -> list[Path]:
    """Files and folders by absolute names. Raises InputError for a relative one, whose meaning would depend on the
    folder that a worker happens to run in."""
    paths = [Path(name).expanduser() for name in names]
    relative = [str(path) for path in paths if not path.is_absolute()]
    if relative:
        raise InputError(
            f"A run was given {', '.join(repr(name) for name in relative)}: paths must be absolute, because a worker "
            f"may run in any folder. Give the whole path, such as {str(Path.cwd() / relative[0])!r}."
        )
    return paths
