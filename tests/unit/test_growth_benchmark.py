"""The benchmark of growth: what it generates, how it fits, and that a run goes through every stage or says why not."""

import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import growth
from benchmarks.support.generated_catalog import Size, describe_skew, write_generated
from benchmarks.support.growth_fit import Measured, breaks_first, fit_stage
from benchmarks.support.growth_stages import STAGES, parse_size, stage_resources
from benchmarks.support.memory_peaks import MemoryPeaks


def measured(n_items, n_events, seconds, *, stage="slates", means="", peak_mb=1000.0, added_mb=100.0):
    return Measured(stage, n_items, n_events, n_events, seconds, peak_mb, added_mb, means)


def test_generated_data_has_the_skew_of_the_demo_and_is_the_same_again(tmp_path):
    size = Size(1682, 100_000)
    places = write_generated(size, tmp_path / "a")
    skew = describe_skew(places.events)
    assert skew["item_gini"] == pytest.approx(0.629, abs=0.12)
    assert skew["user_gini"] == pytest.approx(0.472, abs=0.05)
    assert skew["item_top_1_percent_share"] == pytest.approx(0.076, abs=0.03)
    again = write_generated(size, tmp_path / "b")
    for one, other in ((places.items, again.items), (places.events, again.events)):
        assert pq.read_table(one).equals(pq.read_table(other))
    events = pq.read_table(places.events)
    assert len(set(events["event_id"].to_pylist())) == events.num_rows == pytest.approx(100_000, rel=0.02)
    assert len(set(pq.read_table(places.items)["title"].to_pylist())) > 1300


def test_exponents_are_those_of_each_growing_number():
    points = [measured(n, m, 2e-8 * n * m**1.1) for n, m in ((1000, 10**6), (10**4, 10**5), (10**4, 10**6))]
    points += [measured(1000, 10**5, 0.3), measured(1682, 10**5, 900.0, means="demo")]
    fit = fit_stage(points)
    sizes = ["10000x100000", "10000x1000000"]
    assert fit["by"]["events"] == {"exponent": 1.1, "last_two": 1.1, "sizes": sizes}
    assert fit["by"]["items"]["exponent"] == 1.0
    assert fit["exponent"] == 1.1 and fit["is_within"]
    assert fit_stage([measured(1000, 10**5, 0.3)])["is_within"] is None


def test_what_breaks_first_is_named_with_its_reason():
    slow = [measured(1000, 10**5, 4.0), measured(10_000, 10**6, 40 * 10.0)]
    large = [measured(1000, 10**5, 3.0, stage="learn"), measured(10_000, 10**6, 30.0, stage="learn", added_mb=900.0)]
    by_time = breaks_first({"slates": slow, "learn": large})
    assert (by_time["stage"], by_time["reason"]) == ("slates", "time")
    by_memory = breaks_first({"learn": large})
    assert (by_memory["reason"], by_memory["foreseen_memory_gb"]) == ("memory", 90.1)


def test_workers_are_given_resources_without_the_index_in_memory(tmp_path):
    resources = stage_resources(tmp_path, simulated_encoder=False, memory_index=True)
    sent = pickle.loads(pickle.dumps(resources))
    assert (sent.settings, sent.memory_index) == (resources.settings, None)


def test_peaks_are_those_of_the_block():
    with MemoryPeaks() as large:
        np.ones(40_000_000)
    with MemoryPeaks() as small:
        pass
    found = large.megabytes()
    assert found["peak_mb"] - found["start_mb"] > 250
    assert small.megabytes()["peak_mb"] < found["peak_mb"] - 200


@pytest.mark.parametrize("text", ["1000", "10x100000", "1000x10", "axb"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        parse_size(text)


def test_a_run_goes_through_every_stage_and_one_that_does_not_says_so(tmp_path):
    found = growth.measure(["60x3000"], "simulated", "memory", folder=tmp_path)
    (run,) = found["runs"]
    assert run["failure"] is None and found["failed"] == []
    assert tuple(run["stages"]) == STAGES
    assert run["simulated_encoder"] and run["memory_index"]
    assert all(row["seconds"] > 0 and row["rows"] > 0 and row["peak_mb"] > 50 for row in run["stages"].values())
    late = growth.measure(["60x3000"], "simulated", "memory", limit_seconds=0.5, folder=tmp_path)
    assert late["failed"] == ["60x3000"] and "took longer than" in late["runs"][0]["failure"]
    assert not list(tmp_path.iterdir()), "sizes leave nothing behind"
