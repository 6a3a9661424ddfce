"""SIGKILL in the midst of embedding: the next run finishes, and repeats nothing that was finished."""

import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import ComputeSettings, EncoderSettings, load_settings
from tasks.embed import embed_items
from tests.fakes.hashing import HashingEncoder, HashingResources

NOW = datetime(2026, 3, 1, tzinfo=UTC)
N_ITEMS, N_IN_PARTITION = 48, 4

PROGRAM = """
import sys
from pathlib import Path
from tests.integration import test_kill_embedding as here
from tasks.embed import embed_items
resources = here.make_resources(Path(sys.argv[1]), delay_seconds=0.3)
embed_items(resources, now=here.NOW, on_progress=lambda *seen: print(*seen, flush=True))
"""


def make_resources(folder: Path, delay_seconds: float = 0.0) -> HashingResources:
    settings = load_settings(
        home=folder / "var",
        encoder=EncoderSettings(partition_items=N_IN_PARTITION),
        compute=ComputeSettings(n_workers=2),
    )
    return HashingResources(settings, HashingEncoder(log=folder / "log", delay_seconds=delay_seconds))


def fill(resources: HashingResources) -> None:
    import hashlib

    texts = [f"film number {n}" for n in range(N_ITEMS)]
    rows = pa.table(
        {
            "item_id": [f"i{n}" for n in range(N_ITEMS)],
            "text": texts,
            "content_hash": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
            "template_version": ["v1"] * N_ITEMS,
        }
    )
    with resources.warehouse() as warehouse:
        warehouse.commit(lambda transaction: transaction.append("int_item_texts", rows))


def finished(folder: Path) -> list[Path]:
    return list((folder / "var" / "staging").rglob("*.parquet"))


def kill_in_the_midst(folder: Path, n_partitions: int) -> list[str]:
    """Run the embedding, kill it once ``n_partitions`` are finished, and give the texts in the files that are there."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        for _ in range(n_partitions):
            assert process.stdout.readline(), "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return [
        content_hash for path in finished(folder) for content_hash in pq.read_table(path)["content_hash"].to_pylist()
    ]


def test_a_killed_embedding_goes_on_where_it_was(tmp_path) -> None:
    resources = make_resources(tmp_path)
    fill(resources)
    kept = kill_in_the_midst(tmp_path, 2)
    kept += kill_in_the_midst(tmp_path, 1)  # this run took over what the first had left
    assert 3 * N_IN_PARTITION <= len(set(kept)) < N_ITEMS
    receipt = embed_items(resources, now=NOW)
    with resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read("select content_hash, count(*) as n from item_embeddings group by all")
    assert rows.num_rows == N_ITEMS and set(rows["n"].to_pylist()) == {1}
    assert "left by an earlier run" in receipt.note
    times = Counter((tmp_path / "log").read_text().split())
    assert {times[content_hash] for content_hash in kept} == {1}, "a finished partition was encoded again"
    assert set(times) == set(rows["content_hash"].to_pylist())
    assert embed_items(resources, now=NOW).reused and not finished(tmp_path)
