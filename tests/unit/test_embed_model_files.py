"""What is read from a model's folder, without torch."""

import json
import subprocess
import sys

import pytest

from infra.model_files import check_weights, resolve_model
from infra.settings import EncoderSettings
from infra.transformer_models import TransformerEncoder, load_encoder
from tasks.domain.errors import ModelMissingError, SettingsError


def write_model(folder, **changes):
    """A folder that looks like a model; its weights are no tensors."""
    files = {
        "config.json": {"hidden_size": 24, "max_position_embeddings": 512},
        "tokenizer_config.json": {"model_max_length": 512},
        "modules.json": [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling")],
        "1_Pooling/config.json": {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 128},
        **changes,
    }
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    for name, document in files.items():
        if document is not None:
            (folder / name).write_text(json.dumps(document))
    return folder


def encoder_of(folder, tmp_path, **settings):
    settings = EncoderSettings(model=str(folder), **settings)
    return TransformerEncoder(resolve_model(settings, tmp_path / "cache"), settings)


def test_id_and_width_come_from_the_files(tmp_path) -> None:
    encoder = encoder_of(write_model(tmp_path / "small-model"), tmp_path, max_tokens=256)
    name, _, rest = encoder.encoder_id.partition("@")
    assert (name, rest.split(":")[1:], encoder.width) == ("small-model", ["fp32", "mean", "128"], 24)


@pytest.mark.parametrize(
    "change",
    [
        {"config.json": {"hidden_size": 24, "max_position_embeddings": 512, "layer_norm_eps": 1}},
        {"1_Pooling/config.json": {"word_embedding_dimension": 24, "pooling_mode_cls_token": True}},
        {"sentence_bert_config.json": {"max_seq_length": 64}},
        {"tokenizer.json": {"version": "1.0"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_file_that_changes_the_vectors_changes_the_id(tmp_path, change) -> None:
    folder = write_model(tmp_path / "m")
    before = encoder_of(folder, tmp_path).encoder_id
    assert encoder_of(folder, tmp_path).encoder_id == before
    assert encoder_of(write_model(folder, **change), tmp_path).encoder_id != before


def test_settings_that_change_the_vectors_change_the_id(tmp_path) -> None:
    folder = write_model(tmp_path / "m")
    ids = {
        encoder_of(folder, tmp_path, **settings).encoder_id
        for settings in ({}, {"precision": "bf16"}, {"max_tokens": 16}, {"width": 8}, {"item_prefix": "item: "})
    }
    assert len(ids) == 5
    unchanged = {"batch_tokens": 512, "partition_items": 3, "width": 24, "item_prefix": "", "query_prefix": "query: "}
    same = encoder_of(folder, tmp_path, **unchanged).encoder_id
    assert same in ids


def test_the_prefix_of_the_model_itself_is_part_of_the_id(tmp_path) -> None:
    folder = write_model(tmp_path / "m")
    before = encoder_of(folder, tmp_path).encoder_id
    write_model(folder, **{"config_sentence_transformers.json": {"prompts": {"query": "query: ", "passage": ""}}})
    assert encoder_of(folder, tmp_path).encoder_id == before, "queries are not stored"
    write_model(folder, **{"config_sentence_transformers.json": {"prompts": {"passage": "passage: "}}})
    assert encoder_of(folder, tmp_path).encoder_id != before
    assert encoder_of(folder, tmp_path, item_prefix="").encoder_id == before


def test_a_width_beyond_the_model_is_refused(tmp_path) -> None:
    with pytest.raises(SettingsError, match="NEARLINE_ENCODER__WIDTH is 25"):
        encoder_of(write_model(tmp_path / "m"), tmp_path, width=25)


def test_prompts_that_are_not_pooled_are_refused_where_there_are_any(tmp_path) -> None:
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True, "include_prompt": False}
    folder = write_model(tmp_path / "m", **{"1_Pooling/config.json": pooling})
    encoder_of(folder, tmp_path)
    with pytest.raises(ModelMissingError, match="out of pooling"):
        encoder_of(folder, tmp_path, query_prefix="query: ")


def test_the_first_places_of_a_roberta_stand_for_padding(tmp_path) -> None:
    config = {"hidden_size": 24, "max_position_embeddings": 66, "model_type": "xlm-roberta", "pad_token_id": 1}
    assert encoder_of(write_model(tmp_path / "m", **{"config.json": config}), tmp_path).encoder_id.endswith(":64")


def test_changed_weights_change_the_id_and_are_found_at_loading(tmp_path) -> None:
    folder = write_model(tmp_path / "m")
    files = resolve_model(EncoderSettings(model=str(folder)), tmp_path / "cache")
    check_weights(files)
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelMissingError, match="damaged"):
        check_weights(files)
    assert resolve_model(EncoderSettings(model=str(folder)), tmp_path / "cache").fingerprint != files.fingerprint


def test_newer_pooling_configuration_is_read(tmp_path) -> None:
    folder = write_model(
        tmp_path / "m", **{"1_Pooling/config.json": {"embedding_dimension": 24, "pooling_mode": "cls"}}
    )
    assert ":cls:" in encoder_of(folder, tmp_path).encoder_id


def test_a_plain_transformer_is_pooled_by_the_mean(tmp_path) -> None:
    folder = write_model(tmp_path / "m", **{"modules.json": None, "1_Pooling/config.json": None})
    assert ":mean:" in encoder_of(folder, tmp_path).encoder_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "Dense"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "pooling_mode_max_tokens"),
        ({"1_Pooling/config.json": {"pooling_mode": ["mean", "cls"]}}, "not supported"),
        ({"config.json": None}, "config.json not found"),
        ({"config.json": {"max_position_embeddings": 512}, "1_Pooling/config.json": {}}, "hidden_size"),
    ],
)
def test_what_cannot_be_run_faithfully_is_refused(tmp_path, change, message) -> None:
    folder = write_model(tmp_path / "m", **change)
    with pytest.raises(ModelMissingError, match=message) as caught:
        encoder_of(folder, tmp_path)
    assert "NEARLINE_ENCODER__MODEL" in str(caught.value) or "docs/models.md" in str(caught.value)


