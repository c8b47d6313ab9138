"""Chatting with a server: a real one on this machine, over real HTTP, that sends what the servers of the world send."""

import itertools
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from openai_server import WAIT, OpenAIServer, Reply, as_json, delta, event, joined, stream

from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.remote import RemoteChat, parse_address, streams
from qwencli.dialogue.remote import chat as remote_chat
from qwencli.dialogue.remote.streams import events
from qwencli.errors import ContextFull, InputError, QwenError
from qwencli.sampling import SamplingParams
from qwencli.text.chat.answers import Content, Event, Reasoning, ToolCall

KEY = "sk-secret-0123456789"
HI = [{"role": "user", "content": "Hi"}]
END = delta("stop")
HELLO = stream(delta(role="assistant", content=None), delta(content="Hé"), delta(content="llo 你好 🌍"), END)


def settings(**values: Any) -> Settings:
    chosen = {
        name: values.pop(name)
        for name in ("max_tokens", "think", "reasoning_budget", "tools")
        if name in values
    }
    return Settings(SamplingParams(**values), **chosen)


def ask(*pieces: bytes, headers: dict[str, str] | None = None, **values: Any) -> list[Event]:
    """What comes of an answer made of these pieces."""
    with OpenAIServer(Reply(pieces, headers=headers or {"Content-Type": "text/event-stream"})) as server:
        return joined(RemoteChat(server.url).answer(HI, settings(**values)))


def failure(
    reply: Reply, key: str | None = None, timeout: float = 60.0
) -> tuple[list[Event], QwenError, str]:
    """What came before the error, the error, and its text with the address replaced."""
    came: list[Event] = []
    with OpenAIServer(reply) as server:
        chat = RemoteChat(server.url, key, "tiny", timeout)
        with pytest.raises(QwenError) as caught:
            came.extend(chat.answer(HI, settings()))  # keeps what came before the error
        assert chat.stop_reason is None
    assert "\n" not in str(caught.value)
    return came, caught.value, str(caught.value).replace(server.url, "SERVER")


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://localhost:8080", "localhost", 8080, "/v1"),
        ("http://localhost:8080/", "localhost", 8080, "/v1"),
        ("http://localhost:8080/v1", "localhost", 8080, "/v1"),
        ("http://localhost:8080/v1/", "localhost", 8080, "/v1"),
        ("http://localhost:8080/v1/chat/completions", "localhost", 8080, "/v1"),
        (" HTTP://a ", "a", 80, "/v1"),
        ("https://api.openai.com", "api.openai.com", 443, "/v1"),
        ("https://a.b/openai/v1", "a.b", 443, "/openai/v1"),
        ("https://a.b/v1beta/openai/chat/completions/", "a.b", 443, "/v1beta/openai"),
        ("https://a.b/api", "a.b", 443, "/api/v1"),
        ("https://a.b/api/v4", "a.b", 443, "/api/v4"),
        ("http://[::1]:80", "::1", 80, "/v1"),
        ("http://a/é b", "a", 80, "/%C3%A9%20b/v1"),
    ],
)
def test_addresses(url: str, host: str, port: int, path: str) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.base) == (host, port, path)
    assert address.protocol.chats == "/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "localhost",
        "ftp://a",
        "ftp://a:80",
        "http://",
        "http://:80",
        "http:///v1",
        "http://a:x",
        "http://a:99999",
        "//a",
        "http://[::1",
        "http://a b",
        "http://a\0b",
        "http://a?x=1",
        "http://a#x",
        "file:///etc/passwd",
        "http://user:geheim@a",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(
        InputError, match=r"isn't the address of a server, expected http://host:port or https://host$"
    ) as caught:
        RemoteChat(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "a\0b"])
def test_keys_that_no_header_can_hold(key: str) -> None:
    with pytest.raises(InputError) as caught:
        RemoteChat("http://a", key)
    assert key not in str(caught.value)


