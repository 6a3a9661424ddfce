"""Speed of the text encoder beside sentence-transformers: same model, precision, threads and texts.

    python -m benchmarks.embedding --json
    python -m benchmarks.embedding --texts FILE --precision bf16 --threads 2
    python -m benchmarks.embedding --long --n-texts 500 --precision bf16

The two take turns in one process, each ``--repeat`` times, with a product of two 4096 by 4096 matrices beside each
turn, and medians are reported. sentence-transformers has the batch size that was fastest for it on a part of the texts;
it also runs with its own defaults (fp32, batches of 32). The last line printed is one JSON object. The texts are the
column ``text`` of a Parquet file, or the titles of ``../shared/data`` (of MovieLens 100K where that is not there),
repeated to ``--n-texts``; with ``--long``, as many of them as make 20 to 400 words. Loading is timed in a process of
its own, from its start to the first query's vector.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq

from infra.demo_data import prepare_movielens
from infra.model_files import ModelFiles, resolve_model
from infra.settings import EncoderSettings, load_settings
from infra.transformer_models import TransformerEncoder

SHARED = Path(__file__).parents[2] / "shared" / "data"
BATCH_SIZES = (16, 32, 64, 128)
N_TRIED = 1024
N_QUERIES = 40
N_ROWS = 4096
Encode = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="a Parquet file with the column text")
    parser.add_argument("--long", action="store_true", help="texts of 20 to 400 words")
    parser.add_argument("--n-texts", type=int, default=20_000, help="the texts are repeated to this many")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    arguments = parser.parse_args()
    cache = load_settings().cache
    texts = read_texts(arguments.texts, cache, arguments.n_texts, is_long=arguments.long)
    result = measure(texts, EncoderSettings(precision=arguments.precision), cache, arguments.threads, arguments.repeat)
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:32} {value}")
    print(json.dumps(result))


def read_texts(path: Path | None, cache: Path, n_texts: int, *, is_long: bool = False) -> list[str]:
    """``n_texts`` texts in a random order that is the same each time; long ones are titles one after the other."""
    known = pq.read_table(path)["text"].to_pylist() if path else _titles(cache)
    known = [text for text in known if text and text.strip()]
    rng = np.random.default_rng(0)
    known = [known[place] for place in rng.permutation(len(known))]
    endless = cycle(known)
    if not is_long:
        return list(islice(endless, n_texts))
    return [_words(endless, int(rng.integers(20, 401))) for _ in range(n_texts)]


def measure(
    texts: list[str], settings: EncoderSettings, cache: Path, threads: int | None, repeat: int
) -> dict[str, Any]:
    """Rates (per second), their ratios, the share of padding, the largest difference, and the peak memory of ours."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    files = resolve_model(settings, cache)
    ours = TransformerEncoder(files, settings)
    ours.encode(texts)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    theirs, batch_size = _fastest(files, settings.precision, texts[:N_TRIED])
    default = reference_encoder(files.folder, "fp32", 32)
    lengths = [len(tokens) for tokens in ours.tokenize(texts)]
    flops = sum(lengths) * flops_of_a_token(files)
    turns = [
        (_seconds(ours.encode, texts), _seconds(theirs, texts), _seconds(default, texts), _product_seconds())
        for _ in range(repeat)
    ]
    seconds, reference_seconds, default_seconds, _ = (statistics.median(side) for side in zip(*turns, strict=True))
    product_rate = 2 * N_ROWS**3 / min(turn[3] for turn in turns)
    found, expected = ours.encode(texts[:N_TRIED]), theirs(texts[:N_TRIED])
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
        "reference_batch_size": batch_size,
        "ratio": _median_ratio(turns, 1),
        "ratio_to_default": _median_ratio(turns, 2),
        "default_items_per_second": round(len(texts) / default_seconds, 1),
        "gflops": round(flops / seconds / 1e9),
        "product_gflops": round(product_rate / 1e9),
        "share_of_product": round(statistics.median(flops / turn[0] * turn[3] / (2 * N_ROWS**3) for turn in turns), 3),
        "share_of_best_product": round(flops / seconds / product_rate, 3),
        "padding_share": round(padding_share(ours, lengths), 4),
        "max_difference": float(np.abs(found - expected).max()),
        "min_cosine": float((found * expected).sum(axis=1).min()),
        "peak_memory_mib": round(peak_mib),
        **measure_queries(ours, texts),
        "load_seconds": round(statistics.median(_load_seconds(settings) for _ in range(repeat)), 2),
    }


