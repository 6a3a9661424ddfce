"""Embedding by content on a real warehouse and real workers, with a hashing encoder."""

import hashlib
from contextlib import nullcontext
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from infra.settings import EncoderSettings, load_settings
from tasks.domain.vectors import matrix_from_lists
from tasks.embed import Partition, _ThisProcess, count_pending, embed_items, embed_partition, embed_texts
from tests.fakes.hashing import HashingEncoder, HashingResources

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_resources(tmp_path, *, partition_items=4, **encoder):
    settings = load_settings(home=tmp_path / "var", encoder=EncoderSettings(partition_items=partition_items))
    return HashingResources(settings, HashingEncoder(log=tmp_path / "log", **encoder))


def set_items(resources, texts) -> None:
    """Make ``int_item_texts`` hold exactly these texts, by item id."""
    rows = pa.table(
        {
            "item_id": pa.array(list(texts), pa.string()),
            "text": pa.array(list(texts.values()), pa.string()),
            "content_hash": pa.array([sha256(text) for text in texts.values()], pa.string()),
            "template_version": pa.array(["v1"] * len(texts), pa.string()),
        }
    )
    with resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.replace("int_item_texts", rows))


def stored(resources, table="item_embeddings"):
    with resources.warehouse(read_only=True) as warehouse:
        return warehouse.read(f"select * from {table} order by content_hash")  # noqa: S608 - names of this file