def test_an_answer_and_its_request() -> None:
    with OpenAIServer(Reply([HELLO]), Reply([HELLO])) as server:
        chat = RemoteChat(server.url + "/", KEY)
        messages = [
            {"role": "system", "content": "é\ud800"},
            *HI,
            {"role": "assistant", "content": "Yes?", "reasoning_content": "greets"},
            *HI,
        ]
        assert joined(chat.answer(messages, settings())) == [Content("Héllo 你好 🌍")]
        assert chat.stop_reason == "eos"
        assert (chat.model, KEY in repr(chat)) == ("tiny", False)
        list(chat.answer(HI, settings()))
    listed, asked, again = server.requests
    assert [r.method + " " + r.path for r in server.requests] == [
        "GET /v1/models",
        *["POST /v1/chat/completions"] * 2,
    ]
    assert {r.headers["Authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    assert listed.body is None
    assert asked.body == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [*messages[:2], {"role": "assistant", "content": "Yes?"}, *HI],
    }
    assert again.body["messages"] == HI


def test_settings_by_the_names_of_the_protocol() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    chosen = settings(
        temp=0.5,
        top_p=0.9,
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        max_tokens=99,
        think=True,
        reasoning_budget=64,
        tools=tools,
        top_k=20,
        min_p=0.0,
        repeat_penalty=1.1,
        penalty_last_n=128,
        typical_p=0.9,
        logit_bias=((5, float("-inf")), (6, 2.0)),
        n_probs=3,
        explain=True,
    )
    with OpenAIServer(Reply([HELLO]), Reply([HELLO])) as server:
        chat = RemoteChat(server.url, model="mine")
        list(chat.answer(HI, chosen))
        list(chat.answer(HI, settings(reasoning_budget=0, max_tokens=0)))
    first, second = (r.body for r in server.requests)  # and no list of models was asked for
    for body in first, second:
        assert [body.pop(name) for name in ("messages", "stream", "stream_options")] == [
            HI,
            True,
            {"include_usage": True},
        ]
    assert first == {
        "model": "mine",
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "max_tokens": 99,
        "chat_template_kwargs": {"enable_thinking": True},
        "thinking_budget_tokens": 64,
        "reasoning_budget_tokens": 64,
        "tools": tools,
        "top_k": 20,
        "min_p": 0.0,
        "repeat_penalty": 1.1,
        "repeat_last_n": 128,
        "typical_p": 0.9,
        "logit_bias": {"5": -100.0, "6": 2.0},
    }
    assert second == {
        "model": "mine",
        "max_tokens": 0,
        "chat_template_kwargs": {"enable_thinking": False},
        "thinking_budget_tokens": 0,
        "reasoning_budget_tokens": 0,
    }
    assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    "models",
    [
        as_json({"error": "no"}, 404),
        as_json({"data": []}),
        as_json([1]),
        Reply([b"<html>"]),
        Reply([b"[" * 100_000]),
    ],
)
def test_servers_without_a_list_of_models(models: Reply) -> None:
    with OpenAIServer(Reply([HELLO]), models=models) as server:
        chat = RemoteChat(server.url)
        list(chat.answer(HI, settings()))
    assert (chat.model, server.requests[-1].body["model"]) == ("default", "default")


STREAM = (
    b": comment\r\n\r\n"
    + event(delta(role="assistant", content="")).replace(b"\n", b"\r\n")
    + b"event: message\nid: 1\nretry: 5\n"
    + b'data: {"choices": [{"delta":\ndata:{"reasoning_content": "Hm\xc3\xa9"}}]}\n\n'
    + b"data\n\n:\n\n"
    + stream(
        {"choices": []},
        delta(reasoning="m"),
        delta(content="Z\u00fcrich "),
        delta(content="🌍"),
        END,
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}},
    )
    + b"what comes later is not read"
)
WHOLE: list[Event] = [Reasoning("Hmém"), Content("Zürich 🌍")]


def test_a_stream_may_be_cut_anywhere() -> None:
    expected = list(events([STREAM]))
    assert len(expected) == 9
    for place in range(len(STREAM) + 1):
        assert list(events([STREAM[:place], STREAM[place:]])) == expected
    assert list(events(bytes([b]) for b in STREAM)) == expected
    cuts = itertools.pairwise(range(0, len(STREAM) + 6, 7))
    for pieces in [STREAM], [bytes([b]) for b in STREAM], [STREAM[a:b] for a, b in cuts]:
        assert ask(*pieces) == WHOLE


def test_bytes_that_are_no_utf8_and_halves_of_characters() -> None:
    assert ask(b'data: {"choices": [{"delta": {"content": "a\\ud83d"}}]}\n\n', HELLO) == [
        Content("a?Héllo 你好 🌍")
    ]
    assert failure(Reply([b'data: {"choices": "\xff"}\n\n']))[2].startswith(
        "SERVER sent something that isn't a JSON object: {"
    )


