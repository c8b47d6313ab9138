"""What holds for all endpoints of all APIs, whatever they do: found by the routes of the application, so that no new one is forgotten."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from pydantic import BaseModel
from serving import Serving, serving
from starlette.routing import Route

from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.server.apis import APIS
from qwencli.server.http.app import build_app
from qwencli.server.http.openapi import KEY
from qwencli.server.options import ServerOptions
from qwencli.server.service.service import Service

EVIL = "https://evil.example"
HUGE = 10**30
SAFE = "demo"
"""For parts of paths."""


class Endpoint(NamedTuple):
    method: str
    path: str
    model: type[BaseModel] | None


@cache
def endpoints() -> list[Endpoint]:
    options = ServerOptions("demo", template=None)
    app = build_app(Service(LLM(EMBEDDED, n_threads=1, n_ctx=32)), options, APIS)
    found = []
    for route in app.routes:
        if isinstance(route, Route):
            described = getattr(route.endpoint, KEY, None)
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
                path = re.sub(r"{\w+(:\w+)?}", SAFE, route.path)
                found.append(Endpoint(method, path, described and described.body))
    return found


def posts() -> list[Endpoint]:
    """Those that read a body, one for each model."""
    return list({e.model: e for e in endpoints() if e.method == "POST" and e.model}.values())


each = pytest.mark.parametrize("endpoint", endpoints(), ids=lambda e: f"{e.method} {e.path}")
each_post = pytest.mark.parametrize("endpoint", posts(), ids=lambda e: e.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    """A context of 32 tokens, so that no answer is long."""
    with serving(LLM(EMBEDDED, n_threads=2, n_ctx=32), slot_save_path=folder, props=True) as server:
        yield server
        assert [slot.generation for slot in server.service.slots()] == [None] * 4
        assert server.service.llm.engine.running == []


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def form(path: str) -> dict[str, Any]:
    """The form of an API's errors: names and types."""
    if path.startswith("/v1/messages"):
        return {"type": str, "error": {"type": str, "message": str}, "request_id": str}
    if path.startswith("/api/"):
        return {"error": str}
    if path.startswith("/v1/"):
        return {"error": {"message": str, "type": str, "param": (str, type(None)), "code": (str, type(None))}}
    return {"error": {"message": str, "type": str, "code": int}}


def check_form(value: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert expected.keys() <= value.keys(), value
        for name, kind in expected.items():
            check_form(value[name], kind)
    else:
        assert isinstance(value, expected), value


def checked(answer: httpx.Response, endpoint: Endpoint, allowed: tuple[int, ...] = ()) -> httpx.Response:
    """An answer that tells nothing of this machine, and an error in its API's form."""
    status, text = answer.status_code, answer.text
    assert status < 500 or status == 501 or status in allowed, text
    for secret in (
        str(Path(__file__).parents[1]),
        str(EMBEDDED.parent),
        str(Path.home()) + "/",
        sys.prefix,
        "/tmp/",
        "site-packages",
    ):
        assert secret not in text, secret
    assert "Traceback" not in text
    assert "pydantic" not in text
    if status >= 400:
        error = json.loads(text)
        check_form(error, form(endpoint.path))
        message = error["error"] if isinstance(error["error"], str) else error["error"]["message"]
        assert 0 < len(message) < 500
        assert message.isprintable(), message
    return answer


# Who may ask


@each
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
    ids=lambda headers: "+".join(f"{name}={value}" for name, value in headers.items()),
)
def test_no_page_of_another_site_reaches_it(
    client: httpx.Client, endpoint: Endpoint, headers: dict[str, str]
) -> None:
    answer = client.request(endpoint.method, endpoint.path, headers=headers, content=b"{}")
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    checked(answer, endpoint)


@each
def test_a_site_that_looks_like_this_machine_is_none(client: httpx.Client, endpoint: Endpoint) -> None:
    for host in "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8080", "a@localhost":
        answer = client.request(endpoint.method, endpoint.path, headers={"Host": host}, content=b"{}")
        assert answer.status_code in (400, 403), host


# Bodies


BODIES: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"prompt": "a',
    "cut off in a list": b'{"messages": [{"role": "user"',
    "not JSON": b"prompt=a",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "a text": b'"a"',
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "a half pair": b'{"prompt": "\\ud800", "content": "\\ud800", "input": "\\ud800"}',
    "a zero": b'{"prompt": "a\\u0000", "content": "\\u0000", "model": "\\u0000"}',
    "deep": b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"json_schema": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "twice": b'{"prompt": "a", "prompt": 5}',
    "infinite": b'{"temperature": 1e999, "prompt": "a"}',
    "NaN": b'{"temperature": NaN, "prompt": "a"}',
    "many digits": b'{"seed": ' + b"9" * 10_000 + b', "prompt": "a"}',
    "after it": b"{} {}",
    "gzip": b"\x1f\x8b\x08\x00",
}


