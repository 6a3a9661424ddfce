"""What solves the rows of the factor model: threads, torch and Dask workers give one result."""

import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import infra.torch_blocks as torch_blocks
import tasks.distributed_factors as distributed_factors
from infra.dask_runner import open_compute
from infra.resources import LocalResources
from infra.settings import ComputeSettings, load_settings
from infra.torch_blocks import plan_blocks
from infra.torch_factors import TorchSolver
from tasks.distributed_factors import DistributedSolver, RowBlock, open_distributed_solver, solve_block
from tasks.domain.errors import SettingsError, TerminalError, TrainingError
from tasks.domain.factor_model import FactorParameters, user_side
from tasks.domain.factors import fit_factors
from tasks.domain.half_steps import Side, ThreadedSolver
from tasks.training_inputs import fixed_threads

N_USERS, N_ITEMS = 300, 200
PARAMETERS = FactorParameters(
    n_factors=16, regularization=0.1, unobserved_weight=0.1, popularity_discount=0.5, text_prior=0.7, text_ridge=1.0,
    n_sweeps=4,
)  # fmt: skip
SOLVERS = (
    "threads",
    "torch",
    pytest.param("one worker", marks=pytest.mark.server),
    pytest.param("two workers", marks=pytest.mark.server),
)


@pytest.fixture(autouse=True)
def _one_thread():
    with fixed_threads():
        yield


@pytest.fixture(scope="module")
def one_worker():
    with open_compute(ComputeSettings(n_workers=1)) as compute:
        yield compute


