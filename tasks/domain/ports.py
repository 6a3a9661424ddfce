"""What the tasks need from the outside, as Protocols. It knows nothing of who implements them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.domain.online import Problem
from tasks.domain.records import CheckResult, EventType, Hit, IndexFilter, ItemPayload, UserPayload
from warehouse.catalog import Contract

if TYPE_CHECKING:
    from tasks.domain.factor_model import FactorParameters
    from tasks.domain.half_steps import RowSolver

Floats = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")


class Transaction(Protocol):
    """The inside of one commit. Everything happens or nothing does."""

    def append(self, table: str, rows: pa.Table) -> int:
        """Insert rows by column name; columns that are left out are null. Returns the number of rows."""

    def replace(self, table: str, rows: pa.Table, where: Mapping[str, object] | None = None) -> int:
        """Delete the rows whose columns equal ``where`` (all rows if None) and insert ``rows``.

        A value of ``where`` that is a list or tuple means "one of these".
        """

    def execute(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        shadows: Mapping[str, pa.Table] | None = None,
    ) -> None:
        """Run one statement of ``warehouse/`` with bound ``$name`` parameters; ``shadows`` as in ``Warehouse.read``."""

    def register_parquet(self, table: str, paths: Sequence[Path]) -> int:
        """Take over Parquet files that workers wrote, by column name. Returns the number of rows."""

    def read(self, sql: str, parameters: Mapping[str, object] | None = None) -> pa.Table:
        """Read inside the transaction."""


class Reader(Protocol):
    """Runs SQL of ``warehouse/``: the warehouse, or an engine that has no table but those it is given."""

    def read(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        shadows: Mapping[str, pa.Table] | None = None,
    ) -> pa.Table:
        """As ``Warehouse.read``."""


class Warehouse(Protocol):
    """The DuckLake: tables by their unqualified names."""

    def latest_snapshot(self) -> int:
        """The id of the newest snapshot."""

    def read(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        shadows: Mapping[str, pa.Table] | None = None,
    ) -> pa.Table:
        """Run a query with bound ``$name`` parameters.

        ``shadows`` are tables in memory that stand in the place of tables of the same name, so that one SQL text
        serves the nightly batch and the refresh of a few users.
        """

    def read_together(
        self, sqls: Sequence[str], shadows: Mapping[str, pa.Table] | None = None
    ) -> tuple[int, list[pa.Table]]:
        """Several queries of one snapshot, with its id; cheaper than one ``read`` for each."""

    def at(self, snapshot: int) -> AbstractContextManager["Warehouse"]:
        """A read-only view of every table as it was at ``snapshot``. Raises NotFoundError if it has expired."""

    def insertions(self, table: str, after_snapshot: int, to_snapshot: int) -> pa.Table:
        """Rows that commits ``after_snapshot < s <= to_snapshot`` inserted: the change feed. Append-only tables."""

    def commit(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction; on a conflict it is run again, so it must not have other effects.

        Raises WarehouseBusyError when the catalog stays locked.
        """

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else commits while this is open; this thread may, several times. Raises WarehouseBusyError."""

    def purge(self, before_expiry: Callable[[Transaction, int], None]) -> Mapping[str, int]:
        """Remove deleted rows for good: from data files, from the catalog, and with every earlier snapshot.

        ``before_expiry(transaction, snapshot)`` runs in a commit of its own once the files are written anew as of
        ``snapshot``; the change feed can be read from there on afterwards, and no longer from before. Returns what was
        done: ``rewritten_files``, ``expired_snapshots``, ``deleted_files``, and ``catalog_compacted`` (0 if another
        process kept the catalog busy). Raises WarehouseBusyError.
        """

    def flush(self, table: str) -> int:
        """Write the rows of a table that small commits left in the catalog to a file, and merge small files of it.

        Returns how many rows lay in the catalog. What the table holds now and held at any snapshot stays the same, and
        so does its change feed. Raises WarehouseBusyError.
        """

    def maintain(
        self, *, keep_from: int | None, keep: Collection[int], older_than: datetime, unused_since: datetime
    ) -> Mapping[str, int]:
        """Write inlined rows to files, merge small files, expire snapshots, delete files that nothing refers to.

        A snapshot expires only if it is older than ``older_than`` (UTC), lies before ``keep_from`` (None: no bound),
        is not one of ``keep`` and is not the newest. A file is deleted only if it has been out of use since
        ``unused_since``. Returns what was done: ``flushed_rows``, ``merged_files``, ``expired_snapshots`` and
        ``deleted_files``. Raises WarehouseBusyError.
        """


@dataclass(frozen=True)
class SourceRows:
    """What one file holds, before anything is checked.

    ``rows`` has the file's own column names (lists and objects as JSON text, every value of a CSV or JSON file as
    text, null where it was empty) and ``positions`` (int64) says which row of the file each one is, from 1.
    ``unreadable`` are rows that could not be taken apart: position, text, why. ``content_hash`` is the SHA-256 of the
    file. ``kinds`` are the types of JSON values that are neither text nor a whole number, by column: BOOLEAN, DOUBLE,
    ARRAY or OBJECT, null for the others; columns that have none are not there.
    """

    source: str
    content_hash: str
    rows: pa.Table
    positions: pa.Array
    unreadable: tuple[tuple[int, str, str], ...] = ()
    kinds: Mapping[str, pa.ChunkedArray] = field(default_factory=dict)


class SourceFiles(Protocol):
    """Reads files that people bring."""

    def find(self, paths: Sequence[Path]) -> list[Path]:
        """The files themselves: a folder stands for those in it that can be read, by name. Raises InputError."""

    def content_hash(self, path: Path) -> str:
        """SHA-256 of a file."""

    def read(self, path: Path) -> SourceRows:
        """All rows of one file. Raises InputError if it is empty, in another format or in another encoding."""


class VectorIndex(Protocol):
    """Published versions: a collection of item vectors and one of user query vectors for each."""

    def serving_version(self) -> str | None:
        """The version that the aliases point to, or None before the first publication."""

    def versions(self) -> list[str]:
        """Versions that have a collection, whole or not, sorted."""

    def create_version(self, version: str, width: int) -> None:
        """Make both collections with their payload indexes; a half-written version of that name is dropped first.

        Raises TerminalError if the version is serving.
        """

    def upsert_items(self, version: str, vectors: Floats, payloads: Sequence[ItemPayload]) -> None:
        """Write item vectors, (n, width) float32, over those of the same ids."""

    def upsert_users(self, version: str, vectors: Floats, payloads: Sequence[UserPayload]) -> None:
        """Write query vectors, (n, width) float32. A point is only replaced by one with the same or a newer
        ``as_of_snapshot``."""

    def count(self, version: str) -> tuple[int, int]:
        """Exact numbers of items and users."""

    def items(self, version: str, item_ids: Sequence[str]) -> dict[str, tuple[ItemPayload, Floats]]:
        """Stored items by id; unknown ids are left out."""

    def users(self, version: str, user_ids: Sequence[str]) -> dict[str, tuple[UserPayload, Floats]]:
        """Stored users by id; unknown ids are left out."""

    def search(
        self, version: str, query: Floats, k: int, restrict: IndexFilter, *, with_vectors: bool = False
    ) -> list[Hit]:
        """The ``k`` items with the highest dot product with ``query`` (width,), best first; with their vectors if these
        are asked for."""

    def switch(self, version: str) -> None:
        """Point both aliases to ``version`` in one atomic request."""

    def delete_users(self, user_ids: Sequence[str]) -> int:
        """Remove users from every version there is. Returns the number of points that were there."""

    def drop_version(self, version: str) -> None:
        """Delete both collections. Raises TerminalError if the version is serving."""


class TextEncoder(Protocol):
    """A language model that turns texts into unit vectors."""

    @property
    def encoder_id(self) -> str:
        """Name, revision and everything else that changes the output."""

    @property
    def width(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str]) -> Floats:
        """(n, width) float32 in the order given, rows of unit length; an empty text gives a zero row. For the texts of
        items and those that users wrote."""

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """As ``encode``, for texts that say what is looked for: some models want other words before them."""


class Compute(Protocol):
    """Workers that a task fans out to."""

    def map(self, function: Callable[[T], R], partitions: Iterable[T], *, in_flight: int = 2) -> Iterator[R]:
        """Results as they complete, in any order. At most ``in_flight`` partitions for each thread of a worker are
        taken before their results are; with 1, each is taken when a worker is free for it. Raises ComputeLostError if
        workers are lost for good."""


class Validator(Protocol):
    """Runs a contract's checks over a batch of rows."""

    def validate(
        self, contract: Contract, rows: pa.Table, *, parameters: Mapping[str, Any] | None = None
    ) -> list[CheckResult]:
        """One result for each check of the contract, in its order. ``parameters`` fill the contract's ``$name``s."""

    def write_docs(self) -> Path | None:
        """Write the report of everything validated so far and return its first page."""


