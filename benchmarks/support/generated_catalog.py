"""A catalog, users and events of any size, as files that the import takes, with the skew of MovieLens 100K.

Popularity, activity, ratings and times follow curves that were read off that data set; titles are put together from
words. Nothing of it is copied, and what is generated says nothing of quality. It knows nothing of what is measured.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.support.generated_data import draw_interactions

GENERATOR = "generated (popularity, activity, ratings and times with the skew of MovieLens 100K; titles from words)"
EVENTS_OF_A_USER = 106.0
"""Mean number of events of a user, as in MovieLens 100K."""
FILE_EVENTS = 1_000_000
"""Events in one file, as a site exports them in parts."""
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 215.0
_FEWEST = 20
_ACTIVITY_SPREAD = 1.14
_MOST_SHARE = 0.44
_MOST_OF_MEAN = 7
_LIKELIEST = 0.97
_DAY_SPREAD = 0.9
_RANK_SHARES = (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1)
_POPULARITY = (14.0, 9.0, 7.3, 5.4, 3.9, 2.8, 1.65, 1.07, 0.44, 0.15, 0.033, 0.017)
_RATING_SHARES = (0.061, 0.114, 0.271, 0.342, 0.212)
_VISITORS = 0.7
"""Share of the users whose events lie within one visit."""
GENRES = (
    "Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama", "Family", "Fantasy",
    "History", "Horror", "Musical", "Mystery", "Romance", "Science Fiction", "Thriller", "War", "Western", "Sport",
)  # fmt: skip
_FIRST = (
    "Silent", "Crimson", "Broken", "Golden", "Hidden", "Burning", "Frozen", "Lonely", "Wicked", "Distant", "Electric",
    "Forgotten", "Gentle", "Hollow", "Infinite", "Jealous", "Last", "Midnight", "Narrow", "Open", "Perfect", "Quiet",
    "Restless", "Secret", "Tender", "Unknown", "Velvet", "Wild", "Young", "Bitter", "Stolen", "Invisible", "Dangerous",
    "Second", "Winter", "Summer", "Paper", "Iron", "Blue", "Dark",
)  # fmt: skip
_SECOND = (
    "River", "Mountain", "Letter", "Soldier", "Garden", "Machine", "Stranger", "Island", "Promise", "Kingdom",
    "Witness", "Harbor", "Dream", "Shadow", "Circus", "Doctor", "Empire", "Festival", "Ghost", "Highway", "Inheritance",
    "Journey", "Killer", "Lover", "Mirror", "Neighbor", "Orchestra", "Pilot", "Queen", "Robot", "School", "Teacher",
    "Uncle", "Village", "Wedding", "Detective", "Zoo", "Bridge", "Storm", "Planet", "Dancer", "Prisoner", "Brother",
    "Daughter", "Hunter", "Painter", "Train", "Winner", "Castle", "Desert",
)  # fmt: skip
_PLACES = (
    "Paris", "Texas", "Berlin", "Havana", "Alaska", "Tokyo", "Naples", "Cairo", "Brooklyn", "Vienna", "Lisbon", "Mars",
    "Bombay", "Dublin", "Siberia", "Casablanca", "Chicago", "Provence", "Brazil", "the Sea", "the North", "the Night",
    "the City", "the Forest",
)  # fmt: skip
_OCCUPATIONS = ("student", "teacher", "engineer", "artist", "writer", "doctor", "farmer", "retired", "other")


@dataclass(frozen=True)
class Size:
    """How much is generated: items and events; users follow from the events."""

    n_items: int
    n_events: int

    @property
    def n_users(self) -> int:
        """As many as give each the mean number of events of MovieLens 100K."""
        return max(20, round(self.n_events / EVENTS_OF_A_USER))

    def __str__(self) -> str:
        return f"{self.n_items}x{self.n_events}"


@dataclass(frozen=True)
class SourceFolders:
    """Folders (or files) of items, users and events that the import takes."""

    items: Path
    users: Path
    events: Path


def write_generated(size: Size, folder: Path, *, seed: int = 0) -> SourceFolders:
    """Write the Parquet files of one size below ``folder``; the same size and seed give the same rows."""
    rng = np.random.default_rng(seed)
    places = SourceFolders(folder / "items", folder / "users", folder / "events")
    for place in (places.items, places.users, places.events):
        place.mkdir(parents=True)
    genre = rng.integers(0, len(GENRES), size.n_items)
    popularity = _popularity(size, rng)
    matrix = draw_interactions(_activity(size, rng), popularity, genre, rng)
    pq.write_table(_items(genre, rng), places.items / "items.parquet")
    pq.write_table(_users(size.n_users, rng), places.users / "users.parquet")
    user = np.repeat(np.arange(size.n_users), np.diff(matrix.indptr))
    second = _seconds(user, size.n_users, rng)
    order = np.argsort(second, kind="stable")
    for number, rows in enumerate(_pieces(order)):
        table = _events(user[rows], matrix.indices[rows], second[rows], rng)
        pq.write_table(table, places.events / f"events-{number:03}.parquet")
    return places


def describe_skew(events: Path) -> dict[str, float]:
    """Gini coefficients, and the share of the events that the most frequent hundredth has, of items and of users who
    have any; and how events spread over days."""
    import duckdb

    files = f"{events}/*.parquet" if events.is_dir() else str(events)
    found: dict[str, float] = {}
    keys = {"item": "item_id", "user": "user_id", "day": "cast(occurred_at as date)"}
    with duckdb.connect(config={"threads": 1}) as connection:
        for name, key in keys.items():
            sql = f"select count(*) as n from read_parquet($files) group by {key}"  # noqa: S608 - names of this module
            counts = np.sort(np.array(connection.execute(sql, {"files": files}).fetchnumpy()["n"], np.float64))
            found[f"{name}_gini"] = round(_gini(counts), 3)
            found[f"{name}_top_1_percent_share"] = round(_top_share(counts), 4)
    return found


def _popularity(size: Size, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Weights in the order of the ids, which say nothing of them. Nobody takes an item twice, so the weight of one that
    many have is higher than its share."""
    share = (np.arange(size.n_items) + 0.5) / size.n_items
    ranked = np.exp(np.interp(share, _RANK_SHARES, np.log(_POPULARITY)))
    reached = ranked * size.n_events / (size.n_users * size.n_items)
    return np.asarray(-np.log1p(-np.minimum(reached, _LIKELIEST))[rng.permutation(size.n_items)])


