"""The benchmarks of the factor engine: what they read, how they rank and tune, and that each program runs."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from benchmarks import factors, factors_growth, factors_vs_implicit
from benchmarks.support import interaction_files
from benchmarks.support.full_ranking import measure_ranking, rank_items
from benchmarks.support.generated_data import generate_interactions
from benchmarks.support.ids_only import FinishedQuality, fit_ids, sample_users
from benchmarks.support.ids_only_tuning import propose_steps
from benchmarks.support.interaction_files import generated_data, hold_out, load_data, load_pair
from benchmarks.support.measured_process import MemoryGrowth, in_child
from benchmarks.support.peer_turns import draw_histories
from tasks.domain.errors import InputError, TrainingError
from tasks.domain.factor_model import FactorParameters

FACTORS = FactorParameters(
    n_factors=16, regularization=0.1, frequency_exponent=0.5, unobserved_weight=0.1, text_prior=0.0, n_sweeps=4
)


def random_rows(n_users, n_items, share, seed):
    """The first row has one entry, the second none."""
    dense = np.random.default_rng(seed).random((n_users, n_items)) < share
    dense[:2] = False
    dense[0, 5] = True
    return sparse.csr_matrix(dense.astype(np.float32))


def write(path, users, items, **types):
    kinds = {"user": pa.int32(), "item": pa.int32()} | types
    columns = {"user": users, "item": items}
    pq.write_table(pa.table({name: pa.array(columns[name], kinds[name]) for name in columns}), path)
    return path


def reference_ranking(users, items, seen, relevant, k=20):
    """Recall and NDCG of each user, written out."""
    recalls, ndcgs = [], []
    for user in range(len(users)):
        wanted = set(relevant[user].indices.tolist())
        if not wanted:
            continue
        scores = users[user] @ items.T
        order = [i for i in sorted(range(len(items)), key=lambda i: (-scores[i], i)) if i not in seen[user].indices]
        gains = [1 / np.log2(rank + 2) for rank, item in enumerate(order[:k]) if item in wanted]
        recalls.append(len(gains) / len(wanted))
        ndcgs.append(sum(gains) / sum(1 / np.log2(rank + 2) for rank in range(min(k, len(wanted)))))
    return np.mean(recalls), np.mean(ndcgs), len(recalls)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_metrics_are_those_of_the_definition(n_threads, monkeypatch):
    monkeypatch.setattr("benchmarks.support.full_ranking._BLOCK_BYTES", 4 * 120 * 7)  # blocks of seven users
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, 6)).astype(np.float32) for n in (50, 120))
    seen = random_rows(50, 120, 0.3, 1)
    relevant = random_rows(50, 120, 0.25, 2)
    relevant = sparse.csr_matrix(relevant.toarray() * (1 - seen.toarray()))
    quality = measure_ranking(users, items, seen, relevant, n_threads=n_threads)
    assert quality == pytest.approx(reference_ranking(users, items, seen, relevant))
    assert quality.n_users == 48  # the item of the first was seen, and the second wants none


def test_the_ideal_of_a_user_with_many_relevant_items_has_twenty_hits():
    items = np.arange(30, 0, -1, dtype=np.float32)[:, None]
    relevant = sparse.csr_matrix(np.ones((1, 30), np.float32))
    nothing = sparse.csr_matrix((1, 30), dtype=np.float32)
    quality = measure_ranking(np.ones((1, 1), np.float32), items, nothing, relevant)
    assert quality.ndcg_at_20 == pytest.approx(1) and quality.recall_at_20 == pytest.approx(20 / 30)


def test_of_equal_scores_the_smaller_item_comes_first_and_seen_ones_never_come():
    items = np.array([[1], [2], [1], [2], [0], [2], [-1]], np.float32)
    seen = sparse.csr_matrix(np.array([[0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 1, 1]], np.float32))
    best = rank_items(np.ones((2, 1), np.float32), items, seen, 4)
    assert best.tolist() == [[1, 5, 0, 2], [4, -1, -1, -1]]


def test_factors_that_are_not_finite_are_not_ranked():
    users, items = np.ones((1, 2), np.float32), np.full((3, 2), np.nan, np.float32)
    nothing = sparse.csr_matrix((1, 3), dtype=np.float32)
    with pytest.raises(TrainingError, match="not finite"):
        rank_items(users, items, nothing, 2)


def test_a_pair_of_files_becomes_matrices_and_what_is_odd_is_counted(tmp_path):
    train = write(tmp_path / "train.parquet", [0, 0, 0, 2, 2], [1, 0, 1, 3, 0])
    test = write(tmp_path / "test.parquet", [0, 0, 0, 2, 1], [1, 2, 2, 5, 0], user=pa.int64())
    data = load_pair(train, test)
    assert data.train.toarray().tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0]]
    assert data.test.toarray().tolist() == [[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    assert data.notes == {
        "n_duplicate_training_pairs": 1,
        "n_duplicate_test_pairs": 1,
        "n_test_pairs_in_training": 1,
        "n_test_users_without_training": 1,
    }


@pytest.mark.parametrize(
    ("users", "items", "types", "message"),
    [
        ([], [], {}, "has no rows"),
        ([0, -1], [0, 0], {}, "1 negative ids, the smallest -1"),
        ([0, None], [0, 0], {}, "1 rows without a value"),
        ([0.0, 1.0], [0, 0], {"user": pa.float64()}, "must be integers"),
        ([0, 1], ["0", "1"], {"item": pa.string()}, "must be integers"),
        ([0, 2_000_000_000], [0, 0], {}, "ids must be dense"),
        ([0, 2**63 + 5], [0, 0], {"user": pa.uint64()}, "at most 2147483646"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_ids_that_cannot_be_used_are_refused(tmp_path, part, users, items, types, message):
    good = write(tmp_path / "good.parquet", [0, 1], [0, 1])
    bad = write(tmp_path / "bad.parquet", users, items, **types)
    with pytest.raises(InputError, match=message):
        load_pair(*((bad, good) if part == "train" else (good, bad)))


def test_files_that_cannot_be_read_are_named(tmp_path):
    good = write(tmp_path / "good.parquet", [0], [0])
    with pytest.raises(InputError, match=r"training file .*nothing\.parquet was not found"):
        load_pair(tmp_path / "nothing.parquet", good)
    (tmp_path / "text.parquet").write_text("user,item\n0,0\n")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load_pair(tmp_path / "text.parquet", good)
    pq.write_table(pa.table({"user": [0], "movie": [0]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"has no column item\. It has: user, movie"):
        load_pair(good, tmp_path / "other.parquet")


@pytest.mark.parametrize(("users", "items"), [([2, 3], [1, 1]), ([0, 1], [0, 1])], ids=["others", "all in training"])
def test_nobody_to_rank_for_is_an_error(tmp_path, users, items):
    train = write(tmp_path / "train.parquet", [0, 1], [0, 1])
    with pytest.raises(InputError, match="no user in common"):
        load_pair(train, write(tmp_path / "test.parquet", users, items))


def test_without_files_there_is_a_default_and_its_name_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(interaction_files, "DEFAULT_FOLDER", tmp_path / "gowalla")
    assert load_data(None, None, None, n_default=500).name.startswith("generated")
    (tmp_path / "gowalla").mkdir()
    write(tmp_path / "gowalla" / "train.parquet", [0], [0])
    write(tmp_path / "gowalla" / "test.parquet", [0], [1])
    assert load_data(None, None, None, n_default=500).name == "gowalla"
    with pytest.raises(InputError, match="--train without --test"):
        load_data(tmp_path / "gowalla" / "train.parquet", None, None, n_default=500)
    with pytest.raises(InputError, match="not both"):
        load_data(tmp_path, tmp_path, 500, n_default=500)


def test_hold_out_takes_a_share_of_each_row_and_loses_nothing():
    matrix = random_rows(200, 80, 0.4, 3)
    kept, held = hold_out(matrix, 0.1, seed=4)
    assert (kept + held != matrix).nnz == 0 and kept.multiply(held).nnz == 0
    expected = np.maximum(1, np.round(0.1 * np.diff(matrix.indptr)))
    expected[:2] = 0
    assert np.diff(held.indptr).tolist() == expected.tolist()
    assert (hold_out(matrix, 0.1, seed=4)[1] != held).nnz == 0
    assert (hold_out(matrix, 0.1, seed=5)[1] != held).nnz > 0


def test_a_sample_of_users_keeps_their_rows_whole():
    relevant = random_rows(60, 20, 0.3, 5)
    sampled = sample_users(relevant, 10)
    who = np.flatnonzero(np.diff(sampled.indptr))
    assert len(who) == 10 and (sampled[who] != relevant[who]).nnz == 0
    assert sample_users(relevant, 100) is relevant


def test_generated_interactions_are_skewed_distinct_and_repeatable():
    matrix = generate_interactions(20_000, seed=1)
    assert matrix.nnz == pytest.approx(20_000, rel=0.05)
    assert matrix.has_canonical_format and (matrix.data == 1).all()
    again, other = generate_interactions(20_000, seed=1), generate_interactions(20_000, seed=2)
    assert (again != matrix).nnz == 0 and (other != matrix[: other.shape[0]]).nnz > 0
    likes, lengths = np.sort(np.bincount(matrix.indices))[::-1], np.diff(matrix.indptr)
    assert likes[: len(likes) // 10].sum() > 0.25 * matrix.nnz
    assert lengths.min() >= 8 and lengths.max() > 5 * np.median(lengths)
    with pytest.raises(InputError, match="At least 100"):
        generate_interactions(99)


def test_generated_tastes_can_be_learned():
    data = generated_data(20_000)
    model = fit_ids(data.train, FACTORS)
    popularity = np.bincount(data.train.indices, minlength=data.train.shape[1]).astype(np.float32)[:, None]
    learned = measure_ranking(model.users, model.items, data.train, data.test)
    popular = measure_ranking(np.ones((data.train.shape[0], 1), np.float32), popularity, data.train, data.test)
    assert learned.ndcg_at_20 > 1.5 * popular.ndcg_at_20


def test_what_is_measured_after_a_sweep_is_the_fit_of_so_many_sweeps():
    data = generated_data(3000)
    finished = FinishedQuality(data.train, data.test, FACTORS, n_threads=1)
    model = fit_ids(data.train, FACTORS, measure=finished, patience=99)
    assert len(finished.qualities) == len(finished.seconds) == 4
    assert finished.qualities[-1] == pytest.approx(measure_ranking(model.users, model.items, data.train, data.test))


def test_steps_find_the_best_values_and_repeat_none():
    values = {"strength": 1.0, "unobserved_weight": 0.1, "popularity_discount": 0.0, "frequency_exponent": 0.5}

    def distance(at):
        off = [np.log(at["strength"] / 4), np.log(at["unobserved_weight"] / 0.05)]
        return sum(x * x for x in (*off, at["popularity_discount"] - 0.3, at["frequency_exponent"] - 0.6))

    steps, best, seen = propose_steps(values), values, [values]
    proposed = next(steps)
    with pytest.raises(StopIteration):
        while True:
            assert not any(proposed == pytest.approx(earlier) for earlier in seen)
            seen.append(proposed)
            is_better = distance(proposed) < distance(best)
            best = proposed if is_better else best
            proposed = steps.send(is_better)
    assert distance(best) < 0.02


def test_drawn_histories_have_distinct_items():
    histories = draw_histories(np.array([1000, *[1] * 59]), 5, 20)
    assert np.diff(histories.indptr).tolist() == [20] * 5
    assert all(len(set(histories[user].indices)) == 20 for user in range(5))
    assert histories[:, 0].sum() == 5


def test_growth_of_memory_is_seen():
    with MemoryGrowth() as memory:
        block = np.ones(10_000_000, np.float32)
        del block
    assert 35 < memory.mb < 60


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_factors_runs_on_a_pair_of_files(tmp_path, capsys):
    data = generated_data(4000)
    files = {}
    for name, matrix in (("train", data.train), ("test", data.test)):
        pairs = matrix.tocoo()
        files[name] = write(tmp_path / f"{name}.parquet", pairs.row, pairs.col)
    given = ["--train", str(files["train"]), "--test", str(files["test"]), "--factors", "8", "--threads", "1"]
    factors.main([*given, "--json"])
    plain = last_line(capsys)
    assert plain["n_interactions"] == data.train.nnz and plain["n_test_users"] == data.test.shape[0]
    assert 0 < plain["ndcg_at_20"] < 1 and 0 < plain["recall_at_20"] < 1
    assert plain["sweeps"] == plain["parameters"]["n_sweeps"] and plain["parameters"]["n_factors"] == 8
    assert plain["fit_seconds"] > 0 and plain["peak_mb"] > plain["fit_mb"] and plain["n_trials"] == 1
    factors.main([*given, "--minutes", "0.03"])
    tuned = last_line(capsys)
    assert tuned["n_trials"] > 1
    assert sum(tuned["validation"].values()) >= sum(plain["validation"].values())


def test_factors_says_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match=r"benchmarks.factors: .*--train without --test"):
        factors.main(["--train", str(tmp_path / "train.parquet")])
    with pytest.raises(SystemExit, match="n_factors = 0"):
        factors.main(["--generate", "500", "--factors", "0"])


def test_growth_runs_in_processes_of_their_own(capsys):
    factors_growth.main(["--interactions", "1000", "3000", "--factors", "4", "8", "--threads", "2", "--json"])
    result = last_line(capsys)
    assert [(case["factors"], case["threads"]) for case in result["cases"]] == [(4, 2), (4, 2), (8, 2), (4, 1)]
    assert result["same_factors_on_one_thread"]
    assert set(result["exponents_in_interactions"]) == set(result["exponents_in_factors"])


def test_errors_of_a_child_process_arrive():
    with pytest.raises(InputError, match="At least 100"):
        in_child(generate_interactions, 1)


def test_both_libraries_are_measured_alike(monkeypatch, capsys):
    monkeypatch.setattr(factors_vs_implicit, "in_child", lambda function, *args, **options: function(*args, **options))
    monkeypatch.setattr(factors_vs_implicit, "TUNED_AT", 8)
    sizes = ["--generate", "6000", "--factors", "8", "--sweeps", "3", "--fold-in-users", "20", "--test-users", "100"]
    factors_vs_implicit.main([*sizes, "--repeat", "2", "--threads", "1", "--tune", "--trials", "2", "--json"])
    result = last_line(capsys)
    (comparison,) = result["dimensions"]
    for library in ("ours", "implicit"):
        assert len(comparison[library]["seconds"]) == len(comparison[library]["ndcg_at_20"]) == 3
        assert comparison[library]["seconds"] == sorted(comparison[library]["seconds"])
    assert comparison["to_ndcg_at_20"]["target"] == comparison["implicit"]["ndcg_at_20"][-1]
    assert result["n_ranked_users"] == 100 and result["fold_in"]["n_users"] == 20
    assert result["tuning"]["implicit_validation_ndcg_at_20"] > 0
