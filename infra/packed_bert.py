"""The forward pass of BERT and its kin on a CPU, with several texts in each row and no layer that is not needed.

A token sees the tokens of its own text only (a mask in blocks along the diagonal), so that rows of short texts are full
and hardly anything is padding. Weights are laid out for the processor once, and the matrix products of oneDNN add the
bias and the residual while they are at it. It knows nothing of tokenizers, pooling and settings.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import torch

FAMILY = ("bert", "roberta", "xlm-roberta", "camembert")
"""Values of ``model_type`` whose layers are those of BERT, whatever their vocabulary and their positions."""

_PREFIXES = ("bert.", "roberta.")
_LAYOUT_TOKENS = 1024  # the size of batch that the layout of the weights is chosen for; others work as well


class Layout(NamedTuple):
    """Rows of texts as tensors. ``ids``, ``positions`` and ``text`` are (rows * tokens,); ``text`` numbers the texts in
    the order of the rows, and is the number of texts for padding. ``first`` and ``n_tokens`` are (texts,)."""

    ids: "torch.Tensor"
    positions: "torch.Tensor"
    text: "torch.Tensor"
    first: "torch.Tensor"
    n_tokens: "torch.Tensor"
    n_rows: int
    is_packed: bool


def lay_out(rows: Sequence[Sequence[Sequence[int]]], padding: int) -> Layout:
    """Rows of texts of token ids, side by side; shorter rows are padded to the longest."""
    import torch

    longest = max(sum(map(len, row)) for row in rows)
    ids: list[int] = []
    positions: list[int] = []
    first: list[int] = []
    lengths: list[int] = []
    owners: list[int] = []
    n_texts = sum(map(len, rows))
    for number, row in enumerate(rows):
        for tokens in row:
            owners.append(len(first))
            first.append(len(ids))
            lengths.append(len(tokens))
            ids.extend(tokens)
            positions.extend(range(len(tokens)))
        absent = (number + 1) * longest - len(ids)
        if absent:
            owners.append(n_texts)
            lengths.append(absent)
            ids.extend([padding] * absent)
            positions.extend([0] * absent)
    real = [length for owner, length in zip(owners, lengths, strict=True) if owner < n_texts]
    text = torch.repeat_interleave(torch.tensor(owners), torch.tensor(lengths))
    is_packed = len(owners) > len(rows)
    return Layout(
        torch.tensor(ids), torch.tensor(positions), text, torch.tensor(first), torch.tensor(real), len(rows), is_packed
    )


class PackedBert:
    """A BERT of one precision. May be shared by threads."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> None:
        """Raises KeyError if weights are missing. See ``can_pack``."""
        import torch

        def weight(name: str) -> "torch.Tensor":
            return weights[name].to(dtype).contiguous()

        self._epsilon = float(config["layer_norm_eps"])
        self._n_heads = int(config["num_attention_heads"])
        self._words = weight("embeddings.word_embeddings.weight")
        offset = 0 if config["model_type"] == "bert" else int(config["pad_token_id"]) + 1
        places = weights["embeddings.position_embeddings.weight"][offset:].float()
        self._places = (places + weights["embeddings.token_type_embeddings.weight"][0].float()).to(dtype)
        self._norm = (weight("embeddings.LayerNorm.weight"), weight("embeddings.LayerNorm.bias"))
        self._layers = []
        for number in range(int(config["num_hidden_layers"])):
            prefix = f"encoder.layer.{number}."
            attention = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
            mixed = torch.cat([weight(f"{name}.weight") for name in attention])
            bias = torch.cat([weight(f"{name}.bias") for name in attention])
            names = ("attention.output.dense", "intermediate.dense", "output.dense")
            attended, up, down = (
                _Product(weight(f"{prefix}{name}.weight"), weight(f"{prefix}{name}.bias")) for name in names
            )
            first, second = (
                (weight(f"{prefix}{name}.weight"), weight(f"{prefix}{name}.bias"))
                for name in ("attention.output.LayerNorm", "output.LayerNorm")
            )
            self._layers.append(_Layer(_Product(mixed, bias), attended, up, down, first, second))

    @classmethod
    def load(cls, config_file: Path, weights: Sequence[Path], dtype: "torch.dtype") -> Self | None:
        """The model of the files, or None where they hold another kind of model or not all of one."""
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if not can_pack(config):
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = {_bare(name): tensor for path in weights for name, tensor in load_file(path).items()}
            return cls(config, tensors, dtype)
        except (KeyError, SafetensorError):
            return None

    def states(self, layout: Layout) -> "torch.Tensor":
        """The last states of all tokens (rows * tokens, width), those of padding too. Call it in inference mode."""
        from torch.nn import functional

        x = functional.embedding(layout.ids, self._words) + functional.embedding(layout.positions, self._places)
        width = x.shape[1]
        shape = (width,)
        x = functional.layer_norm(x, shape, *self._norm, self._epsilon)
        heads = (layout.n_rows, -1, 3, self._n_heads, width // self._n_heads)
        mask = _mask(layout, x.dtype)
        for layer in self._layers:
            query, key, value = layer.mixed(x).view(heads).permute(2, 0, 3, 1, 4).unbind(0)
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            seen = seen.transpose(1, 2).reshape(-1, width)
            x = functional.layer_norm(layer.attended.plus(seen, x), shape, *layer.attention_norm, self._epsilon)
            inner = layer.up.gelu(x)
            x = functional.layer_norm(layer.down.plus(inner, x), shape, *layer.output_norm, self._epsilon)
        return x


def can_pack(config: Mapping[str, Any]) -> bool:
    """Whether a model of this configuration is computed here: an encoder with the layers of BERT."""
    return (
        config.get("model_type") in FAMILY
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and not config.get("add_cross_attention")
        and "layer_norm_eps" in config
        and "pad_token_id" in config
    )


class _Product:
    """A linear layer, with its weights in the order that oneDNN likes best where torch can do that."""

    def __init__(self, weight: "torch.Tensor", bias: "torch.Tensor") -> None:
        import torch

        self._weight, self._bias = weight, bias
        self._fused: Any = None
        kernels = torch.ops.mkldnn
        try:
            if weight.dtype != torch.float32 and not kernels._is_mkldnn_bf16_supported():  # noqa: SLF001 no public name
                return
            if weight.dtype in (torch.float32, torch.bfloat16) and torch._C._has_mkldnn:  # noqa: SLF001
                self._weight = kernels._reorder_linear_weight(weight, _LAYOUT_TOKENS)  # noqa: SLF001
                self._fused = kernels._linear_pointwise  # noqa: SLF001
        except (AttributeError, RuntimeError):  # a torch without these kernels
            self._weight, self._fused = weight, None

    def __call__(self, x: "torch.Tensor") -> "torch.Tensor":
        from torch.nn import functional

        if self._fused is None:
            return functional.linear(x, self._weight, self._bias)
        product: torch.Tensor = self._fused(x, self._weight, self._bias, "none", [], "none")
        return product

    def gelu(self, x: "torch.Tensor") -> "torch.Tensor":
        """The GELU (the exact one) of the product."""
        from torch.nn import functional

        if self._fused is None:
            return functional.gelu(self(x))
        product: torch.Tensor = self._fused(x, self._weight, self._bias, "gelu", [], "none")
        return product

    def plus(self, x: "torch.Tensor", residual: "torch.Tensor") -> "torch.Tensor":
        """The product and a residual of its shape."""
        if self._fused is None:
            return self(x) + residual
        product: torch.Tensor = self._fused.binary(x, residual, self._weight, self._bias, "add")
        return product


class _Layer(NamedTuple):
    mixed: _Product  # query, key and value in one
    attended: _Product
    up: _Product
    down: _Product
    attention_norm: tuple["torch.Tensor", "torch.Tensor"]
    output_norm: tuple["torch.Tensor", "torch.Tensor"]


def _mask(layout: Layout, dtype: "torch.dtype") -> "torch.Tensor | None":
    """(rows, 1, tokens, tokens) to add to the scores: 0 within a text (and among padding), else minus infinity."""
    import torch

    if not layout.is_packed:
        return None
    text = layout.text.view(layout.n_rows, -1)
    apart = text[:, None, :, None] != text[:, None, None, :]
    return torch.zeros(apart.shape, dtype=dtype).masked_fill_(apart, float("-inf"))


def _bare(name: str) -> str:
    """The name of a weight without that of the model before it, in today's words."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