def padding_share(encoder: TransformerEncoder, lengths: Sequence[int]) -> float:
    """Tokens of padding among all tokens that the model computes."""
    rows = [[sum(lengths[i] for i in row) for row in batch] for batch in encoder.plan(lengths)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in rows)


def measure_queries(encoder: TransformerEncoder, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one text at a time, in a process that is warm."""
    seconds = sorted(_seconds(encoder.encode_queries, [text]) for text in texts[:N_QUERIES])
    return {
        "query_ms": round(1000 * statistics.median(seconds), 2),
        "query_ms_p95": round(1000 * seconds[int(0.95 * len(seconds))], 2),
    }


def flops_of_a_token(files: ModelFiles) -> int:
    """Operations in the linear layers of a BERT for one token; attention is not counted."""
    config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    width, inner = config["hidden_size"], config["intermediate_size"]
    return int(2 * config["num_hidden_layers"] * (4 * width * width + 2 * width * inner))


def reference_encoder(folder: Path, precision: str, batch_size: int) -> Encode:
    """The same model in sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = SentenceTransformer(str(folder), local_files_only=True, model_kwargs={"dtype": dtype})

    def encode(texts: Sequence[str]) -> np.ndarray:
        options: dict[str, Any] = {"normalize_embeddings": True, "show_progress_bar": False, "convert_to_tensor": True}
        vectors = model.encode(list(texts), batch_size=batch_size, **options).float()
        return np.asarray(torch.nn.functional.normalize(vectors, dim=1).cpu().numpy())  # in bf16 they are not quite

    return encode


def _fastest(files: ModelFiles, precision: str, texts: list[str]) -> tuple[Encode, int]:
    """sentence-transformers with the batch size that is fastest on these texts, the better of two turns each."""
    encoders = {size: reference_encoder(files.folder, precision, size) for size in BATCH_SIZES}
    seconds = {size: min(_seconds(encode, texts) for _ in range(2)) for size, encode in encoders.items()}
    best = min(BATCH_SIZES, key=lambda size: seconds[size])
    return encoders[best], best


def _product_seconds() -> float:
    """A product of square matrices in bf16, the best of three."""
    import torch

    left, right = (torch.randn(N_ROWS, N_ROWS, dtype=torch.bfloat16) for _ in range(2))
    return min(_seconds(lambda _: left @ right, []) for _ in range(3))


def _load_seconds(settings: EncoderSettings) -> float:
    program = (
        "from infra.settings import EncoderSettings, load_settings;"
        "from infra.transformer_models import load_encoder;"
        f"settings = EncoderSettings.model_validate_json({settings.model_dump_json()!r});"
        "load_encoder(settings, load_settings().cache).encode_queries(['a film'])"
    )
    return _seconds(lambda _: subprocess.run([sys.executable, "-c", program], check=True), [])


def _median_ratio(turns: Sequence[Sequence[float]], side: int) -> float:
    return round(statistics.median(turn[side] / turn[0] for turn in turns), 3)


def _titles(cache: Path) -> list[str]:
    if SHARED.is_dir():
        books = pq.read_table(SHARED / "goodbooks-10k-catalog/books.parquet")["title"].to_pylist()
        films = pc.read_csv(SHARED / "ml-latest-small/movies.csv")["title"].to_pylist()
        return [*books, *films, *pq.read_table(SHARED / "hetrec2011-lastfm-2k/artists.parquet")["name"].to_pylist()]
    rows = pq.read_table(prepare_movielens(cache).items).to_pylist()
    return [f"{film['title']}. {', '.join(film['categories'])}" for film in rows if film["title"]]


def _words(endless: "cycle[str]", n_words: int) -> str:
    words: list[str] = []
    while len(words) < n_words:
        words += next(endless).split()
    return " ".join(words[:n_words])


def _seconds(function: Callable[[Any], object], texts: Any) -> float:
    started = time.perf_counter()
    function(texts)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
