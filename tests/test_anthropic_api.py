"""Anthropic's API, by Anthropic's own client and by hand."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from serving import Serving, serving
from told_answers import tell

from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.server.http.errors import ApiError
from qwencli.text.chat.answers import Content, Event, Reasoning, ToolCall

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
THOUGHT = "The user asks for the capital of France. It is Paris."
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASKED: dict[str, Any] = {"model": "any", "max_tokens": 100, "messages": QUESTION, "temperature": 0}
RED_PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(LLM(EMBEDDED, n_threads=2, n_ctx=16384)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def create(client: anthropic.Anthropic, **fields: Any) -> anthropic.types.Message:
    """A message. The newest clients know no sampling settings by name any more."""
    found: anthropic.types.Message = client.messages.create(**with_extra(fields))
    return found


def streamed(client: anthropic.Anthropic, **fields: Any) -> anthropic.types.Message:
    """The same, put together by the client from a stream."""
    with client.messages.stream(**with_extra(fields)) as stream:
        found: anthropic.types.Message = stream.get_final_message()
        return found


def with_extra(fields: dict[str, Any]) -> dict[str, Any]:
    fields = ASKED | fields
    names = {"temperature", "top_p", "top_k", "seed"} & fields.keys()
    return fields | {"extra_body": {name: fields.pop(name) for name in names}}


def blocks(message: anthropic.types.Message) -> list[dict[str, Any]]:
    return [block.model_dump(exclude_none=True) for block in message.content]


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names are those of their data."""
    found = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def prompt_of(http: httpx.Client, messages: list[Any], **more: Any) -> str:
    """What the model sees of a conversation in OpenAI's form."""
    found: str = http.post("/apply-template", json={"messages": messages, **more}).json()["prompt"]
    return found


def n_tokens(http: httpx.Client, prompt: str) -> int:
    body = {"content": prompt, "add_special": True, "parse_special": True}
    return len(http.post("/tokenize", json=body).json()["tokens"])


def test_a_message(client: anthropic.Anthropic) -> None:
    answer = create(client)
    assert (answer.type, answer.role) == ("message", "assistant")
    assert blocks(answer) == [{"type": "text", "text": ANSWER}]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.id.startswith("msg_")
    assert answer._request_id


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic, http: httpx.Client) -> None:
    usage = create(client).usage
    same = create(client).usage
    prompt = prompt_of(http, QUESTION, chat_template_kwargs={"enable_thinking": False})
    counted = client.messages.count_tokens(model="any", messages=QUESTION).input_tokens
    assert counted == n_tokens(http, prompt)
    for each in usage, same:
        assert each.cache_read_input_tokens is not None
        assert each.input_tokens + each.cache_read_input_tokens == counted
        assert each.cache_creation_input_tokens == 0
    assert same.input_tokens == 1  # a token has to be computed for the next one
    assert 5 < usage.output_tokens == same.output_tokens < 15


