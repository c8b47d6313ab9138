"""Chatting with servers that speak another protocol than OpenAI's chat completions. What they send is taken from their documentation:
https://platform.openai.com/docs/api-reference/responses-streaming, https://docs.anthropic.com/en/docs/build-with-claude/streaming, and
https://docs.ollama.com/api/chat."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply, as_json, event, joined
from serving import serving

from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.remote import RemoteChat, parse_address
from qwencli.errors import ContextFull, InputError, QwenError
from qwencli.sampling import SamplingParams
from qwencli.text.chat.answers import Content, Event, Reasoning, ToolCall

RESPONSES, ANTHROPIC, OLLAMA = "/v1/responses", "/v1/messages", "/api/chat"
KEYS = "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OLLAMA_API_KEY"
HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}},
}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "reasoning_content": "I need to look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "rainy"},
]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def settings(tools: Any = None, **values: Any) -> Settings:
    own = {name: values.pop(name) for name in ("max_tokens", "think", "reasoning_budget") if name in values}
    return Settings(SamplingParams(**values), tools=tools, **own)


def typed(*events: dict[str, Any]) -> Reply:
    """Server-sent events that are named, too."""
    return Reply([b"event: " + e["type"].encode() + b"\n" + event(e) for e in events])


def ndjson(*chunks: dict[str, Any]) -> Reply:
    return Reply(
        [json.dumps(c).encode() + b"\n" for c in chunks], headers={"Content-Type": "application/x-ndjson"}
    )


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def block(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}


STREAMS = {
    ANTHROPIC: typed(
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "content": [],
                "stop_reason": None,
                "usage": {"input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 1},
            },
        },
        block(0, "thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="A city, "),
        {"type": "ping"},
        delta(0, "thinking_delta", thinking="in Italy."),
        delta(0, "signature_delta", signature="EqQBCgIYAhIM"),
        {"type": "content_block_stop", "index": 0},
        block(1, "text", text=""),
        delta(1, "text_delta", text="I'll"),
        delta(1, "text_delta", text=" look 🌍"),
        {"type": "content_block_stop", "index": 1},
        block(2, "tool_use", id="toolu_1", name="weather", input={}),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"city": "R'),
        delta(2, "input_json_delta", partial_json='ome"}'),
        {"type": "content_block_stop", "index": 2},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 15},
        },
        {"type": "message_stop"},
    ),
    RESPONSES: typed(
        {
            "type": "response.created",
            "response": {"object": "response", "status": "in_progress", "output": []},
        },
        {"type": "response.in_progress", "response": {"object": "response", "status": "in_progress"}},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {"type": "reasoning", "id": "rs_1"},
        },
        {"type": "response.reasoning_text.delta", "item_id": "rs_1", "delta": "A city, "},
        {"type": "response.reasoning_text.delta", "item_id": "rs_1", "delta": "in Italy."},
        {"type": "response.reasoning_text.done", "item_id": "rs_1", "text": "A city, in Italy."},
        {"type": "response.output_item.done", "item": {"type": "reasoning", "id": "rs_1", "summary": []}},
        {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "I'll"},
        {"type": "response.output_text.delta", "item_id": "msg_1", "delta": " look 🌍"},
        {"type": "response.output_text.done", "item_id": "msg_1", "text": "I'll look 🌍"},
        {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": '{"city"'},
        {
            "type": "response.output_item.done",
            "item": {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "weather",
                "arguments": '{"city": "Rome"}',
            },
        },
        {
            "type": "response.completed",
            "response": {
                "object": "response",
                "status": "completed",
                "usage": {
                    "input_tokens": 32,
                    "input_tokens_details": {"cached_tokens": 7},
                    "output_tokens": 15,
                },
            },
        },
    ),
    OLLAMA: ndjson(
        {
            "model": "m",
            "message": {"role": "assistant", "content": "", "thinking": "A city, "},
            "done": False,
        },
        {
            "model": "m",
            "message": {"role": "assistant", "content": "", "thinking": "in Italy."},
            "done": False,
        },
        {"model": "m", "message": {"role": "assistant", "content": "I'll"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": " look 🌍"}, "done": False},
        {
            "model": "m",
            "message": {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
            },
            "done": False,
        },
        {
            "model": "m",
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 32,
            "prompt_eval_duration": 2_000_000,
            "eval_count": 15,
            "eval_duration": 5_000_000,
        },
    ),
}
EVENTS: list[Event] = [
    Reasoning("A city, in Italy."),
    Content("I'll look 🌍"),
    ToolCall("weather", {"city": "Rome"}),
]


@pytest.mark.parametrize("path", STREAMS)
def test_an_answer(path: str) -> None:
    with OpenAIServer(STREAMS[path]) as server:
        chat = RemoteChat(server.url + path, model="m")
        assert joined(chat.answer(HI, settings([WEATHER]))) == EVENTS
    assert chat.stop_reason == "eos"
    stats = chat.stats()
    assert stats["predicted_n"] == 15
    if path == OLLAMA:
        assert (stats["prompt_n"], stats["prompt_ms"], stats["predicted_ms"]) == (32, 2, 5)
    else:
        assert (stats["prompt_n"], stats["cache_n"]) == (25, 7)


WHOLE = {
    ANTHROPIC: {
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "A city, in Italy.", "signature": "x"},
            {"type": "text", "text": "I'll look 🌍"},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
        ],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    },
    RESPONSES: {
        "object": "response",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "A city, in Italy."}]},
            {"type": "message", "content": [{"type": "output_text", "text": "I'll look 🌍"}]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Rome"}'},
        ],
    },
    OLLAMA: {
        "message": {
            "role": "assistant",
            "content": "I'll look 🌍",
            "thinking": "A city, in Italy.",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
        },
        "done": True,
        "done_reason": "length",
    },
}


@pytest.mark.parametrize("path", WHOLE)
def test_servers_that_do_not_stream(path: str) -> None:
    with OpenAIServer(as_json(WHOLE[path])) as server:
        chat = RemoteChat(server.url + path, model="m")
        assert joined(chat.answer(HI, settings([WEATHER]))) == EVENTS
    assert chat.stop_reason == "length"


def asked(path: str, messages: Any = HI, key: str | None = None, **values: Any) -> Any:
    """The request for an answer."""
    with OpenAIServer(as_json(WHOLE[path])) as server:
        list(RemoteChat(server.url + path, key, "m").answer(messages, settings(**values)))
    (request,) = server.requests
    assert request.path == path
    return request


def test_a_conversation_in_anthropics_words() -> None:
    body = asked(
        ANTHROPIC, CONVERSATION, tools=[WEATHER], temp=0.5, top_k=20, max_tokens=99, think=False
    ).body
    use = {"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}
    assert body == {
        "model": "m",
        "system": "Be short.",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": [use | {"id": "call_0"}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "call_0", "content": "sunny"}],
            },
            {"role": "assistant", "content": "Sunny."},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use | {"id": "call_1"}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "rainy"}],
            },
        ],
        "tools": [{"name": "weather", "description": "Of a city", "input_schema": {"type": "object"}}],
        "temperature": 0.5,
        "top_k": 20,
        "max_tokens": 99,
        "stream": True,
        "thinking": {"type": "disabled"},
    }


@pytest.mark.parametrize(
    ("given", "limit", "thinking"),
    [
        ({}, 8192, None),
        ({"think": True}, 8192, {"type": "enabled", "budget_tokens": 4096}),
        ({"reasoning_budget": 2000}, 8192, {"type": "enabled", "budget_tokens": 2000}),
        ({"reasoning_budget": 0}, 8192, {"type": "disabled"}),
        ({"think": True, "max_tokens": 20_000}, 20_000, {"type": "enabled", "budget_tokens": 10_000}),
    ],
)
def test_how_anthropics_models_think(given: Any, limit: int, thinking: Any) -> None:
    body = asked(ANTHROPIC, **given).body
    assert (body["max_tokens"], body.get("thinking")) == (limit, thinking)


def test_a_conversation_as_responses() -> None:
    body = asked(RESPONSES, CONVERSATION, tools=[WEATHER], top_p=0.5, max_tokens=99, think=True).body
    call = {"type": "function_call", "name": "weather", "arguments": '{"city": "Rome"}'}
    assert body == {
        "model": "m",
        "input": [
            {"type": "message", "role": "system", "content": "Be short."},
            {"type": "message", "role": "user", "content": "Weather?"},
            call | {"call_id": "call_0"},
            {"type": "function_call_output", "call_id": "call_0", "output": "sunny"},
            {"type": "message", "role": "assistant", "content": "Sunny."},
            {"type": "message", "role": "user", "content": "And now?"},
            {"type": "message", "role": "assistant", "content": "I look."},
            call | {"call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "rainy"},
        ],
        "tools": [{"type": "function", **WEATHER["function"]}],
        "top_p": 0.5,
        "max_output_tokens": 99,
        "reasoning": {"effort": "medium"},
        "stream": True,
        "store": False,
    }
    assert asked(RESPONSES, reasoning_budget=0).body["reasoning"] == {"effort": "none"}


def test_a_conversation_in_ollamas_words() -> None:
    body = asked(OLLAMA, CONVERSATION, tools=[WEATHER], temp=0.5, max_tokens=99, think=False).body
    calls = [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "sunny", "tool_name": "weather"},
            {"role": "assistant", "content": "Sunny."},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "I look.", "tool_calls": calls},
            {"role": "tool", "content": "rainy", "tool_name": "weather"},
        ],
        "tools": [WEATHER],
        "options": {"temperature": 0.5, "num_predict": 99},
        "think": False,
        "stream": True,
    }
    with pytest.raises(InputError, match="no limit of thinking"):
        asked(OLLAMA, reasoning_budget=5)


def test_keys_go_only_to_their_own_kind_of_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.setenv(name, f"key-of-{name}")
    found = {path: asked(path).headers for path in WHOLE}
    assert found[RESPONSES]["Authorization"] == "Bearer key-of-OPENAI_API_KEY"
    assert found[OLLAMA]["Authorization"] == "Bearer key-of-OLLAMA_API_KEY"
    assert found[ANTHROPIC]["x-api-key"] == "key-of-ANTHROPIC_API_KEY"
    assert "Authorization" not in found[ANTHROPIC]
    assert found[ANTHROPIC]["anthropic-version"] == "2023-06-01"
    assert asked(ANTHROPIC, key="given").headers["x-api-key"] == "given"


@pytest.mark.parametrize(
    ("path", "listing", "models"),
    [
        (RESPONSES, "/v1/models", {"data": [{"id": "first"}]}),
        (ANTHROPIC, "/v1/models", {"data": [{"type": "model", "id": "first"}], "has_more": False}),
        (OLLAMA, "/api/tags", {"models": [{"name": "first", "model": "first"}]}),
    ],
)
def test_the_first_model_is_asked(path: str, listing: str, models: Any) -> None:
    with OpenAIServer(as_json(WHOLE[path]), models=as_json(models)) as server:
        if path == OLLAMA:
            server.replies = iter([as_json(models), as_json(WHOLE[path])])
        chat = RemoteChat(server.url + path)
        list(chat.answer(HI, settings()))
    assert [r.path for r in server.requests] == [listing, path]
    assert (chat.model, server.requests[1].body["model"]) == ("first", "first")


@pytest.mark.parametrize(
    ("url", "base", "path"),
    [
        ("https://api.anthropic.com/v1/messages", "/v1", "/messages"),
        ("https://api.openai.com/v1/responses/", "/v1", "/responses"),
        ("http://localhost:11434/api/chat", "", "/api/chat"),
        ("https://a.b/ollama/api/chat", "/ollama", "/api/chat"),
        ("https://a.b/api/chat/completions", "/api", "/chat/completions"),
    ],
)
def test_addresses(url: str, base: str, path: str) -> None:
    address = parse_address(url)
    assert (address.base, address.protocol.chats) == (base, path)


TOO_LONG = "prompt is too long: 9000 tokens exceeds the available context size (8192 tokens)"
ERRORS = {
    ANTHROPIC: (
        {"type": "error", "error": {"type": "invalid_request_error", "message": TOO_LONG}},
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    ),
    RESPONSES: (
        {"error": {"message": TOO_LONG, "type": "invalid_request_error", "code": "context_length_exceeded"}},
        {
            "type": "response.failed",
            "response": {"object": "response", "error": {"code": "server_error", "message": "Overloaded"}},
        },
    ),
    OLLAMA: ({"error": TOO_LONG}, {"error": "Overloaded"}),
}


@pytest.mark.parametrize("path", ERRORS)
def test_errors(path: str) -> None:
    too_long, overloaded = ERRORS[path]
    with OpenAIServer(as_json(too_long, 400)) as server, pytest.raises(ContextFull):
        list(RemoteChat(server.url + path, model="m").answer(HI, settings()))
    begin, came = STREAMS[path].pieces, list[Event]()
    pieces = [*list(begin)[:4], event(overloaded) if path != OLLAMA else json.dumps(overloaded).encode()]
    with (
        OpenAIServer(Reply(pieces, headers=STREAMS[path].headers)) as server,
        pytest.raises(QwenError, match="reports an error: Overloaded"),
    ):
        came.extend(RemoteChat(server.url + path, model="m").answer(HI, settings()))
    with (
        OpenAIServer(Reply(list(begin)[:-2], headers=STREAMS[path].headers)) as server,
        pytest.raises(QwenError, match="broke off the answer"),
    ):
        list(RemoteChat(server.url + path, model="m").answer(HI, settings()))
    with (
        OpenAIServer(as_json({"status": "ok"})) as server,
        pytest.raises(QwenError, match=r"sent no answer: is it an? "),
    ):
        list(RemoteChat(server.url + path, model="m").answer(HI, settings()))


ODD: list[Any] = [{}, {"type": 7}, {"message": 7}, {"message": {"tool_calls": [7, {"function": 1}]}}]
ODD += [
    {"type": kind}
    for kind in ("message_start", "content_block_start", "content_block_delta", "message_delta")
]
ODD += [{"type": "content_block_delta", "delta": []}, {"type": "content_block_start", "content_block": 7}]
ODD += [
    {"type": f"response.{kind}", "delta": 7, "item": []} for kind in ("output_text.delta", "output_item.done")
]


@pytest.mark.parametrize("path", STREAMS)
def test_chunks_of_odd_shapes_are_passed_over(path: str) -> None:
    pieces = (
        [event(chunk) for chunk in ODD] if path != OLLAMA else [json.dumps(c).encode() + b"\n" for c in ODD]
    )
    with OpenAIServer(Reply([*pieces, *STREAMS[path].pieces], headers=STREAMS[path].headers)) as server:
        events = joined(RemoteChat(server.url + path, model="m").answer(HI, settings([WEATHER])))
    assert events == EVENTS


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as server:
        yield server.url


@pytest.mark.parametrize("path", [OLLAMA, ANTHROPIC, RESPONSES])
def test_a_chat_with_our_own_server(url: str, path: str) -> None:
    """The same answers as by OpenAI's chat completions; the second turn has the first in it."""
    answers = []
    for address in url, url + path:
        chat, messages, got = RemoteChat(address), list[dict[str, Any]](), []
        for question in "What is the capital of France?", "Thank you!":
            messages.append({"role": "user", "content": question})
            events = joined(chat.answer(messages, settings(temp=0, max_tokens=100, think=question[0] == "W")))
            assert chat.stop_reason == "eos"
            assert chat.stats()["predicted_n"] > 3
            messages.append({"role": "assistant", "content": events[-1].text})  # type: ignore[union-attr]
            got.append(events)
        answers.append(got)
    assert answers[0] == answers[1]
    assert [type(event) for event in answers[0][0]] == [Reasoning, Content]