MESSAGE = {"role": "assistant", "content": "Yes.", "reasoning_content": "Is it?"}


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_a_server_that_does_not_stream(kind: str) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    answer = {"choices": [{"index": 0, "message": MESSAGE, "finish_reason": "length"}], "usage": usage}
    with OpenAIServer(
        Reply([json.dumps(answer, indent=1).encode()], headers={"Content-Type": kind})
    ) as server:
        chat = RemoteChat(server.url)
        assert joined(chat.answer(HI, settings())) == [Reasoning("Is it?"), Content("Yes.")]
    assert chat.stop_reason == "length"
    assert {"prompt_n": 5, "cache_n": 0, "predicted_n": 2}.items() <= chat.stats().items()


def test_thinking_and_calls_that_the_server_leaves_in_the_text() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    chunks = [delta(content=c) for c in f"<think>\nHm.\n</think>\n\nYes. {call}"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert ask(stream(*chunks, END), tools=tools) == [
        Reasoning("Hm."),
        Content("Yes."),
        ToolCall("f", {"x": 1}),
    ]
    assert ask(stream(*chunks, END)) == [Reasoning("Hm."), Content(f"Yes. {call}")]


def call_delta(
    index: int | None, arguments: Any, name: str | None = None, id: str | None = None
) -> dict[str, Any]:
    return delta(
        tool_calls=[
            {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        ]
    )


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        (
            [call_delta(0, "", "f", "a"), call_delta(0, '{"x": "'), call_delta(0, 'é"}')],
            [ToolCall("f", {"x": "é"})],
        ),
        (
            [
                call_delta(0, "{}", "f", "a"),
                call_delta(1, '{"y"', "g", "b"),
                call_delta(1, ":[1]}"),
                call_delta(0, " "),
            ],
            [ToolCall("f", {}), ToolCall("g", {"y": [1]})],
        ),
        (
            [call_delta(0, '{"a": 1}', "f", "a"), call_delta(0, '{"b": 2}', "f", "b")],
            [ToolCall("f", {"a": 1}), ToolCall("f", {"b": 2})],
        ),
        (
            [call_delta(None, {"a": 1}, "f"), delta(tool_calls=None), delta(tool_calls=7)],
            [ToolCall("f", {"a": 1})],
        ),
        ([call_delta(0, "", "now")], [ToolCall("now", {})]),
        (
            [call_delta(0, '{"x": ', "f")],
            [Content('<tool_call>\n{"name": "f", "arguments": {"x":}\n</tool_call>')],
        ),
        (
            [call_delta(0, "[1]", "f")],
            [Content('<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>')],
        ),
    ],
)
def test_tool_calls(deltas: list[Any], calls: list[Event]) -> None:
    assert ask(stream(delta(content="Well"), *deltas, delta("tool_calls"))) == joined(
        iter([Content("Well"), *calls])
    )


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "eos"),
        ("length", "length"),
        ("tool_calls", "eos"),
        ("content_filter", "stop"),
        ("eos", "eos"),
        (None, "eos"),
    ],
)
@pytest.mark.parametrize("done", [True, False])
def test_reasons_to_stop(finish: str | None, reason: str, done: bool) -> None:
    if finish is None and not done:
        pytest.skip("that is a broken-off answer")
    with OpenAIServer(Reply([stream(delta(content="x"), delta(finish), done=done)])) as server:
        chat = RemoteChat(server.url)
        list(chat.answer(HI, settings()))
    assert chat.stop_reason == reason


TIMINGS = {
    "cache_n": 236,
    "prompt_n": 1,
    "prompt_ms": 30.958,
    "prompt_per_second": 32.3,
    "predicted_n": 35,
    "predicted_ms": 661.1,
}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"timings": TIMINGS, "usage": {"prompt_tokens": 1}}, TIMINGS),
        (
            {
                "usage": {
                    "prompt_tokens": 20,
                    "completion_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 15},
                }
            },
            {"prompt_n": 5, "cache_n": 15, "predicted_n": 4},
        ),
        ({"usage": {"prompt_tokens": "x", "completion_tokens": -1, "prompt_tokens_details": 7}}, {}),
        ({"usage": None}, {}),
        (
            {
                "timings": {
                    "prompt_n": float("nan"),
                    "predicted_n": 10**400,
                    "prompt_ms": True,
                    "predicted_ms": 5,
                }
            },
            {"predicted_ms": 5},
        ),
    ],
)
def test_stats(last: dict[str, Any], expected: dict[str, float]) -> None:
    with OpenAIServer(Reply([stream(delta(content="x"), END, {"choices": [], **last})])) as server:
        chat = RemoteChat(server.url)
        list(chat.answer(HI, settings()))
    stats = chat.stats()
    if "timings" not in last:  # measured here
        assert stats.pop("prompt_ms") > 0
        assert stats.pop("predicted_ms") >= 0
    assert stats == expected


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": None},
        {"choices": {}},
        {"choices": [7]},
        {"choices": [{"delta": []}]},
        {"choices": [{"delta": {"content": 7}}]},
        {"choices": [{"delta": {"content": ["x"], "tool_calls": [7, {"function": "x", "index": []}]}}]},
        {"usage": 7, "timings": []},
        {"choices": [{"delta": {"reasoning": {}}, "finish_reason": 7}]},
        {"error": None},
    ],
)
def test_chunks_of_odd_shapes_are_passed_over(chunk: Any) -> None:
    answer = ask(stream(chunk, delta(content="x"), END))
    assert answer[0] == Content("x")