def test_a_streamed_message_is_the_same(client: anthropic.Anthropic) -> None:
    whole = create(client, thinking={"type": "enabled", "budget_tokens": 1024})
    last = streamed(client, thinking={"type": "enabled", "budget_tokens": 1024})
    assert blocks(last) == blocks(whole)
    assert (last.stop_reason, last.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert last.model == whole.model


def test_events_come_in_their_order(http: httpx.Client) -> None:
    body = ASKED | {"stream": True, "thinking": {"type": "adaptive"}}
    answer = http.post("/v1/messages", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events_of(answer.text)
    kinds = [
        (event["type"], event["delta"]["type"]) if "index" in event and "delta" in event else event["type"]
        for event in found
    ]
    assert [kind for i, kind in enumerate(kinds) if kinds[i - 1 : i] != [kind]] == [
        "message_start",
        "ping",
        "content_block_start",
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "signature_delta"),
        "content_block_stop",
        "content_block_start",
        ("content_block_delta", "text_delta"),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    begun = found[0]["message"]
    assert begun["content"] == []
    assert begun["stop_reason"] is None
    assert begun["usage"]["input_tokens"] + begun["usage"]["cache_read_input_tokens"] == 19
    assert [event["content_block"] for event in found if event["type"] == "content_block_start"] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
    ]
    assert "".join(e["delta"].get("thinking", "") for e in found if "index" in e and "delta" in e) == THOUGHT
    assert "".join(e["delta"].get("text", "") for e in found if "index" in e and "delta" in e) == ANSWER
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] > 20


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, ""),
        ({"type": "disabled"}, ""),
        ({"type": "adaptive"}, THOUGHT),
        ({"type": "enabled", "budget_tokens": 1024}, THOUGHT),
        ({"type": "enabled", "budget_tokens": 5}, "The user asks"),
        ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, None),
    ],
)
def test_thinking_has_a_budget(client: anthropic.Anthropic, thinking: Any, expected: str | None) -> None:
    more = {} if thinking is None else {"thinking": thinking}
    answer = create(client, **more)
    *thoughts, said = answer.content
    assert said.type == "text"
    assert said.text == ANSWER
    if expected == "":
        assert not thoughts
        return
    (thought,) = thoughts
    assert thought.type == "thinking"
    assert thought.thinking == (expected or "")
    assert thought.signature
    assert blocks(streamed(client, **more)) == blocks(answer)


def test_a_server_that_is_told_to_think_does() -> None:
    with serving(think=True) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        assert [block.type for block in create(client).content] == ["thinking", "text"]


def test_a_stop_sequence_ends_the_answer_and_is_named(client: anthropic.Anthropic) -> None:
    answer = create(client, stop_sequences=["nowhere", " France"])
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "The capital of"
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " France")
    last = streamed(client, stop_sequences=[" France"])
    assert (last.stop_reason, last.stop_sequence) == ("stop_sequence", " France")


@pytest.mark.parametrize("n", [0, 3])
def test_a_limit_ends_the_answer(client: anthropic.Anthropic, n: int) -> None:
    answer = create(client, max_tokens=n)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == n
    assert blocks(streamed(client, max_tokens=n)) == blocks(answer)


def test_a_full_context_ends_the_answer() -> None:
    with serving(LLM(EMBEDDED, n_threads=2, n_ctx=64)) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        body = ASKED | {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1000}
        answer = create(client, **body)
        assert answer.stop_reason == "model_context_window_exceeded"
        long = [{"role": "user", "content": "once upon a time " * 50}]
        with pytest.raises(anthropic.BadRequestError, match="leaves no room"):
            create(client, messages=long)
        assert client.messages.count_tokens(model="any", messages=long).input_tokens > 200


def test_sampling_settings_count(client: anthropic.Anthropic) -> None:
    body = ASKED | {
        "temperature": 1.0,
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    }
    told = {create(client, **body, seed=seed).content[0].text for seed in range(4)}
    assert len(told) > 1
    greedy = {create(client, **body, top_k=1, seed=seed).content[0].text for seed in range(4)}
    nucleus = {create(client, **body, top_p=1e-9, seed=seed).content[0].text for seed in range(4)}
    assert greedy == nucleus
    assert len(greedy) == 1


