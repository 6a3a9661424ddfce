"""The compute port on Dask: a cluster of local processes for the time of a task, or a scheduler that is there already.

Worker processes are started as programs of their own (``python -m dask``), not by multiprocessing: they never run the
caller's main module again, whatever it is, and Dask's thread settings stay out of the caller's environment. It knows
nothing of the functions that are run.
"""

import asyncio
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from infra.math_threads import VARIABLES as MATH_THREAD_VARIABLES
from infra.settings import ComputeSettings
from tasks.domain.errors import ComputeLostError, SettingsError
from tasks.domain.ports import Compute

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")

_NO_WORKERS_SECONDS = 60
_LOST = ("KilledWorker", "NoWorkerError", "CommClosedError", "FutureCancelledError", "FuturesCancelledError")

logger = logging.getLogger(__name__)


@contextmanager
def open_compute(settings: ComputeSettings) -> Iterator[Compute]:
    """Workers for one fan-out; a LocalCluster is stopped at the end, an external scheduler is left as it was.

    Raises ComputeLostError if the scheduler cannot be reached or no worker comes, SettingsError for an address that is
    none.
    """
    import dask
    from distributed import Client

    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.no-workers-timeout": f"{_NO_WORKERS_SECONDS}s"}))
        address = settings.scheduler_address or stack.enter_context(_local_cluster(settings))
        try:
            if settings.scheduler_address:
                _greet(settings.scheduler_address)
            client = stack.enter_context(Client(address, set_as_default=False, timeout=_NO_WORKERS_SECONDS))
            client.wait_for_workers(1, timeout=_NO_WORKERS_SECONDS)
        except (OSError, TimeoutError) as error:
            raise ComputeLostError(
                f"No Dask worker came within {_NO_WORKERS_SECONDS} s at {settings.scheduler_address or 'this machine'} "
                f"({error or 'it does not answer'}). Look at the output of the workers or of the scheduler. The "
                "setting NEARLINE_COMPUTE__SCHEDULER_ADDRESS names a scheduler; without it workers are started here."
            ) from error
        except ValueError as error:
            raise SettingsError(
                f"compute.scheduler_address is {address!r}, which is no address of a Dask scheduler: {error}. Give one "
                "such as tcp://localhost:8786, or leave it empty: then workers are started here."
            ) from error
        yield DaskCompute(client)


def _greet(address: str) -> None:
    """Raises OSError or TimeoutError if nothing answers as Dask does. The client's own greeting has no timeout: it
    would wait for ever at an address that takes connections and says nothing."""
    from distributed import Security
    from distributed.comm.core import connect

    async def greet() -> None:
        arguments = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, timeout=_NO_WORKERS_SECONDS, **arguments), _NO_WORKERS_SECONDS)
        await comm.close()

    with ThreadPoolExecutor(1) as thread:  # the caller's own may run an event loop
        thread.submit(asyncio.run, greet()).result()


class DaskCompute:
    """Implements ``tasks.domain.ports.Compute`` on a connected client."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def map(self, function: Callable[[T], R], partitions: Iterable[T], *, in_flight: int = 2) -> Iterator[R]:
        """Results as they complete. At most ``in_flight`` partitions for each worker thread are under way, so
        ``partitions`` may be long and made on the way. What ``function`` raises is raised here, and the rest is
        cancelled.

        Dask runs the partitions of a lost worker again elsewhere; raises ComputeLostError when it gives up.
        """
        from distributed import as_completed

        source = iter(partitions)
        running = as_completed(loop=self._client.loop)
        pending: set[Future[Any]] = set()
        try:
            while True:
                for partition in _take(source, in_flight * self._n_threads() - len(pending)):
                    future = self._client.submit(function, partition, pure=False)
                    pending.add(future)
                    running.add(future)
                if not pending:
                    return
                future = next(running)
                pending.discard(future)
                yield _result(future)
        finally:
            if pending:
                self._client.cancel(list(pending), force=True)

    def _n_threads(self) -> int:
        return max(1, sum(map(int, self._client.nthreads().values())))


def _take(source: Iterator[T], n: int) -> Iterator[T]:
    for _ in range(n):
        try:
            yield next(source)
        except StopIteration:
            return


def _result(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ not in _LOST:
            raise
        raise ComputeLostError(
            f"Dask gave up on a partition: {error} The usual reason is memory: lower NEARLINE_COMPUTE__N_WORKERS or "
            "NEARLINE_ENCODER__BATCH_TOKENS and run it again; finished partitions are kept."
        ) from error


@contextmanager
def _local_cluster(settings: ComputeSettings) -> Iterator[str]:
    from distributed import LocalCluster

    has_dashboard = importlib.util.find_spec("bokeh") is not None
    with LocalCluster(
        n_workers=settings.n_workers,
        threads_per_worker=1,
        processes=True,
        worker_class=_worker_process(),
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": has_dashboard},
        silence_logs=logging.CRITICAL,  # what fails is raised here
        model_threads=settings.threads_per_worker,
    ) as cluster:
        if has_dashboard:
            logger.info("Dask's dashboard: %s", cluster.dashboard_link)
        yield str(cluster.scheduler_address)


def _worker_process() -> type:
    """The class of one worker: a nanny program, and under it the worker, which it starts again if it dies."""
    from distributed.deploy.subprocess import Subprocess

    class NannyProgram(Subprocess):
        def __init__(self, scheduler: str, name: object = None, *, model_threads: int, **options: Any) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.scheduler = scheduler
            self.threads = str(model_threads)
            passed = ("host", "nthreads", "memory_limit", "silence_logs")
            self.options = {"name": name, "dashboard": False, **{key: options[key] for key in passed}}

        async def _start(self) -> None:
            spec = json.dumps({"cls": "distributed.Nanny", "opts": self.options})
            # -P: a folder `tasks` or `infra` where the command was started must not shadow the installed one.
            command = [sys.executable, "-P", "-m", "dask", "spec", self.scheduler, "--spec", spec]
            self.process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **_threads(self.threads)})

    return NannyProgram


def _threads(n: str) -> dict[str, str]:
    """The one place where the threads of a worker's libraries are set, before they are imported."""
    return dict.fromkeys((*MATH_THREAD_VARIABLES, "NUMBA_NUM_THREADS"), n)