def test_missing_weights_say_what_to_do(tmp_path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelMissingError, match=r"model\.safetensors not found.*NEARLINE_ENCODER__MODEL"):
        encoder_of(folder, tmp_path)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("package:no-such", ModelMissingError, "Known: all-MiniLM-L6-v2"),
        ("/no/such/folder", ModelMissingError, "no such folder"),
        ("owner/name", SettingsError, "NEARLINE_ENCODER__REVISION"),
    ],
)
def test_a_model_that_is_not_there(tmp_path, model, error, message) -> None:
    with pytest.raises(error, match=message):
        load_encoder(EncoderSettings(model=model), tmp_path)


def test_a_branch_is_no_revision(tmp_path) -> None:
    with pytest.raises(SettingsError, match="40 hexadecimal digits"):
        load_encoder(EncoderSettings(model="owner/name", revision="main"), tmp_path)


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelMissingError, match=r"no route to the hub.*NEARLINE_ENCODER__MODEL to a folder"):
        load_encoder(EncoderSettings(model="owner/name", revision="0" * 40), tmp_path)


def test_a_hub_model_is_fetched_once_and_appears_whole(tmp_path, monkeypatch) -> None:
    calls = []

    def fetch(hub_id, *, revision, local_dir, allow_patterns):
        calls.append((hub_id, revision))
        write_model(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    settings = EncoderSettings(model="owner/name", revision="0" * 40)
    names = {resolve_model(settings, tmp_path).name for _ in range(2)}
    assert (names, calls) == ({"owner/name"}, [("owner/name", "0" * 40)])


def test_the_id_needs_neither_torch_nor_transformers(tmp_path) -> None:
    folder = write_model(tmp_path / "m")
    program = (
        "import sys; from pathlib import Path; from infra.settings import EncoderSettings;"
        "from infra.transformer_models import load_encoder; import tasks.embed;"
        f"print(load_encoder(EncoderSettings(model={str(folder)!r}), Path({str(tmp_path)!r})).encoder_id);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'distributed')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, encoder_of(folder, tmp_path).encoder_id), done.stderr