def encoded(tmp_path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().split() if log.exists() else []


FILMS = {f"i{n}": f"film {n} about {'space' if n % 2 else 'love'}" for n in range(10)}


def test_every_text_gets_its_vector(tmp_path) -> None:
    resources = make_resources(tmp_path)
    set_items(resources, FILMS)
    assert count_pending(resources) == 10
    progress = []
    receipt = embed_items(resources, now=NOW, on_progress=lambda *seen: progress.append(seen))
    assert (receipt.n_in, receipt.n_out, receipt.reused, receipt.location) == (10, 10, False, "item_embeddings")
    assert progress[-1] == (10, 10) and [done for done, _ in progress] == sorted(done for done, _ in progress)
    rows = stored(resources)
    texts = {sha256(text): text for text in FILMS.values()}
    expected = resources.encoder().encode([texts[content_hash] for content_hash in rows["content_hash"].to_pylist()])
    np.testing.assert_array_equal(matrix_from_lists(rows["embedding"], 32), expected)
    assert set(rows["embedded_at"].to_pylist()) == {NOW}
    assert set(rows["encoder_id"].to_pylist()) == {"hashing@32"}
    assert not [path for path in (tmp_path / "var" / "staging").rglob("*") if path.suffix == ".parquet"]


def test_an_unchanged_catalog_embeds_nothing_and_starts_no_worker(tmp_path, monkeypatch) -> None:
    resources = make_resources(tmp_path, partition_items=100)
    set_items(resources, FILMS)
    embed_items(resources, now=NOW)
    n_encoded = len(encoded(tmp_path))
    monkeypatch.setattr(HashingResources, "compute", lambda self: pytest.fail("a cluster was started"))
    receipt = embed_items(resources, now=NOW)
    assert (receipt.n_in, receipt.n_out, receipt.reused) == (0, 0, True)
    assert len(encoded(tmp_path)) == n_encoded


def test_one_changed_title_embeds_one(tmp_path) -> None:
    resources = make_resources(tmp_path, partition_items=100)
    set_items(resources, FILMS)
    embed_items(resources, now=NOW)
    set_items(resources, {**FILMS, "i3": "another title"})
    receipt = embed_items(resources, now=NOW)
    assert (receipt.n_in, receipt.n_out) == (1, 1)
    assert encoded(tmp_path)[10:] == [sha256("another title")]
    set_items(resources, FILMS)
    assert embed_items(resources, now=NOW).reused, "the earlier text is known still"


def test_equal_texts_are_encoded_once_and_empty_ones_not_at_all(tmp_path) -> None:
    resources = make_resources(tmp_path, partition_items=100)
    set_items(resources, {"a": "same", "b": "same", "c": "", "d": "   ", "e": "影片 'quoted'/ \" id"})
    receipt = embed_items(resources, now=NOW)
    assert (receipt.n_in, receipt.n_out) == (2, 2)
    assert sorted(encoded(tmp_path)) == sorted([sha256("same"), sha256("影片 'quoted'/ \" id")])
    assert embed_items(resources, now=NOW).reused


def test_an_empty_catalog_is_nothing_to_do(tmp_path) -> None:
    receipt = embed_items(make_resources(tmp_path), now=NOW)
    assert (receipt.n_in, receipt.reused) == (0, True)


def test_another_encoder_embeds_everything_again(tmp_path) -> None:
    first = make_resources(tmp_path, partition_items=100)
    set_items(first, FILMS)
    embed_items(first, now=NOW)
    second = make_resources(tmp_path, partition_items=100, name="newer")
    assert count_pending(second) == 10
    assert embed_items(second, now=NOW).n_out == 10
    assert stored(second).num_rows == 20 and embed_items(first, now=NOW).reused


def test_a_text_that_cannot_be_encoded_is_named_and_the_others_go_on(tmp_path) -> None:
    resources = make_resources(tmp_path, partition_items=100, poison=("film 3 ", "film 7 "))
    set_items(resources, FILMS)
    receipt = embed_items(resources, now=NOW)
    assert (receipt.n_in, receipt.n_out) == (10, 8)
    for part in ("2 texts could not be embedded", "i3: ValueError", "i7: ValueError"):
        assert part in receipt.note
    again = embed_items(resources, now=NOW)
    assert (again.n_in, again.n_out, stored(resources).num_rows) == (2, 0, 8)


def test_what_a_killed_run_left_is_taken_over(tmp_path) -> None:
    resources = make_resources(tmp_path, partition_items=100)
    set_items(resources, FILMS)
    staged = leave_partition(resources, tmp_path)
    (staged.parent / "torn.parquet").write_bytes(b"PAR1 torn")
    (staged.parent / "x.partial-1").write_bytes(b"half")
    receipt = embed_items(resources, now=NOW)
    assert (receipt.n_in, receipt.n_out) == (10, 10) and "3 vectors were left" in receipt.note
    assert len(encoded(tmp_path)) == len(set(encoded(tmp_path))) == 10
    assert {path.name for path in staged.parent.iterdir()} <= {".lock"}


def test_a_partition_that_is_in_the_table_already_is_not_doubled(tmp_path) -> None:
    resources = make_resources(tmp_path, partition_items=100)
    set_items(resources, FILMS)
    embed_items(resources, now=NOW)
    leave_partition(resources, tmp_path)  # a kill after the commit and before the file was deleted
    assert embed_items(resources, now=NOW).n_out == 0
    assert stored(resources).num_rows == 10


def leave_partition(resources, tmp_path):
    """A finished partition of three texts, as a worker leaves it."""
    encoder_id = resources.encoder().encoder_id
    folder = tmp_path / "var" / "staging" / "item_embeddings" / sha256(encoder_id)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    chosen = list(FILMS.values())[:3]
    rows = {"content_hash": [sha256(text) for text in chosen], "text": chosen, "used_by": ["i"] * 3}
    rows["template_version"] = ["v1"] * 3
    return embed_partition(Partition(resources, encoder_id, pa.table(rows), folder)).path


def test_texts_of_users_are_embedded_once(tmp_path) -> None:
    resources = make_resources(tmp_path, partition_items=100)
    texts = ["slow films about space", "love", "love"]
    rows = pa.table(
        {
            "event_id": ["e1", "e2", "e3"],
            "user_id": ["u1", "u1", "u2"],
            "text": texts,
            "content_hash": [sha256(text) for text in texts],
            "occurred_at": pa.array([NOW] * 3, pa.timestamp("us", "UTC")),
            "weight": [1.0] * 3,
        }
    )
    with resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.append("int_user_texts", rows))
    receipt = embed_texts(resources, now=NOW)
    assert (receipt.n_in, receipt.n_out, receipt.location) == (2, 2, "text_embeddings")
    assert sorted(encoded(tmp_path)) == sorted({sha256(text) for text in texts})
    assert stored(resources, "text_embeddings").num_rows == 2
    assert embed_texts(resources, now=NOW).reused


def test_many_texts_are_stored_in_several_commits(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tasks.embed._PARTITIONS_IN_A_COMMIT", 2)
    monkeypatch.setattr(HashingResources, "compute", lambda self: nullcontext(_ThisProcess()))
    resources = make_resources(tmp_path, partition_items=1)
    set_items(resources, FILMS)
    with resources.warehouse() as warehouse:
        before = warehouse.latest_snapshot()
    assert embed_items(resources, now=NOW).n_out == 10
    with resources.warehouse() as warehouse:
        assert warehouse.latest_snapshot() - before == 5
