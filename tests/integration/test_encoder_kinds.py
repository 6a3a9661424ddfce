"""Models of every kind, small and of random weights, beside sentence-transformers: encoders, decoders, other languages,
prefixes, shorter vectors. And what happens to a batch that fails."""

import json
import threading

import numpy as np
import pytest

from infra.model_files import plain_tokenizer, resolve_model
from infra.packed_bert import PackedBert
from infra.settings import EncoderSettings, load_settings
from infra.transformer_models import TransformerEncoder, load_encoder

pytestmark = pytest.mark.model

TEXTS = [
    "A film about love and space",
    "你好，世界。一部关于爱情和太空的电影",
    "فيلم عن الحب والحرب في الصحراء",
    "Heat",
    "деревня 🎬 у моря",
    "a much longer text that goes on about one thing and another " * 6,
    "ship",
]
COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = {
    "bert": ("BertConfig", {"max_position_embeddings": 512}, "mean"),
    "bert-cls": ("BertConfig", {"max_position_embeddings": 512}, "cls"),
    "bert-relu": ("BertConfig", {"max_position_embeddings": 512, "hidden_act": "relu"}, "mean"),
    "xlm-roberta": ("XLMRobertaConfig", {"max_position_embeddings": 130, "pad_token_id": 1}, "mean"),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}, "lasttoken"),
    "llama": ("LlamaConfig", {"num_key_value_heads": 2}, "lasttoken"),
    "t5": ("T5Config", {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}, "mean"),
}


