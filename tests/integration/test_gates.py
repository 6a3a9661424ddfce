"""Every gate of the contracts, on Great Expectations: healthy data passes, and each kind of bad data is stopped."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.domain.errors import GateError
from tasks.ingest import import_files
from tasks.quality import check_gate
from tasks.transform import build_models
from warehouse.catalog import contract

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
VERSION = "v1"
N_ITEMS, N_USERS = 8, 5


@pytest.fixture(scope="module")
def healthy(empty_warehouse, tmp_path_factory):
    """A warehouse with items, events, embeddings, one model version and its slates, all as they should be."""
    home = tmp_path_factory.mktemp("healthy")
    shutil.copytree(empty_warehouse, home / "warehouse")
    resources = LocalResources(load_settings(home=home))
    (home / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Title {n}\n" for n in range(N_ITEMS)))
    import_files(resources, "items", [home / "items.csv"], now=NOW)
    likes = [f"u{u},i{(u + k) % N_ITEMS},like,{NOW:%Y-%m-%d}\n" for u in range(N_USERS) for k in range(3)]
    (home / "events.csv").write_text("user_id,item_id,event_type,occurred_at\n" + "".join(likes))
    import_files(resources, "events", [home / "events.csv"], now=NOW)
    build_models(resources, now=NOW)
    with resources.warehouse() as warehouse:
        hashes = warehouse.read("select content_hash from int_item_texts order by item_id")["content_hash"].to_pylist()
        warehouse.commit(lambda transaction: write_version(transaction, hashes))
    return home


def write_version(transaction, hashes):
    unit = pa.array([[0.6, 0.8]] * N_ITEMS, pa.list_(pa.float32()))
    embedding = {
        "content_hash": hashes,
        "encoder_id": ["e"] * N_ITEMS,
        "embedding": unit,
        "embedded_at": [NOW] * N_ITEMS,
    }
    transaction.append("item_embeddings", pa.table({**embedding, "template_version": ["v1"] * N_ITEMS}))
    transaction.append("text_embeddings", pa.table(embedding).slice(0, 1))
    model = {
        "version": VERSION, "state": "candidate", "created_at": NOW, "encoder_id": "e", "template_version": "v1",
        "text_width": 2, "n_factors": 3, "training_snapshot": 1, "inputs_hash": "h", "seed": 0, "n_items": N_ITEMS,
        "n_users": N_USERS, "recipe": "{}", "fusion": "{}", "metrics": "{}",
    }  # fmt: skip
    transaction.append("model_versions", pa.Table.from_pylist([model]))

    def factors(n):
        return pa.array(np.random.default_rng(n).normal(size=(n, 3)).tolist(), pa.list_(pa.float32()))

    items = {"version": [VERSION] * N_ITEMS, "item_id": [f"i{n}" for n in range(N_ITEMS)], "content_hash": hashes}
    rest = {"factors": factors(N_ITEMS), "prior": [0.1] * N_ITEMS, "n_interactions": [1] * N_ITEMS}
    transaction.append("item_factors", pa.table({**items, **rest}))
    near = {"rank": [1] * N_ITEMS, "neighbour_id": [f"i{(n + 1) % N_ITEMS}" for n in range(N_ITEMS)]}
    strengths = {"strength": [0.5] * N_ITEMS, "n_shared": [2] * N_ITEMS}
    of_items = {"version": items["version"], "item_id": items["item_id"]}
    transaction.append("item_neighbours", pa.table({**of_items, **near, **strengths}))
    users = {"version": [VERSION] * N_USERS, "user_id": [f"u{n}" for n in range(N_USERS)], "factors": factors(N_USERS)}
    transaction.append("user_factors", pa.table(users))
    profile = {
        "text_embedding": pa.array([[1.0, 0.0]] * N_USERS, pa.list_(pa.float32())), "n_history": [3] * N_USERS,
        "alpha": [0.5] * N_USERS, "beta": [0.1] * N_USERS, "drift": [0.2] * N_USERS, "as_of_snapshot": [1] * N_USERS,
        "refreshed_at": [NOW] * N_USERS,
    }  # fmt: skip
    transaction.append("user_profiles", pa.table({**users, **profile}))
    slates = [
        {
            "version": VERSION, "user_id": f"u{user}", "rank": rank, "item_id": f"i{rank}", "score": 0.6,
            "text_part": 0.1, "factors_part": 0.2, "prior_part": 0.3, "reason": "[]", "source": "profile",
            "created_at": NOW,
        }
        for user in range(N_USERS)
        for rank in (1, 2)
    ]  # fmt: skip
    transaction.append("mart_recommendations", pa.Table.from_pylist(slates))


@pytest.fixture
def resources(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / "var")
    return LocalResources(load_settings(home=tmp_path / "var"))


def check(resources, gate):
    return check_gate(resources, gate, run_id="run", now=NOW, version=VERSION)


def run_sql(resources, *statements):
    def work(transaction):
        for statement in statements:
            transaction.execute(statement)

    with resources.warehouse() as warehouse:
        warehouse.commit(work)


@pytest.mark.parametrize("gate", ["ingest", "transform", "embed", "train", "slates"])
def test_healthy_data_passes(resources, gate):
    results = check(resources, gate)
    assert [result for result in results if not result.passed] == []
    assert len(results) >= 10


# What goes wrong at a gate, and the checks that must stop it: table, column, a part of the expectation.
BAD = {
    ("ingest", "nothing was imported"): {
        "delete from raw_items": ("raw_items", None, "row_count"),
        "delete from raw_events": ("raw_events", None, "row_count"),
    },
    ("ingest", "a row twice"): {
        "insert into raw_events select * from raw_events limit 1": (
            "raw_events",
            "event_id, batch_id, source_row",
            "unique",
        ),
    },
    ("transform", "nothing is left"): {
        "delete from stg_items": ("stg_items", None, "row_count"),
        "delete from stg_events": ("stg_events", None, "row_count"),
        "delete from fct_interactions": ("fct_interactions", None, "row_count"),
    },
    ("transform", "wrong rows"): {
        "insert into stg_items select * from stg_items limit 1": ("stg_items", "item_id", "unique"),
        "insert into stg_events select * from stg_events limit 1": ("stg_events", "event_id", "unique"),
        "insert into fct_interactions select * from fct_interactions where item_id = 'i3' limit 1": (
            "fct_interactions",
            "user_id, item_id",
            "unique",
        ),
        "update fct_interactions set weight = 'nan' where item_id = 'i1'": (
            "fct_interactions",
            "weight",
            "not_be_null",
        ),
        "update fct_interactions set weight = 'inf' where item_id = 'i2'": ("fct_interactions", "weight", "between"),
        "delete from stg_users where user_id = 'u1'": ("fct_interactions", "n_unknown", "between"),
        "insert into builds select timestamptz '2020-01-01', table_name, n_rows * 10, 'h' from builds": (
            "stg_items",
            "lost_share",
            "between",
        ),
    },
    ("embed", "wrong vectors"): {
        "update item_embeddings set embedding = [0.6, 0.7]": ("item_embeddings", "embedding_norm", "between"),
        "update text_embeddings set embedding = [0, 0]": ("text_embeddings", "embedding_norm", "between"),
        "update item_embeddings set embedding = [1] where content_hash < '8'": (
            "item_embeddings",
            "n_widths",
            "between",
        ),
        "insert into item_embeddings select * from item_embeddings limit 1": (
            "item_embeddings",
            "content_hash, encoder_id, template_version",
            "unique",
        ),
    },
    ("embed", "vectors that are not finite"): {
        "update item_embeddings set embedding = ['nan'::float, 1]": ("item_embeddings", "embedding_norm", "between"),
        "update text_embeddings set embedding = ['inf'::float, 1]": ("text_embeddings", "embedding_norm", "between"),
    },
    ("train", "a fit that diverged"): {
        "update item_factors set factors = ['nan'::float, 1, 1]": ("item_factors", "factors_norm", "between"),
        "update user_factors set factors = [9e9, 1, 1]": ("user_factors", "factors_norm", "between"),
        "update item_factors set prior = 'inf'": ("item_factors", "prior", "between"),
        "update user_profiles set alpha = 1.5": ("user_profiles", "alpha", "between"),
        "update user_profiles set drift = -1": ("user_profiles", "drift", "between"),
        "update user_profiles set text_embedding = [2, 2]": ("user_profiles", "text_norm", "between"),
    },
    ("train", "another shape"): {
        "update user_profiles set factors = [1, 1]": ("item_factors", "n_wrong_width", "between"),
        "delete from item_factors where item_id > 'i3'": ("item_factors", "missing_share", "between"),
        "insert into user_profiles select * from user_profiles limit 1": (
            "user_profiles",
            "version, user_id",
            "unique",
        ),
    },
    ("slates", "wrong slates"): {
        "update mart_recommendations set score = 0.7": ("mart_recommendations", "parts_error", "between"),
        "update mart_recommendations set rank = 0 where rank = 1": ("mart_recommendations", "rank", "between"),
        "update stg_items set available = false where item_id = 'i1'": (
            "mart_recommendations",
            "n_unknown",
            "between",
        ),
        "update mart_recommendations set item_id = 'i1'": (
            "mart_recommendations",
            "version, user_id, item_id",
            "unique",
        ),
    },
}


@pytest.mark.parametrize(("gate", "what"), BAD, ids=[" - ".join(case) for case in BAD])
def test_bad_data_is_stopped_with_advice(resources, gate, what):
    run_sql(resources, *BAD[gate, what])
    with pytest.raises(GateError) as raised:
        check(resources, gate)
    assert "still serves" in str(raised.value)
    with resources.warehouse(read_only=True) as warehouse:
        failed = warehouse.read("from gate_results where not passed and severity = 'stop'").to_pylist()
    for table, column, part in BAD[gate, what].values():
        hits = [
            r for r in failed if (r["table_name"], r["column_name"]) == (table, column) and part in r["expectation"]
        ]
        assert len(hits) == 1, (table, column, part, failed)
        assert hits[0]["n_failed"] >= 1
        assert hits[0]["observed"] in str(raised.value)
        assert hits[0]["advice"] in str(raised.value)


def test_what_is_only_doubtful_warns(resources):
    run_sql(
        resources,
        "update int_item_texts set text = '' where item_id = 'i1'",
        "update stg_events set item_id = 'gone'",
        "delete from item_embeddings where content_hash > '8'",
        "delete from mart_recommendations where user_id = 'u1'",
    )
    results = [result for gate in ("transform", "embed", "slates") for result in check(resources, gate)]
    failed = [(result.table, result.column, result.severity) for result in results if not result.passed]
    assert sorted(failed) == [
        ("int_item_texts", "text_length", "warn"),
        ("item_embeddings", "pending_share", "warn"),
        ("mart_recommendations", "missing_share", "warn"),
        ("stg_events", "unknown_item_share", "warn"),
    ]


def test_failed_rows_are_positions_in_the_checked_rows(resources):
    rows = pa.table(
        {
            "event_id": ["a", "b", "a", "c"],
            "user_id": ["u", "u", "u", None],
            "event_type": ["view"] * 4,
            "occurred_at": [NOW] * 4,
            "item_id": ["i1"] * 4,
        }
    )
    with pytest.raises(GateError):
        check_gate(resources, "transform", run_id="run", now=NOW, rows={"stg_events": rows})
    own = [check for check in contract("stg_events").gate_checks("transform") if not check.query]
    found = {
        (result.column, result.expectation): result.failed_rows
        for result in resources.validator().validate(replace(contract("stg_events"), checks=tuple(own)), rows)
    }
    assert found["event_id", "expect_column_values_to_be_unique"] == (0, 2)
    assert found["user_id", "expect_column_values_to_not_be_null"] == (3,)


def test_the_drop_of_rows_can_be_allowed(resources):
    run_sql(resources, "insert into builds select timestamptz '2020-01-01', table_name, n_rows * 10, 'h' from builds")
    settings = load_settings(home=resources.home, gates={"max_row_drop": 1.0})
    assert check(LocalResources(settings), "transform")


def test_data_docs_are_written_without_a_network(resources):
    check(resources, "transform")
    reports = sorted((resources.home / "data_docs" / "results").rglob("*.json"))
    reports[0].write_text(reports[0].read_text()[:100])  # as a kill leaves it
    page = resources.validator().write_docs()
    assert page is not None
    assert not reports[0].exists()
    assert "transform" in page.read_text()
    assert any("stg_users" in str(report) for report in page.parent.rglob("validations/**/*.html"))
    assert LocalResources(load_settings(home=resources.home / "elsewhere")).validator().write_docs() is None


def test_values_of_rows_are_text_in_the_data_docs(resources):
    evil = "<script>alert('x')</script>\" onclick=\"alert('y')"
    rows = pa.table(
        {"event_id": [evil] * 2, "user_id": ["u"] * 2, "event_type": ["view"] * 2, "occurred_at": [NOW] * 2}
    )
    with pytest.raises(GateError, match="<script>"):
        check_gate(resources, "transform", run_id="run", now=NOW, rows={"stg_events": rows})
    for _ in range(2):
        page = resources.validator().write_docs()
        pages = [path.read_text() for path in page.parent.rglob("*.html")]
        assert not any("<script>alert" in text or 'onclick="alert' in text for text in pages)
        assert any("&lt;script&gt;alert(&#39;x&#39;)" in text for text in pages)