def error(message: str, kind: str = "invalid_request_error", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, **more}}


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (400, error("no\x1b[2J such\n\u2028field"), "answers 400 Bad Request: no\x1b[2J such field"),
        (400, {"error": "plain"}, "answers 400 Bad Request: plain"),
        (422, {"detail": [{"loc": ["a"]}]}, 'Entity: [{"loc": ["a"]}]'),
        (
            401,
            error(f"Incorrect key {KEY}"),
            "refuses access (401, is the --api-key right?): Incorrect key ...",
        ),
        (403, {}, "refuses access (403, is the --api-key right?)"),
        (404, error("File Not Found"), "has no /v1/chat/completions (is its API another? "),
        (404, error("File Not Found"), "), or no model tiny (404): File Not Found"),
        (429, error("Slow down"), "has too much to do (429), try again later: Slow down"),
        (503, error("Loading model", "unavailable_error"), "answers 503 Service Unavailable: Loading model"),
        (500, ["x"], "answers 500 Internal Server Error"),
        (500, error("x" * 10_000), "answers 500 Internal Server Error: xxx"),
        (204, {}, "answers 204 No Content"),
    ],
)
def test_refusals(status: int, answer: Any, expected: str) -> None:
    came, raised, message = failure(
        as_json(answer, status) if status != 204 else Reply([], 204, {"Content-Length": "0"}), KEY
    )
    assert came == []
    assert type(raised) is QwenError
    assert expected in message
    assert KEY not in message
    assert len(message) < 500


def test_refusals_say_how_to_give_a_key_and_when_to_try_again() -> None:
    assert failure(as_json({}, 401))[2] == "SERVER refuses access (401, give a key with --api-key)"
    assert (
        failure(as_json({}, 429, **{"Retry-After": "20"}))[2]
        == "SERVER has too much to do (429), try again in 20 seconds"
    )
    assert (
        failure(as_json({}, 429, **{"Retry-After": "x\x1b"}))[2]
        == "SERVER has too much to do (429), try again later"
    )


OVERFLOWS = [
    error(
        "request (9412 tokens) exceeds the available context size (8192 tokens), try increasing it",
        "exceed_context_size_error",
    ),
    error(
        "the request exceeds the available context size. try increasing the context size or enable context shift"
    ),
    error(
        "This model's maximum context length is 4096 tokens. However, you requested 5000",
        code="context_length_exceeded",
    ),
    {
        "object": "error",
        "message": "This model's maximum context length is 4096 tokens.",
        "type": "BadRequestError",
        "code": 400,
    },
]


@pytest.mark.parametrize("answer", OVERFLOWS)
def test_a_full_context(answer: Any) -> None:
    for reply in as_json(answer, 400), Reply([stream(delta(role="assistant"), answer)]), as_json(answer):
        came, raised, message = failure(reply)
        assert (came, type(raised)) == ([], ContextFull)
        assert message.startswith("SERVER finds the conversation longer than its context: ")
    came, raised, _ = failure(Reply([stream(delta(content="x"), answer)]))  # too late to ask again with less
    assert (joined(iter(came)), type(raised)) == ([Content("x")], QwenError)


