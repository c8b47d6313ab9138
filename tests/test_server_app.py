"""What the server does with every request, whatever its endpoint: who may ask, what is too much, errors, the log, the figures."""

import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import httpx
import pytest
from engine_runs import held
from prometheus_client.parser import text_string_to_metric_families
from serving import Serving, endless, serving, until
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from qwencli.server.apis import APIS
from qwencli.server.http import limits, logs
from qwencli.server.http.app import API, build_app
from qwencli.server.http.errors import ApiError
from qwencli.server.http.requests import check_amount
from qwencli.server.service.generation import Generation

HELLO = {"prompt": "Once upon a time", "n_predict": 4, "temperature": 0}
LONG = {"prompt": "Once upon a time", "n_predict": 90_000, "temperature": 0, "ignore_eos": True}
"""Takes minutes, by `endless`."""


class Probes:
    """Endpoints that do what no endpoint should."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def routes(self, *_: object) -> list[Route]:
        return [
            Route("/probe/fail", self.fail),
            Route("/v1/probe/fail", self.fail),
            Route("/probe/large", self.large),
            Route("/probe/half", self.half),
            Route("/probe/echo", self.echo, methods=["POST"]),
        ]

    async def fail(self, request: Request) -> Response:
        raise RuntimeError("secret: /etc/passwd")

    async def half(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("secret: /etc/passwd")

        return StreamingResponse(pieces())

    async def large(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 100_000

        class Endless(StreamingResponse):
            async def __call__(response, scope: Scope, receive: Receive, send: Send) -> None:
                try:
                    self.begun.set()
                    await super().__call__(scope, receive, send)
                finally:
                    self.ended.set()

        return Endless(pieces())

    async def echo(self, request: Request) -> Response:
        return Response(await request.body())


def apis(probes: Probes) -> list[API]:
    return [*APIS, API(probes.routes)]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(endless(), apis=apis(Probes()), max_body=100_000) as server:
        yield server


@pytest.fixture
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def generations(server: Serving, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Generation]]:
    """All that the server generates."""
    found: list[Generation] = []
    generate = server.service.generate

    def noted(*asked: Any) -> Generation:
        found.append(generate(*asked))
        return found[-1]

    monkeypatch.setattr(server.service, "generate", noted)
    yield found
    until(lambda: not any(slot.generation for slot in server.service.slots()))


def talk(server: Serving, sent: bytes = b"") -> socket.socket:
    """A connection on which `sent` was sent."""
    s = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    s.sendall(sent)
    return s


def post(path: str, body: Any) -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
    )


def rest(s: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    try:
        while data := s.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return found


def whole(server: Serving, sent: bytes) -> bytes:
    """All that comes on a connection on which `sent` was sent; nothing where it ended before that."""
    with suppress(ConnectionError), closing(talk(server, sent)) as s:
        return rest(s)
    return b""


# The page


def test_the_pages_files_are_served_as_they_are_and_nothing_else_of_the_folder(
    server: Serving, client: httpx.Client
) -> None:
    from importlib.metadata import version
    from importlib.resources import files

    folder = files("qwencli.server").joinpath("web")
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    types["webmanifest"] = "application/manifest+json"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"index.html"} <= found.keys()
    for name, content in found.items():
        answer = client.get("/" + name)
        assert answer.status_code == 200
        assert answer.content == content
        assert answer.headers["content-type"].startswith(types[name.rpartition(".")[2]])
    assert client.get("/").content == found["index.html"]
    assert client.get("/_app/version.json").json() == {"version": version("qwencli")}
    for path in (
        "/config.py",
        "/web/index.html",
        "/%2e%2e/config.py",
        "/..%2fconfig.py",
        "/../config.py",
        "//etc/passwd",
        "/web",
        "/%00",
    ):
        with closing(
            talk(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        ) as s:
            assert rest(s).startswith(b"HTTP/1.1 404 "), path


def test_the_page_may_load_nothing_from_elsewhere_and_is_asked_for_again(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_every_answer_forbids_to_guess_types_and_to_tell_where_one_comes_from(client: httpx.Client) -> None:
    for path in "/", "/health", "/nothing", "/v1/models", "/probe/fail":
        headers = client.get(path).headers
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == (
            "nosniff",
            "no-referrer",
        ), path


# Errors


@pytest.mark.parametrize(
    ("method", "path", "status", "type"),
    [
        ("GET", "/nothing", 404, "not_found_error"),
        ("GET", "/completion", 405, "invalid_request_error"),
        ("GET", "/probe/fail", 500, "server_error"),
        ("DELETE", "/", 405, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_errors_have_the_form_that_the_path_promises(
    client: httpx.Client, prefix: str, method: str, path: str, status: int, type: str
) -> None:
    path = prefix + path.replace("completion", "completions" if prefix else "completion")
    answer = client.request(method, path)
    if path == "/v1/":
        status, type = 404, "not_found_error"
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == type
    assert error["message"]
    assert (error["code"], error.get("param", "none")) == ((None, None) if prefix else (status, "none"))
    assert ("allow" in answer.headers) == (status == 405)
    for leak in "passwd", "Traceback", "RuntimeError", ".py", "qwencli/":
        assert leak not in answer.text


def test_an_error_behind_the_begin_of_an_answer_ends_the_connection_before_the_answers_end(
    client: httpx.Client,
) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/probe/half")


@pytest.mark.parametrize(
    "path", ["/completion", "/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/embeddings"]
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff",
        b'{"prompt": "\\ud800"}',
        b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"x":' * 3000 + b"1" + b"}" * 3000,
        b"1" * 5000,
        b'{"prompt": 1e999}',
    ],
)
def test_what_is_no_request_is_refused(client: httpx.Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 400 or (
        path == "/tokenize" and answer.status_code == 200
    )  # a body that says nothing has no tokens
    if answer.status_code == 400:
        assert answer.json()["error"]["message"]
        assert len(answer.text) < 500


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ([[]] * 20_001, False),
        ([{"a": [1]}] * 10_000, False),
        ([0] * 300_002, False),
        ([""] * 300_002, False),
        ([[1, 2]] * 9_000, True),
        ("[{," * 200_000, True),
        ('"[' * 150_000, True),
        ('\\"[' * 100_000, True),
        (["[,\\"] * 100_000, True),
    ],
)
def test_values_are_counted_and_what_stands_in_texts_is_none(value: Any, fits: bool) -> None:
    """More would be parsed for so long that all others had to wait."""
    body = json.dumps({"content": value}, separators=(",", ":")).encode()
    if fits:
        check_amount(body)
    else:
        with pytest.raises(ApiError, match="too many values"):
            check_amount(body)


# Who may ask


def test_all_but_the_page_and_health_ask_for_a_key() -> None:
    friend = "https://friend.example"
    with (
        serving(api_keys=("first", "second"), cors_origins=(friend,)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        routes = [
            route
            for route in build_app(server.service, server.options, APIS).routes
            if isinstance(route, Route)
        ]
        paths = {route.path for route in routes}
        assert {
            "/v1/models",
            "/openapi.json",
            "/metrics",
            "/slots",
            "/props",
            "/completion",
            "/v1/chat/completions",
        } <= paths
        open_paths = {
            "/",
            "/health",
            "/v1/health",
            *(path for path in paths if "." in path and path != "/openapi.json"),
        }
        for route in routes:
            for method in route.methods or ():
                path = route.path.replace("{id:path}", "x")
                status = client.request(method, path).status_code
                assert (status == 401) == (route.path not in open_paths), (method, path)
        wrong = [
            "Bearer",
            "Bearer firs",
            "Bearer firstt",
            "Bearer first second",
            "Basic first",
            "first",
            "Bearer \xe9",
        ]
        for value in wrong:
            answer = client.get("/v1/models", headers={"Authorization": value.encode("latin-1")})
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"Authorization": "Bearer first"},
            {"Authorization": "bearer second"},
            {"X-Api-Key": "second"},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 200
        refused = client.get("/v1/models", headers={"Origin": friend})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, friend)
        assert (
            client.get("/health", headers={"Host": "any.example"}).status_code == 200
        )  # whose key is right may call it as they like


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80", "Origin": "http://evil.example:80"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "192.168.0.7:8080"}, 200),
        ({"Host": "model.localhost"}, 200),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "a[b]:c"}, 403),
    ],
)
def test_pages_of_other_sites_may_not_use_the_model(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = client.post("/completion", json=HELLO, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_sites_may_be_invited() -> None:
    with (
        serving(cors_origins=("https://friend.example",)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        asked = {
            "Origin": "https://friend.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-stainless-os",
        }
        answer = client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
        answer = client.post("/completion", json=HELLO, headers={"Origin": "https://friend.example"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
            200,
            "https://friend.example",
        )
        assert (
            client.post("/completion", json=HELLO, headers={"Origin": "https://evil.example"}).status_code
            == 403
        )


# What is too much


def test_a_body_may_have_so_many_bytes(server: Serving, client: httpx.Client) -> None:
    assert client.post("/probe/echo", content=b"x" * 100_000).content == b"x" * 100_000
    for content in (
        b"x" * 100_001,
        b"x" * 10_000_000,
        (b"x" * 1000 for _ in range(101)),
    ):  # the last in chunks, its length unknown
        answer = client.post("/probe/echo", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, 413)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\nExpect: 100-continue\r\n\r\n"
    with closing(talk(server, head)) as s:
        assert s.recv(13) == b"HTTP/1.1 413 "
    assert client.post("/probe/echo", content=b"next").content == b"next"


def test_all_bodies_together_may_have_so_many_bytes(
    server: Serving, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD", 150_000)
    bodies: list[bytearray] = []
    read = limits.Limited._read

    def noted(self: limits.Limited, scope: Scope, receive: Receive, body: bytearray) -> Any:
        bodies.append(body)
        return read(self, scope, receive, body)

    monkeypatch.setattr(limits.Limited, "_read", noted)
    head = b"POST /probe/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with closing(talk(server, head + b"x" * 99_999)) as s:  # not all of it
        until(lambda: bodies and len(bodies[0]) == 99_999)
        assert client.post("/probe/echo", content=b"x" * 60_000).status_code == 503
        assert client.post("/probe/echo", content=b"x" * 40_000).status_code == 200
        s.sendall(b"x")
        assert s.recv(13) == b"HTTP/1.1 200 "
    until(lambda: client.post("/probe/echo", content=b"x" * 100_000).status_code == 200)


@pytest.fixture(scope="module")
def hasty() -> Iterator[tuple[Serving, Probes]]:
    """A server that waits for nobody, nor for a test that is slower than it should be: tests try again."""
    probes = Probes()
    with serving(apis=apis(probes), timeout=0.3) as server:
        yield server, probes


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 10_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal",
    ],
)
def test_a_head_that_does_not_end_ends_the_connection(hasty: tuple[Serving, Probes], sent: bytes) -> None:
    until(lambda: whole(hasty[0], sent).count(b"HTTP/1.1 200 ") == sent.count(b"\r\n\r\n"))


def test_a_head_that_comes_byte_by_byte_ends_the_connection(hasty: tuple[Serving, Probes]) -> None:
    def is_over() -> bool:
        try:
            s.sendall(b"G")
        except ConnectionError:
            return True
        return False

    with closing(talk(hasty[0])) as s:
        until(is_over)


def test_a_body_that_does_not_end_is_refused(hasty: tuple[Serving, Probes]) -> None:
    def is_refused() -> bool:
        sent = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        with suppress(ConnectionError), closing(talk(hasty[0], sent)) as s:
            return s.recv(13) == b"HTTP/1.1 408 "
        return False

    until(is_refused)


def test_a_client_that_takes_nothing_is_left(hasty: tuple[Serving, Probes]) -> None:
    server, probes = hasty
    with ExitStack() as stack:

        def begun() -> bool:
            with suppress(ConnectionError):
                stack.enter_context(
                    closing(talk(server, b"GET /probe/large HTTP/1.1\r\nHost: localhost\r\n\r\n"))
                )
            return probes.begun.wait(1)

        until(begun)
        assert httpx.get(server.url + "/health", timeout=60).status_code == 200  # others don't notice
        assert probes.ended.wait(60)


# Clients that leave


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(
    server: Serving, generations: list[Generation], path: str, stream: bool
) -> None:
    body = LONG | {"stream": stream, "max_tokens": 90_000}
    with closing(talk(server, post(path, body))) as s:
        received = b""
        while stream and b"data: " not in received:
            received += (piece := s.recv(1 << 16))
            assert piece
        until(lambda: bool(generations and generations[0].sequence.generated))
    until(lambda: not any(slot.generation for slot in server.service.slots()))
    assert generations[0].sequence.stop_reason == "cancelled"
    assert server.service.llm.engine.running == []


def test_a_client_that_leaves_while_it_waits_leaves_the_queue() -> None:
    with serving(n_slots=1, n_queue=1) as server, ExitStack() as stack:
        go_on = stack.enter_context(held(server.service.llm.engine))
        running = stack.enter_context(closing(talk(server, post("/completion", HELLO))))
        until(lambda: any(slot.generation for slot in server.service.slots()))
        with closing(talk(server, post("/completion", HELLO))):
            until(lambda: server.service.n_waiting == 1)
            for path, code in ("/completion", 429), ("/v1/completions", "queue_full"):
                answer = httpx.post(server.url + path, json=HELLO, timeout=60)
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)
                assert int(answer.headers["retry-after"]) >= 1
            waiting = server.service._waiting[0]
        until(lambda: waiting in server.service._cancelled)  # the server has heard of it
        go_on.set()
        until(lambda: server.service.n_waiting == 0 and server.service.slots()[0].generation is None)
        assert waiting.sequence.stop_reason == "cancelled"
        assert running.recv(13) == b"HTTP/1.1 200 "
        assert httpx.post(server.url + "/completion", json=HELLO, timeout=60).status_code == 200


# The log


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(logs, "write", found.append)
    return found


def test_a_line_for_each_request(lines: list[str]) -> None:
    secret = "Once upon a secret"
    start = time.monotonic()
    with (
        serving(log_format="json", name="tiny") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        first = client.post(
            "/v1/completions", json={"prompt": secret, "max_tokens": 4, "temperature": 0, "n": 2}
        )
        given = client.get("/nothing", headers={"X-Request-Id": "mine-1"})
        bad = client.get("/v1/nothing%0A?key=secret", headers={"X-Request-Id": "no good!"})
        client.get("/health")
        client.get("/slots")
        until(lambda: len(lines) == 3)
    usage = first.json()["usage"]
    log = [json.loads(line) for line in lines]
    assert len(log) == 3
    seconds, queued, ran = (log[0].pop(name) for name in ("seconds", "queue_seconds", "run_seconds"))
    assert 0 <= queued <= seconds
    assert 0 < ran <= seconds < time.monotonic() - start
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", log[0].pop("time"))
    cached = log[0].pop("cached")
    assert 0 <= cached < 2 * usage["prompt_tokens"]
    assert log[0] == {
        "id": first.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "tiny",
        "prompt": 2 * usage["prompt_tokens"],
        "generated": usage["completion_tokens"],
        "stop": "length",
    }
    assert (log[1]["id"], log[1]["status"]) == ("mine-1", 404)
    assert given.headers["x-request-id"] == "mine-1"
    assert log[2]["id"] == bad.headers["x-request-id"] != "no good!"
    assert "secret" not in "".join(lines)
    assert all("\n" not in line for line in lines)


def test_prompts_are_in_the_log_where_that_was_asked_for(lines: list[str]) -> None:
    with serving(log_format="text", log_prompts=True) as server:
        answer = httpx.post(server.url + "/completion", json=HELLO, timeout=60).json()["content"]
        httpx.get(server.url + "/a%0Ab=c", timeout=60)
        until(lambda: len(lines) == 2)
    assert f"prompts={json.dumps(['Once upon a time'])}" in lines[0]
    assert f"answers={json.dumps([answer])}" in lines[0]
    assert 'path="/a\\nb=c"' in lines[1]


def test_the_log_knows_what_an_unexpected_error_was(lines: list[str]) -> None:
    with serving(apis=[API(Probes().routes)], log_format="none") as server:
        httpx.get(server.url + "/probe/nothing", timeout=60)  # nothing but this is left out
        httpx.get(server.url + "/probe/fail", timeout=60)
        until(lambda: len(lines) == 1)
    assert "status=500 " in lines[0]
    assert "RuntimeError: secret: /etc/passwd" in lines[0]
    assert "in fail" in lines[0]  # where it happened
    assert "\n" not in lines[0]


def test_the_log_knows_what_cut_an_answer_off(lines: list[str]) -> None:
    with serving(apis=[API(Probes().routes)], log_format="none") as server:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(server.url + "/probe/half", timeout=60)
        until(lambda: len(lines) == 1)
    assert "RuntimeError: secret: /etc/passwd" in lines[0]
    assert "in pieces" in lines[0]
    assert "the client left" not in lines[0]


def test_the_log_names_clients_that_left(lines: list[str]) -> None:
    with serving(endless(), log_format="json") as server:
        with closing(talk(server, post("/completion", LONG))):
            until(lambda: any(slot.generation for slot in server.service.slots()))
        until(lambda: len(lines) == 1)
    log = json.loads(lines[0])
    assert (log["status"], log["stop"], log["error"]) == (499, "cancelled", "the client left")
    assert log["generated"] < LONG["n_predict"]


# Figures


def test_the_figures_have_llama_cpps_names_and_are_right() -> None:
    """Names and types: tools/server/README.md and server-context.cpp of llama.cpp."""
    counters = {"prompt_tokens", "prompt_seconds", "tokens_predicted", "tokens_predicted_seconds", "n_decode"}
    gauges = {
        "n_busy_slots_per_decode",
        "prompt_tokens_seconds",
        "predicted_tokens_seconds",
        "requests_processing",
        "requests_deferred",
    }
    with serving(metrics=True) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        answers = [client.post("/completion", json=HELLO).json() for _ in range(3)]
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {
        family.name.removeprefix("llamacpp:"): family
        for family in text_string_to_metric_families(answer.text)
    }
    assert {name for name, family in families.items() if family.type == "counter"} >= counters
    assert {name for name, family in families.items() if family.type == "gauge"} >= gauges
    assert {f"llamacpp:{name}_total" for name in counters} <= {
        s.name for f in families.values() for s in f.samples
    }
    value = {name: family.samples[0].value for name, family in families.items()}
    timings = [answer["timings"] for answer in answers]
    assert value["prompt_tokens"] == sum(t["prompt_n"] for t in timings)
    assert value["prompt_tokens_cached"] == sum(t["cache_n"] for t in timings) > 0
    assert value["tokens_predicted"] == sum(a["tokens_predicted"] for a in answers) == 12
    assert value["prompt_seconds"] == pytest.approx(sum(t["prompt_ms"] for t in timings) / 1000)
    assert value["tokens_predicted_seconds"] == pytest.approx(sum(t["predicted_ms"] for t in timings) / 1000)
    assert value["n_decode"] == 12
    assert value["n_busy_slots_per_decode"] == 1
    assert value["requests_processing"] == value["requests_deferred"] == 0


def test_the_event_loop_is_free_while_the_model_works(server: Serving, generations: list[Generation]) -> None:
    """Requests that need no model are answered between the steps of those that do."""
    with closing(talk(server, post("/completion", LONG))):
        until(lambda: bool(generations and generations[0].sequence.generated))
        assert [httpx.get(server.url + "/health", timeout=60).status_code for _ in range(3)] == [200] * 3
        assert generations[0].sequence.stop_reason is None


def test_connections_are_kept_and_requests_may_follow_each_other_at_once(server: Serving) -> None:
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with closing(talk(server, ask * 3 + ask.replace(b"Host", b"Connection: close\r\nHost"))) as s:
        assert rest(s).count(b"HTTP/1.1 200 ") == 4


def test_endless_generation_ends_with_the_server() -> None:
    """A server that ends takes no more, and tells those it cannot finish."""
    with ExitStack() as stack:
        with serving(endless(), n_slots=1) as server:
            asked = ("/v1/completions", LONG | {"max_tokens": 90_000}), ("/completion", LONG)
            sockets = [stack.enter_context(closing(talk(server, post(path, body)))) for path, body in asked]
            until(lambda: server.service.n_waiting == 1)
        first, second = map(rest, sockets)
    assert first.startswith(b"HTTP/1.1 503 ")
    assert json.loads(first.partition(b"\r\n\r\n")[2])["error"]["type"] == "unavailable_error"
    assert second.startswith(b"HTTP/1.1 503 ")
