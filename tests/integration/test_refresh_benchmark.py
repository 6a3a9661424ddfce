"""The benchmark of the refresh runs, on a small lake, and says what it leaves out."""

from benchmarks.refresh import measure
from benchmarks.support.generated_lake import LakeSize


def test_the_benchmark_measures_every_size(tmp_path):
    size = LakeSize(n_events=4000, n_users=80, n_items=50, n_factors=4, text_width=8)
    found = measure(tmp_path / "lake", size, [1, 20], 1)
    assert found["data"].startswith("generated lake")
    assert found["index_write_counted"] is False
    assert found["seconds_by_touched_users"].keys() == {"1", "20"}
    assert found["idle_seconds"] > 0
