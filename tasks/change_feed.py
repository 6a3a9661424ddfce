"""Reads whom the commits since the last refresh concern.

Commits are counted, never clocks: every row carries the snapshot it came with, so that a late event is in the feed like
any other. It knows nothing of profiles or of the index.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.domain.errors import NotFoundError
from tasks.domain.ports import Warehouse
from tasks.model_state import load_raw_rows, load_version
from warehouse.catalog import query_sql

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feed:
    """Whose profiles are no longer true, those who wait longest first, and when their events arrived.

    ``changed_at`` are the snapshots of the last change of each user; ``arrived_at`` (n_events,) are seconds since 1970.
    ``note`` says what was out of the ordinary.
    """

    from_snapshot: int
    to_snapshot: int
    user_ids: tuple[str, ...]
    changed_at: tuple[int, ...] = ()
    arrived_at: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    note: str = ""


def read_feed(warehouse: Warehouse, version: str, *, with_moved: bool = True) -> Feed | None:
    """Whose profiles of ``version`` the commits since its watermark concern; None if nobody's.

    Those are the users whom new rows of ``raw_events`` and ``refresh_requests`` name, who wrote a text that was
    embedded since then (their profile could not hold it before), who told something of themselves, if the version
    knows attributes, and users of events of which a row was deleted. ``with_moved``: also those who are named in any
    other row of the same events, since a correction can move an event; that is a look at all of ``raw_events``, and
    ``load_rows`` finds them by the way. Raises NotFoundError if the version has no watermark.
    """
    after, to = read_watermark(warehouse, version), warehouse.latest_snapshot()
    found = _named(warehouse, version, after, to)
    changed_at = dict(zip(found["user_id"].to_pylist(), found["changed_at"].to_pylist(), strict=True))
    deleted, note = _deleted(warehouse, after, to)
    events = [deleted.select(["event_id"])] if deleted.num_rows else []
    if with_moved and changed_at:
        events.append(event_ids_of(warehouse, after, to))
    more = [*deleted["user_id"].to_pylist(), *_writers(warehouse, after, to)]
    if events:
        shadows = {"fed_events": pa.concat_tables(events)}
        more += warehouse.read(query_sql("touched_users"), shadows=shadows)["user_id"].to_pylist()
    changed_at |= dict.fromkeys(more, to)
    if not changed_at:
        return None
    arrived_at = found["arrived_at"].combine_chunks().flatten().to_numpy()
    return Feed(after, to, tuple(changed_at), tuple(changed_at.values()), arrived_at, note)


def without_settled(warehouse: Warehouse, version: str, feed: Feed) -> Feed:
    """The feed without the users whose new profiles a refresh had committed before it was interrupted."""
    rows = pa.table({"user_id": feed.user_ids, "changed_at": feed.changed_at})
    found = warehouse.read(query_sql("settled_users"), {"version": version}, {"fed_users": rows})
    settled = set(found["user_id"].to_pylist())
    left = [(user, at) for user, at in zip(feed.user_ids, feed.changed_at, strict=True) if user not in settled]
    user_ids, changed_at = zip(*left, strict=True) if left else ((), ())
    return replace(feed, user_ids=user_ids, changed_at=changed_at)


def load_rows(past: Warehouse, feed: Feed, user_ids: Sequence[str]) -> tuple[dict[str, pa.Table], list[str]]:
    """Received rows as ``load_raw_rows`` gives them, and the users that they are for.

    Those to whom or from whom the feed moved an event come along, and theirs in turn. Somebody of whom nothing is left
    (an erasure) is not among them.
    """
    wanted = list(user_ids)
    while True:
        raw = load_raw_rows(past, wanted)
        moved = _moved_users(past, feed, raw["raw_events"], wanted)
        if not moved:
            break
        wanted += moved
    known = {user for table in raw.values() for user in pc.unique(table["user_id"]).to_pylist()}
    return raw, [user for user in wanted if user in known]


def event_ids_of(warehouse: Warehouse, after: int, to: int) -> pa.Table:
    """Events that a row came to by the commits ``after < s <= to``: one column, ``event_id``."""
    return warehouse.read(query_sql("fed_event_ids"), {"after": after, "to": to})


def read_watermark(warehouse: Warehouse, version: str) -> int:
    """The snapshot up to which events are in the profiles of ``version``. Raises NotFoundError if it has none."""
    rows = warehouse.read(query_sql("watermark"), {"version": version})
    if rows.num_rows == 0:
        raise NotFoundError(
            f"Version {version!r} was to be refreshed, but it has no watermark: its training has not finished."
            " Name a version that was published, or run `nearline run daily_batch`."
        )
    return int(rows["snapshot"][0].as_py())


def _moved_users(past: Warehouse, feed: Feed, events: pa.Table, wanted: Sequence[str]) -> list[str]:
    """Users of ``events`` that are not wanted yet, and share one with these to which the feed added a row."""
    others = events.filter(pc.invert(pc.is_in(events["user_id"], value_set=pa.array(wanted, pa.string()))))
    if others.num_rows == 0:
        return []
    fed = event_ids_of(past, feed.from_snapshot, feed.to_snapshot)["event_id"].combine_chunks()
    moved: list[str] = pc.unique(others.filter(pc.is_in(others["event_id"], value_set=fed))["user_id"]).to_pylist()
    return moved


def _named(warehouse: Warehouse, version: str, after: int, to: int) -> pa.Table:
    """Users by the new rows that name them; what they told of themselves counts if the version knows attributes."""
    found = warehouse.read(query_sql("fed_users"), {"after": after, "to": to})
    if pc.any(found["only_told"]).as_py() and load_version(warehouse, version).user_map is None:
        found = found.filter(pc.invert(found["only_told"]))
    return found


def _deleted(warehouse: Warehouse, after: int, to: int) -> tuple[pa.Table, str]:
    """Rows that were deleted from ``raw_events``, and a note if the snapshots that knew them have expired."""
    given = {"first": after + 1, "last": to}
    if to <= after:
        return pa.table({"event_id": pa.array([], pa.string()), "user_id": pa.array([], pa.string())}), ""
    try:
        return warehouse.read(query_sql("fed_deletions"), given), ""
    except NotFoundError:
        note = f"the change feed after snapshot {after} has expired: deleted events were not looked for"
        logger.warning("read_feed %s", note)
        return warehouse.read(query_sql("fed_deletions"), {"first": to, "last": to}).slice(0, 0), note


def _writers(warehouse: Warehouse, after: int, to: int) -> list[str]:
    texts = warehouse.read(query_sql("fed_texts"), {"after": after, "to": to})
    if texts.num_rows == 0:
        return []
    found = warehouse.read(query_sql("writers_of_texts"), shadows={"embedded_texts": texts})
    users: list[str] = found["user_id"].to_pylist()
    return users