def test_a_call_that_has_to_be_made(client: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    other = {"name": "other", "input_schema": {"type": "object"}}
    for choice in {"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}:
        body: Any = ASKED | {"messages": messages, "tool_choice": choice}
        body["tools"] = [WEATHER] if choice["type"] == "any" else [other, WEATHER]
        answer = create(client, **body)
        (call,) = answer.content
        assert call.type == "tool_use"
        assert (call.name, call.input) == ("weather", {"city": "Paris"})
        assert answer.stop_reason == "tool_use"
        last = streamed(client, **body)
        assert last.stop_reason == "tool_use"
        assert last.content[0].type == "tool_use"
        assert last.content[0].input == call.input


@pytest.mark.parametrize("stream", [False, True])
def test_blocks_in_any_order(
    client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    rome = {"city": "Rome", "days": [1, 2], "größe": None}
    tell(
        monkeypatch,
        "anthropic",
        Reasoning("I "),
        Reasoning("look."),
        Content("Let me "),
        Content("see."),
        ToolCall("weather", rome),
        ToolCall("weather", {}),
        Content("Done."),
    )
    answer = (streamed if stream else create)(client, tools=[WEATHER])
    assert answer.stop_reason == "tool_use"
    found = blocks(answer)
    ids = [block.pop("id") for block in found if block["type"] == "tool_use"]
    assert len({*ids}) == 2
    assert all(id.startswith("toolu_") for id in ids)
    assert found[0].pop("signature")
    assert found == [
        {"type": "thinking", "thinking": "I look."},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "name": "weather", "input": rome},
        {"type": "tool_use", "name": "weather", "input": {}},
        {"type": "text", "text": "Done."},
    ]


def test_without_tools_no_call_is_made(client: anthropic.Anthropic) -> None:
    answer = create(client, tools=[WEATHER], tool_choice={"type": "none"})
    without = create(client)
    assert answer.content == without.content
    assert answer.usage.input_tokens + (
        answer.usage.cache_read_input_tokens or 0
    ) == without.usage.input_tokens + (without.usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_an_answer_of_a_given_form(http: httpx.Client, place: str) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "schema": schema}
    body = ASKED | {place: {"format": form, "effort": "low"} if place == "output_config" else form}
    answer = http.post("/v1/messages", json=body).json()
    assert json.loads(answer["content"][0]["text"])["colour"] in ("red", "blue")


def test_a_form_together_with_tools(http: httpx.Client) -> None:
    """The answer is a call, or follows the form."""
    schema = {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    (block,) = http.post("/v1/messages", json=ASKED | {"tools": [WEATHER], "output_config": form}).json()[
        "content"
    ]
    assert block["type"] == "tool_use" or json.loads(block["text"]) == {"a": 1}


CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome", "a": 1}}
CALLED = {
    "role": "assistant",
    "content": "I look.",
    "reasoning_content": "Hm.",
    "tool_calls": [
        {
            "id": "toolu_1",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Rome", "a": 1}},
        }
    ],
}


@pytest.mark.parametrize(
    ("messages", "same"),
    [
        ([{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": "I look."},
                        CALL,
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "content": [{"type": "text", "text": "21"}],
                        },
                        {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                    ],
                },
            ],
            [
                {"role": "user", "content": "a"},
                CALLED,
                {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
                {"role": "tool", "tool_call_id": "toolu_1", "content": "21"},
                {"role": "user", "content": "<system-reminder>x</system-reminder>"},
            ],
        ),
        (  # a turn in several messages, as some clients send it
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}]},
                {"role": "assistant", "content": "I look."},
                {"role": "assistant", "content": [CALL]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]},
            ],
            [{"role": "user", "content": "a"}, CALLED, {"role": "tool", "content": ""}],
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [CALL]},
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "is_error": True,
                            "content": "no such city",
                        },
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "is_error": True,
                            "content": "Error 404",
                        },
                    ],
                },
            ],
            [
                {"role": "user", "content": "a"},
                {key: value for key, value in CALLED.items() if key != "reasoning_content"} | {"content": ""},
                {"role": "tool", "content": "Error: no such city"},
                {"role": "tool", "content": "Error 404"},
            ],
        ),
    ],
)
def test_a_conversation_is_the_same_as_in_openais_form(
    client: anthropic.Anthropic, http: httpx.Client, messages: Any, same: Any
) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "The weather in a city"}}]
    tools[0]["function"]["parameters"] = WEATHER["input_schema"]  # type: ignore[index]
    system = [
        {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Much."},
    ]
    prompt = prompt_of(
        http,
        [{"role": "system", "content": "You help.\nMuch."}, *same],
        tools=tools,
        chat_template_kwargs={"enable_thinking": False},
    )
    counted = client.messages.count_tokens(model="any", messages=messages, tools=[WEATHER], system=system)  # type: ignore[arg-type]
    assert counted.input_tokens == n_tokens(http, prompt)
    usage = create(client, messages=messages, max_tokens=1, tools=[WEATHER], system=system).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
    # the same tokens, not only as many
    body = {"prompt": prompt, "n_predict": 1}
    assert http.post("/completion", json=body).json()["timings"]["cache_n"] >= counted.input_tokens - 1


READ: dict[str, Any] = {
    "path": {"type": "string", "description": "Where the file is, from the top of the project"},
    "lines": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    "options": {"type": "object", "properties": {"z": {"type": "boolean"}, "a": {"enum": ["x", "y", None]}}},
}
TOOLS: list[dict[str, Any]] = [
    {
        "name": f"{verb}_{what}",
        "description": f"Does something with a {what}. " * 5,
        "input_schema": {"type": "object", "properties": READ, "required": ["path"]},
    }
    for verb in ("read", "write", "find", "list", "move")
    for what in ("file", "folder", "branch", "issue", "page")
]
RULES = [
    f"Rule {i}: be careful with the {what} of the project, and ask before it is changed.\n"
    for i in range(50)
    for what in ("files", "tests")
]
LASTING = {"cache_control": {"type": "ephemeral"}}


def agents_request(stamp: str) -> dict[str, Any]:
    """As a coding agent sends them: much that stays the same, marked to be kept, and a stamp that differs each time."""
    return {
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.1; cch={stamp};"},
            {"type": "text", "text": "You are an agent.", **LASTING},
            {"type": "text", "text": "".join(RULES), **LASTING},
        ],
        "tools": [*TOOLS[:-1], TOOLS[-1] | LASTING],
        "metadata": {"user_id": "user_1"},
        "max_tokens": 60,
        "stream": True,
    }


