"""Speed of the text encoder beside sentence-transformers: same model, precision, threads and texts.

    python -m benchmarks.embedding --json
    python -m benchmarks.embedding --texts FILE --precision bf16 --threads 2

The two take turns in one process, each ``--repeat`` times, and the best turn of each counts, since other work on the
machine only ever slows a turn down. The last line printed is one JSON object. The texts are those of a file, one a
line, or the titles and genres of MovieLens 100K.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from infra.demo_data import prepare_movielens
from infra.model_files import resolve_model
from infra.settings import EncoderSettings, load_settings
from infra.token_batches import plan_batches
from infra.transformer_models import TransformerEncoder


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="a file of texts, one a line (default: MovieLens 100K)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    arguments = parser.parse_args()
    cache = load_settings().cache
    texts = read_texts(arguments.texts, cache)
    result = measure(texts, EncoderSettings(precision=arguments.precision), cache, arguments.threads, arguments.repeat)
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:32} {value}")
    print(json.dumps(result))


def read_texts(path: Path | None, cache: Path) -> list[str]:
    """Texts of a file, or those of MovieLens 100K as the platform's template writes them."""
    if path:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    films = pq.read_table(prepare_movielens(cache).items).to_pylist()
    return [f"{film['title']}. {', '.join(film['categories'])}" for film in films if film["title"]]


def measure(
    texts: list[str], settings: EncoderSettings, cache: Path, threads: int | None, repeat: int
) -> dict[str, Any]:
    """Rates (per second), their ratio, the share of padding, the largest difference and the peak memory."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    files = resolve_model(settings, cache)
    ours = TransformerEncoder(files, settings)
    ours.encode(texts[:64])
    ours.encode(texts)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    theirs = reference_encoder(files.folder, settings.precision)
    theirs(texts[:64])
    turns = [(_seconds(ours.encode, texts), _seconds(theirs, texts)) for _ in range(repeat)]
    seconds, reference_seconds = (min(turn[side] for turn in turns) for side in (0, 1))
    lengths = [len(tokens) for tokens in ours.tokenize(texts)]
    batches = plan_batches(lengths, ours.batch_tokens)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return {
        "benchmark": "embedding",
        "encoder_id": ours.encoder_id,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "n_texts": len(texts),
        "n_tokens": sum(lengths),
        "items_per_second": round(len(texts) / seconds, 1),
        "tokens_per_second": round(sum(lengths) / seconds),
        "reference_items_per_second": round(len(texts) / reference_seconds, 1),
        "ratio": round(reference_seconds / seconds, 3),
        "padding_share": round(1 - sum(lengths) / padded, 4),
        "max_difference": float(np.abs(ours.encode(texts) - theirs(texts)).max()),
        "peak_memory_mib": round(peak_mib),
    }


def reference_encoder(folder: Path, precision: str) -> Callable[[list[str]], np.ndarray]:
    """The same model in sentence-transformers, with its own defaults for batches."""
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"dtype": dtype})

    def encode(texts: list[str]) -> np.ndarray:
        vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    return encode


def _seconds(function: Callable[[list[str]], object], texts: list[str]) -> float:
    started = time.perf_counter()
    function(texts)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
