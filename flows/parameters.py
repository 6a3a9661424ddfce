"""Parameters of flows as the command line takes them: NAME=VALUE, or --name value. It knows nothing of what they
mean."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.domain.errors import InputError

LISTS = ("items", "users", "events")
"""Parameters that take several values: paths, or ids of users. Their values stay as they are written."""


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """``["k=5", "events=a.csv", "events=b.csv"]`` becomes ``{"k": 5, "events": [".../a.csv", ".../b.csv"]}``.

    A value that is JSON is taken as such, anything else as text. A value of a list parameter that names a file becomes
    an absolute path, because the run may happen in another folder. Raises InputError for a pair without ``=`` or a name
    that comes twice.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"A parameter was given as {pair!r}. It must be NAME=VALUE, such as force_retrain=true.")
        if name in LISTS:
            parameters.setdefault(name, []).extend(_as_list(value))
        elif name in parameters:
            raise InputError(f"The parameter {name!r} was given twice. Give it once.")
        else:
            parameters[name] = _as_json(value)
    return parameters


def pairs_from_options(options: Sequence[str]) -> list[str]:
    """``["--minutes", "10", "--force-retrain"]`` becomes ``["minutes=10", "force_retrain=true"]``.

    Raises InputError for a value without a name.
    """
    pairs: list[str] = []
    rest = list(options)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise InputError(
                f"The command was given {option!r}, which belongs to no parameter. Write a parameter of the flow as "
                "--minutes 10 or -p minutes=10, after the flow's name."
            )
        name, equals, value = option.removeprefix("--").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        pairs.append(f"{name.replace('-', '_')}={value}")
    return pairs


def _as_list(value: str) -> list[str]:
    if value.startswith("["):
        return [_if_file(str(part)) for part in _as_json(value)]
    return [_if_file(value)]


def _as_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _if_file(value: str) -> str:
    path = Path(value).expanduser()
    return str(path.absolute()) if path.exists() else value
