"""Boosts of a request: whom they meet, how much they add, how they are named."""

import numpy as np
import pytest

from tasks.domain.boosts import MAX_BOOSTS, boost_reason, boost_shares, boost_terms, check_boosts
from tasks.domain.errors import InputError
from tasks.domain.online import Boost
from tasks.domain.records import ItemPayload

FILM = ItemPayload("i1", "A film", ("drama", "war"), True, ("language=en", "year=1999"))


def test_what_a_boost_names():
    assert boost_terms(Boost("category", "drama=war", 1)) == ("drama=war",)
    assert boost_terms(Boost("attribute", "year= 1999.0", 1)) == ("year=1999",)
    assert boost_terms(Boost("attribute", "title=a=b", 1)) == ("title=a=b",)
    assert boost_terms(Boost("item", "i1", 1)) == ("i1",)


def test_shares_add_up_and_stay_in_bounds():
    rows = {"drama": [0, 1], "war": [1, 2], "i3": [3]}
    boosts = (Boost("category", "drama", 0.75), Boost("category", "war", 0.5), Boost("item", "i3", -1))
    shares = boost_shares(boosts, 5, lambda boost: np.array(rows[boost.value]))
    assert shares.tolist() == [0.75, 1, 0.5, -1, 0]


def test_an_item_names_the_boosts_it_has():
    boosts = (Boost("category", "war", 0.2), Boost("attribute", "year=1999", 0.1), Boost("item", "other", 0.5))
    reason = boost_reason(boosts, FILM, 0.3, -1.5)
    assert (reason.kind, reason.label) == ("boost", "the boost of war, year=1999")
    assert (reason.contribution, reason.share) == (0.3, pytest.approx(0.2))
    assert boost_reason(boosts[2:], FILM, 0.0, 1.0) is None
    assert boost_reason(boosts, FILM, 0.3, 0.0).share == 0


@pytest.mark.parametrize(
    ("boosts", "said"),
    [
        ((Boost("category", "drama", 1.5),), r"'drama' by 1.5.*from -1"),
        ((Boost("item", "i1", float("nan")),), "by nan"),
        ((Boost("attribute", "language", 0.5),), "'language=en'"),
        ((Boost("item", "i1", 0.1),) * (MAX_BOOSTS + 1), f"at most {MAX_BOOSTS}"),
    ],
)
def test_boosts_out_of_range_are_refused(boosts, said):
    with pytest.raises(InputError, match=said):
        check_boosts(boosts)