def _activity(size: Size, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Events of each user: 20 and a log-normal rest, at most seven times the mean and 44 % of the items."""
    most = max(1, int(min(_MOST_SHARE * size.n_items, _MOST_OF_MEAN * EVENTS_OF_A_USER)))
    fewest = min(_FEWEST, most)
    drawn = np.exp(_ACTIVITY_SPREAD * rng.standard_normal(size.n_users))
    activity = np.full(size.n_users, fewest, np.int64)
    for _ in range(20):  # what the cap takes from some goes to the others
        spare = size.n_events - int(activity.sum())
        below = activity < most
        if spare <= 0 or not below.any():
            break
        more = np.where(below, drawn * spare / drawn[below].sum(), 0)
        activity = np.minimum(activity + np.ceil(more).astype(np.int64), most)
    return activity


def _items(genre: npt.NDArray[np.int64], rng: np.random.Generator) -> pa.Table:
    n = len(genre)
    years = 2024 - np.minimum(rng.exponential(12, n), 90).astype(np.int64)
    second = rng.integers(0, len(GENRES), n)
    n_genres = rng.integers(1, 3, n)
    return pa.table(
        {
            "item_id": [f"item-{item:07}" for item in range(n)],
            "title": list(_titles(years, rng)),
            "categories": [
                list(dict.fromkeys((GENRES[own], GENRES[other])[:count]))
                for own, other, count in zip(genre, second, n_genres, strict=True)
            ],
            "attributes": [json.dumps({"release_year": int(year)}) for year in years],
        }
    )


def _titles(years: npt.NDArray[np.int64], rng: np.random.Generator) -> Iterator[str]:
    """Titles of two to seven words and a year, in several forms."""
    words = {name: rng.integers(0, len(names), len(years)) for name, names in (("a", _FIRST), ("b", _SECOND))}
    words |= {"c": rng.integers(0, len(_SECOND), len(years)), "d": rng.integers(0, len(_PLACES), len(years))}
    form = rng.integers(0, 6, len(years))
    for item, year in enumerate(years):
        first, second = _FIRST[words["a"][item]], _SECOND[words["b"][item]]
        third, place = _SECOND[words["c"][item]], _PLACES[words["d"][item]]
        forms = (
            f"{first} {second}",
            f"The {first} {second}",
            f"{second} of {place}",
            f"The {second} and the {third}",
            f"{first} {second} in {place}",
            f"A {second} for the {first} {third} of {place}",
        )
        yield f"{forms[form[item]]} ({year})"


def _users(n: int, rng: np.random.Generator) -> pa.Table:
    ages, genders = rng.integers(14, 70, n), rng.integers(0, 2, n)
    work = rng.integers(0, len(_OCCUPATIONS), n)
    told: list[dict[str, Any]] = [
        {"age": int(age), "gender": "FM"[gender], "occupation": _OCCUPATIONS[job]}
        for age, gender, job in zip(ages, genders, work, strict=True)
    ]
    return pa.table({"user_id": [_user_id(user) for user in range(n)], "attributes": [json.dumps(t) for t in told]})


def _seconds(user: npt.NDArray[np.int64], n_users: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Seconds since the begin: users come over seven months, more on some days than on others; most have one visit, the
    others come back for a while."""
    days = np.exp(_DAY_SPREAD * rng.standard_normal(int(DAYS)))
    start = rng.choice(len(days), n_users, p=days / days.sum()) + rng.random(n_users)
    visit = np.exp(np.log(0.03) + rng.standard_normal(n_users))
    span = np.where(rng.random(n_users) < _VISITORS, visit, DAYS * rng.random(n_users))
    day = start[user] + np.minimum(span, DAYS - start)[user] * rng.random(len(user)) ** 3
    return np.asarray(86_400 * day)


def _pieces(order: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(order), FILE_EVENTS):
        yield order[start : start + FILE_EVENTS]


def _events(
    user: npt.NDArray[np.int64],
    item: npt.NDArray[np.int32],
    second: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> pa.Table:
    n = len(user)
    times = (BEGIN.timestamp() * 1e6 + second * 1e6).astype(np.int64)
    values = rng.choice(np.arange(1.0, 6.0), n, p=np.array(_RATING_SHARES) / sum(_RATING_SHARES))
    return pa.table(
        {
            "event_id": [f"rating-{u:07}-{i:07}" for u, i in zip(user.tolist(), item.tolist(), strict=True)],
            "user_id": [_user_id(u) for u in user.tolist()],
            "item_id": [f"item-{i:07}" for i in item.tolist()],
            "event_type": pa.array(["rating"] * n, pa.string()),
            "occurred_at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "value": values,
        }
    )


def _user_id(user: int) -> str:
    return f"user-{user:07}"


def _gini(ascending: npt.NDArray[np.float64]) -> float:
    n = len(ascending)
    return float(2 * (np.arange(1, n + 1) * ascending).sum() / (n * ascending.sum()) - (n + 1) / n)


def _top_share(ascending: npt.NDArray[np.float64]) -> float:
    n_top = max(1, round(len(ascending) / 100))
    return float(ascending[-n_top:].sum() / ascending.sum())