@pytest.mark.parametrize(
    "line",
    [
        b"event: error\ndata: %s\n\n",
        b"data: %s\n\n",
        b'error: {"code": 500, "message": "out of memory", "type": "server_error"}\n\n',
    ],
)
def test_errors_in_the_stream_keep_what_came(line: bytes) -> None:
    line = line.replace(b"%s", json.dumps(error("out of memory", "server_error")).encode())
    came, _, message = failure(Reply([event(delta(content="Once <")), line]))
    assert joined(iter(came)) == [Content("Once <")]
    assert message == "SERVER reports an error: out of memory"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply([event(delta(content="Once <th"))], broken=True), "broke off the connection"),
        (Reply([event(delta(content="Once <th")), b"data: {"]), "broke off the answer"),
        (
            Reply([event(delta(content="Once <th")), b"data: {\n\n"]),
            "sent something that isn't a JSON object: {",
        ),
        (
            Reply([event(delta(content="Once <th")), b"data: [1]\n\n"]),
            "sent something that isn't a JSON object: [1]",
        ),
    ],
)
def test_broken_off_answers_keep_what_came(reply: Reply, expected: str) -> None:
    came, _, message = failure(reply)
    assert joined(iter(came)) == [Content("Once <th")]
    assert message == "SERVER " + expected


