"""Publishes a model version whole, goes back to an earlier one, and makes the index again from the warehouse.

Readers follow the index's aliases, which move in one request; everything before that request leaves them on the old
version, and everything after it may be repeated. It knows nothing of how a version is trained or a user refreshed.
"""

import logging
import time
from datetime import datetime, timedelta

import pyarrow as pa

from tasks.domain.errors import NotFoundError, TerminalError
from tasks.domain.ports import Resources, Transaction, VectorIndex, Warehouse
from tasks.domain.projections import Projection
from tasks.domain.publication_gate import PublicationLimits, check_projection
from tasks.domain.publications import Publication, PublicationAction, has_gone_back, version_before
from tasks.domain.records import CheckResult, Receipt
from tasks.model_state import load_version
from tasks.projection import load_projection, load_shape_checks, verify_projection, write_projection
from warehouse.catalog import query_sql

logger = logging.getLogger(__name__)

GATE = "publish"


def publish_version(
    resources: Resources,
    version: str,
    *,
    now: datetime,
    run_id: str | None = None,
    limits: PublicationLimits | None = None,
) -> Receipt:
    """Write a trained version to the index, verify it, bring its users up to date and let it serve.

    The version that served stays, so that a rollback can go to it. A version that serves already is only brought up
    to date. ``run_id`` names the gate results; ``limits`` are those of the settings unless given. Raises GateError
    when the version must not serve, NotFoundError for an unknown version, TerminalError for a rejected one, and
    IndexUnavailableError.
    """
    began = time.perf_counter()
    reconcile(resources, now=now)
    run_id = run_id or f"publish-{version}-{now:%Y%m%dT%H%M%SZ}"
    with resources.index() as index:
        serving = index.serving_version()
        if serving == version:
            _catch_up(resources, version, now)
            n_points = sum(index.count(version))
            note = f"{version} serves already; its users are up to date."
            return _receipt("publish", version, n_points, n_points, began, note, reused=True)
        projection = _load_candidate(resources, version, serving, now, run_id, limits or _limits(resources))
        write_projection(index, projection)
        _record_checks(resources, verify_projection(index, projection), version, now, run_id)
        _switch(resources, index, version, "publish", now)
        n_items, n_users = index.count(version)
    before = f"{serving} stays: nearline rollback goes back to it" if serving else "it is the first one"
    note = f"{version} serves {n_items} items to {n_users} users; {before}."
    n_written = len(projection.items) + len(projection.users)
    return _receipt("publish", version, n_written, n_items + n_users, began, note)


def rollback(resources: Resources, version: str | None = None, *, now: datetime) -> Receipt:
    """Let an earlier version serve again: the named one, or the one before the serving one.

    Its collections are written anew from the warehouse where they are not whole, and its users are brought up to
    date before the switch. A switch to an earlier version that an ended run had made and not recorded is the one that
    is asked for, unless another version is named. Raises NotFoundError when there is no such version, or nothing to go
    back to.
    """
    began = time.perf_counter()
    settled = reconcile(resources, now=now)
    with resources.index() as index:
        serving = index.serving_version()
        with resources.warehouse(read_only=True) as warehouse:
            is_done = version is None and settled is not None and has_gone_back(load_history(warehouse))
            target = serving if is_done and serving else _rollback_target(warehouse, serving, version)
        if target == serving:
            _catch_up(resources, target, now)
            n_points = sum(index.count(target))
            return _receipt("rollback", target, n_points, n_points, began, f"{target} serves already.", reused=True)
        n_rows, written = _make_whole(resources, index, target)
        _switch(resources, index, target, "rollback", now)
        n_points = sum(index.count(target))
    how = "written anew from the warehouse" if written else "as it was published"
    note = f"{target} serves again, {how}, with its users up to date. {serving or 'Nothing'} served before."
    return _receipt("rollback", target, n_rows, n_points, began, note)


