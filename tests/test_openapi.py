"""The description of the API: it covers all endpoints, and schemathesis can read it. test_server_schemathesis asks what it describes."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from serving import Serving, serving
from starlette.routing import Route

from qwencli.server.apis import APIS
from qwencli.server.http import static
from qwencli.server.http.app import build_app


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
