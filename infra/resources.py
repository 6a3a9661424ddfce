"""The only place where an adapter is chosen and built. Small and frozen, so that a worker can receive it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from infra.settings import Settings, load_settings
from tasks.domain.online import Problem
from tasks.domain.ports import Compute, Reader, SourceFiles, TextEncoder, Validator, VectorIndex, Warehouse
from tasks.domain.records import EventType

if TYPE_CHECKING:
    from tasks.domain.factor_model import FactorParameters
    from tasks.domain.half_steps import RowSolver
    from tasks.domain.ports import Resources


@dataclass(frozen=True)
class LocalResources:
    """Builds the adapters that the settings choose. Heavy libraries are imported when one is first opened."""

    settings: Settings

    @property
    def home(self) -> Path:
        """The folder that holds the state."""
        return self.settings.home

    @property
    def event_types(self) -> Mapping[str, EventType]:
        """Event types by name."""
        return self.settings.all_event_types

    @property
    def interaction_half_life_days(self) -> float:
        """Days after which an event weighs half, measured back from the user's newest event."""
        return self.settings.interaction_half_life_days

    @property
    def factor_parameters(self) -> "FactorParameters":
        """Parameters of the factor model: the engine's defaults where the settings are empty."""
        from tasks.domain.factor_model import FactorParameters

        return FactorParameters(**self.settings.factors.model_dump(exclude_none=True, exclude={"warm_start"}))

    @property
    def warm_start(self) -> bool:
        """Whether the last fit goes on from the serving version."""
        return self.settings.factors.warm_start

    @property
    def fixed_parameters(self) -> frozenset[str]:
        """Parameters that the settings name: of the factor model, the half-life, and weights of event types."""
        own = {"interaction_half_life_days"} & self.settings.model_fields_set
        factors = self.settings.factors.model_dump(exclude_unset=True, exclude_none=True, exclude={"warm_start"})
        weights = {
            f"event_types.{name}.weight"
            for name, section in self.settings.event_types.items()
            if "weight" in section.model_fields_set
        }
        return frozenset({*own, *factors, *weights})

    @property
    def partition_items(self) -> int:
        """Texts in one unit of embedding work."""
        return self.settings.encoder.partition_items

    @property
    def keep_versions(self) -> int:
        """Published versions that stay in the index and in the warehouse."""
        return self.settings.index.keep_versions

    @property
    def gate_limits(self) -> Mapping[str, float]:
        """Limits that the checks of the contracts name."""
        return self.settings.gates.model_dump()

    def watchdog_findings(self, now: datetime) -> tuple[Problem, ...]:
        """What ``nearline up`` left beside its own state."""
        from infra.loop_files import read_findings

        return read_findings(self.home, now)

    def pseudonym(self, user_id: str) -> str:
        """A salted name of a user; the salt is made at the first call."""
        from infra.key_store import load_salt
        from tasks.domain.access import pseudonym

        return pseudonym(load_salt(self.home), user_id)

    def lock(self, name: str, seconds: float) -> AbstractContextManager[object]:
        """A locked file in ``home/locks``, or a lock of the PostgreSQL server that holds the warehouse's catalog."""
        from infra.ducklake_storage import shared_lock

        return shared_lock(self.home / "locks", self.settings.warehouse, name, seconds)

    def warehouse(self, *, read_only: bool = False) -> AbstractContextManager[Warehouse]:
        """The DuckLake in ``home/warehouse``."""
        from infra.ducklake_warehouse import open_warehouse

        return open_warehouse(self.home / "warehouse", self.settings.warehouse, read_only=read_only)

    def engine(self) -> AbstractContextManager[Reader]:
        """DuckDB in memory, with one thread."""
        from infra.sql_engine import open_engine

        return open_engine()

    def source_files(self) -> SourceFiles:
        """CSV, JSON lines and Parquet."""
        from infra.source_files import LocalSourceFiles

        return LocalSourceFiles()

    def index(self) -> AbstractContextManager[VectorIndex]:
        """Qdrant: a server, or local mode in ``home/index``."""
        from infra.index_owner import open_index

        return open_index(self.home / "index", self.settings.index)

    @property
    def serves_from_memory(self) -> bool:
        """Whether ``serving_index`` is one in memory: there is no server."""
        return self.settings.index.url is None

    @contextmanager
    def serving_index(self) -> Iterator[VectorIndex]:
        """The Qdrant server, or an empty index in memory."""
        if self.serves_from_memory:
            from infra.memory_index import MemoryIndex

            yield MemoryIndex()
        else:
            with self.index() as index:
                yield index

    def encoder(self) -> TextEncoder:
        """The text encoder, loaded once per process."""
        from infra.transformer_models import load_encoder

        return load_encoder(self.settings.encoder, self.settings.cache)

    def compute(self) -> AbstractContextManager[Compute]:
        """Dask workers."""
        from infra.dask_runner import open_compute

        return open_compute(self.settings.compute)

    @contextmanager
    def factor_solver(self, n_threads: int) -> "Iterator[RowSolver]":
        """Threads of this process, its GPU, or Dask workers, as the settings say."""
        from tasks.domain.half_steps import ThreadedSolver

        match self.settings.compute.factor_solver:
            case "threads":
                yield ThreadedSolver(n_threads)
            case "gpu":
                from infra.torch_factors import open_gpu_solver

                yield open_gpu_solver()
            case "workers":
                from tasks.distributed_factors import open_distributed_solver

                folder = self.home / "staging" / "factors"
                with self.compute() as compute, open_distributed_solver(compute, folder, n_threads) as solver:
                    yield solver

    def validator(self) -> Validator:
        """Great Expectations."""
        from infra.expectations import ExpectationsValidator

        return ExpectationsValidator(self.home / "data_docs")


def build_resources(settings: Settings | None = None) -> "Resources":
    """Resources for the given settings, or for those of the environment."""
    return LocalResources(settings or load_settings())