def rebuild_index(resources: Resources, *, now: datetime) -> Receipt:
    """Make the serving version's collections again from the warehouse, where they are lost or not whole.

    Works on an empty index. Raises NotFoundError when nothing has been published yet.
    """
    began = time.perf_counter()
    reconcile(resources, now=now)
    with resources.warehouse(read_only=True) as warehouse:
        history = load_history(warehouse)
    if not history:
        raise NotFoundError(
            "The index was to be made again, but nothing has been published yet. "
            "Publish a first version: nearline run daily_batch."
        )
    version = history[-1].version
    with resources.index() as index:
        served = index.serving_version() == version
        n_rows, written = _make_whole(resources, index, version)
        if served and not written:
            _catch_up(resources, version, now)
            note = f"The index holds all of {version} already; nothing was lost."
            return _receipt("rebuild", version, n_rows, n_rows, began, note, reused=True)
        _switch(resources, index, version, "rebuild", now)
        n_points = sum(index.count(version))
    note = f"{version} was made again from the warehouse and serves."
    return _receipt("rebuild", version, n_rows, n_points, began, note)


def reconcile(resources: Resources, *, now: datetime) -> Receipt | None:
    """Record a switch that was done but not recorded, because its process was killed in between.

    The aliases say what serves. Returns None when the record says the same, or when nothing serves.
    """
    began = time.perf_counter()
    with resources.index() as index:
        serving = index.serving_version()
        if serving is None:
            return None
        with resources.warehouse(read_only=True) as warehouse:
            history = load_history(warehouse)
            known = _states(warehouse)
        if (history and history[-1].version == serving) or serving not in known:
            if serving not in known:
                logger.warning("the serving version is unknown to the warehouse: version=%s", serving)
            return None
        _record(resources, index, serving, "reconcile", now)
        n_points = sum(index.count(serving))
    note = f"{serving} serves, and its publication was not recorded: an earlier run was ended in between."
    return _receipt("reconcile", serving, n_points, n_points, began, note)


def load_history(warehouse: Warehouse) -> list[Publication]:
    """All switches of the serving version, oldest first."""
    rows = warehouse.read(query_sql("publication_history")).to_pylist()
    return [Publication(**row) for row in rows]


def _load_candidate(
    resources: Resources, version: str, serving: str | None, now: datetime, run_id: str, limits: PublicationLimits
) -> Projection:
    """The version's vectors, after the part of the gate that needs no index."""
    with resources.warehouse(read_only=True) as warehouse, warehouse.at(warehouse.latest_snapshot()) as view:
        state = load_version(view, version).state
        if state == "rejected":
            raise TerminalError(
                f"Publishing {version} was refused: it was rejected before. The table gate_results says why. "
                "Train a new version: nearline run daily_batch."
            )
        shapes = load_shape_checks(view, version)
        if not _passed(shapes):
            _record_checks(resources, shapes, version, now, run_id)  # raises; such vectors cannot be loaded
        candidate = load_projection(view, version)
        current = load_projection(view, serving) if serving in _states(view) else None
        n_catalog = int(view.read(query_sql("available_items"))["n_items"][0].as_py())
    checks = [*shapes, *check_projection(candidate, n_catalog, current, limits)]
    _record_checks(resources, checks, version, now, run_id)
    return candidate


def _limits(resources: Resources) -> PublicationLimits:
    limits = resources.gate_limits
    return PublicationLimits(limits["min_text_coverage"], limits["max_catalog_drop"])


def _record_checks(resources: Resources, results: list[CheckResult], version: str, now: datetime, run_id: str) -> None:
    from tasks.quality import record_checks

    record_checks(resources, GATE, results, run_id=run_id, now=now, version=version)


def _make_whole(resources: Resources, index: VectorIndex, version: str) -> tuple[int, bool]:
    """Write a published version again if the index does not hold it whole. Returns its rows and whether it wrote."""
    with resources.warehouse(read_only=True) as warehouse, warehouse.at(warehouse.latest_snapshot()) as view:
        projection = load_projection(view, version)
    n_rows = len(projection.items) + len(projection.users)
    if len(projection.items) == 0:
        raise NotFoundError(
            f"Version {version} cannot be served: maintenance has removed its vectors from the warehouse. "
            "Versions that are kept: index.keep_versions (NEARLINE_INDEX__KEEP_VERSIONS). Train a new one: "
            "nearline run daily_batch."
        )
    if version in index.versions() and _passed(_verify_or_fail(index, projection)):
        return n_rows, False
    write_projection(index, projection)
    failed = [result for result in verify_projection(index, projection) if not result.passed]
    if failed:
        raise TerminalError(
            f"Version {version} was written to the index again, and still differs from the warehouse: "
            + "; ".join(f"it {r.expectation}: {r.observed}, allowed {r.allowed}" for r in failed)
            + ". Move the index away (the folder, or the collections on the server) and run nearline rebuild-index."
        )
    return n_rows, True


