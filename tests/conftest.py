"""A small world on the real adapters: a warehouse, an index and one trained version, in a temporary folder."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from infra.duckdb_instances import EngineThreads
from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.domain.factor_model import FactorParameters
from tasks.domain.factors import fit_factors
from tasks.domain.features import learn_features, parse_attributes
from tasks.domain.fusion import Bucket, Fusion, fuse_items
from tasks.domain.profiles import Recipe, compute_profiles
from tasks.domain.records import ItemPayload
from tasks.domain.vectors import lists_from_matrix, unit_rows
from tasks.model_state import load_histories, load_item_space, load_version
from tasks.profile_rows import profile_rows, user_points
from tasks.publish import publish_version
from tasks.transform import build_models
from tests.team.postgres import find_account, find_programs, running_postgres

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EngineThreads.wanted = 1  # half the CPU time for tables this small; programs that tests start use every core
WORDS = ("space", "robot", "alien", "star", "love", "kiss", "paris", "heart")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file is run by one worker, and so are all files that need the one Prefect server and its batch. Files start in
    their order in the tree: servers and kills first, the short ones last, when the workers have to end together."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class BySharedServer(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tests/flows" if file.startswith("tests/flows/") and not file.endswith("/test_up.py") else file

    config.option.loadscopereorder = False
    return BySharedServer(config, log)


class WordEncoder:
    """A language model for tests: one direction for each of eight words, and a little of the text itself."""

    encoder_id = "words@1"
    width = 8

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self.width))
        for row, text in enumerate(texts):
            for column, word in enumerate(WORDS):
                rows[row, column] = text.lower().count(word)
            if text.strip():
                seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
                rows[row] += 0.2 * np.random.default_rng(seed).random(self.width)
        return unit_rows(rows).astype(np.float32)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode(texts)


@dataclass(frozen=True)
class SmallResources(LocalResources):
    """The real adapters, with the language model for tests."""

    def encoder(self) -> WordEncoder:
        return WordEncoder()


@dataclass
class SmallWorld:
    """Forty films of two kinds and thirty users who like one kind each. ``clock`` moves with every change."""

    resources: SmallResources
    clock: datetime = NOW
    n_rows: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def tick(self) -> datetime:
        self.clock += timedelta(seconds=1)
        return self.clock

    def event(self, user_id, item_id=None, event_type="like", *, at=None, event_id=None, value=None, text=None):
        """One row of ``raw_events``, as received now."""
        self.n_rows += 1
        return {
            "event_id": event_id or f"event-{self.n_rows}",
            "user_id": user_id,
            "item_id": item_id,
            "event_type": event_type,
            "occurred_at": at or NOW + timedelta(seconds=self.n_rows),
            "value": value,
            "text": text,
            "batch_id": f"batch-{self.n_rows:06}",
            "source": "test",
            "source_row": self.n_rows,
        }

    def add_events(self, *rows):
        """Append to ``raw_events`` in one commit."""
        with self.resources.warehouse() as warehouse:
            now = self.tick()
            table = pa.Table.from_pylist([{**row, "ingested_at": now} for row in rows], schema=EVENT_SCHEMA)
            warehouse.commit(lambda transaction: transaction.append("raw_events", table))

    def add_items(self, *rows):
        """Append to ``raw_items`` and rebuild the models. ``rows`` are (item_id, title, available)."""
        now = self.tick()
        table = pa.Table.from_pylist(
            [
                {
                    "item_id": item_id,
                    "title": title,
                    "available": available,
                    "categories": [],
                    "batch_id": f"items-{now}",
                    "source": "test",
                    "source_row": row,
                    "ingested_at": now,
                }
                for row, (item_id, title, available) in enumerate(rows, start=1)
            ],
            schema=ITEM_SCHEMA,
        )
        with self.resources.warehouse() as warehouse:
            warehouse.commit(lambda transaction: transaction.append("raw_items", table))

    def add_users(self, **attributes):
        """Append to ``raw_users`` in one commit: what each user told of themselves, by id."""
        self.n_rows += 1
        rows = pa.table({
            "user_id": list(attributes), "attributes": [json.dumps(told) for told in attributes.values()],
            "batch_id": [f"users-{self.n_rows:06}"] * len(attributes), "source": ["test"] * len(attributes),
            "source_row": np.arange(1, len(attributes) + 1), "ingested_at": [self.tick()] * len(attributes),
        })  # fmt: skip
        with self.resources.warehouse() as warehouse:
            warehouse.commit(lambda transaction: transaction.append("raw_users", rows))

    def embed_texts(self, *texts):
        """Embeddings of what users wrote."""
        encoder = self.resources.encoder()
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        rows = pa.table({
            "content_hash": hashes, "encoder_id": [encoder.encoder_id] * len(texts),
            "embedding": lists_from_matrix(encoder.encode(texts)), "embedded_at": [self.tick()] * len(texts),
        })  # fmt: skip
        with self.resources.warehouse() as warehouse:
            warehouse.commit(lambda transaction: transaction.append("text_embeddings", rows))

    def train(self, version="v1", *, beta=0.1):
        """Fit a small model on everything and write its rows, as the refit does."""
        build_models(self.resources, now=self.tick())
        with self.resources.warehouse() as warehouse:
            self._write_version(warehouse, version, beta)
            model, items = load_version(warehouse, version), load_item_space(warehouse, version)
            histories, _ = load_histories(warehouse, model, items, model.training_snapshot)
            profiles = compute_profiles(histories, items, model.recipe)
            rows = profile_rows(profiles, version, model.training_snapshot, self.tick())
            mark = {"version": [version], "snapshot": [model.training_snapshot], "updated_at": [self.clock]}

            def write(transaction):
                transaction.append("user_profiles", rows)
                transaction.append("watermarks", pa.table(mark))

            warehouse.commit(write)

    def _write_version(self, warehouse, version, beta):
        encoder = self.resources.encoder()
        texts = warehouse.read("select * from int_item_texts order by item_id")
        item_ids = texts["item_id"].to_pylist()
        vectors = encoder.encode(texts["text"].to_pylist())
        likes = warehouse.read("select user_id, item_id, weight from fct_interactions order by user_id, item_id")
        users = sorted(set(likes["user_id"].to_pylist()))
        matrix = _matrix(likes, users, item_ids)
        parameters = FactorParameters(
            n_factors=6, regularization=0.003, frequency_exponent=1.0, unobserved_weight=0.1, text_prior=1.0,
            text_ridge=1.0, user_text_weight=1.0, n_sweeps=5, seed=0,
        )  # fmt: skip
        told = warehouse.read("select user_id, attributes from stg_users").to_pylist()
        attributes = {row["user_id"]: parse_attributes(row["attributes"]) for row in told}
        space = learn_features(list(attributes.values()))
        features = space.encode([attributes[user] for user in users]) if space.width else None
        fit = fit_factors(matrix, vectors, parameters, user_features=features)
        n_liked = np.asarray((matrix > 0).sum(axis=0)).ravel()
        fusion = Fusion(
            scale=1.5,
            buckets=(Bucket(0, 0.5, beta), Bucket(3, 0.3, beta / 2)),
            text_request=Bucket(0, 0.8, beta / 2),
            factor_block=float(1 / np.linalg.norm(fit.items, axis=1).mean()),
            prior_block=0.5,
            attribute_request=Bucket(0, 0.0, beta) if space.width else None,
        )
        types = tuple(self.resources.event_types.values())
        recipe = Recipe(parameters, fusion, 3.0, 50.0, 3650.0, types, fast_share=0.85)
        new = pa.table({
            "content_hash": texts["content_hash"], "encoder_id": [encoder.encoder_id] * len(item_ids),
            "template_version": texts["template_version"], "embedding": lists_from_matrix(vectors),
            "embedded_at": [self.clock] * len(item_ids),
        })  # fmt: skip
        known = set(warehouse.read("select content_hash from item_embeddings")["content_hash"].to_pylist())
        seen: set[str] = set(known)
        fresh = [not (h in seen or seen.add(h)) for h in texts["content_hash"].to_pylist()]
        row = {
            "version": version, "state": "candidate", "created_at": self.clock, "encoder_id": encoder.encoder_id,
            "template_version": texts["template_version"][0].as_py(), "text_width": encoder.width, "n_factors": 6,
            "training_snapshot": warehouse.latest_snapshot(), "inputs_hash": "", "seed": 0, "n_items": len(item_ids),
            "n_users": len(users), "recipe": recipe.to_json(), "fusion": fusion.to_json(),
            "text_map": fit.item_map.ravel().tolist(), "metrics": json.dumps({}),
            "user_map": fit.user_map.ravel().tolist() if space.width else None,
            "user_features": space.to_json() if space.width else None,
        }  # fmt: skip
        factors = pa.table({
            "version": [version] * len(item_ids), "item_id": item_ids, "content_hash": texts["content_hash"],
            "factors": lists_from_matrix(fit.items), "prior": np.log1p(n_liked).astype(float),
            "n_interactions": n_liked.astype(np.int64), "exposure": fit.weights.exposure.astype(float),
        })  # fmt: skip

        def write(transaction):
            transaction.append("item_embeddings", new.filter(pa.array(fresh)))
            transaction.append("model_versions", pa.Table.from_pylist([row]))
            transaction.append("item_factors", factors)

        warehouse.commit(write)

    def publish(self, version="v1"):
        """Write the version to the index and switch to it."""
        with self.resources.index() as index, self.resources.warehouse() as warehouse:
            model, items = load_version(warehouse, version), load_item_space(warehouse, version)
            states = {row["item_id"]: row for row in warehouse.read("select * from stg_items").to_pylist()}
            vectors = fuse_items(items.text, items.factors, items.prior, model.recipe.fusion)
            index.create_version(version, vectors.shape[1])
            index.upsert_items(
                version,
                vectors,
                [ItemPayload(i, states[i]["title"], (), states[i]["available"]) for i in items.item_ids],
            )
            histories, _ = load_histories(warehouse, model, items, model.training_snapshot)
            profiles = compute_profiles(histories, items, model.recipe)
            index.upsert_users(version, *user_points(profiles, model, model.training_snapshot))
            index.switch(version)


def _matrix(likes, users, item_ids):
    from scipy import sparse

    rows = [users.index(user) for user in likes["user_id"].to_pylist()]
    columns = [item_ids.index(item) for item in likes["item_id"].to_pylist()]
    shape = (len(users), len(item_ids))
    return sparse.csr_matrix((likes["weight"].to_numpy().astype(np.float32), (rows, columns)), shape=shape)


EVENT_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("event_id", "user_id", "item_id", "event_type")),
        ("occurred_at", pa.timestamp("us", tz="UTC")),
        ("value", pa.float64()),
        *((name, pa.string()) for name in ("text", "batch_id", "source")),
        ("source_row", pa.int64()),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
    ]
)
ITEM_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("available", pa.bool_()),
        ("categories", pa.list_(pa.string())),
        ("batch_id", pa.string()),
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
    ]
)


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory):
    """Built once: items, events, a trained version ``v1`` and its publication."""
    home = tmp_path_factory.mktemp("world") / "var"
    world = SmallWorld(SmallResources(load_settings(home=home)))
    fill(world)
    world.train("v1")
    world.publish("v1")
    return home, world


@pytest.fixture
def small_world(trained_home, tmp_path):
    """A copy of the trained world that the test may change."""
    _, built = trained_home
    return copied_world(built, tmp_path / "var")


@pytest.fixture(scope="session")
def published_home(trained_home, tmp_path_factory):
    """Built once: ``v1`` was published, then ``v2``, which knows a user and an item more."""
    _, built = trained_home
    world = copied_world(built, tmp_path_factory.mktemp("published") / "var")
    shutil.rmtree(world.resources.home / "index")
    publish_version(world.resources, "v1", now=world.tick())
    world.add_items(("i40", "The late robot film", True))
    world.add_events(world.event("late", "i40"), world.event("late", "i01"))
    world.train("v2")
    publish_version(world.resources, "v2", now=world.tick())
    return world


@pytest.fixture
def two_versions(published_home, tmp_path):
    """A copy of the world in which ``v2`` was published after ``v1``."""
    return copied_world(published_home, tmp_path / "var")


@pytest.fixture(scope="session")
def told_home(trained_home, tmp_path_factory):
    """Built once: users told what they are, pilots those of one taste and cooks those of the other, and ``v2``, which
    serves, has learned from it. The user ``silent`` told it too, and has done nothing."""
    _, built = trained_home
    world = copied_world(built, tmp_path_factory.mktemp("told") / "var")
    told = {f"u{user:02}": {"job": ("pilot", "cook")[user % 2], "age": 20 + user} for user in range(30)}
    world.add_users(**told, silent={"job": "cook", "age": 30})
    world.train("v2")
    world.publish("v2")
    return world


@pytest.fixture
def told_world(told_home, tmp_path):
    """A copy of the world in which users told something of themselves."""
    return copied_world(told_home, tmp_path / "var")


def copied_world(built: SmallWorld, copy) -> SmallWorld:
    """The same world in another folder."""
    copy_home(built.resources.home, copy)
    return SmallWorld(SmallResources(load_settings(home=copy)), built.clock, built.n_rows)


def copy_home(home, copy) -> None:
    """A home's state in another folder; the warehouse's catalog holds its own path."""
    shutil.copytree(home, copy)
    with closing(sqlite3.connect(copy / "warehouse" / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("update ducklake_metadata set value = replace(value, ?, ?)", (f"{home}/", f"{copy}/"))


def fill(world: SmallWorld) -> None:
    """Forty films and thirty users; film 39 is not available, 38 has no title, 37 no history."""
    titles = [f"The {WORDS[n % 4 + 4 * (n >= 20)]} film {n}" for n in range(40)]
    titles[38] = ""
    world.add_items(*((f"i{n:02}", title, n != 39) for n, title in enumerate(titles)))
    events = []
    for user in range(30):
        kind = user % 2 * 20
        liked = world.rng.choice(17, 3 + user % 5, replace=False) + kind
        events += [world.event(f"u{user:02}", f"i{item:02}") for item in liked]
        events.append(world.event(f"u{user:02}", "i39" if kind else "i18"))
        if user % 3 == 0:
            events.append(world.event(f"u{user:02}", f"i{18 + kind:02}", "rating", value=2.0 + 2 * (user % 2)))
        if user % 4 == 0:
            events.append(world.event(f"u{user:02}", f"i{19 + (20 - kind) // 2:02}", "dislike"))
        if user % 5 == 0:
            events.append(world.event(f"u{user:02}", None, "search", text=f"{WORDS[user % 8]} stories"))
    world.add_events(*events)
    world.embed_texts(*(f"{word} stories" for word in WORDS))


@pytest.fixture
def empty_world(tmp_path):
    """A world before anything was imported."""
    return SmallWorld(SmallResources(load_settings(home=tmp_path / "empty")))


@pytest.fixture(scope="session")
def empty_warehouse(tmp_path_factory):
    """The folder of a warehouse with all tables and no row; made once, to be copied."""
    resources = LocalResources(load_settings(home=tmp_path_factory.mktemp("made")))
    with resources.warehouse():
        return resources.home / "warehouse"


@pytest.fixture
def local_resources(empty_warehouse, tmp_path):
    """The real adapters on an empty warehouse."""
    shutil.copytree(empty_warehouse, tmp_path / "var" / "warehouse")
    return LocalResources(load_settings(home=tmp_path / "var"))


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server for this session; where none can be had, the test is skipped."""
    programs, account = find_programs(), find_account()
    if programs is None or account is False:
        pytest.skip("no PostgreSQL server is installed here" if programs is None else "only root is here")
    with running_postgres(programs, account) as server:
        yield server
