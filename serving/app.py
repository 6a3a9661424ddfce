"""The HTTP service: one application over the online side. It knows nothing of processes, ports or files."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infra.settings import ServiceSettings
from serving.access import Access, Keys
from serving.bodies import told
from serving.desk import Desk, Online
from serving.door import Door, error_response, framework_error
from serving.errors import HttpError
from serving.limits import Lane
from serving.metrics import Metrics
from serving.openapi import describe
from serving.reference_page import router as reference_page
from serving.routes import router
from tasks.figures import Figures

N_READING, N_WRITING = 24, 96
"""Threads. A write waits for its commit, and a read may wait for a user's newest events: neither computes meanwhile."""


def create_app(
    online: Online,
    *,
    settings: ServiceSettings,
    keys: Keys,
    clock: Callable[[], datetime] | None = None,
    figures: Callable[[], Figures | None] = lambda: None,
) -> FastAPI:
    """The application. ``clock`` gives the time, aware and UTC, that keys are compared with; ``figures`` gives those of
    the warehouse at once."""
    desk = Desk(
        online=online,
        settings=settings,
        access=Access(keys, settings.requests_per_second, clock or _utc_now),
        metrics=Metrics(online.stats, figures),
        lanes={
            "reads": Lane("reads", N_READING, 2 * N_READING),
            "writes": Lane("writes", N_WRITING, N_WRITING),
            "watch": Lane("watch", 2, 14),
            "admin": Lane("admin", 1, 7),
        },
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(
        title="Nearline",
        version=version("nearline"),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # that page would load its scripts from a public server: see serving.reference_page
        redoc_url=None,
        exception_handlers={RequestValidationError: _refuse_parameters, HTTPException: _refuse_path},
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},  # paths have ids
    )
    app.state.desk = desk
    app.include_router(router)
    app.include_router(reference_page)
    app.add_middleware(Door, metrics=desk.metrics)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


async def _refuse_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(HttpError(422, "input", told(error.errors())), request.state.request_id)


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(framework_error(error), request.state.request_id)


def _utc_now() -> datetime:
    return datetime.now(UTC)
