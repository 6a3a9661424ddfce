"""The warehouse port on a DuckLake in a temporary folder."""

import functools
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import ducklake_warehouse
from infra.ducklake_storage import LakeStorage
from infra.ducklake_warehouse import open_warehouse
from infra.lake_catalogs import lake_catalog
from infra.settings import WarehouseSettings
from tasks.domain.errors import InputError, MigrationNeededError, NotFoundError, TerminalError, WarehouseBusyError
from warehouse.catalog import contracts

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STRANGE_IDS = ["a/b", 'say "hi"', "it's; drop table stg_items --", "two  spaces ", "电影/1", "007", "é%_\\"]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.server)])
def database(request):
    """What holds the catalog: a file in the warehouse's folder (None), or a database of this server."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres")


@pytest.fixture
def new_folder(tmp_path):
    return tmp_path / "new" / "warehouse"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a warehouse the first time that it is asked for one: ``made_once(None)`` or ``made_once(server)``."""

    @functools.cache
    def make(server):
        folder = tmp_path_factory.mktemp("made") / "warehouse"
        name = server and server.new_database()
        with open_warehouse(folder, settings_for(server, name)):
            pass
        if server:
            server.let_go(name)
        return folder, name

    return make


def settings_for(server, name, **changed):
    url = server and server.url(name)
    return WarehouseSettings(**{"busy_timeout_seconds": 20, "catalog_url": url, **changed})


@pytest.fixture
def settings(request, database, made_once, tmp_path):
    """Those of an empty place, or of a copy of a warehouse without rows for a test that asks for its ``folder``."""
    if database is None:
        return settings_for(None, None)
    if "folder" not in request.fixturenames:
        return settings_for(database, database.new_database())
    _, template = made_once(database)
    moved = f"update ducklake_metadata set value = '{tmp_path}/warehouse/data/' where key = 'data_path'"  # noqa: S608
    return settings_for(database, database.new_database(template, moved))


@pytest.fixture
def folder(made_once, settings, database, tmp_path):
    """The folder of a warehouse without rows."""
    made, _ = made_once(database)
    return Path(shutil.copytree(made, tmp_path / "warehouse"))


@pytest.fixture
def warehouse(folder, settings):
    with open_warehouse(folder, settings) as opened:
        yield opened


def marks(*pairs):
    """Rows of ``watermarks``: a small table with a key, a number and a time."""
    return pa.table(
        {
            "version": pa.array([version for version, _ in pairs], pa.string()),
            "snapshot": pa.array([snapshot for _, snapshot in pairs], pa.int64()),
            "updated_at": pa.array([NOW] * len(pairs), pa.timestamp("us", "UTC")),
        }
    )


def append(warehouse, *pairs):
    warehouse.commit(lambda transaction: transaction.append("watermarks", marks(*pairs)))
    return warehouse.latest_snapshot()


def stored(warehouse):
    rows = warehouse.read("select version, snapshot from watermarks order by version, snapshot").to_pylist()
    return [(row["version"], row["snapshot"]) for row in rows]


# opening


def test_first_opening_makes_every_table_with_its_columns_and_comments(new_folder, settings):
    with open_warehouse(new_folder, settings) as warehouse:
        check_tables(warehouse)


def check_tables(warehouse):
    rows = warehouse.read(
        "select table_name, column_name, data_type, is_nullable, comment from duckdb_columns()"
        " where database_name = 'lake'"
    ).to_pylist()
    seen = {(row["table_name"], row["column_name"]): row for row in rows}
    expected = {(table, column.name): column for table, c in contracts().items() for column in c.columns}
    assert seen.keys() == expected.keys()
    for key, column in expected.items():
        row = seen[key]
        wanted = column.type.replace("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE")
        assert (row["data_type"], row["is_nullable"]) == (wanted, not column.required), key
        assert row["comment"] == column.description
    tables = warehouse.read("select table_name, comment from duckdb_tables() where database_name = 'lake'").to_pylist()
    assert all(contracts()[row["table_name"]].grain in row["comment"] for row in tables)


@pytest.mark.parametrize("read_only", [True, False])
def test_opening_again_changes_nothing(new_folder, settings, read_only):
    with open_warehouse(new_folder, settings, read_only=read_only) as first:
        before = first.latest_snapshot()
    with open_warehouse(new_folder, settings, read_only=read_only) as second:
        assert second.latest_snapshot() == before


