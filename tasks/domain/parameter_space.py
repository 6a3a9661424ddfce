"""The parameters that tuning may turn, their ranges, and how they go into a recipe.

A parameter is named as in ``FactorParameters``; beside those there are ``interaction_half_life_days`` and, for each
type of event, ``event_types.<name>.weight``.

A search does not see ``regularization`` itself but what it comes to for the average user: its product with the size of
their history and of the unobserved part, to the power of ``frequency_exponent``. The same exponent or unobserved weight
then goes with the same penalties, and good values lie at the same place in very different catalogs, as in Rendle,
Krichene, Zhang and Koren 2021, section 4. It knows nothing of how values are proposed or measured.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from tasks.domain.factor_model import FactorParameters
from tasks.domain.profiles import Recipe
from tasks.domain.records import EventType

Scale = Literal["linear", "log", "steps"]
Values = Mapping[str, float]
"""A number for each parameter; ``n_factors`` is a whole one."""

HALF_LIFE = "interaction_half_life_days"
RARE_SHARE = 0.005
"""A type of event with a smaller share of the events keeps its weight: what it changes cannot be measured."""
_INTERACTING = ("positive", "rating", "negative")
_DIMENSIONS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_RANGES: Mapping[str, tuple[Scale, float, float]] = {
    "regularization": ("log", 0.1, 50.0),
    "frequency_exponent": ("linear", 0.0, 1.0),
    "unobserved_weight": ("log", 0.002, 1.0),
    "popularity_discount": ("linear", 0.0, 1.0),
    "text_prior": ("linear", 0.0, 1.0),
    "text_ridge": ("log", 0.1, 1000.0),
    "user_prior": ("linear", 0.0, 1.0),
    HALF_LIFE: ("log", 3.0, 3650.0),
}
_WEIGHT_FACTOR = 8.0
_SLACK = 1e-5


@dataclass(frozen=True)
class Dial:
    """One parameter and the range of what a search proposes for it: from ``low`` to ``high`` on a linear or a
    logarithmic scale, or the place of one of ``steps``, which ascend."""

    name: str
    scale: Scale
    low: float
    high: float
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Space:
    """The dials of one tuning. ``known`` are the values of all parameters in the draft; ``history`` is the mean sum of
    the weights of a user's interactions."""

    dials: tuple[Dial, ...]
    known: Values
    history: float
    n_items: int

    def complete(self, values: Values) -> dict[str, float]:
        """The values of the dials; those of the draft where ``values`` has none."""
        return {dial.name: values.get(dial.name, self.known[dial.name]) for dial in self.dials}

    def to_search(self, values: Values) -> dict[str, float] | None:
        """A value for each dial, in the search's own terms; None where one lies outside of its range."""
        found: dict[str, float] = {}
        for dial in self.dials:
            value = float(values[dial.name])
            if dial.scale == "steps":
                value = dial.steps.index(int(value)) if value in dial.steps else -1
            elif dial.name == "regularization":
                value *= self.size(values)
            if not dial.low - (slack := _SLACK * abs(dial.high)) <= value <= dial.high + slack:
                return None
            found[dial.name] = min(max(value, dial.low), dial.high)
        return found

    def from_search(self, found: Values) -> dict[str, float]:
        """The inverse of ``to_search``, to six digits."""
        values: dict[str, float] = {}
        for dial in self.dials:
            value = found[dial.name]
            values[dial.name] = dial.steps[int(value)] if dial.scale == "steps" else _rounded(value)
        if "regularization" in values:
            values["regularization"] = _rounded(found["regularization"] / self.size(values))
        return values

    def size(self, values: Values) -> float:
        """What the penalty of the average user is over the regularization."""
        exponent, unobserved = (
            values.get(name, self.known[name]) for name in ("frequency_exponent", "unobserved_weight")
        )
        return float((self.history + unobserved * self.n_items) ** exponent)