def _verify_or_fail(index: VectorIndex, projection: Projection) -> list[CheckResult] | None:
    """None where half of the collections is missing."""
    try:
        return verify_projection(index, projection)
    except (NotFoundError, TerminalError):
        return None


def _passed(results: list[CheckResult] | None) -> bool:
    return results is not None and all(result.passed for result in results)


def _switch(resources: Resources, index: VectorIndex, version: str, action: PublicationAction, now: datetime) -> None:
    """Catch up, switch, record, and catch up with what came in meanwhile."""
    _catch_up(resources, version, now)
    index.switch(version)
    _record(resources, index, version, action, now)
    logger.info("serving version switched: version=%s action=%s", version, action)
    _catch_up(resources, version, now)


def _catch_up(resources: Resources, version: str, now: datetime) -> None:
    """Items first: the profiles of those who met them want them."""
    from tasks.arrivals import bring_items
    from tasks.refresh import refresh

    bring_items(resources, now=now, version=version)
    refresh(resources, now=now, version=version)


def _record(resources: Resources, index: VectorIndex, version: str, action: PublicationAction, now: datetime) -> None:
    n_items, n_users = index.count(version)

    def work(transaction: Transaction) -> None:
        history = [Publication(**row) for row in transaction.read(query_sql("publication_history")).to_pylist()]
        last = history[-1] if history else None
        if action == "reconcile" and last is not None and last.version == version:
            return  # another process has recorded it meanwhile
        published_at = max(now, last.published_at + timedelta(microseconds=1)) if last else now
        row = {
            "publication_id": f"{published_at:%Y%m%dT%H%M%S.%fZ}-{action}-{version}",
            "version": version,
            "previous_version": last.version if last else None,
            "action": action,
            "n_items": n_items,
            "n_users": n_users,
            "snapshot": _watermark(transaction, version),
            "published_at": published_at,
        }
        transaction.append("publications", pa.Table.from_pylist([row]))
        transaction.execute(query_sql("mark_published"), {"version": version})

    with resources.warehouse() as warehouse:
        warehouse.commit(work)


def _watermark(transaction: Transaction, version: str) -> int:
    rows = transaction.read(query_sql("watermark"), {"version": version}).to_pylist()
    if not rows:
        raise NotFoundError(f"Version {version} has no watermark: its training did not finish. Train a new version.")
    return int(rows[0]["snapshot"])


def _rollback_target(warehouse: Warehouse, serving: str | None, version: str | None) -> str:
    published = [name for name, state in _states(warehouse).items() if state == "published"]
    if version is None:
        before = version_before(load_history(warehouse), serving) if serving else None
        if before is None:
            raise NotFoundError(
                f"There is nothing to go back to: no version served before {serving or 'now'}. "
                f"Published versions: {', '.join(published) or 'none'}."
            )
        return before
    if version not in published:
        raise NotFoundError(
            f"Going back to {version!r} is not possible: it is not a published version. Published versions, oldest "
            f"first: {', '.join(published) or 'none'}."
        )
    return version


def _states(warehouse: Warehouse) -> dict[str, str]:
    rows = warehouse.read(query_sql("model_version_states")).to_pylist()
    return {row["version"]: row["state"] for row in rows}


def _receipt(
    stage: str, version: str, n_in: int, n_out: int, began: float, note: str, *, reused: bool = False
) -> Receipt:
    return Receipt(
        stage=stage,
        n_in=n_in,
        n_out=n_out,
        location=f"items__{version}, users__{version}",
        seconds=time.perf_counter() - began,
        version=version,
        reused=reused,
        note=note,
    )