def test_missing_columns_and_tables_are_added_when_that_is_asked(folder, settings):
    with open_warehouse(folder, settings) as warehouse:
        append(warehouse, ("v1", 1))
        warehouse.commit(lambda transaction: transaction.execute("alter table watermarks drop column updated_at"))
        warehouse.commit(lambda transaction: transaction.execute("drop table publications"))
    lacks = r"lacks the tables publications and the columns watermarks\.updated_at.*nearline migrate"
    with pytest.raises(MigrationNeededError, match=lacks), open_warehouse(folder, settings):
        pass
    assert LakeStorage(folder, settings).migrate(lambda: None)
    with open_warehouse(folder, settings, read_only=True) as warehouse:
        assert warehouse.read("select version, updated_at from watermarks").to_pylist() == [
            {"version": "v1", "updated_at": None}
        ]
        assert warehouse.read("select * from publications").num_rows == 0


def test_a_newer_layout_is_refused(folder, settings):
    with open_warehouse(folder, settings) as warehouse:
        row = pa.table({"layout": [99], "applied_at": [NOW]})
        warehouse.commit(lambda transaction: transaction.append("layouts", row))
    with pytest.raises(TerminalError, match=r"layout 99.*newer Nearline"), open_warehouse(folder, settings):
        pass


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_unfinished_creation_is_begun_again(new_folder, settings):
    new_folder.mkdir(parents=True)
    (new_folder / "catalog.unfinished.sqlite").write_bytes(b"half")
    (new_folder / "catalog.unfinished.sqlite-wal").write_bytes(b"half")
    with open_warehouse(new_folder, settings) as warehouse:
        assert append(warehouse, ("v1", 1)) > 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_moved_folder_still_opens(folder, settings, tmp_path):
    with open_warehouse(folder, settings) as warehouse:
        append(warehouse, *((f"v{n}", n) for n in range(600)))  # enough rows for a Parquet file
    assert list((folder / "data").rglob("*.parquet"))
    shutil.move(folder, tmp_path / "it's moved")
    with open_warehouse(tmp_path / "it's moved", settings) as warehouse:
        assert len(stored(warehouse)) == 600


def options(warehouse):
    rows = warehouse.read("select option_name, value, scope_entry from ducklake_options('lake')").to_pylist()
    return {(row["option_name"], row["scope_entry"]): row["value"] for row in rows}


def test_rows_are_stored_as_was_measured_to_be_fast_in_older_lakes_too(folder, settings):
    with open_warehouse(folder, settings) as warehouse:
        chosen = options(warehouse)
        tables = {entry.rpartition(".")[2] for name, entry in chosen if name == "data_inlining_row_limit" and entry}
        assert (chosen["parquet_version", None], chosen["parquet_compression", None]) == ("V2", "uncompressed")
        assert {"user_profiles", "item_factors", "text_embeddings"} <= tables
        assert not {"raw_events", "quarantine", "watermarks"} & tables
        warehouse.commit(lambda transaction: transaction.execute("delete from layouts"))
        warehouse.commit(lambda transaction: transaction.execute("call lake.set_option('parquet_version', '1')"))
    LakeStorage(folder, settings).migrate(lambda: None)
    with open_warehouse(folder, settings, read_only=True) as warehouse:
        assert options(warehouse) == chosen


def test_a_row_carries_the_snapshot_it_came_with_through_merging_and_expiry(warehouse):
    """What the refresh reads as its change feed."""
    first = append(warehouse, *((f"v{n}", n) for n in range(600)))
    second = append(warehouse, ("w", 1))
    third = append(warehouse, *((f"x{n}", n) for n in range(600)))
    for _ in range(2):
        warehouse.maintain(keep_from=None, keep=(), older_than=datetime(2100, 1, 1, tzinfo=UTC), unused_since=NOW)
        append(warehouse, ("later", 1))
    with pytest.raises(NotFoundError), warehouse.at(second):
        pass
    rows = warehouse.read("select snapshot_id, count(*) as n from watermarks group by all order by all").to_pylist()
    assert [(row["snapshot_id"], row["n"]) for row in rows][:3] == [(first, 600), (second, 1), (third, 600)]
    assert len(rows) == 5


def test_settings_of_the_session_are_sane(warehouse):
    row = warehouse.read(
        "select current_setting('TimeZone') as zone, current_setting('autoinstall_known_extensions') as install,"
        " current_setting('autoload_known_extensions') as load, current_setting('enable_progress_bar') as bar,"
        " current_setting('preserve_insertion_order') as ordered"
    ).to_pylist()[0]
    assert row == {"zone": "UTC", "install": False, "load": False, "bar": False, "ordered": False}


# reading


