"""The GPU script runs to its end without a GPU: on the CPU's tensors, or with a word that there is none."""

import json

import numpy as np
import pytest

from benchmarks import factors_gpu
from benchmarks.support.device_speed import CG_STEPS, TimedSolver, profile_call, sweep_demand


def printed(capsys, *arguments):
    factors_gpu.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_line_runs_on_the_cpu(capsys):
    result = printed(capsys, "--device", "cpu", "--tiny")
    assert [case["factors"] for case in result["cases"]] == list(factors_gpu.TINY.dimensions)
    for case in result["cases"] + result["growth"]:
        assert case["difference"] < 1e-3
        assert case["same_bits_again"]
        assert case["device_seconds"] > 0
    assert 0 < result["cases"][0]["recall_at_20"] <= 1
    assert result["fold_in"]["users_per_second_device"] > 0
    assert result["skipped"] == []


def test_nothing_is_begun_when_the_time_is_over(capsys):
    result = printed(capsys, "--device", "cpu", "--tiny", "--minutes", "0")
    assert result["cases"] == result["growth"] == []
    assert len(result["skipped"]) == 5


def test_without_a_gpu_it_says_so(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = printed(capsys)
    assert result["gpu"] is None
    assert "finds no GPU" in result["note"]


def test_what_a_sweep_asks_for_is_counted():
    """One entry and one factor: the products of the start and the steps on both sides, Gram matrices, rotations."""
    assert sweep_demand(1, 1, 1, 1).n_flops == 2 * 4 * (1 + CG_STEPS) + 2 * 2 + 2 * 2 * 2
    few, many = sweep_demand(10, 10, 100, 4), sweep_demand(10, 10, 200, 4)
    assert many.n_bytes - few.n_bytes == 2 * 100 * 4 * 4 * (2 + 2 * (1 + CG_STEPS))


def test_the_time_of_a_call_is_taken_apart():
    import torch

    found = profile_call("cpu", lambda: torch.randn(300, 300) @ torch.randn(300, 300))
    assert 0 < found.computing <= found.wall * 1.5
    assert any("mm" in name for name, _, _ in found.top)


def test_half_steps_are_timed_apart():
    timed = TimedSolver(lambda side, fixed, rows, feature_map, *, exact=False: None)
    for exact in (False, False, True):
        timed(None, np.zeros(1), np.zeros(1), None, exact=exact)
    assert len(timed.sweeping) == 2
    assert len(timed.exact) == 1
    assert timed.best_sweep == sum(timed.sweeping)
