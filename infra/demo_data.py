"""The demo's data: MovieLens 100K out of a wheel of the package index, as files that the import takes.

The data may not be passed on, so it is fetched by each machine and is no part of this project; ``LICENCE`` says what
its owners ask. It knows nothing of the warehouse.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.package_files import Progress, fetch_wheel, unpack_members

LICENCE = (
    "MovieLens 100K was collected by the GroupLens research group at the University of Minnesota. It may be used for "
    "research; it may not be passed on, nor used commercially, without their permission; no endorsement is implied. "
    "Publications cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), "
    "2015. Terms: https://files.grouplens.org/datasets/movielens/ml-100k-README.txt"
)
"""Terms of the data, in our words; shown where it is fetched."""

_WHEEL = ("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
_WHEEL_BYTES = 2_130_151
_PREFIX = "recbole/dataset_example/ml-100k"
_FORM = 1  # raise it when the files below change, so that older ones are not taken for them

_ARTICLES = "The|An|A|La|Le|Les|L'|Il|Das|Der|Die|Det|El|Los|Las|O"
_MOVED_ARTICLE = re.compile(rf"^(?P<title>.+), (?P<article>{_ARTICLES})$")
_PARENTHESIS = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True)
class DemoData:
    """Parquet files with the canonical columns of items, users and events, and the terms of the data."""

    items: Path
    users: Path
    events: Path
    licence: str


def prepare_movielens(cache: Path, on_progress: Progress | None = None) -> DemoData:
    """MovieLens 100K as canonical files: 1,682 items, 943 users and 100,000 events of the type ``rating``.

    Titles carry their year and have their article in front ("The Usual Suspects (1995)"); genres are the categories,
    in the order given; age, gender and occupation are the users' attributes (zip codes are left out). One film has
    neither title nor genre, and keeps an empty title. The files are made once; the same cache gives the same bytes.
    Raises InputError if the wheel cannot be had.
    """
    folder = cache / "demo" / f"ml-100k-{_FORM}"
    data = DemoData(folder / "items.parquet", folder / "users.parquet", folder / "events.parquet", LICENCE)
    if all(path.is_file() for path in (data.items, data.users, data.events)):
        return data
    name, version, sha256 = _WHEEL
    wheel = fetch_wheel(name, version, sha256, cache, on_progress, size_bytes=_WHEEL_BYTES)
    source = unpack_members(wheel, _PREFIX, cache / "demo" / f"ml-100k-source-{sha256[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(_items(source / "ml-100k.item"), data.items)
    _write(_users(source / "ml-100k.user"), data.users)
    _write(_events(source / "ml-100k.inter"), data.events)
    return data


def display_title(title: str, year: str) -> str:
    """A MovieLens title as people write it: the article in front, in each of its languages, and the year behind.

    "Usual Suspects, The" of 1995 becomes "The Usual Suspects (1995)". A title that is not known becomes empty.
    """
    if not year.isdigit():
        return ""
    head, bracket, rest = title.partition(" (")
    mended = _PARENTHESIS.sub(lambda match: f"({_article_first(match[1])})", bracket + rest)
    return f"{_article_first(head)}{mended} ({year})"


def _article_first(title: str) -> str:
    match = _MOVED_ARTICLE.match(title)
    if match is None:
        return title
    article = match["article"]
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{match['title']}"


def _items(path: Path) -> pa.Table:
    rows = list(_rows(path))
    years = [row["release_year"] for row in rows]
    return pa.table(
        {
            "item_id": [row["item_id"] for row in rows],
            "title": [display_title(row["movie_title"], year) for row, year in zip(rows, years, strict=True)],
            "categories": [[genre for genre in row["class"].split(" ") if genre != "unknown"] for row in rows],
            "attributes": [json.dumps({"release_year": int(year)}) if year.isdigit() else None for year in years],
        }
    )


def _users(path: Path) -> pa.Table:
    rows = list(_rows(path))
    attributes = [
        {"age": int(row["age"]), "gender": row["gender"], "occupation": row["occupation"]} for row in rows
    ]  # fmt: skip
    return pa.table({"user_id": [row["user_id"] for row in rows], "attributes": [json.dumps(a) for a in attributes]})


def _events(path: Path) -> pa.Table:
    rows = list(_rows(path))
    times = [datetime.fromtimestamp(int(row["timestamp"]), UTC) for row in rows]
    return pa.table(
        {
            "event_id": [f"ml-100k-{row['user_id']}-{row['item_id']}" for row in rows],
            "user_id": [row["user_id"] for row in rows],
            "item_id": [row["item_id"] for row in rows],
            "event_type": ["rating"] * len(rows),
            "occurred_at": pa.array(times, pa.timestamp("us", "UTC")),
            "value": [float(row["rating"]) for row in rows],
        }
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file whose header says ``name:type``."""
    with path.open(encoding="utf-8", newline="") as stream:
        lines = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [column.partition(":")[0] for column in next(lines)]
        for line in lines:
            yield dict(zip(names, line, strict=True))


def _write(rows: pa.Table, path: Path) -> None:
    partial = path.with_suffix(f".partial-{os.getpid()}")
    pq.write_table(rows, partial)
    partial.replace(path)