def test_read_binds_parameters_and_never_pastes_them(warehouse):
    for strange in STRANGE_IDS:
        assert warehouse.read("select $id as id", {"id": strange}).to_pylist() == [{"id": strange}]
    assert "stg_items" in {row["table_name"] for row in warehouse.read("from duckdb_tables()").to_pylist()}


def test_shadows_win_over_tables_and_are_gone_afterwards(warehouse):
    append(warehouse, ("stored", 1))
    sql = "select version from watermarks"
    shadows = {"watermarks": marks(("shadow", 1)), "not_a_table": marks(("other", 2))}
    assert warehouse.read(sql, shadows=shadows)["version"].to_pylist() == ["shadow"]
    assert warehouse.read("select version from not_a_table", shadows=shadows)["version"].to_pylist() == ["other"]
    assert warehouse.read(sql)["version"].to_pylist() == ["stored"]
    with warehouse.at(warehouse.latest_snapshot()) as past:
        assert past.read(sql, shadows=shadows)["version"].to_pylist() == ["shadow"]


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("select * from no_such_table", NotFoundError),
        ("selec 1", InputError),
        ("select no_such_column from watermarks", InputError),
        ("select cast('x' as integer)", InputError),
    ],
)
def test_errors_of_the_engine_become_ours(warehouse, sql, error):
    with pytest.raises(error):
        warehouse.read(sql)


def test_threads_share_one_opening(warehouse):
    append(warehouse, ("v1", 1))

    def work(number):
        shadow = {"numbers": pa.table({"n": [number]})}
        return warehouse.read("select n + count(*) as n from numbers, watermarks group by n", shadows=shadow)

    with ThreadPoolExecutor(4) as pool:
        results = [table["n"][0].as_py() for table in pool.map(work, range(40))]
    assert results == [number + 1 for number in range(40)]


def test_what_is_read_together_is_of_one_snapshot(warehouse, monkeypatch):
    before = append(warehouse, ("v1", 1))
    fetch = ducklake_warehouse._fetch

    def fetch_and_append(cursor, sql, parameters):
        found = fetch(cursor, sql, parameters)
        with monkeypatch.context() as patch:
            patch.setattr(ducklake_warehouse, "_fetch", fetch)
            assert append(warehouse, ("later", 1)) > before
        return found

    monkeypatch.setattr(ducklake_warehouse, "_fetch", fetch_and_append)
    sqls = ["select version from watermarks", "select version from watermarks, shadow"]
    snapshot, tables = warehouse.read_together(sqls, {"shadow": pa.table({"n": [1]})})
    assert snapshot == before
    assert [table["version"].to_pylist() for table in tables] == [["v1"], ["v1"]]


# writing


def test_append_goes_by_name_and_leaves_the_rest_null(warehouse):
    rows = pa.table({"occurred_at": [NOW], "event_id": ["e"], "user_id": ["u"], "event_type": ["view"]})
    stamp = {"batch_id": ["b"], "source": ["s"], "source_row": [1], "ingested_at": [NOW]}
    rows = pa.table({**{name: rows[name] for name in rows.column_names}, **stamp})
    assert warehouse.commit(lambda transaction: transaction.append("raw_events", rows)) == 1
    row = warehouse.read("select * from raw_events").to_pylist()[0]
    assert (row["event_id"], row["item_id"], row["value"], row["occurred_at"]) == ("e", None, None, NOW)


def test_what_the_contract_does_not_allow_is_refused_whole(warehouse):
    bad = marks(("v1", 1)).set_column(1, "snapshot", pa.array([None], pa.int64()))
    cases = [
        ("watermarks", bad, InputError, "snapshot"),
        ("watermarks", marks(("v1", 1)).append_column("extra", pa.array([1])), InputError, "extra"),
        ("no_such_table", marks(("v1", 1)), NotFoundError, "no_such_table"),
    ]
    for table, rows, error, word in cases:

        def work(transaction, table=table, rows=rows):
            transaction.append("watermarks", marks(("good", 1)))
            transaction.append(table, rows)

        with pytest.raises(error, match=word):
            warehouse.commit(work)
    assert stored(warehouse) == []


def test_a_commit_holds_everything_or_nothing(warehouse):
    def work(transaction):
        transaction.append("watermarks", marks(("v1", 1)))
        transaction.append("layouts", pa.table({"layout": [7], "applied_at": [NOW]}))
        assert transaction.read("select version from watermarks")["version"].to_pylist() == ["v1"]
        raise RuntimeError("killed")

    before = warehouse.latest_snapshot()
    with pytest.raises(RuntimeError, match="killed"):
        warehouse.commit(work)
    assert warehouse.latest_snapshot() == before
    assert stored(warehouse) == []
    assert warehouse.read("select layout from layouts where layout = 7").num_rows == 0


