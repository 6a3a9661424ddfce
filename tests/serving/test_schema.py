"""Requests that schemathesis makes up from the OpenAPI, right and wrong ones: none finds a server error."""

from datetime import UTC, datetime

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from infra.key_store import KeyStore
from infra.settings import ServiceSettings
from serving.app import create_app
from tests.serving.conftest import ScriptedOnline

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
N_EXAMPLES, FEW = 10, 2


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """The schema of an application over the scripted online side, and headers with a key for everything."""
    return described(ScriptedOnline(), tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def real(small_online):
    """The same over the real one."""
    return described(*small_online)


def described(online, home):
    keys = KeyStore(home)
    _, text = keys.create("schemathesis", ["read", "write", "admin"], now=datetime(2026, 1, 1, tzinfo=UTC))
    app = create_app(online, settings=ServiceSettings(requests_per_second=1e6), keys=keys)
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig()), {"X-API-Key": text}


PATHS = create_app(ScriptedOnline(), settings=ServiceSettings(), keys=None).openapi()["paths"]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
NOTHING_TO_ASK_WRONGLY = ("/metrics", "/v1/health")
ASKED = [
    (method, path, mode)
    for path, operations in PATHS.items()
    for method in operations
    for mode in MODES
    if mode is GenerationMode.POSITIVE or path not in NOTHING_TO_ASK_WRONGLY
]


@pytest.mark.parametrize("side", ["scripted", "real"])
@pytest.mark.parametrize(("method", "path", "mode"), ASKED)
def test_no_request_finds_a_server_error(request, side, method, path, mode):
    schema, headers = request.getfixturevalue(side)
    operation = schema[path][method]
    n_examples = FEW if side == "real" and method == "delete" else N_EXAMPLES

    @settings(
        max_examples=n_examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

    check()
