"""Rules of a request that raise or lower the items which have a category, an attribute or an id.

It knows nothing of how scores are made; ``Boost`` says what a weight means.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tasks.domain.attribute_terms import terms_of
from tasks.domain.errors import InputError
from tasks.domain.online import Boost
from tasks.domain.records import Because, ItemPayload

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
MAX_BOOSTS = 20
"""Boosts of one request."""


def check_boosts(boosts: Sequence[Boost]) -> None:
    """Raises InputError for too many boosts, a weight out of range or an attribute without a value."""
    if len(boosts) > MAX_BOOSTS:
        raise InputError(f"{len(boosts)} boosts were asked for, and at most {MAX_BOOSTS} are allowed. Ask with fewer.")
    for boost in boosts:
        if not -1 <= boost.weight <= 1:
            raise InputError(
                f"A boost of the {boost.kind} {boost.value!r} by {boost.weight!r} was asked for. A weight is from -1,"
                " which lowers by the size of the best score, to 1, which raises by it. Ask with another weight."
            )
        if boost.kind == "attribute" and "=" not in boost.value:
            raise InputError(
                f"A boost of the attribute {boost.value!r} was asked for. It needs a name and a value, such as"
                " 'language=en'. Ask with both."
            )


def boost_terms(boost: Boost) -> tuple[str, ...]:
    """What an item must have one of: a category, a term of its attributes, or its id. Nothing, if no item can."""
    if boost.kind == "attribute":
        name, _, value = boost.value.partition("=")
        return terms_of(name, [value])
    return (boost.value,)


def boost_shares(boosts: Sequence[Boost], n_items: int, rows_of: Callable[[Boost], Rows]) -> Floats:
    """What the boosts add to each item's score, (n_items,) in units of the best score: the sum of the weights that
    apply, kept in [-1, 1]. ``rows_of`` finds the items that have what a boost names."""
    added = np.zeros(n_items, np.float32)
    for boost in boosts:
        added[rows_of(boost)] += np.float32(boost.weight)
    return added.clip(-1, 1)


def boost_reason(boosts: Sequence[Boost], item: ItemPayload, added: float, score: float) -> Because | None:
    """The boosts of one item as a reason; None where none applies. ``added`` is what they add to its ``score``."""
    held: Mapping[str, Sequence[str]] = {
        "category": item.categories, "attribute": item.attributes, "item": (item.item_id,),
    }  # fmt: skip
    named = [boost.value for boost in boosts if set(boost_terms(boost)) & set(held[boost.kind])]
    if not named:
        return None
    label = f"the boost of {', '.join(dict.fromkeys(named))}"
    return Because("boost", label, added / abs(score) if score else 0.0, contribution=added)