def reminded(text: str) -> dict[str, Any]:
    reminder = "<system-reminder>\nThe list of things to do is empty.\n</system-reminder>"
    return {
        "role": "user",
        "content": [{"type": "text", "text": reminder}, {"type": "text", "text": text, **LASTING}],
    }


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 10}])
@pytest.mark.parametrize("choice", ["auto", "any"])
def test_an_agents_next_turn_reads_only_what_is_new(
    client: anthropic.Anthropic, choice: str, thinking: dict[str, Any]
) -> None:
    """All that comes before the last answer is known: system prompt, tools, and earlier turns."""
    messages = [
        reminded("Fix the bug."),
        {"role": "assistant", "content": "Which?"},
        reminded("The one in a.py."),
    ]
    before = 0
    for turn in range(3):
        body = agents_request(f"{turn:05x}") | {"messages": messages, "thinking": thinking}
        del body["stream"]
        answer = streamed(client, **body, tool_choice={"type": choice})
        usage = answer.usage
        assert usage.cache_read_input_tokens is not None
        n = usage.input_tokens + usage.cache_read_input_tokens
        if not turn:
            assert n > 5_000
        # without what says at a prompt's end how the answer begins, at most these: <think>\n\n</think>\n\n<tool_call>\n
        assert usage.cache_read_input_tokens >= before - 8 * bool(turn)
        assert usage.input_tokens < 400 or not turn
        before = n
        said: list[Any] = blocks(answer)
        results = [
            {
                "type": "tool_result",
                "tool_use_id": block["id"],
                "content": [{"type": "text", "text": "1: x = 1"}],
            }
            for block in said
            if block["type"] == "tool_use"
        ]
        assert bool(results) == (answer.stop_reason == "tool_use")
        told = {"role": "user", "content": results} if results else reminded("Go on.")
        messages += [{"role": "assistant", "content": said or "..."}, told]