@pytest.fixture(scope="module")
def two_workers():
    with open_compute(ComputeSettings(n_workers=2)) as compute:
        yield compute


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks for a worker, and for torch several blocks, pieces, and rows that do not fit in one block."""
    monkeypatch.setattr(distributed_factors, "_LEAST_WORK", 8000)
    monkeypatch.setattr(torch_blocks, "PIECE", 32)
    monkeypatch.setitem(torch_blocks.BLOCK_CELLS, "cpu", 2**10)


@pytest.fixture(params=SOLVERS)
def kind(request):
    return request.param


@pytest.fixture
def solver(kind, request, tmp_path):
    if kind == "threads":
        yield ThreadedSolver(3)
    elif kind == "torch":
        yield TorchSolver("cpu")
    else:
        with open_distributed_solver(request.getfixturevalue(kind.replace(" ", "_")), tmp_path / "home") as solver:
            yield solver


def make_world(features=None):
    """Likes of several strengths and dislikes: many items that few know, a user who knows all, some who know none."""
    rng = np.random.default_rng(0)
    known = rng.random((N_USERS, N_ITEMS)) < 0.5 / (1 + np.arange(N_ITEMS)) ** 0.7
    dense = rng.choice([0.25, 1, 1, 3, -1], known.shape) * known
    dense[5] = rng.choice([0.25, 1, -1], N_ITEMS)
    dense[7:12], dense[:, 150:160] = 0, 0
    matrix = sparse.csr_matrix(dense.astype(np.float32))
    assert (matrix.data < 0).any()
    if features is None:
        return matrix, np.zeros((N_ITEMS, 0), np.float32), None
    of_items = rng.normal(size=(N_ITEMS, 12)).astype(np.float32)
    of_users = rng.normal(size=(N_USERS, 4)).astype(np.float32)
    if features == "sparse":
        return matrix, sparse.csr_matrix(of_items * (of_items > 1)), sparse.csr_matrix(of_users * (of_users > 0))
    return matrix, of_items / np.linalg.norm(of_items, axis=1, keepdims=True), of_users


def fit(world, solver):
    matrix, of_items, of_users = world
    return fit_factors(matrix, of_items, PARAMETERS, user_features=of_users, solver=solver)


def largest_difference(first, second):
    return np.abs(first - second).max(initial=0) / (np.abs(first).max(initial=0) or 1)


@pytest.mark.parametrize("features", [None, "dense", "sparse"])
def test_a_whole_fit_is_that_of_one_thread(kind, solver, features):
    world = make_world(features)
    expected, found = fit(world, ThreadedSolver()), fit(world, solver)
    for name in ("users", "items", "item_map", "user_map"):
        one, other = getattr(expected, name), getattr(found, name)
        assert largest_difference(one, other) < 1e-3
        assert kind == "torch" or np.array_equal(one, other)
    assert np.allclose([s.loss for s in expected.sweeps], [s.loss for s in found.sweeps], rtol=1e-4)
    assert (features is None) == (not found.item_map.size)


def exact_case():
    matrix, _, _ = make_world()
    fixed = np.random.default_rng(3).normal(size=(N_ITEMS, 24)).astype(np.float32)
    side = user_side(matrix, np.linspace(0.5, 1.5, N_ITEMS, dtype=np.float32), PARAMETERS)
    expected, double = np.zeros((N_USERS, 24)), fixed.astype(np.float64)
    for user, row in enumerate(matrix.toarray().astype(np.float64)):
        system = (double * (np.abs(row) + 0.1 * side.column_weight)[:, None]).T @ double
        expected[user] = np.linalg.solve(system + side.penalty[user] * np.eye(24), double.T @ np.maximum(row, 0))
    return side, fixed, expected


def test_rows_are_solved_exactly(solver):
    side, fixed, expected = exact_case()
    turned, rows = fixed.copy(), np.zeros((N_USERS, 24), np.float32)
    basis = solver(side, turned, rows, None, exact=True)
    assert np.abs(rows @ basis.rotation.T - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(turned - fixed @ basis.rotation).max() < 1e-5
    gram = turned.astype(np.float64).T @ (turned * side.column_weight[:, None])
    assert np.abs(gram - np.diag(basis.spectrum)).max() < 1e-5 * basis.spectrum[-1]


def test_repetition_changes_no_bit(solver):
    world = make_world("dense")
    first, second = fit(world, solver), fit(world, solver)
    assert np.array_equal(first.items, second.items)
    assert np.array_equal(first.users, second.users)


def test_no_rows_and_no_entries(solver):
    def side_of(n_rows):
        ones = np.ones(n_rows, np.float32)
        empty = sparse.csr_matrix((n_rows, 6), dtype=np.float32)
        return Side(empty, ones, np.ones(6, np.float32), ones)

    fixed = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    nobody, strangers = np.zeros((0, 3), np.float32), np.ones((5, 3), np.float32)
    solver(side_of(0), fixed, nobody, None, exact=True)
    solver(side_of(5), fixed, strangers, None, exact=True)
    assert np.abs(strangers).max() < 1e-6


def test_a_row_that_nothing_asks_for_is_zero_after_one_sweep(solver):
    """It only dislikes, and had factors before."""
    ones = np.ones(2, np.float32)
    entries = sparse.csr_matrix(np.array([[-1, 0, -2, 0], [-1, 3, 0, 0]], np.float32))
    fixed = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    rows = np.ones((2, 3), np.float32)
    solver(Side(entries, ones, np.ones(4, np.float32), ones), fixed, rows, None)
    assert not rows[0].any()
    assert rows[1].any()


def test_what_cannot_be_solved_is_an_error(solver):
    side, fixed, _ = exact_case()
    rows = np.zeros((N_USERS, 24), np.float32)
    damaged = side.interactions.copy()
    damaged.data[100] = np.nan
    lost = Side(damaged, side.unobserved, side.column_weight, side.penalty)
    with pytest.raises(TrainingError, match=r"rows of the factor model could not be solved exactly.*Raise"):
        solver(lost, fixed.copy(), rows, None, exact=True)
    with pytest.raises(TrainingError, match="diverged"):
        solver(side, np.full_like(fixed, np.nan), rows, None)


class KillsAWorker:
    """Workers of which one is killed when the first block of a half-step is done."""

    def __init__(self, compute):
        self.compute, self.n_killed = compute, 0

    def map(self, function, partitions, *, in_flight=2):
        for number, result in enumerate(self.compute.map(function, partitions, in_flight=in_flight)):
            if number == 0 and self.n_killed == 0:
                self.n_killed += 1
                os.kill(min(self.compute._client.run(os.getpid).values()), signal.SIGKILL)
            yield result


@pytest.mark.server
def test_a_block_of_a_lost_worker_is_solved_again(two_workers, tmp_path):
    world, mortal = make_world("dense"), KillsAWorker(two_workers)
    with open_distributed_solver(mortal, tmp_path) as solver:
        found = fit(world, solver)
    expected = fit(world, ThreadedSolver())
    assert mortal.n_killed == 1
    assert np.array_equal(expected.items, found.items)
    assert np.array_equal(expected.users, found.users)


class ThisProcess:
    def map(self, function, partitions, *, in_flight=2):
        return map(function, partitions)


def test_files_go_with_the_half_step_the_side_and_the_solver(tmp_path):
    side, fixed, _ = exact_case()
    with open_distributed_solver(ThisProcess(), tmp_path) as solver:
        for _ in range(2):
            solver(side, fixed, np.zeros((N_USERS, 24), np.float32), None)
        (folder,) = tmp_path.iterdir()
        assert [path.name for path in folder.iterdir()] == ["side-0"]
        del side
        gc.collect()
        assert not list(folder.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_machine_that_does_not_share_the_home_is_told_so(tmp_path):
    with pytest.raises(TerminalError, match="share NEARLINE_HOME"):
        solve_block(RowBlock(tmp_path / "side", tmp_path / "turn", (0, 3), exact=False))


def test_torch_keeps_a_side_as_long_as_it_lives():
    side, fixed, _ = exact_case()
    solver = TorchSolver("cpu")
    for _ in range(2):
        solver(side, fixed, np.zeros((N_USERS, 24), np.float32), None)
        assert len(solver._placed) == 1
    del side
    gc.collect()
    assert not solver._placed


def test_torch_multiplies_in_full_precision_whatever_is_set():
    import torch

    side, fixed, _ = exact_case()
    results = []
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            rows = np.ones((N_USERS, 24), np.float32)
            TorchSolver("cpu")(side, fixed.copy(), rows, None)
            results.append(rows)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.array_equal(*results)


def test_blocks_of_rows_hold_equal_lengths_within_their_room():
    rng = np.random.default_rng(0)
    lengths = -np.sort(-np.concatenate([rng.zipf(1.5, 500).clip(max=5000), np.zeros(40, np.int64)]))
    blocks = plan_blocks(lengths, 2000)
    assert np.array_equal(np.concatenate([np.arange(len(lengths))[block] for block in blocks]), np.arange(len(lengths)))
    for block in blocks:
        some = lengths[block]
        assert len(some) == 1 or len(some) * some[0] <= 2000
        assert some[-1] >= 0.75 * some[0]


def test_the_setting_chooses(tmp_path, one_worker):
    address = one_worker._client.scheduler.address
    for name, expected in (("threads", ThreadedSolver), ("workers", DistributedSolver)):
        compute = ComputeSettings(factor_solver=name, scheduler_address=address)
        with LocalResources(load_settings(home=tmp_path, compute=compute)).factor_solver(2) as solver:
            assert isinstance(solver, expected)
    assert not list(Path(tmp_path, "staging", "factors").iterdir())


def test_a_gpu_that_is_not_there_is_named(tmp_path):
    import torch

    resources = LocalResources(load_settings(home=tmp_path, compute=ComputeSettings(factor_solver="gpu")))
    if torch.cuda.is_available():
        with resources.factor_solver(1) as solver:
            assert isinstance(solver, TorchSolver)
    else:
        with pytest.raises(SettingsError, match=r"FACTOR_SOLVER=gpu.*finds none"), resources.factor_solver(1):
            pass
