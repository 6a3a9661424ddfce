"""The real language model: the same vectors as sentence-transformers, in every precision, whatever the batch."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.demo_data import prepare_movielens
from infra.model_files import resolve_model
from infra.settings import EncoderSettings, load_settings
from infra.transformer_models import TransformerEncoder, load_encoder
from tasks.domain.errors import ModelMissingError

pytestmark = pytest.mark.model

HARD = [
    "你好，世界。一部关于爱情和太空的电影",
    "فيلم عن الحب والحرب في الصحراء",
    "😀🎬 a film with emoji 🍿",
    "Á köldum klaka (Cold Fever) (1994). Comedy, Drama",
    "A film about a film. " * 300,
    "a",
    "x" * 5000,
    "ids/with 'quotes' and \"more\" \t tabs",
    "\u200b\x00 control",
]


@pytest.fixture(scope="module")
def cache() -> Path:
    return load_settings().cache


@pytest.fixture(scope="module")
def texts(cache) -> list[str]:
    films = pq.read_table(prepare_movielens(cache).items).slice(0, 400).to_pylist()
    titles = [f"{film['title']}. {', '.join(film['categories'])}" for film in films]
    return [*titles[:200], *HARD, *titles[200:]]


@pytest.fixture(scope="module")
def reference(cache, texts):
    """Vectors of sentence-transformers for the same files, in fp32."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = resolve_model(EncoderSettings(), cache).folder
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


@pytest.mark.parametrize("batch_tokens", [256, 8192])
def test_fp32_equals_sentence_transformers(cache, texts, reference, batch_tokens) -> None:
    vectors = load_encoder(EncoderSettings(batch_tokens=batch_tokens), cache).encode(texts)
    cosines = (vectors * reference).sum(axis=1)
    assert cosines.min() > 0.9999, f"farthest: {texts[int(cosines.argmin())][:60]!r}"
    np.testing.assert_allclose(vectors, reference, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_other_precisions_are_near(cache, texts, reference, precision) -> None:
    encoder = load_encoder(EncoderSettings(precision=precision), cache)
    vectors = encoder.encode(texts)
    assert (vectors * reference).sum(axis=1).min() > 0.999
    assert vectors.dtype == np.float32 and "auto" not in encoder.encoder_id
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_longer_texts_are_cut_where_the_settings_say(cache) -> None:
    short, long = "space robots " * 10, "space robots " * 10 + "kisses in paris " * 30
    encoder = load_encoder(EncoderSettings(max_tokens=16), cache)
    assert {len(tokens) for tokens in encoder.tokenize([short, long])} == {16}
    vectors = encoder.encode([short, long])
    assert vectors[0] @ vectors[1] > 0.9999
    whole = load_encoder(EncoderSettings(), cache).encode([short, long])
    assert whole[0] @ whole[1] < 0.99


def test_a_process_holds_one_encoder(cache) -> None:
    assert load_encoder(EncoderSettings(), cache) is load_encoder(EncoderSettings(), cache)


def test_a_copy_in_a_folder_gives_the_same_vectors(cache, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(resolve_model(EncoderSettings(), cache).folder, folder)
    copy = load_encoder(EncoderSettings(model=str(folder)), tmp_path / "cache")
    packaged = load_encoder(EncoderSettings(), cache)
    assert copy.encoder_id.split("@")[1] == packaged.encoder_id.split("@")[1]
    np.testing.assert_array_equal(copy.encode(["Heat (1995)"]), packaged.encode(["Heat (1995)"]))


def test_weights_that_changed_on_disk_are_not_loaded(cache, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(resolve_model(EncoderSettings(), cache).folder, folder)
    settings = EncoderSettings(model=str(folder))
    encoder = TransformerEncoder(resolve_model(settings, tmp_path / "cache"), settings)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(1_000_000)
        weights.write(b"\x01\x02\x03\x04")
    with pytest.raises(ModelMissingError, match="damaged"):
        encoder.encode(["Heat"])


def test_a_model_that_transformers_cannot_read(cache, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(resolve_model(EncoderSettings(), cache).folder, folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelMissingError, match="could not be loaded"):
        load_encoder(EncoderSettings(model=str(folder)), tmp_path / "cache").encode(["Heat"])


def test_weights_that_lack_a_layer_are_not_filled_with_noise(cache, tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(resolve_model(EncoderSettings(), cache).folder, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.3.attention.self.query.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelMissingError, match=r"weights lack .*layer\.3\.attention"):
        load_encoder(EncoderSettings(model=str(folder)), tmp_path / "cache").encode(["Heat"])
