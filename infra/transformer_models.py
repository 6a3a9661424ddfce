"""Text encoders on transformers and torch. It knows nothing of where texts come from or vectors go.

Texts are cut, tokenized, sorted by length and put into batches of a number of tokens, so that little is padding; the
token states are pooled as the model's configuration says and brought to unit length, in fp32 whatever the precision
of the model. In fp32 the vectors are those of sentence-transformers for the same model.
"""

import logging
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.model_files import ModelFiles, check_weights, resolve_model
from infra.package_files import Progress
from infra.settings import EncoderSettings
from tasks.domain.errors import ModelMissingError
from tasks.domain.ports import TextEncoder

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Precision = Literal["fp32", "bf16", "fp16"]

_BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}

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

    @cached_property
    def precision(self) -> Precision:
        """The precision of the model's work: the one of the settings, or what the device does well."""
        return _best_precision() if self._settings.precision == "auto" else self._settings.precision

    @property
    def encoder_id(self) -> str:
        """Name, fingerprint of the files, precision, pooling and longest text: all that changes the vectors."""
        parts = (self._files.fingerprint[:12], self.precision, self._files.pooling, str(self._max_tokens))
        return f"{self._files.name}@{':'.join(parts)}"

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self._files.width

    @property
    def batch_tokens(self) -> int:
        """Tokens in one batch: those of the settings, or what suits the device. Loads the model."""
        return self._settings.batch_tokens or _BATCH_TOKENS[self._loaded().device.type]

    def encode(self, texts: Sequence[str]) -> Floats:
        """(n, width) float32 in the order given, rows of unit length; a text of white space gives a zero row."""
        vectors = np.zeros((len(texts), self.width), np.float32)
        rows = [row for row, text in enumerate(texts) if text.strip()]
        if not rows:
            return vectors
        tokens = self.tokenize([texts[row] for row in rows])
        for batch in plan_batches([len(ids) for ids in tokens], self.batch_tokens):
            vectors[[rows[i] for i in batch]] = self._encode_batch([tokens[i] for i in batch])
        return vectors

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut at the longest length allowed."""
        encoded = self._loaded().tokenizer(
            list(texts), truncation=True, max_length=self._max_tokens, padding=False, return_attention_mask=False
        )
        return list(encoded["input_ids"])

    def _encode_batch(self, tokens: list[list[int]]) -> Floats:
        import torch

        loaded = self._loaded()
        longest = max(map(len, tokens))
        ids = torch.tensor([row + [loaded.padding] * (longest - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        with torch.inference_mode():
            ids, mask = ids.to(loaded.device), mask.to(loaded.device)
            states = loaded.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            pooled = _pool(states, mask, self._files.pooling)
            unit = torch.nn.functional.normalize(pooled, dim=1)
        vectors: Floats = unit.cpu().numpy()
        return vectors

    def _loaded(self) -> "_Loaded":
        with _lock:
            if self._model is None:
                self._model = _load(self._files, self.precision)
            return self._model


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions of texts in batches of similar length, the longest first.

    A batch costs its longest text times its number of texts; that stays within ``batch_tokens`` unless one text alone
    is longer. Ties keep their order.
    """
    batches: list[list[int]] = []
    room = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            batches.append([])
            room = max(1, batch_tokens // max(1, lengths[position]))
        batches[-1].append(position)
        room -= 1
    return batches


class _Loaded(NamedTuple):
    tokenizer: Any
    model: Any
    device: "torch.device"
    padding: int


def _load(files: ModelFiles, precision: Precision) -> _Loaded:
    started = time.perf_counter()
    check_weights(files)
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
        model, report = AutoModel.from_pretrained(files.folder, local_files_only=True, **options)
    except Exception as error:
        raise _unloadable(files, str(error)) from error
    absent = sorted(name for name in report["missing_keys"] if "pooler" not in name)  # of which we have our own
    if absent:
        raise _unloadable(files, f"its weights lack {', '.join(absent[:3])} ({len(absent)} in all)")
    logger.info("Loaded %s on %s in %.1f s.", files.name, device, time.perf_counter() - started)
    return _Loaded(tokenizer, model.eval().to(device), device, tokenizer.pad_token_id or 0)


def _unloadable(files: ModelFiles, reason: str) -> ModelMissingError:
    return ModelMissingError(
        f"The language model {files.name} could not be loaded from {files.folder}: {reason}. It must be a model that "
        "transformers knows, with its tokenizer. Put its files there again, or set NEARLINE_ENCODER__MODEL to another."
    )


def _pool(states: "torch.Tensor", mask: "torch.Tensor", pooling: str) -> "torch.Tensor":
    """One vector of each text from its token states (n, tokens, width); padding is on the right."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        return states[range(len(states)), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _best_precision() -> Precision:
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if any(features.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else "fp32"