class Resources(Protocol):
    """Opens adapters where they are needed. Small, frozen, and can be pickled."""

    @property
    def home(self) -> Path:
        """The folder that holds the state."""

    @property
    def event_types(self) -> Mapping[str, EventType]:
        """Event types by name."""

    @property
    def interaction_half_life_days(self) -> float:
        """Days after which an event weighs half, measured back from the user's newest event."""

    @property
    def factor_parameters(self) -> "FactorParameters":
        """Parameters of the factor model."""

    @property
    def warm_start(self) -> bool:
        """Whether the last fit of a night goes on from the factors of the serving version."""

    @property
    def fixed_parameters(self) -> Collection[str]:
        """Parameters that the settings name, as ``tasks.domain.parameter_space`` names them: no tuning changes them."""

    @property
    def partition_items(self) -> int:
        """Texts in one unit of embedding work."""

    @property
    def keep_versions(self) -> int:
        """Published versions that stay in the index and in the warehouse."""

    @property
    def gate_limits(self) -> Mapping[str, float]:
        """Limits of the gates by name, for the checks that say ``$name``."""

    def lock(self, name: str, seconds: float) -> AbstractContextManager[object]:
        """What one process at a time holds among all that share the warehouse: from the call on, until the context ends
        or the process dies. Waits for ``seconds``, then raises TimeoutError."""

    def watchdog_findings(self, now: datetime) -> tuple[Problem, ...]:
        """What the watchdog of this home found in the last minute: a stalled schedule, a held slot, a lost worker."""

    def pseudonym(self, user_id: str) -> str:
        """A salted name of a user for logs, metrics and receipts; the same for the same user of this home."""

    def warehouse(self, *, read_only: bool = False) -> AbstractContextManager[Warehouse]:
        """The warehouse, its tables created on the first use."""

    def engine(self) -> AbstractContextManager[Reader]:
        """The warehouse's SQL engine without the warehouse, for tables in memory. Threads may share it."""

    def source_files(self) -> SourceFiles:
        """The reader of files to import."""

    def index(self) -> AbstractContextManager[VectorIndex]:
        """The vector index that publications and refreshes write. Raises IndexUnavailableError."""

    @property
    def serves_from_memory(self) -> bool:
        """Whether requests search an index in the memory of their process. Who opens it then fills it
        (``tasks.projection.write_projection``) and follows publications and refreshes; otherwise it is ``index()``."""

    def serving_index(self) -> AbstractContextManager[VectorIndex]:
        """The index that requests search, for all threads of a service. In memory each one that is opened is another,
        empty at first. Raises IndexUnavailableError."""

    def encoder(self) -> TextEncoder:
        """The text encoder. Asking for it is cheap: its weights are loaded at the first ``encode``, once per process.
        Raises ModelMissingError."""

    def compute(self) -> AbstractContextManager[Compute]:
        """Workers for one fan-out."""

    def factor_solver(self, n_threads: int) -> AbstractContextManager["RowSolver"]:
        """What solves the rows of factor models: ``n_threads`` threads of this process, or what stands in their place.
        Raises SettingsError if that is not there, ComputeLostError if no worker comes."""

    def validator(self) -> Validator:
        """The gates' engine."""
