"""Which texts share a batch and a row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.token_batches import halves, pack_rows

LENGTHS = st.lists(st.integers(1, 300), max_size=80)


@given(LENGTHS, st.sampled_from([64, 256, 1024]), st.sampled_from([16, 64]))
def test_every_text_is_in_one_row_and_rows_and_batches_hold_what_they_may(lengths, batch_tokens, row_tokens) -> None:
    batches = pack_rows(lengths, batch_tokens, row_tokens)
    assert sorted(text for batch in batches for row in batch for text in row) == list(range(len(lengths)))
    for batch in batches:
        room = max(row_tokens, *(lengths[text] for row in batch for text in row))
        assert all(row and sum(lengths[text] for text in row) <= room for row in batch)
        assert len(batch) * room <= batch_tokens or len(batch) == 1


def test_rows_of_short_texts_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(4, 30, 2000).tolist()
    rows = [sum(lengths[text] for text in row) for batch in pack_rows(lengths, 1024, 64) for row in batch]
    assert sum(lengths) / (64 * len(rows)) > 0.98


@pytest.mark.parametrize("batch", [[[1, 2, 3]], [[1], [2, 3], [4]]])
def test_halves_keep_every_text_in_order_and_none_is_empty(batch) -> None:
    first, second = halves(batch)
    before = [text for row in batch for text in row]
    assert [text for half in (first, second) for row in half for text in row] == before
    assert sum(map(len, first)) and sum(map(len, second))
