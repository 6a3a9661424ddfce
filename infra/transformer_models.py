"""Text encoders on transformers and torch. It knows nothing of where texts come from or vectors go.

Texts are cut, tokenized and put into batches of a number of tokens, so that little is padding; the token states are
pooled as the model's configuration says and brought to unit length, in fp32 whatever the precision of the model. On a
CPU each batch is the work of one thread, and as many batches are under way as torch has threads. In fp32 the vectors
are those of sentence-transformers for the same model.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.model_files import ModelFiles, check_weights, plain_tokenizer, resolve_model
from infra.package_files import Progress
from infra.packed_bert import PackedBert, lay_out
from infra.settings import EncoderSettings
from infra.token_batches import halves, pack_rows, plan_batches
from tasks.domain.errors import ModelMissingError, SettingsError
from tasks.domain.ports import TextEncoder

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Tokens = list[int]
Rows = list[list[int]]
"""A batch: rows of positions of texts."""
Precision = Literal["fp32", "bf16", "fp16"]

_BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}
_ROW_TOKENS = 64  # of the models that take several texts in a row
_WINDOW = 4096  # texts that are sorted together; the next ones are tokenized while these are computed

logger = logging.getLogger(__name__)
_encoders: dict[tuple[EncoderSettings, Path], "TransformerEncoder"] = {}
_lock = threading.RLock()


def load_encoder(settings: EncoderSettings, cache: Path, on_progress: Progress | None = None) -> TextEncoder:
    """The encoder of the settings, one for each process. Fetches the model's files if they are not in ``cache``.

    Its id and width are known at once; torch is imported and the weights are read at the first ``encode``. Raises
    ModelMissingError and SettingsError.
    """
    with _lock:
        key = (settings, cache)
        if key not in _encoders:
            _encoders[key] = TransformerEncoder(resolve_model(settings, cache, on_progress), settings)
        return _encoders[key]


class TransformerEncoder:
    """Implements ``tasks.domain.ports.TextEncoder`` for one model. May be shared by threads."""

    def __init__(self, files: ModelFiles, settings: EncoderSettings) -> None:
        self._files = files
        self._settings = settings
        self._model: _Loaded | None = None
        self._max_tokens = min(settings.max_tokens, files.max_tokens or settings.max_tokens)
        self._most_tokens: int | None = None  # in a batch, once one did not fit into memory
        self._item_prefix = files.item_prefix if settings.item_prefix is None else settings.item_prefix
        self._query_prefix = files.query_prefix if settings.query_prefix is None else settings.query_prefix
        _check_shape(files, settings, f"{self._item_prefix}{self._query_prefix}")

    @cached_property
    def precision(self) -> Precision:
        """The precision of the model's work: the one of the settings, or what the device does well."""
        return _best_precision() if self._settings.precision == "auto" else self._settings.precision

    @property
    def encoder_id(self) -> str:
        """Name, fingerprint of the files, precision, pooling and longest text, and the width and the prefix of items
        if there are any: all that changes the vectors of items."""
        parts = [self._files.fingerprint[:12], self.precision, self._files.pooling, str(self._max_tokens)]
        if self.width != self._files.width:
            parts.append(f"width={self.width}")
        if self._item_prefix:
            parts.append(f"prefix={hashlib.sha256(self._item_prefix.encode()).hexdigest()[:8]}")
        return f"{self._files.name}@{':'.join(parts)}"

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self._settings.width or self._files.width

    @property
    def batch_tokens(self) -> int:
        """Tokens in one batch: those of the settings, or what suits the device. Loads the model."""
        return self._settings.batch_tokens or _BATCH_TOKENS[self._loaded().device.type]

    def encode(self, texts: Sequence[str]) -> Floats:
        """(n, width) float32 in the order given, rows of unit length; a text of white space gives a zero row. Texts are
        encoded as those of items."""
        return self._encode(texts, self._item_prefix)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """As ``encode``, for texts that say what is looked for."""
        return self._encode(texts, self._query_prefix)

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, special tokens included, cut at the longest length allowed."""
        return self._loaded().tokenize(list(texts))

    def plan(self, lengths: Sequence[int]) -> list[Rows]:
        """Batches of texts of these numbers of tokens. A row is as long as the longest of its batch, the rest is
        padding."""
        budget = min(self.batch_tokens, self._most_tokens or self.batch_tokens)
        if self._loaded().packs:
            return pack_rows(lengths, budget, min(_ROW_TOKENS, budget))
        return [[[position] for position in batch] for batch in plan_batches(lengths, budget)]

    def _encode(self, texts: Sequence[str], prefix: str) -> Floats:
        vectors = np.zeros((len(texts), self.width), np.float32)
        rows = [row for row, text in enumerate(texts) if text.strip()]
        under_way: list[tuple[list[int], Future[Floats]]] = []
        for start in range(0, len(rows), _WINDOW):
            window = rows[start : start + _WINDOW]
            tokens = self.tokenize([prefix + texts[row] for row in window])
            batches = self.plan([len(ids) for ids in tokens])
            _collect(under_way, vectors)
            run = self._loaded().threads.submit
            under_way = [
                ([window[position] for row in batch for position in row], run(self._encode_batch, tokens, batch))
                for batch in batches
            ]
        _collect(under_way, vectors)
        return vectors

    def _encode_batch(self, tokens: list[Tokens], batch: Rows) -> Floats:
        """Vectors of the texts of a batch, in its order. One that does not fit into memory is halved."""
        try:
            vectors = self._run(tokens, batch)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or sum(map(len, batch)) < 2:
                raise
        else:
            return self._alone_if_spoilt(tokens, batch, vectors)
        n_tokens = sum(len(tokens[position]) for row in batch for position in row)
        self._most_tokens = max(256, n_tokens // 2)
        logger.warning("A batch of %d tokens did not fit into memory. It is halved, as are those to come.", n_tokens)
        return np.concatenate([self._encode_batch(tokens, half) for half in halves(batch)])

    def _alone_if_spoilt(self, tokens: list[Tokens], batch: Rows, vectors: Floats) -> Floats:
        """In a row of several texts, one whose numbers overflow spoils the others: those are encoded again, alone."""
        spoilt = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        positions = [position for row in batch for position in row]
        if len(positions) > 1:
            for number in spoilt:
                vectors[number] = self._run(tokens, [[positions[number]]])[0]
        return vectors

    def _run(self, tokens: list[Tokens], batch: Rows) -> Floats:
        import torch

        loaded = self._loaded()
        texts = [[tokens[position] for position in row] for row in batch]
        with torch.inference_mode():
            if isinstance(loaded.model, PackedBert):
                pooled = _packed_vectors(loaded.model, texts, loaded.padding, self._files.pooling)
            else:
                pooled = _padded_vectors(loaded, [row[0] for row in texts], self._files.pooling)
            unit = torch.nn.functional.normalize(pooled[:, : self.width], dim=1)
        vectors: Floats = unit.cpu().numpy()
        return vectors

    def _loaded(self) -> "_Loaded":
        with _lock:
            if self._model is None:
                self._model = _load(self._files, self.precision, self._max_tokens)
            return self._model


def _check_shape(files: ModelFiles, settings: EncoderSettings, prefixes: str) -> None:
    """Raises SettingsError for a width that the model does not have, ModelMissingError for prefixes it cannot take."""
    if settings.width is not None and settings.width > files.width:
        raise SettingsError(
            f"NEARLINE_ENCODER__WIDTH is {settings.width}, and the vectors of {files.name} have {files.width} "
            "components. Set it to at most that, or leave it empty for all."
        )
    if prefixes and not files.pools_prefix:
        raise ModelMissingError(
            f"The language model {files.name} leaves the tokens of its prompts out of pooling, which is not supported. "
            "Choose another model, or set NEARLINE_ENCODER__ITEM_PREFIX and NEARLINE_ENCODER__QUERY_PREFIX to ''; see "
            "docs/models.md."
        )


class _Loaded(NamedTuple):
    tokenize: Callable[[list[str]], list[Tokens]]
    model: Any
    device: "torch.device"
    padding: int
    threads: ThreadPoolExecutor

    @property
    def packs(self) -> bool:
        """Whether the model takes several texts in a row."""
        return isinstance(self.model, PackedBert)


def _load(files: ModelFiles, precision: Precision, max_tokens: int) -> _Loaded:
    started = time.perf_counter()
    check_weights(files)
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model: Any = None
    if device.type == "cpu":
        model = PackedBert.load(files.folder / "config.json", list(files.weights), dtype)
    if model is None:
        model = _load_transformer(files, dtype).eval().to(device)
    tokenize, padding = _tokenizing(files, max_tokens, plain=isinstance(model, PackedBert))
    logger.info("Loaded %s on %s in %.1f s.", files.name, device, time.perf_counter() - started)
    threads = _threads(device, is_small=isinstance(model, PackedBert))
    return _Loaded(tokenize, model, device, padding, threads)


def _load_transformer(files: ModelFiles, dtype: "torch.dtype") -> Any:
    """The model as transformers has it, for all that ``PackedBert`` does not take."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    try:
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
        kind = AutoModelForTextEncoding if config.model_type in ("t5", "mt5", "umt5") else AutoModel  # their encoder
        model, report = kind.from_pretrained(files.folder, local_files_only=True, **options)
    except Exception as error:
        raise _unloadable(files, str(error)) from error
    absent = sorted(name for name in report["missing_keys"] if "pooler" not in name)  # of which we have our own
    if absent:
        raise _unloadable(files, f"its weights lack {', '.join(absent[:3])} ({len(absent)} in all)")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model


