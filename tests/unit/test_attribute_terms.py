"""Attributes of items as terms that filters name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.attribute_terms import MAX_TERM_LENGTH, MAX_TERMS, attribute_terms, terms_of

scalars = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=20)
)


@pytest.mark.parametrize(
    ("attributes", "terms"),
    [
        ({"language": "en"}, ("language=en",)),
        ({"b": "x", "a": "y"}, ("a=y", "b=x")),
        ({"actors": ["Kim", "Lee", "Kim", " Lee "]}, ("actors=Kim", "actors=Lee")),
        ({"length": 1.5, "new": True, "old": False}, ("length=1.5", "new=true", "old=false")),
        ({"year": "1995.0", "n": 3.0, "code": "007", "price": "1.50"}, ("code=007", "n=3", "price=1.5", "year=1995")),
        ({"n": -0.0, "big": 1e300, "small": 1e-9}, ("big=1e+300", "n=0", "small=1e-09")),
        ({"nested": {"a": 1}, "nothing": None, "empty": "  ", "none": [], "lists": [[1], {"a": 1}, 2]}, ("lists=2",)),
        ({"text": "x" * (MAX_TERM_LENGTH - 5)}, ("text=" + "x" * (MAX_TERM_LENGTH - 5),)),
        ({"text": "x" * (MAX_TERM_LENGTH - 4)}, ()),
        ({"half": "\ud800", "\udfff": "x", "whole": "\U0001f3ac"}, ("whole=\U0001f3ac",)),
    ],
)
def test_terms_of_attributes(attributes, terms):
    assert attribute_terms(attributes) == terms
    assert attribute_terms(json.dumps(attributes)) == terms


@pytest.mark.parametrize(
    "attributes",
    [
        None,
        "",
        "null",
        "[1]",
        '"text"',
        "3",
        "{",
        "[" * 100_000,
        '{"n": 1e999}',
        '{"n": NaN}',
        '{"n": %s}' % ("9" * 5000),
    ],
)
def test_what_is_no_object_or_no_value_has_no_terms(attributes):
    assert attribute_terms(attributes) == ()


def test_a_long_list_does_not_crowd_out_the_other_attributes():
    terms = attribute_terms({"actors": [f"actor {n:04}" for n in range(1000)], "year": 1995, "zone": "a"})

    assert len(terms) == MAX_TERMS
    assert {"year=1995", "zone=a", "actors=actor 0000"} <= set(terms)
    assert terms == tuple(sorted(terms))


def test_a_request_means_what_the_item_says():
    item = set(attribute_terms({"year": 1995, "rating": 7.5, "new": True, "language": "en"}))

    assert item >= set(terms_of("year", ["1995"]))
    assert terms_of("rating", ["7.50", 7.5, "1"]) == ("rating=1", "rating=7.5")
    assert terms_of("new", ["true"]) == terms_of("new", [True]) == ("new=true",)
    assert terms_of("language", []) == terms_of("language", [None, ""]) == ()


@given(st.dictionaries(st.text(max_size=10), st.one_of(scalars, st.lists(scalars, max_size=5)), max_size=5))
def test_every_value_finds_its_item(attributes):
    terms = attribute_terms(attributes)

    assert list(terms) == sorted(set(terms))
    for name, value in attributes.items():
        assert set(terms_of(name, value if isinstance(value, list) else [value])) <= set(terms)
