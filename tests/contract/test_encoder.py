"""What every text encoder promises: the one for tests and the real one."""

import pickle

import numpy as np
import pytest

from infra.resources import LocalResources
from infra.settings import load_settings
from tasks.domain.ports import TextEncoder
from tests.fakes.hashing import HashingEncoder, HashingResources

TEXTS = ["Alien (1979). Horror, Sci-Fi", "Toy Story (1995). Animation", "爱情电影", "b" * 3000, "Heat"]


@pytest.fixture(params=["hashing", pytest.param("real", marks=pytest.mark.model)])
def resources(request, tmp_path):
    settings = load_settings(home=tmp_path)
    return HashingResources(settings, HashingEncoder()) if request.param == "hashing" else LocalResources(settings)


@pytest.fixture
def encoder(resources) -> TextEncoder:
    return resources.encoder()


def test_rows_are_unit_vectors_of_the_width(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.width) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_rows_are_in_the_order_given(encoder: TextEncoder) -> None:
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], encoder.encode(TEXTS), atol=1e-5)


def test_a_text_has_the_same_vector_alone_and_among_others(encoder: TextEncoder) -> None:
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, encoder.encode(TEXTS), atol=1e-5)


def test_an_empty_text_gives_zeros_and_no_text_no_row(encoder: TextEncoder) -> None:
    vectors = encoder.encode(["", "Heat", "  \n"])
    assert not vectors[0].any() and not vectors[2].any()
    np.testing.assert_allclose(vectors[1], encoder.encode(["Heat"])[0], atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.width)


def test_texts_that_differ_have_different_vectors(encoder: TextEncoder) -> None:
    similar = encoder.encode(TEXTS) @ encoder.encode(TEXTS).T
    assert (similar[~np.eye(len(TEXTS), dtype=bool)] < 0.99).all()


def test_what_is_near_in_meaning_is_near(encoder: TextEncoder) -> None:
    film, near, far = encoder.encode(["a film about space and robots", "a story about space", "romance in paris"])
    assert film @ near > film @ far


def test_resources_that_travel_make_the_same_encoder(resources, encoder: TextEncoder) -> None:
    again = pickle.loads(pickle.dumps(resources)).encoder()
    assert again.encoder_id == encoder.encoder_id != ""
    assert "\n" not in encoder.encoder_id