def _unloadable(files: ModelFiles, reason: str) -> ModelMissingError:
    return ModelMissingError(
        f"The language model {files.name} could not be loaded from {files.folder}: {reason}. It must be a model that "
        "transformers knows, with its tokenizer. Put its files there again, or set NEARLINE_ENCODER__MODEL to another."
    )


def _threads(device: "torch.device", *, is_small: bool) -> ThreadPoolExecutor:
    """Threads that take a batch each, as many as torch may use on a CPU. They do not wait for each other in the middle
    of a layer, as those of one product do. A large model has one, with all threads of torch for its products."""
    import torch

    n_threads = torch.get_num_threads()
    if device.type != "cpu" or not is_small:
        return ThreadPoolExecutor(1, "encoder", torch.set_num_threads, (n_threads,))
    return ThreadPoolExecutor(n_threads, "encoder", _take_one_thread, (n_threads,))


def _take_one_thread(n_others: int) -> None:
    """Torch keeps the number for each thread, and the last one that was set for threads to come: set that back."""
    import torch

    torch.set_num_threads(1)
    restoring = threading.Thread(target=torch.set_num_threads, args=(n_others,))
    restoring.start()
    restoring.join()


def _tokenizing(files: ModelFiles, max_tokens: int, *, plain: bool) -> tuple[Callable[[list[str]], list[Tokens]], int]:
    """What gives the token ids of texts, and the id of padding. If ``plain``, transformers is not imported where the
    file of the tokenizer says all there is to say; that is half of the time of loading."""
    fast, padding, side = plain_tokenizer(files.folder) if plain else None, 0, "right"
    if fast is None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
        except Exception as error:
            raise _unloadable(files, str(error)) from error
        fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        padding, side = tokenizer.pad_token_id or 0, tokenizer.truncation_side
    if fast is None:
        options: dict[str, Any] = {"truncation": True, "max_length": max_tokens, "return_attention_mask": False}
        return lambda texts: list(tokenizer(texts, padding=False, **options)["input_ids"]), padding
    fast.no_padding()
    fast.enable_truncation(max_tokens, direction=side)
    return lambda texts: [encoding.ids for encoding in fast.encode_batch_fast(texts)], padding


