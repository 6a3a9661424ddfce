"""Solves profiles of the serving version again for the users of a time range, or for named ones.

What for: a late import that must be served at once, or a corrected program. It knows nothing of the model's training.
"""

from collections.abc import Sequence
from datetime import date, datetime

from tasks.domain.errors import InputError, NotFoundError
from tasks.domain.ports import Resources, Warehouse
from tasks.domain.records import NearlineRun
from tasks.refresh import refresh, refresh_users
from warehouse.catalog import query_sql


def recompute_profiles(
    resources: Resources,
    *,
    now: datetime,
    version: str | None = None,
    user_ids: Sequence[str] = (),
    from_date: date | None = None,
    to_date: date | None = None,
) -> NearlineRun:
    """Catch up with the change feed, then solve these users again.

    Users are the named ones, or those with an event that occurred on a day (UTC) of the range, both ends included; an
    end that is left out is open, and without names and range it is everybody. Raises InputError for an empty range,
    for names together with a range, and for nobody; NotFoundError for unknown names or before a publication.
    """
    if user_ids and (from_date or to_date):
        raise InputError("A backfill was given users and dates. Give one of them: named users, or a range of days.")
    if from_date and to_date and to_date < from_date:
        raise InputError(f"A backfill was given the days {from_date} to {to_date}, which is no day. Swap the two.")
    refresh(resources, now=now, version=version)
    with resources.warehouse(read_only=True) as warehouse:
        found = _known(warehouse, user_ids) if user_ids else _active(warehouse, from_date, to_date)
    return refresh_users(resources, found, now=now, version=version)


def _known(warehouse: Warehouse, user_ids: Sequence[str]) -> list[str]:
    rows = warehouse.read(query_sql("users_with_events"), {"user_ids": list(user_ids)})
    found: list[str] = rows["user_id"].to_pylist()
    unknown = sorted(set(user_ids) - set(found))
    if unknown:
        raise NotFoundError(
            f"A backfill was asked for {len(unknown)} users of whom nothing is known, {unknown[0]!r} is the first. "
            'Those there are: nearline sql "from stg_users"'
        )
    return found


def _active(warehouse: Warehouse, from_date: date | None, to_date: date | None) -> list[str]:
    days = {"from_date": from_date or date.min, "to_date": to_date or date.max}
    found: list[str] = warehouse.read(query_sql("users_active_between"), days)["user_id"].to_pylist()
    if not found:
        raise InputError(
            f"A backfill was asked for the days {from_date or 'of the beginning'} to {to_date or 'now'}, on which "
            'nobody has an event. See the range: nearline sql "summarize raw_events"'
        )
    return found