def test_replace_deletes_what_where_names(warehouse):
    append(warehouse, *((name, n) for n, name in enumerate(STRANGE_IDS)))

    def replace(rows, where):
        return warehouse.commit(lambda transaction: transaction.replace("watermarks", rows, where))

    assert replace(marks((STRANGE_IDS[0], 100)), {"version": STRANGE_IDS[0]}) == 1
    assert dict(stored(warehouse))[STRANGE_IDS[0]] == 100
    replace(marks(), {"version": tuple(STRANGE_IDS[1:3]), "snapshot": [1, 99]})
    assert dict(stored(warehouse)).keys() == set(STRANGE_IDS) - {STRANGE_IDS[1]}
    replace(marks(), {"version": []})
    assert len(stored(warehouse)) == len(STRANGE_IDS) - 1
    replace(marks(("only", 1)), None)
    assert stored(warehouse) == [("only", 1)]
    with pytest.raises(InputError, match="no_column"):
        replace(marks(), {"no_column": 1})


def test_replace_where_null(warehouse):
    rows = {"publication_id": ["a", "b"], "version": ["v1", "v2"], "previous_version": [None, "v1"]}
    rest = {"action": ["publish"] * 2, "n_items": [1] * 2, "n_users": [1] * 2, "snapshot": [1] * 2}
    table = pa.table({**rows, **rest, "published_at": [NOW] * 2})
    warehouse.commit(lambda transaction: transaction.append("publications", table))
    none = table.slice(0, 0)
    warehouse.commit(lambda transaction: transaction.replace("publications", none, {"previous_version": None}))
    assert warehouse.read("select publication_id from publications")["publication_id"].to_pylist() == ["b"]


def test_vectors_come_back_bit_for_bit(warehouse):
    vectors = np.random.default_rng(0).normal(size=(50, 384)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 384)
    ids = [f"h{n:02}" for n in range(50)]
    rows = pa.table({"content_hash": ids, "encoder_id": ["e"] * 50, "embedding": lists, "embedded_at": [NOW] * 50})
    warehouse.commit(lambda transaction: transaction.append("text_embeddings", rows))
    seen = warehouse.read("select embedding from text_embeddings order by content_hash")["embedding"]
    assert np.array_equal(np.array(seen.to_pylist(), np.float32), vectors)


def test_a_read_only_warehouse_cannot_be_written(folder, settings):
    with (
        open_warehouse(folder, settings, read_only=True) as warehouse,
        pytest.raises(TerminalError, match="read_only"),
    ):
        append(warehouse, ("v1", 1))


def test_a_commit_in_a_commit_is_refused_at_once(warehouse):
    with pytest.raises(TerminalError, match="inside a commit"):
        warehouse.commit(lambda _: warehouse.commit(lambda transaction: None))
    append(warehouse, ("v1", 1))
    assert stored(warehouse) == [("v1", 1)]


# Parquet files of workers


@pytest.fixture
def parquet(tmp_path):
    rows = {"content_hash": ["a", "b"], "encoder_id": ["e", "e"]}
    lists = pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float32()))
    stamp = pa.array([NOW, NOW], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({**rows, "embedding": lists, "embedded_at": stamp}), tmp_path / "part.parquet")
    return tmp_path / "part.parquet"


def test_registered_files_belong_to_the_warehouse(warehouse, parquet):
    assert warehouse.commit(lambda transaction: transaction.register_parquet("text_embeddings", [parquet])) == 2
    parquet.unlink()
    rows = warehouse.read("select content_hash, embedding from text_embeddings order by content_hash").to_pylist()
    assert rows == [{"content_hash": "a", "embedding": [1, 0]}, {"content_hash": "b", "embedding": [0, 1]}]


def test_a_failed_commit_leaves_no_registered_file(warehouse, folder, parquet):
    def work(transaction):
        transaction.register_parquet("text_embeddings", [parquet])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        warehouse.commit(work)
    assert parquet.exists()
    assert list((folder / "data").rglob("adopted-*")) == []
    assert warehouse.read("select * from text_embeddings").num_rows == 0


