"""The description of the API, as schemathesis reads it: it holds for all endpoints, and no request that it allows breaks the server."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import Serving, serving
from starlette.routing import Route

from qwencli.server.apis import APIS
from qwencli.server.http import static
from qwencli.server.http.app import build_app

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


def test_every_endpoint_is_described(server: Serving) -> None:
    document = httpx.get(server.url + "/openapi.json", timeout=60).json()
    pages = {page.path for page in static.routes()}
    routes = [
        route
        for route in build_app(server.service, server.options, APIS).routes
        if isinstance(route, Route) and route.path not in pages
    ]
    expected = {
        (route.path_format, method.lower())
        for route in routes
        for method in (route.methods or ())
        if method != "HEAD"
    }
    assert {(path, method) for path, item in document["paths"].items() for method in item} == expected - {
        ("/openapi.json", "get")
    }
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)
    schemathesis.openapi.from_dict(document).validate()


def test_no_request_that_is_described_breaks_the_server(server: Serving) -> None:
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=6,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(timeout=60)
            case.validate_response(
                answer, checks=CHECKS if answer.status_code == 501 else [*CHECKS, not_a_server_error]
            )

        ask()
    assert all(not slot["is_processing"] for slot in httpx.get(server.url + "/slots", timeout=60).json())
