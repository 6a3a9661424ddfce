"""Gives out what is stored of one person. It knows nothing of where it is written."""

from typing import Any

from tasks.domain.errors import InputError
from tasks.domain.ports import Resources
from tasks.erase import QUARANTINE, tables_of_users
from warehouse.catalog import query_sql


def export_user(resources: Resources, user_id: str) -> dict[str, list[dict[str, Any]]]:
    """Rows that name the user, by table, in the columns of the contracts; refused rows that tell of them; and their
    points in the vector index, by version. Tables without any are left out. Raises InputError for an empty id.
    """
    if not user_id.strip():
        raise InputError("A user was to be exported, and the id is empty. Name one by the id that your events have.")
    who = {"user_id": user_id}
    found: dict[str, list[dict[str, Any]]] = {}
    with resources.index() as index, resources.warehouse(read_only=True) as warehouse:
        for table in tables_of_users():
            found[table] = warehouse.read(f'from "{table}" where user_id = $user_id', who).to_pylist()
        found[QUARANTINE] = warehouse.read(query_sql("refused_rows_of_person"), who).to_pylist()
        for version in index.versions():
            points = index.users(version, [user_id])
            found[f"vector index, {version}"] = [
                {"payload": payload.__dict__, "vector": vector.tolist()} for payload, vector in points.values()
            ]
    return {place: rows for place, rows in found.items() if rows}