def test_files_of_another_shape_are_refused(warehouse, parquet, tmp_path):
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")
    for path in (tmp_path / "other.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(InputError):
            warehouse.commit(lambda t, path=path: t.register_parquet("text_embeddings", [path]))


# snapshots and the change feed


def test_at_shows_every_table_as_it_was(warehouse):
    first = append(warehouse, ("v1", 1))
    append(warehouse, ("v2", 2))
    warehouse.commit(lambda transaction: transaction.replace("watermarks", marks(), {"version": "v1"}))
    with warehouse.at(first) as past:
        assert stored(past) == [("v1", 1)]
        assert past.latest_snapshot() == first
        with pytest.raises(TerminalError):
            append(past, ("v3", 3))
    assert stored(warehouse) == [("v2", 2)]


def test_at_an_unknown_snapshot(warehouse):
    with pytest.raises(NotFoundError, match="expired or was not made yet"), warehouse.at(10_000):
        pass


def test_insertions_are_exactly_those_of_the_range(warehouse):
    start = warehouse.latest_snapshot()
    snapshots = [append(warehouse, (f"v{n}", n), (f"w{n}", n)) for n in range(5)]

    def feed(after, to):
        return sorted(warehouse.insertions("watermarks", after, to)["version"].to_pylist())

    assert feed(start, snapshots[-1]) == sorted(f"{letter}{n}" for n in range(5) for letter in "vw")
    assert feed(snapshots[0], snapshots[2]) == ["v1", "v2", "w1", "w2"]
    assert feed(snapshots[2], snapshots[2]) == []
    assert warehouse.insertions("watermarks", snapshots[2], snapshots[2]).column_names == [
        column.name for column in contracts()["watermarks"].columns
    ]
    with pytest.raises(NotFoundError):
        feed(snapshots[2], snapshots[-1] + 5)
    with pytest.raises(NotFoundError, match="no_such_table"):
        warehouse.insertions("no_such_table", start, snapshots[-1])


def test_insertions_stay_exact_through_flushing_and_merging_and_say_so_when_they_expired(warehouse):
    start = warehouse.latest_snapshot()
    snapshots = [append(warehouse, *((f"v{n}-{m}", n) for m in range(40))) for n in range(4)]
    before = warehouse.insertions("watermarks", snapshots[0], snapshots[2]).num_rows
    last = warehouse.latest_snapshot()
    much_later = datetime(2100, 1, 1, tzinfo=UTC)
    warehouse.maintain(keep_from=start, keep=(), older_than=much_later, unused_since=NOW)
    assert warehouse.latest_snapshot() >= last
    assert warehouse.insertions("watermarks", snapshots[0], snapshots[2]).num_rows == before == 80
    append(warehouse, ("new", 1))
    warehouse.maintain(keep_from=None, keep=(), older_than=much_later, unused_since=NOW)
    with pytest.raises(NotFoundError, match="nearline run daily_batch"):
        warehouse.insertions("watermarks", start, snapshots[2])
    with pytest.raises(NotFoundError), warehouse.at(snapshots[0]):
        pass


# other writers


def test_a_lock_that_stays_taken(folder, settings):
    quick = settings.model_copy(update={"busy_timeout_seconds": 0.2})
    with open_warehouse(folder, quick) as warehouse, lake_catalog(folder, quick).lock("write", 1):
        with pytest.raises(WarehouseBusyError, match="NEARLINE_WAREHOUSE__BUSY_TIMEOUT_SECONDS"):
            append(warehouse, ("v1", 1))
        assert stored(warehouse) == []


HOLDER = """
import sqlite3, sys
catalog = sqlite3.connect(sys.argv[1], isolation_level=None)
catalog.execute("begin immediate")
print("held", flush=True)
sys.stdin.readline()
catalog.execute("commit")
"""


@pytest.fixture
def catalog_holder(folder, settings):
    """Another program that writes the catalog and does not know of our lock, such as an analyst's; ends on a line."""
    with (
        open_warehouse(folder, settings),
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder / "catalog.sqlite")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.communicate("\n")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_catalog_that_another_program_writes_is_waited_for(folder, settings, catalog_holder):
    timer = threading.Timer(0.5, catalog_holder.communicate, ["\n"])
    with open_warehouse(folder, settings) as warehouse:
        timer.start()
        began = time.monotonic()
        append(warehouse, ("v1", 1))
        assert time.monotonic() - began > 0.3
        assert stored(warehouse) == [("v1", 1)]
    timer.join()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_catalog_that_stays_locked(folder, settings, catalog_holder):
    quick = settings.model_copy(update={"busy_timeout_seconds": 0.3})
    with open_warehouse(folder, quick) as warehouse:
        with pytest.raises(WarehouseBusyError, match=r"within 0\.3 s"):
            append(warehouse, ("v1", 1))
        assert stored(warehouse) == []
        catalog_holder.communicate("\n")
        append(warehouse, ("v1", 1))
        assert stored(warehouse) == [("v1", 1)]