def test_thinking_stays_known_while_tools_are_called(client: anthropic.Anthropic) -> None:
    """A template drops it only when the user speaks again; the results of tools are no such words."""
    messages: list[Any] = [reminded("Fix the bug in b.py.")]
    before = 0
    for turn in range(3):
        body = agents_request(f"{turn:05x}") | {"messages": messages, "max_tokens": 1}
        del body["stream"]
        usage = create(client, **body, thinking={"type": "enabled", "budget_tokens": 1024}).usage
        assert usage.cache_read_input_tokens is not None
        assert usage.cache_read_input_tokens >= before
        before = usage.input_tokens + usage.cache_read_input_tokens
        call = CALL | {"id": f"toolu_{turn}", "name": "read_file"}
        thought = {"type": "thinking", "thinking": f"Hm, {turn}.", "signature": "x"}
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": f"{turn}: x = 1"}
        messages += [{"role": "assistant", "content": [thought, call]}, {"role": "user", "content": [result]}]


def test_the_stamp_alone_is_left_out(client: anthropic.Anthropic) -> None:
    def counted(system: str) -> int:
        return client.messages.count_tokens(model="any", messages=QUESTION, system=system).input_tokens

    head = "x-anthropic-billing-header: cc_version=2.1; "
    assert counted(head + "cch=a5145;You are an agent.") == counted(head + "You are an agent.")
    assert counted("Write cch=a5145; twice.") > counted("Write twice.")


@pytest.mark.parametrize(
    "begun",
    [
        [{"role": "assistant", "content": "The capital of"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "The capital of"}]}],
    ],
)
def test_a_last_message_of_the_assistants_is_continued(client: anthropic.Anthropic, begun: list[Any]) -> None:
    answer = create(client, messages=[*QUESTION, *begun])
    assert blocks(answer) == [{"type": "text", "text": " France is Paris."}]
    assert blocks(streamed(client, messages=[*QUESTION, *begun])) == blocks(answer)
    counted = client.messages.count_tokens(model="any", messages=[*QUESTION, *begun]).input_tokens
    assert counted == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, type and message of an error, which has to have Anthropic's form."""
    body = answer.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    return answer.status_code, body["error"]["type"], body["error"]["message"]


def test_errors_are_those_that_the_client_knows(server: Serving, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.role") as refused:
        create(client, messages=[{"role": "wizard", "content": "a"}])
    assert refused.value.request_id
    with serving(api_keys=("secret",)) as guarded:
        with pytest.raises(anthropic.AuthenticationError, match="API key"):
            create(anthropic.Anthropic(base_url=guarded.url, api_key="wrong", max_retries=0))
        for known in {"api_key": "secret"}, {"auth_token": "secret"}:
            with_key = anthropic.Anthropic(base_url=guarded.url, **known, max_retries=0)
            assert with_key.messages.count_tokens(model="any", messages=QUESTION).input_tokens


def test_statuses_have_their_types(http: httpx.Client) -> None:
    assert error_of(http.post("/v1/messages/nowhere", json={}))[:2] == (404, "not_found_error")
    assert error_of(http.get("/v1/messages"))[:2] == (405, "invalid_request_error")
    assert error_of(http.post("/v1/messages", content=b"a" * 10_000_000))[:2] == (413, "request_too_large")
    other = {"Origin": "https://example.org"}
    assert error_of(http.post("/v1/messages", json=ASKED, headers=other))[:2] == (403, "permission_error")
    # and other APIs keep their own
    assert "type" not in http.post("/v1/nowhere").json()


def test_a_busy_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(n_slots=1, n_queue=0) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        endless = ASKED | {
            "max_tokens": 900,
            "stream": True,
            "messages": [{"role": "user", "content": "Count."}],
        }
        monkeypatch.setattr(server.service, "n_queue", -1)
        answer = http.post("/v1/messages", json=endless)
        assert error_of(answer)[:2] == (429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_while_it_is_answered(
    client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def fails(self: Any, part: Any) -> list[Event]:
        raise ApiError("no memory is left", 503)

    monkeypatch.setattr("qwencli.server.shared.chat.ChatAnswer.add", fails)
    with pytest.raises(anthropic.APIStatusError, match="no memory is left") as failed:
        (streamed if stream else create)(client)
    assert isinstance(failed.value.body, dict)
    assert failed.value.body["error"] == {"type": "overloaded_error", "message": "no memory is left"}
    assert failed.value.body["request_id"] == failed.value.request_id


def with_block(**block: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, block]}]}