def build_space(
    draft: Recipe,
    n_events: Mapping[str, int],
    *,
    has_item_features: bool,
    has_user_features: bool,
    history: float,
    n_items: int,
    max_factors: int,
    fixed: Collection[str] = (),
) -> Space:
    """The dials over a draft, each wide enough for the draft's own value.

    ``n_events`` counts the events of each type that are learned from. Left out are parameters of ``fixed``, those of
    priors where nothing is known that could predict (text or attributes of items, attributes of users), rare types of
    events, and the weight of one positive type, the most frequent: to multiply all weights is to divide the unobserved
    weight and the regularization.
    """
    known = read_values(draft)
    empty = Space((), known, history, n_items)
    dials = [_dimension_dial(int(known["n_factors"]), min(max_factors, n_items))]
    idle = set() if has_item_features else {"text_prior"}
    idle |= set() if has_user_features else {"user_prior"}
    idle |= set() if has_item_features or has_user_features else {"text_ridge"}
    for name, (scale, low, high) in _RANGES.items():
        if name in known and name not in idle:
            size = empty.size(known) if name == "regularization" else 1.0
            dials.append(_dial(name, scale, low, high, known[name] * size))
    for event_type in _tunable_types(draft.event_types, n_events, fixed):
        name, weight = weight_name(event_type.name), event_type.weight
        dials.append(_dial(name, "log", weight / _WEIGHT_FACTOR, weight * _WEIGHT_FACTOR, weight))
    return replace(empty, dials=tuple(dial for dial in dials if dial.name not in fixed and dial.low < dial.high))


def read_values(recipe: Recipe) -> dict[str, float]:
    """Every parameter of a recipe that a dial may be named after."""
    numbers = {name: value for name, value in asdict(recipe.factor_parameters).items() if _is_number(value)}
    weights = {weight_name(event_type.name): event_type.weight for event_type in recipe.event_types}
    return {**numbers, HALF_LIFE: recipe.interaction_half_life_days, **weights}


def apply_values(recipe: Recipe, values: Values, fixed: Collection[str] = ()) -> Recipe:
    """The recipe with these values. Names of ``fixed`` keep theirs, and unknown names (of a type of event that is
    gone, of a parameter of another release) are passed over."""
    wanted = {name: value for name, value in values.items() if name not in fixed}
    own = {field.name for field in fields(FactorParameters)}
    changed: dict[str, Any] = {name: value for name, value in wanted.items() if name in own}
    if "n_factors" in changed:
        changed["n_factors"] = int(changed["n_factors"])
    return replace(
        recipe,
        factor_parameters=replace(recipe.factor_parameters, **changed),
        interaction_half_life_days=float(wanted.get(HALF_LIFE, recipe.interaction_half_life_days)),
        event_types=tuple(
            replace(event_type, weight=float(wanted.get(weight_name(event_type.name), event_type.weight)))
            for event_type in recipe.event_types
        ),
    )


def weight_name(event_type: str) -> str:
    """The parameter that is the weight of a type of event; settings name it alike."""
    return f"event_types.{event_type}.weight"


def is_logarithmic(name: str) -> bool:
    """Whether differences between values of this parameter are ratios, as a plot should show them."""
    return name not in _RANGES or _RANGES[name][0] == "log"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dimension_dial(default: int, most: int) -> Dial:
    steps = tuple(sorted({default, *(step for step in _DIMENSIONS if step <= most)}))
    return Dial("n_factors", "steps", 0, len(steps) - 1, steps)


def _dial(name: str, scale: Scale, low: float, high: float, value: float) -> Dial:
    if scale == "log" and value <= 0:
        return Dial(name, scale, value, value)  # switched off: a logarithm cannot reach it
    return Dial(name, scale, min(low, value), max(high, value))


def _tunable_types(
    event_types: Sequence[EventType], n_events: Mapping[str, int], fixed: Collection[str]
) -> Iterator[EventType]:
    fewest = max(1, RARE_SHARE * sum(n_events.values()))
    present = [t for t in event_types if t.effect in _INTERACTING and n_events.get(t.name, 0) >= fewest]
    positive = [event_type for event_type in present if event_type.effect != "negative"]
    anchors = {event_type.name for event_type in positive if weight_name(event_type.name) in fixed}
    if positive and not anchors:
        anchors = {max(positive, key=lambda event_type: (n_events[event_type.name], event_type.name)).name}
    return (event_type for event_type in present if event_type.name not in anchors)