def test_a_server_that_falls_silent_keeps_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is short only from the first event on, which may take its time on a busy machine."""
    sockets, connect, came = list[socket.socket](), RemoteChat._connect, list[Event]()

    def connected(chat: RemoteChat) -> Any:
        connection = connect(chat)
        sockets.append(connection.sock)
        return connection

    monkeypatch.setattr(RemoteChat, "_connect", connected)
    with OpenAIServer(Reply([event(delta(content="Once <th")), WAIT])) as server:
        chat = RemoteChat(server.url, model="m", timeout=60)
        with pytest.raises(QwenError, match=r" sent nothing for 0\.3 seconds$"):  # noqa: PT012
            for each in chat.answer(HI, settings()):
                came.append(each)
                chat.timeout = 0.3
                sockets[-1].settimeout(0.3)
    assert joined(iter(came)) == [Content("Once <th")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            Reply([b"<html>"], headers={"Content-Type": "text/html"}),
            "answers with text/html: is it an OpenAI-compatible server?",
        ),
        (Reply([b"x"], headers={}), "answers with something unknown: is it an OpenAI-compatible server?"),
        (
            Reply([b"{"], headers={"Content-Type": "application/json"}),
            "sent something that isn't a JSON object: {",
        ),
        (as_json({"status": "ok"}), "sent no answer: is it an OpenAI-compatible server?"),
        (
            Reply([b"data: " + b"[" * 100_000 + b"\n\n"]),
            "sent something that isn't a JSON object: " + "[" * 80,
        ),
        (Reply([]), "broke off the answer"),
    ],
)
def test_what_is_no_answer(reply: Reply, expected: str) -> None:
    assert failure(reply)[2] == "SERVER " + expected


def test_a_server_that_is_silent() -> None:
    assert failure(Reply([WAIT]), timeout=0.3)[2] == "SERVER sent nothing for 0.3 seconds"


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = itertools.repeat(b"x" * 2**16)
    message = f"the server sent an event of more than {2**20} bytes"
    for begin in b"data: ", b"event: ":
        assert failure(Reply(itertools.chain([begin], endless)))[2] == message
    assert failure(Reply(itertools.repeat(b"data: xxxxxx\n" * 2**12)))[2] == message
    monkeypatch.setattr(remote_chat, "MAX_BODY", 2**18)
    monkeypatch.setattr(remote_chat, "MAX_STREAM", 2**18)
    assert (
        failure(Reply(endless, headers={"Content-Type": "application/json"}))[2]
        == "SERVER answers without end"
    )
    assert failure(Reply(endless, 500))[2] == "SERVER answers without end"
    assert failure(Reply(itertools.repeat(b":\n\n" * 2**14)))[2] == "SERVER answers without end"
    monkeypatch.setattr(streams, "MAX_EVENT", len(HELLO))
    assert ask(*[HELLO] * 9) == [Content("Héllo 你好 🌍")]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_within_the_server(status: int) -> None:
    with OpenAIServer(Reply([], status, {"Location": "/elsewhere/v1?a=b"}), Reply([HELLO])) as server:
        assert joined(RemoteChat(server.url, KEY, "m").answer(HI, settings())) == [Content("Héllo 你好 🌍")]
    first, second = server.requests
    assert (second.method, second.path, second.body, second.headers["Authorization"]) == (
        "POST",
        "/elsewhere/v1?a=b",
        first.body,
        f"Bearer {KEY}",
    )


@pytest.mark.parametrize(
    "location",
    [
        "http://{0}/",
        "https://127.0.0.1/v1",
        "//{0}/v1",
        "http://127.0.0.1:80/",
        "http://[",
        "file:///etc/passwd",
    ],
)
def test_redirects_elsewhere_are_not_followed(location: str) -> None:
    with OpenAIServer(Reply([HELLO])) as other:
        location = location.format(f"127.0.0.1:{other.server_port}")
        message = failure(Reply([], 307, {"Location": location}), KEY)[2]
        assert message == f"SERVER redirects to {location}: give that address if it is the right one"
    assert other.requests == []


def test_redirects_without_end() -> None:
    with OpenAIServer(*[Reply([], 307, {"Location": "/v1/chat/completions"})] * 9) as server:
        with pytest.raises(QwenError, match=r"redirects without end$"):
            list(RemoteChat(server.url, model="m").answer(HI, settings()))
        assert len(server.requests) == 6


def test_closing_the_iterator_closes_the_connection() -> None:
    with OpenAIServer(Reply([event(delta(content="one"))] * 3 + [WAIT])) as server:
        chat = RemoteChat(server.url)
        with closing(chat.answer(HI, settings())) as answer:  # type: ignore[type-var]
            assert next(answer) == Content("one")
        assert chat.stop_reason == "cancelled"
        assert server.left.wait(60)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("pieces", [[WAIT], [event(delta(content="one")), WAIT]])
def test_ctrl_c_while_waiting(pieces: list[bytes]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    with OpenAIServer(Reply(pieces)) as server:
        chat = RemoteChat(server.url, model="m")
        came: list[Event] = []

        def interrupt() -> None:
            server.asked.wait(60)
            while len(came) < len(pieces) - 1:
                time.sleep(0.01)
            time.sleep(0.1)  # so that it waits, most often
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt, daemon=True)
        try:
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                thread.start()
                came.extend(chat.answer(HI, settings()))
        finally:
            signal.signal(signal.SIGINT, before)
        assert came == [Content("one")] * (len(pieces) - 1)
        assert chat.stop_reason == "cancelled"
        assert server.left.wait(60)


def test_nobody_there() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # and does not listen: nobody else can take the port
        port = s.getsockname()[1]
        with pytest.raises(QwenError, match=rf"^http://127.0.0.1:{port} cannot be reached: .*refused.*$"):
            list(RemoteChat(f"http://127.0.0.1:{port}").answer(HI, settings()))


@pytest.mark.parametrize("host", ["x" * 70 + ".invalid", "ä" * 70 + ".invalid"])
def test_hosts_that_cannot_exist(host: str) -> None:
    with pytest.raises(QwenError, match=r"cannot be reached: there is no such host$"):
        list(RemoteChat(f"http://{host}").answer(HI, settings()))


def test_a_host_that_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(QwenError, match=r"^https://nobody cannot be reached: Name or service not known$"):
        list(RemoteChat("https://nobody").answer(HI, settings()))


def test_a_host_that_swallows_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_chat, "CONNECT_SECONDS", 0.2)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(0)  # TLS: the handshake is never answered
        with pytest.raises(QwenError, match=r"cannot be reached: no answer within 0\.2 seconds$"):
            list(RemoteChat(f"https://127.0.0.1:{s.getsockname()[1]}").answer(HI, settings()))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "broke off the connection"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10**5, "does not speak HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "broke off the connection",
        ),
    ],
)
def test_what_is_no_http(sent: bytes, expected: str) -> None:
    def serve() -> None:
        with listener.accept()[0] as peer:
            peer.recv(2**16)
            peer.sendall(sent)
            peer.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                peer.recv(2**16)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(QwenError, match=f"{expected}$"):
            list(
                RemoteChat(f"http://127.0.0.1:{listener.getsockname()[1]}", model="m").answer(HI, settings())
            )
        thread.join()


def test_tls_where_there_is_none() -> None:
    with (
        OpenAIServer() as server,
        pytest.raises(QwenError, match=r"cannot be reached: it does not speak TLS \(.*\), is it http://\?$"),
    ):
        list(RemoteChat(server.url.replace("http:", "https:")).answer(HI, settings()))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=here",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with OpenAIServer(Reply([HELLO])) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        chat = RemoteChat(server.url.replace("http:", "https:"), KEY, "m")
        with pytest.raises(
            QwenError, match=r"cannot be reached: its certificate is not trusted \(self.signed certificate\)$"
        ):
            list(chat.answer(HI, settings()))
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert joined(chat.answer(HI, settings())) == [Content("Héllo 你好 🌍")]