def _packed_vectors(model: PackedBert, rows: list[list[Tokens]], padding: int, pooling: str) -> "torch.Tensor":
    """One vector of each text (texts, width), in the order of the rows."""
    import torch

    layout = lay_out(rows, padding)
    states = model.states(layout)
    if pooling == "cls":
        return states[layout.first].float()
    if pooling == "lasttoken":
        return states[layout.first + layout.n_tokens - 1].float()
    sums = torch.zeros(len(layout.n_tokens) + 1, states.shape[1]).index_add_(0, layout.text, states.float())
    return sums[:-1] / layout.n_tokens.unsqueeze(1)


def _padded_vectors(loaded: _Loaded, tokens: list[Tokens], pooling: str) -> "torch.Tensor":
    import torch

    longest = max(map(len, tokens))
    ids = torch.tensor([row + [loaded.padding] * (longest - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
    if loaded.device.type == "cuda":
        ids, mask = (part.pin_memory().to(loaded.device, non_blocking=True) for part in (ids, mask))
    return _pool(loaded.model(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask, pooling)


def _pool(states: "torch.Tensor", mask: "torch.Tensor", pooling: str) -> "torch.Tensor":
    """One vector of each text from its token states (n, tokens, width); padding is on the right."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        return states[range(len(states)), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _collect(under_way: list[tuple[list[int], "Future[Floats]"]], vectors: Floats) -> None:
    """Put the vectors of batches at their places. An error of one is raised after all have ended."""
    errors = [error for _, future in under_way if (error := future.exception())]
    if errors:
        raise errors[0]
    for rows, future in under_way:
        vectors[rows] = future.result()


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has a type for it on a GPU only; on a CPU it is a RuntimeError that must be told by its text."""
    import torch

    told = str(error).lower()
    known = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in told for words in known)


def _best_precision() -> Precision:
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if any(features.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else "fp32"
