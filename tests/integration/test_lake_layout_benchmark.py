"""The benchmark of the lake's layout runs, on small lakes, and compares with what the platform writes."""

from benchmarks.lake_layout import WRITTEN, Layout, measure
from benchmarks.support.generated_lake import LakeSize
from infra.resources import LocalResources
from infra.settings import load_settings


def test_the_benchmark_measures_every_layout_and_size(tmp_path):
    size = LakeSize(n_events=4000, n_users=40, n_items=50)
    other = Layout.parse("v1/snappy/122880")
    found = measure(tmp_path, size, [other], 1, 2)
    assert found["layouts"].keys() == {str(other), str(WRITTEN)}
    assert found["layouts"][str(WRITTEN)]["ratio"] == 1.0
    assert all(row["megabytes"] > 0 for row in found["layouts"].values())
    assert found["threads"].keys() == {"1 users", "40 users"}
    assert found["fold"]["rows"] == 25 * 100
    assert found["commits"].keys() == {"25", "250"}
    with LocalResources(load_settings(home=tmp_path / "v2-uncompressed-500000")).warehouse(read_only=True) as warehouse:
        (n_rows,) = warehouse.read("select count(*) as n from raw_events")["n"].to_pylist()
    assert n_rows == 4000 + (25 + 250) * 2 * 2


def test_the_layout_that_is_compared_with_is_the_one_of_a_new_warehouse(tmp_path):
    with LocalResources(load_settings(home=tmp_path)).warehouse() as warehouse:
        rows = warehouse.read("select option_name, value, scope_entry from lake.options()").to_pylist()
    options = {row["option_name"]: row["value"] for row in rows if row["scope_entry"] in (None, "main.raw_events")}
    written = (options["parquet_version"].lower(), options["parquet_compression"], options["parquet_row_group_size"])
    assert "/".join(written) == str(WRITTEN)
