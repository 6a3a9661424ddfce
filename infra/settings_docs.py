"""Writes ``docs/settings.md`` from the settings themselves, and lists their values: ``python -m infra.settings_docs``.

It knows nothing of what a setting does.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from infra.settings import (
    DEFAULT_EVENT_TYPES,
    SETTINGS_FILE,
    EventTypeSettings,
    Settings,
    setting_names,
    setting_source,
    setting_variable,
)

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BOUNDS: tuple[tuple[type, str, str], ...] = (
    (Gt, "gt", "above"),
    (Ge, "ge", "at least"),
    (Lt, "lt", "below"),
    (Le, "le", "at most"),
)

_PREFACE = f"""# Settings

Written by `make docs` from `infra/settings.py`; a test compares the two.

A value comes from the environment, else from `{SETTINGS_FILE}` (in `NEARLINE_HOME`, else in the working folder), else
from its default. `nearline settings` shows the values in use and where each comes from. A name in the file that is not
in this list is an error, and so is a variable that differs from one in this list by a letter or two.

```toml
# {SETTINGS_FILE}
interaction_half_life_days = 90

[encoder]
precision = "auto"

[event_types.add_to_cart]
effect = "positive"
weight = 0.7
```

The same by environment: `NEARLINE_INTERACTION_HALF_LIFE_DAYS=90 NEARLINE_ENCODER__PRECISION=auto`.
"""

_EVENT_TYPES = """
## Event types

`[event_types.<name>]` adds a type, or replaces the one of that name. `effect` says how it enters learning:

| effect | meaning |
| --- | --- |
| positive | the user likes the item, with confidence `weight` |
| negative | the user dislikes the item, with confidence `weight` |
| rating | `value` from `threshold` on is positive with `weight`; lower only marks the item as seen, and from \
`dislike_below` down it is negative |
| text | no item is needed; `text` says what the user wants |
| ignored | kept, not learned from |
| retraction | takes back the event with the same `event_id` |

The defaults:

| type | effect | weight | threshold | dislike_below |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class SettingDoc:
    """One setting as the page shows it."""

    name: str
    variable: str
    default: str
    allowed: str
    description: str


@dataclass(frozen=True)
class EffectiveSetting:
    """One setting with its value in use; ``source`` is a variable, a file or ``default``. Secrets are stars."""

    name: str
    value: str
    source: str


def describe_settings() -> list[SettingDoc]:
    """Every setting, in the order in which they are written."""
    fields = sorted(_fields(), key=lambda field: "." in field[0])  # the general ones first
    return [
        SettingDoc(name, setting_variable(name), _default(about), _allowed(about), _in_one_line(about.description))
        for name, about in fields
    ]


def effective_settings(settings: Settings) -> list[EffectiveSetting]:
    """Every setting with its value and where that comes from."""
    return [EffectiveSetting(name, _shown(_value(settings, name)), setting_source(name)) for name in setting_names()]


def settings_page() -> str:
    """The text of ``docs/settings.md``."""
    lines = [_PREFACE]
    section: str | None = None
    for setting in describe_settings():
        owner = setting.name.rpartition(".")[0]
        if owner != section:
            section = owner
            about = Settings.model_fields[owner].annotation.__doc__ if owner else "The platform as a whole."
            lines.append(f"\n## {owner or 'General'}\n\n{about}\n")
            lines.append("| setting, variable | default | allowed | meaning |\n| --- | --- | --- | --- |")
        name = f"`{setting.name}`<br>`{setting.variable}`"
        lines.append(f"| {name} | {setting.default} | {setting.allowed} | {setting.description} |")
    rows = [f"| {name} | {_event_type(about)} |" for name, about in DEFAULT_EVENT_TYPES.items()]
    return "\n".join(lines) + "\n" + _EVENT_TYPES + "\n".join(rows) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(settings_page())


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    for name in setting_names():
        owner: type[BaseModel] = Settings
        *sections, last = name.split(".")
        for part in sections:
            kind = owner.model_fields[part].annotation
            assert isinstance(kind, type) and issubclass(kind, BaseModel)
            owner = kind
        yield name, owner.model_fields[last]


def _default(about: FieldInfo) -> str:
    if about.default is PydanticUndefined or about.default_factory is not None:
        return "none" if about.annotation == dict[str, EventTypeSettings] else "by the machine"
    if about.default is None:
        return "empty"
    return f"`{about.default}`"


def _allowed(about: FieldInfo) -> str:
    bounds = [
        f"{words} {getattr(limit, attribute):g}"
        for limit in about.metadata
        for kind, attribute, words in BOUNDS
        if isinstance(limit, kind)
    ]
    return " and ".join(bounds) or _kind(about.annotation)


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    names = {Path: "a path", str: "text", SecretStr: "text, kept secret", int: "a whole number", float: "a number"}
    if annotation == dict[str, EventTypeSettings]:
        return "see below"
    return " or ".join(names.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)


def _in_one_line(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").split())


def _event_type(about: EventTypeSettings) -> str:
    values = (about.effect, about.weight, about.threshold, about.dislike_below)
    return " | ".join("" if value is None else f"{value}" for value in values)


def _value(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        shown = {key: part.model_dump(exclude_none=True) for key, part in value.items()}
        return json.dumps(shown, ensure_ascii=False) if shown else ""
    return str(value)


if __name__ == "__main__":
    main()
