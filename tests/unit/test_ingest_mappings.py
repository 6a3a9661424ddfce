import pytest
import yaml

from tasks.domain.errors import InputError
from tasks.domain.mappings import CANONICAL, propose_mapping, resolve_mapping, unused_columns

MOVIELENS = {
    "movies": ("items", ["movieId", "title", "genres"]),
    "ratings": ("events", ["userId", "movieId", "rating", "timestamp"]),
    "tags": ("events", ["userId", "movieId", "tag", "timestamp"]),
}


@pytest.mark.parametrize(
    ("kind", "header", "expected"),
    [
        (*MOVIELENS["movies"], {"item_id": "movieId", "title": "title", "categories": "genres"}),
        (
            *MOVIELENS["ratings"],
            {
                "user_id": "userId",
                "item_id": "movieId",
                "event_type": "=rating",
                "occurred_at": "timestamp",
                "value": "rating",
            },
        ),
        (
            *MOVIELENS["tags"],
            {
                "user_id": "userId",
                "item_id": "movieId",
                "event_type": "=tag",
                "occurred_at": "timestamp",
                "text": "tag",
            },
        ),
        (
            "events",
            ["reviewerID", "asin", "overall", "reviewText", "unixReviewTime"],
            {
                "user_id": "reviewerID",
                "item_id": "asin",
                "event_type": "=rating",
                "occurred_at": "unixReviewTime",
                "value": "overall",
                "text": "reviewText",
            },
        ),
        (
            "events",
            ["Visitor-ID", "ts", "query"],
            {"user_id": "Visitor-ID", "event_type": "=search", "occurred_at": "ts", "text": "query"},
        ),
        (
            "events",
            ["visitorid", "itemid", "timestamp"],
            {"user_id": "visitorid", "item_id": "itemid", "event_type": "=view", "occurred_at": "timestamp"},
        ),
        (
            "items",
            ["book_id", "authors", "name"],
            {"item_id": "book_id", "title": "name", "attributes": "*"},
        ),
        ("users", ["id", "age", "gender"], {"user_id": "id", "attributes": "*"}),
        ("events", ["what", "ever"], {}),
        ("items", [], {}),
    ],
)
def test_proposals_for_headers_that_people_have(kind, header, expected):
    assert propose_mapping(kind, header) == expected


@pytest.mark.parametrize("kind", list(CANONICAL))
def test_canonical_names_are_proposed_as_themselves(kind):
    assert propose_mapping(kind, list(reversed(CANONICAL[kind]))) == {name: name for name in CANONICAL[kind]}


def test_no_column_is_proposed_twice():
    proposal = propose_mapping("events", ["id", "user", "item", "time"])
    assert proposal["event_id"] == "id"
    assert len(set(proposal.values())) == len(proposal)


def test_without_a_mapping_the_canonical_columns_are_taken():
    header = ["item_id", "title", "price"]
    resolved = resolve_mapping("items", header, None, "f.csv")
    assert resolved == {"item_id": "item_id", "title": "title"}
    assert unused_columns(header, resolved) == ["price"]
    assert unused_columns(header, resolved | {"attributes": "*"}) == []


def test_a_mapping_goes_before_the_column_of_the_same_name():
    header = ["item_id", "title", "name"]
    assert resolve_mapping("items", header, {"title": "name"}, "f.csv") == {"item_id": "item_id", "title": "name"}


@pytest.mark.parametrize(("kind", "header"), MOVIELENS.values(), ids=list(MOVIELENS))
def test_the_message_of_a_missing_column_holds_a_mapping_that_works(kind, header):
    with pytest.raises(InputError) as raised:
        resolve_mapping(kind, header, None, "f.csv")
    message = str(raised.value)
    assert "--mapping mapping.yml" in message
    assert all(name in message for name in header)
    copied = yaml.safe_load(message.split("\n\n")[1])
    assert resolve_mapping(kind, header, copied, "f.csv") == copied == propose_mapping(kind, header)


def test_the_message_marks_what_could_not_be_recognised():
    with pytest.raises(InputError, match=r"occurred_at: \?\?\?"):
        resolve_mapping("events", ["user_id", "item_id", "event_type", "x"], None, "f.csv")
    with pytest.raises(InputError, match=r"item_id: \?\?\?"):
        resolve_mapping("events", ["user_id", "event_type", "occurred_at"], None, "f.csv")


def test_strange_column_names_are_quoted_in_the_proposal():
    header = ["Item ID", "Title"]
    with pytest.raises(InputError) as raised:
        resolve_mapping("items", [*header, 'a "b": c'], {"description": 'a "b": c'}, "f.csv")
    copied = yaml.safe_load(str(raised.value).split("\n\n")[1])
    assert copied["description"] == 'a "b": c'


@pytest.mark.parametrize(
    ("mapping", "word"),
    [
        ({"item": "x"}, "item_id, title"),
        ({"item_id": "nope"}, "Its columns: x, title"),
        ({"item_id": None}, "no text"),
        ({"item_id": 3}, "no text"),
        ({"user_id": "x"}, "items do not have"),
    ],
)
def test_mappings_that_cannot_be_right(mapping, word):
    with pytest.raises(InputError, match=word):
        resolve_mapping("items", ["x", "title"], mapping, "f.csv")


def test_events_may_lack_items_only_if_there_is_a_text():
    header = ["user_id", "event_type", "occurred_at", "text"]
    assert set(resolve_mapping("events", header, None, "f.csv")) == set(header)
