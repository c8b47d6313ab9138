"""Comments in streams that are silent (https://html.spec.whatwg.org/multipage/server-sent-events.html: a line that begins with a colon)."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from serving import Serving, endless, serving
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qwencli.server.apis import APIS
from qwencli.server.http.app import API
from qwencli.server.http.ndjson import line_stream
from qwencli.server.http.sse import event_stream

PING = ":\n\n"
MESSAGES = {"messages": [{"role": "user", "content": "Hello"}]}


async def slow(delays: list[float]) -> AsyncIterator[int]:
    for i, delay in enumerate(delays):
        await asyncio.sleep(delay)
        yield i


def routes(*_: object) -> list[Route]:
    async def events(request: Request) -> Response:
        return event_stream(request, slow([0, 0.7, 0.7, 0, 0.1, 0.7]), b"data: end\n\n")

    async def lines(request: Request) -> Response:
        return line_stream(request, slow([0, 0.7, 0]))

    return [Route("/probe/events", events), Route("/probe/lines", lines)]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(endless(), n_slots=1, apis=[*APIS, API(routes)], sse_ping=0.3) as server:
        yield server


def test_a_stream_that_is_silent_carries_comments(server: Serving) -> None:
    text = httpx.get(server.url + "/probe/events", timeout=60).text
    events = [f"data: {i}\n\n" for i in range(6)]
    assert text.replace(PING, "") == "".join(events) + "data: end\n\n"
    parts = text.split("data: ")
    assert [PING in part for part in parts] == [False, True, True, False, False, True, False, False]


def test_lines_of_json_have_no_comments(server: Serving) -> None:
    assert httpx.get(server.url + "/probe/lines", timeout=60).text == "0\n1\n2\n"


@contextmanager
def busy(server: Serving) -> Iterator[None]:
    """While its only slot is taken."""
    body = {"prompt": "Once", "n_predict": 90_000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/completion", json=body, timeout=60) as answer:
        parts = answer.iter_text()  # what is dropped is closed
        next(parts)
        yield


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "Hello"}),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/chat/completions", MESSAGES),
    ],
)
def test_a_request_that_waits_for_its_turn_is_kept_alive_in_every_api(
    server: Serving, path: str, body: dict[str, Any]
) -> None:
    asked = {**body, "max_tokens": 1, "stream": True}
    with busy(server), httpx.stream("POST", server.url + path, json=asked, timeout=60) as answer:
        parts = answer.iter_text()
        assert PING in (next(parts), next(parts))  # OpenAI's chats first tell the role


def test_a_request_says_how_often(server: Serving) -> None:
    """As llama-server's field; -1 is never."""
    body = {"prompt": "Hello", "max_tokens": 1, "stream": True, "sse_ping_interval": -1}
    with (
        busy(server),
        httpx.stream("POST", server.url + "/completion", json=body, timeout=1.5) as answer,
        pytest.raises(httpx.ReadTimeout),
    ):
        next(answer.iter_text())


def test_no_comments_where_they_are_turned_off() -> None:
    with serving(apis=[*APIS, API(routes)], sse_ping=None) as server:
        assert PING not in httpx.get(server.url + "/probe/events", timeout=60).text


def test_openais_client_reads_over_them(server: Serving) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    with busy(server):
        stream = client.completions.create(model="any", prompt="Hello", max_tokens=2, stream=True)
        time.sleep(1)
    assert [chunk.object for chunk in stream][:1] == ["text_completion"]