@each_post
@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none(client: httpx.Client, endpoint: Endpoint, name: str) -> None:
    checked(client.post(endpoint.path, content=BODIES[name]), endpoint)


@each_post
def test_a_body_of_10_mb_is_too_large(client: httpx.Client, endpoint: Endpoint) -> None:
    for content in b'{"prompt": "' + b"a" * 10_000_000 + b'"}', b" " * 10_000_000:
        assert checked(client.post(endpoint.path, content=content), endpoint).status_code == 413


def talk(server: Serving, head: str, body: bytes = b"") -> bytes:
    """What comes back on a connection of its own, on which nothing more is sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as s:
        s.sendall(f"{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode() + body)
        s.shutdown(socket.SHUT_WR)
        try:
            return s.makefile("rb").read()
        except ConnectionResetError:
            return b""


@each_post
@pytest.mark.parametrize(
    "length",
    [
        "Content-Length: 1000",
        "Content-Length: -1",
        "Content-Length: 5x",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
    ],
)
def test_wrong_lengths_begin_nothing(server: Serving, endpoint: Endpoint, length: str) -> None:
    n = server.service.counters.n_requests
    answer = talk(server, f"POST {endpoint.path} HTTP/1.1\r\n{length}", b'{"prompt": "a", "stream": true}')
    status = re.match(rb"HTTP/1\.1 (\d+)", answer)
    assert not status or int(status[1]) in (400, 408, 413, 422, 501), answer[:200]
    assert server.service.counters.n_requests == n


# Fields


VALUES: list[Any] = [
    HUGE,
    -HUGE,
    1e300,
    -1,
    "x" * 300,
    "../../../etc/passwd",
    [[]],
    {"a": {"b": [1]}},
    True,
    [HUGE, None, "a"],
]
MESSAGES = [{"role": "user", "content": "a"}]
BASE = {
    "model": "demo",
    "prompt": "a",
    "messages": MESSAGES,
    "input": "a",
    "content": "a",
    "query": "a",
    "documents": ["a"],
    "tokens": [1],
    "input_prefix": "a",
    "input_suffix": "b",
    "filename": "a",
    "stream": False,
    "max_tokens": 2,
}


def names(model: type[BaseModel]) -> list[str]:
    return sorted(field.alias or name for name, field in model.model_fields.items())


@each_post
def test_no_value_of_a_field_fails_in_the_server(client: httpx.Client, endpoint: Endpoint) -> None:
    assert endpoint.model
    known = names(endpoint.model)
    base = {name: value for name, value in BASE.items() if name in known}
    for name in known:
        for value in VALUES:
            body = json.dumps(base | {name: value}).encode()
            checked(client.post(endpoint.path, content=body), endpoint)


@each
@pytest.mark.parametrize(
    "query",
    [
        pytest.param("?a=" + "x" * 5000, id="long"),
        "?%00",
        "?action=%2e%2e",
        "?fail_on_no_slot=1&model=../x",
        pytest.param("?" + "&".join("a" * 500), id="many"),
    ],
)
def test_queries_fail_nowhere(client: httpx.Client, endpoint: Endpoint, query: str) -> None:
    checked(client.request(endpoint.method, endpoint.path + query, content=b"{}"), endpoint)


@pytest.mark.parametrize(
    "part", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "-1", str(HUGE), "%00", "%ff", "x" * 3000, "%1b%5b31m", "１"]
)
def test_parts_of_paths_fail_nowhere(client: httpx.Client, part: str) -> None:
    for endpoint in endpoints():
        if SAFE in endpoint.path:
            path = endpoint.path.replace(SAFE, part)
            for query in "", "?action=save", "?action=restore", "?action=erase":
                answer = client.request(endpoint.method, path + query, content=b'{"filename": "a"}')
                checked(answer, endpoint._replace(path=path))


def test_methods_that_a_path_does_not_have_are_errors_of_its_api(client: httpx.Client) -> None:
    paths = {e.path for e in endpoints()}
    for path in paths:
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {
            e.method for e in endpoints() if e.path == path
        }:
            answer = client.request(method, path)
            assert answer.status_code in (404, 405), (method, path)  # 404: as the id of something
            checked(answer, Endpoint(method, path, None))


def test_paths_that_are_not_there_are_errors_of_their_api(client: httpx.Client) -> None:
    for path in "/v1/nothing", "/api/nothing", "/v1/messages/nothing", "/nothing", "/v1/messages/../../etc":
        answer = client.get(path)
        assert answer.status_code == 404
        checked(answer, Endpoint("GET", answer.url.path, None))


def test_nothing_was_written_but_where_slots_are_saved(
    folder: Path, server: Serving, client: httpx.Client
) -> None:
    """After all that, in whatever order: only plain names are in the folder."""
    for path in folder.rglob("*"):
        assert path.parent == folder
    assert not (folder.parent / "passwd").exists()
    assert client.get("/health").json() == {"status": "ok"}
