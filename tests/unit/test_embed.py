"""The parts of embedding that need no warehouse and no language model."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import load_settings
from infra.token_batches import plan_batches
from tasks.domain.errors import TerminalError
from tasks.embed import Partition, embed_partition
from tests.fakes.hashing import HashingEncoder, HashingResources


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 2000))
def test_batches_hold_every_text_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[position] for position in batch)
        assert longest * len(batch) <= budget or len(batch) == 1
    in_order = [lengths[position] for batch in batches for position in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_batches_are_not_smaller_than_they_must_be() -> None:
    assert plan_batches([3, 9, 3, 3], 9) == [[1], [0, 2, 3]]


def partition(tmp_path, texts, encoder=None, encoder_id=None):
    encoder = encoder or HashingEncoder()
    rows = pa.table(
        {
            "content_hash": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
            "template_version": ["v1"] * len(texts),
            "text": texts,
            "used_by": [f"item {n}" for n in range(len(texts))],
        }
    )
    resources = HashingResources(load_settings(home=tmp_path), encoder)
    return Partition(resources, encoder_id or encoder.encoder_id, rows, tmp_path)


def test_a_partition_becomes_one_file_with_the_vectors_of_its_texts(tmp_path) -> None:
    texts = ["one film", "another film"]
    result = embed_partition(partition(tmp_path, texts))
    rows = pq.read_table(result.path)
    assert rows.column_names == ["content_hash", "template_version", "encoder_id", "embedding"]
    np.testing.assert_array_equal(np.array(rows["embedding"].to_pylist(), np.float32), HashingEncoder().encode(texts))
    assert (result.n_texts, result.failures) == (2, ())
    assert embed_partition(partition(tmp_path, texts)).path == result.path
    assert [path.name for path in tmp_path.iterdir()] == [result.path.name], "nothing half-written is left"


@pytest.mark.parametrize("culprits", [{0}, {6}, {2, 3}, {0, 1, 2, 3, 4, 5}])
def test_texts_that_fail_are_found_and_the_others_go_on(tmp_path, culprits) -> None:
    texts = [f"film {n} {'poison' if n in culprits else ''}" for n in range(7)]
    result = embed_partition(partition(tmp_path, texts, HashingEncoder(poison=("poison",))))
    assert {failure.used_by for failure in result.failures} == {f"item {n}" for n in culprits}
    assert all(failure.reason == "ValueError: this text cannot be encoded" for failure in result.failures)
    assert pq.read_table(result.path).num_rows == 7 - len(culprits)


def test_a_partition_of_nothing_but_culprits_is_no_fault_of_the_encoder(tmp_path) -> None:
    result = embed_partition(partition(tmp_path, ["poison"], HashingEncoder(poison=("poison",))))
    assert len(result.failures) == 1 and pq.read_table(result.path).num_rows == 0


def test_an_encoder_that_cannot_encode_anything_is_an_error(tmp_path) -> None:
    with pytest.raises(TerminalError, match="cannot encode anything"):
        embed_partition(partition(tmp_path, ["one", "two"], HashingEncoder(poison=("",))))


def test_a_vector_that_is_not_of_unit_length_is_not_stored(tmp_path) -> None:
    result = embed_partition(partition(tmp_path, ["film", "\u2003"]))  # an em space: no word, so a row of zeros
    assert [failure.used_by for failure in result.failures] == ["item 1"]
    assert pq.read_table(result.path).num_rows == 1


def test_a_worker_with_another_encoder_refuses(tmp_path) -> None:
    with pytest.raises(TerminalError, match=r"was to encode with words@9 and has hashing@32"):
        embed_partition(partition(tmp_path, ["film"], encoder_id="words@9"))
    assert not list(tmp_path.glob("*.parquet"))
