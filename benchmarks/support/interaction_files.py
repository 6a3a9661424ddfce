"""Pairs of users and items from Parquet files, checked where they come in, as matrices for training and test.

It knows nothing of factors or metrics.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from benchmarks.support.generated_data import GENERATOR, generate_interactions
from tasks.domain.errors import InputError

Integers = npt.NDArray[np.int64]
COLUMNS = ("user", "item")
DEFAULT_FOLDER = Path(__file__).parents[2] / ".." / "shared" / "data" / "lightgcn-gowalla"
"""Where the Gowalla split is looked for when no file is named: beside the repository."""
_LARGEST_ID = np.iinfo(np.int32).max - 1
_SPARE_IDS = 1_000_000
_MOST_IDS_PER_USED = 100


class InteractionData(NamedTuple):
    """Two CSR float32 matrices (n_users, n_items) of ones, which share no pair. ``notes`` counts what was merged,
    dropped or is unusual."""

    name: str
    train: sparse.csr_matrix
    test: sparse.csr_matrix
    notes: dict[str, int]

    def describe(self) -> dict[str, Any]:
        """Name and sizes, for the JSON object of a benchmark."""
        return {
            "data": self.name,
            "n_users": int(self.train.shape[0]),
            "n_items": int(self.train.shape[1]),
            "n_interactions": int(self.train.nnz),
            "n_test_interactions": int(self.test.nnz),
            "n_test_users": int(np.count_nonzero(np.diff(self.test.indptr))),
            **self.notes,
        }


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """``--train``, ``--test`` and ``--generate``."""
    parser.add_argument("--train", type=Path, help="Parquet file with integer columns user and item")
    parser.add_argument("--test", type=Path, help="the same, with the pairs to be found")
    parser.add_argument("--generate", type=int, metavar="N", help="take about N generated interactions instead")


def load_data(train: Path | None, test: Path | None, generate: int | None, *, n_default: int) -> InteractionData:
    """The two files; without them the Gowalla split beside the repository; without that ``n_default`` generated
    interactions, whose name says so. Raises InputError."""
    if generate is not None:
        if train or test:
            raise InputError("The benchmark got both files and --generate. Name files, or generate; not both.")
        return generated_data(generate)
    if (train is None) != (test is None):
        given, missing = ("--train", "--test") if test is None else ("--test", "--train")
        raise InputError(f"The benchmark got {given} without {missing}. Name both files, or neither for the default.")
    if train and test:
        return load_pair(train, test)
    default = [DEFAULT_FOLDER / f"{part}.parquet" for part in ("train", "test")]
    if all(path.exists() for path in default):
        return load_pair(*default)._replace(name=DEFAULT_FOLDER.name)
    return generated_data(n_default)


def generated_data(n_interactions: int, *, seed: int = 0) -> InteractionData:
    """Generated interactions; a random fifth of each user's is the test part. Raises InputError below 100."""
    matrix = generate_interactions(n_interactions, seed=seed)
    train, test = hold_out(matrix, 0.2, seed=seed)
    return InteractionData(f"{GENERATOR}, {n_interactions} interactions, seed {seed}", train, test, {})


def load_pair(train: Path, test: Path) -> InteractionData:
    """Read two Parquet files of pairs; ids are rows and columns of the matrices.

    A pair that is there twice counts once. A test pair that is in the training file too is dropped: it is masked, so
    nobody could find it. Users and items of either file are in both matrices. Raises InputError for a file that is
    missing, no Parquet, empty, or without the columns; for ids that are missing, no integers, negative, or not dense;
    and where the two files have no user in common.
    """
    pairs = {"training": read_pairs(train, "training"), "test": read_pairs(test, "test")}
    n_users, n_items = (_count_ids(name, [part[side] for part in pairs.values()]) for side, name in enumerate(COLUMNS))
    keys = {part: np.unique(users * n_items + items) for part, (users, items) in pairs.items()}
    kept = keys["test"][~np.isin(keys["test"], keys["training"], assume_unique=True)]
    matrices = [_matrix(found, n_users, n_items) for found in (keys["training"], kept)]
    notes = {f"n_duplicate_{part}_pairs": len(users) - len(keys[part]) for part, (users, _) in pairs.items()}
    notes["n_test_pairs_in_training"] = len(keys["test"]) - len(kept)
    trained, tested = (np.diff(matrix.indptr) > 0 for matrix in matrices)
    notes["n_test_users_without_training"] = int((tested & ~trained).sum())
    if not (trained & tested).any():
        raise InputError(
            f"{train.name} and {test.name} have no user in common, once test pairs that are in the training file are"
            f" dropped ({notes['n_test_pairs_in_training']} of {len(keys['test'])}): nobody has both a history and"
            " something to be found. Check that both files number the users alike."
        )
    return InteractionData(f"{train.name} and {test.name}", matrices[0], matrices[1], notes)


