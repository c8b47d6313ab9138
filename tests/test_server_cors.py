"""Pages of other sites: who is invited, and what browsers are told. Expected values: the Fetch standard, and llama-server's answers."""

from collections.abc import Iterator

import httpx
import pytest
from serving import Serving, serving

from qwencli.server.http.cors import invites

ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-a"}
FRIEND = "https://friend.example"


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Serving]]:
    with (
        serving() as closed,
        serving(cors_origins=("*",)) as everyone,
        serving(cors_origins=("localhost",), api_keys=("key",)) as here,
        serving(cors_origins=(FRIEND, "localhost")) as friend,
    ):
        yield {"closed": closed, "everyone": everyone, "here": here, "friend": friend}


def preflight(server: Serving, origin: str, path: str = "/v1/chat/completions") -> httpx.Response:
    return httpx.options(server.url + path, headers={"Origin": origin, **ASKED}, timeout=60)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:8080",
        "http://127.0.0.1",
        "http://127.0.0.1:3000",
        "http://[::1]",
        "https://[::1]:3000",
    ],
)
@pytest.mark.parametrize("name", ["here", "friend"])
def test_localhost_invites_every_port_of_this_machine(
    servers: dict[str, Serving], name: str, origin: str
) -> None:
    server = servers[name]
    answer = preflight(server, origin)
    assert (answer.status_code, answer.content) == (200, b"")  # without a key, which browsers don't send here
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"
    assert answer.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == "authorization, x-a"
    health = httpx.get(server.url + "/health", headers={"Origin": origin}, timeout=60)
    assert (health.status_code, health.headers["access-control-allow-origin"]) == (200, origin)
    assert "x-request-id" in health.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "http://web.mydomain.fr",
        "http://evil.com",
        "http://notlocalhost",
        "http://localhost.evil.com",
        "http://evil.com:localhost",
        "http://localhost:80@evil.com",
        "http://127.0.0.1.evil.com",
        "http://127.0.0.2",
        "file://localhost",
        "null",
    ],
)
@pytest.mark.parametrize("name", ["closed", "here", "friend"])
def test_others_are_told_nothing_and_refused(servers: dict[str, Serving], name: str, origin: str) -> None:
    answer = preflight(servers[name], origin)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    for method, path in ("GET", "/health"), ("POST", "/v1/chat/completions"), ("GET", "/nothing"):
        refused = httpx.request(method, servers[name].url + path, headers={"Origin": origin}, timeout=60)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


def test_all_may_be_invited_but_not_with_the_browsers_own_credentials(servers: dict[str, Serving]) -> None:
    for origin in "https://any.example", "null":
        answer = preflight(servers["everyone"], origin)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        health = httpx.get(servers["everyone"].url + "/health", headers={"Origin": origin}, timeout=60)
        assert (health.status_code, health.headers["access-control-allow-origin"]) == (200, "*")


def test_a_site_that_is_named_may_use_them(servers: dict[str, Serving]) -> None:
    answer = preflight(servers["friend"], FRIEND)
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert answer.headers["access-control-allow-credentials"] == "true"


def test_a_page_reads_errors_too(servers: dict[str, Serving]) -> None:
    origin = {"Origin": "http://localhost:3000"}
    for path, status in ("/v1/models", 401), ("/nothing", 401):
        answer = httpx.get(servers["here"].url + path, headers=origin, timeout=60)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
            status,
            origin["Origin"],
        )


def test_options_needs_no_origin(servers: dict[str, Serving]) -> None:
    for path in "/completion", "/nothing":
        answer = httpx.options(servers["closed"].url + path, timeout=60)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["access-control-allow-headers"] == "*"


def test_origins_are_compared_as_a_whole() -> None:
    assert invites((FRIEND,), FRIEND)
    assert not invites((FRIEND,), "https://friend.example.evil")
    assert not invites((FRIEND,), "http://friend.example")
    assert not invites((), FRIEND)