def with_part(**part: Any) -> dict[str, Any]:
    return with_block(type="tool_result", tool_use_id="t", content=[part])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (with_block(type="image", source=RED_PIXEL), "image input is not supported"),
        (with_part(type="image", source=RED_PIXEL), "image input is not supported"),
        (with_block(type="document", source=RED_PIXEL), "documents are not supported"),
        (with_part(type="search_result", title="a"), "messages.0.content.1.tool_result.content.0"),
        (with_block(type="server_tool_use", id="a", name="b", input={}), "messages.0.content.1"),
        (with_block(type="mcp_tool_use" * 9), "messages.0.content.1"),
        (with_block(type="tool_use", id="a", name="b", input="{}"), "messages.0.content.1.tool_use.input"),
        (
            with_block(type="tool_use", id="a", name="b" * 1000, input={}),
            "messages.0.content.1.tool_use.name",
        ),
        (with_block(type="tool_result", content="a"), "tool_use_id"),
        (with_block(type="thinking"), "thinking"),
        (with_block(type=["text"]), "messages.0.content.1"),
        (with_block(text="a"), "messages.0.content.1"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": None}, "messages"),
        ({"messages": 5}, "messages"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image", "source": RED_PIXEL}]}, "image input is not supported"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e999}, "number"),
        ({"top_p": "a"}, "top_p"),
        ({"top_k": 10**30}, "top_k"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"stop_sequences": ["a"] * 40}, "stop_sequences"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10**30}}, "thinking.budget_tokens"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "'web_search_20250305' is not supported",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124' is not supported"),
        ({"tools": [{"type": "\x1b[31m\n" * 5, "name": "a"}]}, r"'\x1b[31m\n"),
        ({"tools": [{"name": ""}]}, "tools.0.name"),
        ({"tools": [{"name": "a", "input_schema": "object"}]}, "tools.0.input_schema"),
        ({"tools": [{"name": "a"}, {"name": "a"}]}, "tools: the names of tools have to differ"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "wether"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "wrong"}}}}, "wrong"),
        (
            {"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "a"}]},
            "mcp_servers: not supported",
        ),
        ({"container": "a"}, "container: not supported"),
    ],
)
def test_what_is_refused_is_named(http: httpx.Client, fields: dict[str, Any], told: str) -> None:
    body = json.dumps(ASKED | fields).replace("Infinity", "1e999")
    status, kind, message = error_of(http.post("/v1/messages", content=body))
    assert (status, kind) == (400, "invalid_request_error")
    assert told in message
    assert len(message) < 400
    assert message.isprintable()
    if "max_tokens" not in fields:
        assert http.post("/v1/messages/count_tokens", content=body).status_code in (200, 400)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_bodies_cut_off_anywhere_are_refused(http: httpx.Client, path: str) -> None:
    whole = json.dumps(ASKED | {"tools": [WEATHER], "system": "You help.", "max_tokens": 1}).encode()
    for n in range(0, len(whole), 7):
        assert error_of(http.post(path, content=whole[:n]))[:2] == (400, "invalid_request_error")
    assert http.post(path, content=whole).status_code == 200
    for body in b"null", b"[]", b"5", b"\xff\xfe{}", b'{"messages": ' + b"[" * 100_000:
        assert error_of(http.post(path, content=body))[0] in (400, 413)


def test_an_empty_conversation_is_answered_as_by_llama_server(http: httpx.Client) -> None:
    for system in {}, {"system": "You help."}, {"system": []}:
        answer = http.post("/v1/messages", json=ASKED | {"messages": [], "max_tokens": 3} | system)
        assert answer.status_code == 200
        assert answer.json()["usage"]["output_tokens"]