def write_model(folder, kind, **prompts):
    """A model of random weights whose tokens are bytes, so that it takes every language."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    name, changes, pooling = KINDS[kind]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", *letters])}
    bytes_of = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_of, pad_token="<pad>", eos_token="</s>", bos_token="<s>", model_max_length=128
    )
    torch.manual_seed(3)
    options = {"vocab_size": len(vocabulary), "pad_token_id": 1, "initializer_range": 0.3, **COMMON, **changes}
    config = getattr(transformers, name)(**options)
    model = (transformers.T5EncoderModel if kind == "t5" else transformers.AutoModel.from_config)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_lasttoken": pooling == "lasttoken",
        },
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
    }
    (folder / "1_Pooling").mkdir()
    for path, content in files.items():
        (folder / path).write_text(json.dumps(content))
    return folder


def encoder_of(folder, **settings):
    settings = EncoderSettings(model=str(folder), **settings)
    return TransformerEncoder(resolve_model(settings, folder / "cache"), settings)


def reference_of(folder, dtype="float32"):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype}
    )


def cosines(ours, theirs):
    theirs = np.asarray(theirs, np.float32)
    return (ours * theirs).sum(axis=1) / np.linalg.norm(theirs, axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_sentence_transformers(tmp_path, kind) -> None:
    folder = write_model(tmp_path / "model", kind)
    vectors = encoder_of(folder, batch_tokens=256).encode(TEXTS)
    expected = reference_of(folder).encode(TEXTS, normalize_embeddings=True, show_progress_bar=False, batch_size=3)
    assert cosines(vectors, expected).min() > 0.9999
    apart = vectors @ vectors.T
    assert apart[~np.eye(len(TEXTS), dtype=bool)].min() < 0.99, "the texts are told apart"


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
def test_a_text_is_not_changed_by_its_neighbours(tmp_path, kind) -> None:
    encoder = encoder_of(write_model(tmp_path / "model", kind))
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS * 30), np.tile(alone, (30, 1)), atol=2e-5)


@pytest.mark.parametrize(("kind", "is_packed"), [("bert", True), ("xlm-roberta", True), ("bert-relu", False)])
def test_the_packed_forward_takes_its_family_and_leaves_the_rest(tmp_path, kind, is_packed) -> None:
    import torch

    folder = write_model(tmp_path / "model", kind)
    model = PackedBert.load(folder / "config.json", [folder / "model.safetensors"], torch.float32)
    assert (model is not None) == is_packed


def test_bf16_is_near_sentence_transformers_in_bf16() -> None:
    cache = load_settings().cache
    folder = resolve_model(EncoderSettings(), cache).folder
    vectors = load_encoder(EncoderSettings(precision="bf16"), cache).encode(TEXTS)
    model = reference_of(folder, "bfloat16")
    assert cosines(vectors, model.encode(TEXTS, convert_to_tensor=True).float().numpy()).min() > 0.999


def test_without_the_kernels_of_onednn_the_vectors_are_the_same(tmp_path, monkeypatch) -> None:
    import torch

    folder = write_model(tmp_path / "model", "bert")
    expected = encoder_of(folder).encode(TEXTS)
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    np.testing.assert_allclose(encoder_of(folder).encode(TEXTS), expected, atol=1e-5)


def test_the_tokenizer_of_the_default_model_needs_no_transformers() -> None:
    from transformers import AutoTokenizer

    folder = resolve_model(EncoderSettings(), load_settings().cache).folder
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*TEXTS, "Á köldum klaka [MASK] ÀÉ", "x" * 5000, "\u200b\x00 control", "[PAD] [SEP]"]
    assert plain_tokenizer(folder) is not None
    expected = theirs(texts, truncation=True, max_length=256)["input_ids"]
    assert load_encoder(EncoderSettings(), load_settings().cache).tokenize(texts) == expected


def test_a_tokenizer_that_its_configuration_contradicts_is_left_to_transformers(tmp_path) -> None:
    folder = resolve_model(EncoderSettings(), load_settings().cache).folder
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    assert plain_tokenizer(tmp_path) is None


def test_prefixes_are_those_of_the_model_unless_the_settings_name_others(tmp_path) -> None:
    folder = write_model(tmp_path / "model", "bert", query="query: ", document="passage: ")
    encoder, reference = encoder_of(folder), reference_of(folder)
    for ours, theirs in ((encoder.encode, reference.encode_document), (encoder.encode_queries, reference.encode_query)):
        assert cosines(ours(TEXTS), theirs(TEXTS, show_progress_bar=False)).min() > 0.9999
    plain = encoder_of(folder, item_prefix="", query_prefix="find ")
    np.testing.assert_allclose(plain.encode(["find ship"]), plain.encode_queries(["ship"]), atol=1e-6)
    assert cosines(encoder.encode(["ship"]), plain.encode(["ship"]))[0] < 0.999
    assert not encoder.encode([" "]).any() and not encoder.encode_queries([""]).any()


def test_a_shorter_vector_is_the_first_part_at_unit_length(tmp_path) -> None:
    folder = write_model(tmp_path / "model", "bert")
    short, whole = encoder_of(folder, width=8), encoder_of(folder).encode(TEXTS)
    assert (short.width, short.encode(TEXTS).shape) == (8, (len(TEXTS), 8))
    first = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short.encode(TEXTS), first, atol=1e-5)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_batch_that_does_not_fit_is_halved_and_said(tmp_path, monkeypatch, caplog, error) -> None:
    encoder = encoder_of(write_model(tmp_path / "model", "bert"))
    texts = TEXTS * 5
    expected, run = encoder.encode(texts), encoder._run

    def small_machine(tokens, batch):
        if sum(map(len, batch)) > 4:
            raise error
        return run(tokens, batch)

    monkeypatch.setattr(encoder, "_run", small_machine)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-5)
    assert "did not fit into memory" in caplog.text
    assert max(sum(map(len, batch)) for batch in encoder.plan([60] * 20)) < 16, "later batches are smaller"


def test_an_error_that_is_not_of_memory_is_not_hidden(tmp_path, monkeypatch) -> None:
    encoder = encoder_of(write_model(tmp_path / "model", "bert"))

    def broken(tokens, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(encoder, "_run", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        encoder.encode(TEXTS)


def test_a_text_whose_numbers_overflow_leaves_its_neighbours_whole(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "model", "bert")
    expected = encoder_of(folder).encode(["Heat", "ship"])
    tensors = load_file(folder / "model.safetensors")
    letter = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["Z"]
    tensors["embeddings.word_embeddings.weight"][letter] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vectors = encoder_of(folder).encode(["Heat", "Z", "ship"])
    np.testing.assert_allclose(vectors[[0, 2]], expected, atol=1e-5)
    assert not np.isfinite(vectors[1]).any(), "the caller sees that it has no vector"


def test_threads_of_torch_are_left_as_they_were(tmp_path) -> None:
    import torch

    before = torch.get_num_threads()
    encoder_of(write_model(tmp_path / "model", "bert"), batch_tokens=256).encode(TEXTS * 20)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), seen) == (before, [before])


def test_the_id_of_the_default_model_is_that_of_catalogs_embedded_before() -> None:
    encoder = load_encoder(EncoderSettings(), load_settings().cache)
    assert encoder.encoder_id == "all-MiniLM-L6-v2@ed4c76701008:fp32:mean:256"
