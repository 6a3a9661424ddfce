"""What a fold keeps in memory of users' texts."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from tasks.online.folding import Folder

MODEL = SimpleNamespace(encoder_id="words", text_width=2)
TEXTS = pa.table({"content_hash": ["h1"], "text": ["rain in paris"]})


class NoEmbeddings:
    """A warehouse without a stored vector."""

    def read(self, sql, parameters=None, shadows=None):
        return pa.table({"content_hash": pa.array([], pa.string()), "embedding": pa.array([], pa.list_(pa.float32()))})


class Encoder:
    encoder_id = "words"

    def __init__(self):
        self.n_calls = 0
        self.while_encoding = lambda: None

    def encode(self, texts):
        self.n_calls += 1
        self.while_encoding()
        return np.ones((len(texts), 2), np.float32)


def test_a_text_is_embedded_once_and_again_after_it_was_forgotten():
    encoder = Encoder()
    folder = Folder(NoEmbeddings(), None, None, lambda: encoder)
    texts = folder._texts
    for _ in range(2):
        assert texts.load(MODEL, TEXTS, texts.n_cleared).keys() == {"h1"}
    assert encoder.n_calls == 1
    folder.forget_texts()
    texts.load(MODEL, TEXTS, texts.n_cleared)
    assert encoder.n_calls == 2


def test_a_text_whose_user_is_erased_while_it_is_embedded_is_given_out_and_not_kept():
    encoder = Encoder()
    folder = Folder(NoEmbeddings(), None, None, lambda: encoder)
    encoder.while_encoding = folder.forget_texts
    assert folder._texts.load(MODEL, TEXTS, folder._texts.n_cleared).keys() == {"h1"}
    assert folder.embeddings(MODEL, TEXTS["content_hash"]) == {}
