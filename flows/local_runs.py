"""Runs a flow in this process and shows its stages. It knows nothing of which server keeps the history.

Prefect's environment must be prepared before this module is imported.
"""

import importlib
from collections.abc import Mapping
from typing import Any, cast

from prefect import Flow
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from rich.console import Console

from flows.display import stage_lines
from flows.run_report import RunSummary
from tasks.domain.errors import InputError


def run_flow(name: str, parameters: Mapping[str, Any], console: Console) -> RunSummary:
    """Run ``flows.<name>.<name>``. Raises InputError for parameters that it does not take, and what the flow raises."""
    flow: Flow[..., RunSummary] = getattr(importlib.import_module(f"flows.{name}"), name)
    known = flow.parameters.properties
    try:
        with stage_lines(console):
            return cast(RunSummary, flow(**parameters))
    except (ParameterTypeError, SignatureMismatchError, TypeError) as error:
        if set(parameters) <= set(known) and isinstance(error, TypeError) and not isinstance(error, ParameterTypeError):
            raise
        listed = "\n".join(f"  {parameter}: {about.get('description', '')}" for parameter, about in known.items())
        raise InputError(f"{name} was given {dict(parameters)}: {error}\nIt takes:\n{listed}") from None