def read_pairs(path: Path, part: str) -> tuple[Integers, Integers]:
    """The columns ``user`` and ``item`` of a Parquet file, (n,) int64 each. Raises InputError as ``load_pair`` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"The {part} file {path} was not found. It must be a Parquet file; check the path.")
    try:
        names = pq.read_schema(path).names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise InputError(
                f"The {part} file {path} has no column {' and '.join(missing)}. It has: {', '.join(names) or 'none'}."
                " It needs integer columns user and item: rename or add them."
            )
        table = pq.read_table(path, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"The {part} file {path} cannot be read as Parquet: {problem}") from problem
    if not table.num_rows:
        raise InputError(f"The {part} file {path} has no rows. It needs at least one pair of user and item.")
    users, items = (_read_ids(table[name], name, f"{part} file {path}") for name in COLUMNS)
    return users, items


def hold_out(matrix: sparse.csr_matrix, share: float, *, seed: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split the entries of each row at random: what is kept, and the ``share`` that is held out.

    Both have the shape of ``matrix``. A row with two entries and more holds out at least one, a row with one none.
    """
    lengths = np.diff(matrix.indptr)
    n_held = np.where(lengths >= 2, np.maximum(1, np.round(share * lengths)), 0)
    row = np.repeat(np.arange(matrix.shape[0]), lengths)
    order = np.lexsort((np.random.default_rng(seed).random(matrix.nnz), row))
    is_held = np.zeros(matrix.nnz, bool)
    is_held[order] = np.arange(matrix.nnz) - matrix.indptr[row] < n_held[row]
    return _some(matrix, row, ~is_held), _some(matrix, row, is_held)


def _some(matrix: sparse.csr_matrix, row: Integers, wanted: npt.NDArray[np.bool_]) -> sparse.csr_matrix:
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row[wanted], minlength=matrix.shape[0]))])
    return sparse.csr_matrix((matrix.data[wanted], matrix.indices[wanted], indptr), shape=matrix.shape)


def _read_ids(column: Any, name: str, source: str) -> Integers:
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise InputError(
            f"The column {name} of the {source} has type {column.type}. Ids must be integers from 0: number the"
            f" {name}s, and store them as int32 or int64."
        )
    if column.null_count:
        raise InputError(
            f"The column {name} of the {source} has {column.null_count} rows without a value. Every row must name"
            f" its {name}: drop or repair these rows."
        )
    values = column.to_numpy()
    if values.max() > _LARGEST_ID:
        raise InputError(
            f"The column {name} of the {source} has ids up to {values.max()}. An id is the number of a row of the"
            f" factors, at most {_LARGEST_ID}: number the {name}s from 0."
        )
    if values.min() < 0:
        raise InputError(
            f"The column {name} of the {source} has {int((values < 0).sum())} negative ids, the smallest"
            f" {values.min()}. Ids must be integers from 0: number the {name}s anew."
        )
    ids: Integers = values.astype(np.int64)
    return ids


def _count_ids(name: str, parts: list[Integers]) -> int:
    """Rows that the ids need: the largest and one more."""
    largest, n_used = max(int(part.max()) for part in parts), len(np.unique(np.concatenate(parts)))
    if largest >= _MOST_IDS_PER_USED * n_used + _SPARE_IDS:
        raise InputError(
            f"The {name} ids go up to {largest}, and only {n_used} of them are used. An id is the number of a row of"
            f" the factors, so ids must be dense: number the {name}s from 0 to {n_used - 1}."
        )
    return largest + 1


def _matrix(keys: Integers, n_users: int, n_items: int) -> sparse.csr_matrix:
    """From the sorted keys ``user * n_items + item``."""
    users, items = np.divmod(keys, n_items)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))])
    ones = np.ones(len(keys), np.float32)
    return sparse.csr_matrix((ones, items.astype(np.int32), indptr.astype(np.int32)), shape=(n_users, n_items))
