"""OpenAI's responses, by OpenAI's own client and by hand."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from serving import Serving, serving
from told_answers import tell

from qwencli.errors import QwenError
from qwencli.server.responses.store import Kept, Store
from qwencli.text.chat.answers import Content, Reasoning, ToolCall

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
THOUGHT = "The user asks for the capital of France. It is Paris."
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Paris"}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def create(client: openai.OpenAI, **fields: Any) -> Response:
    given = {"model": "any", "input": QUESTION, "temperature": 0}
    found: Response = client.responses.create(**{**given, **fields})
    return found


def events_of(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, whose names are those of their data, and which the client's types describe."""
    given = {"input": QUESTION, "temperature": 0, "stream": True}
    answer = http.post("/v1/responses", json={**given, **fields})
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    found = []
    for event in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        EVENTS.validate_python(found[-1])
    return found


def prompt_of(http: httpx.Client, messages: list[Any], **more: Any) -> str:
    """What the model sees of a chat."""
    found: str = http.post("/apply-template", json={"messages": messages, **more}).json()["prompt"]
    return found


def prompt_seen(
    http: httpx.Client,
    server: Serving,
    monkeypatch: pytest.MonkeyPatch,
    path: str = "/v1/responses",
    **body: Any,
) -> str:
    """What it sees of a request for a response."""
    seen: list[list[int]] = []
    generate = server.service.generate

    def noted(request: Any, *more: Any, **other: Any) -> Any:
        seen.append([*request.tokens])
        return generate(request, *more, **other)

    with monkeypatch.context() as patch:
        patch.setattr(server.service, "generate", noted)
        answer = http.post(path, json={"max_output_tokens": 1, **body})
        assert answer.status_code == 200, answer.text
    return server.service.llm.tokenizer.decode(seen[0])


def test_a_response(client: openai.OpenAI) -> None:
    response = create(client, metadata={"a": "b"}, instructions="You help.", input=QUESTION)
    assert response.id.startswith("resp_")
    assert response.status == "completed"
    assert response.metadata == {"a": "b"}
    assert response.instructions == "You help."
    response = create(client)
    thought, said = response.output
    assert thought.type == "reasoning"
    assert thought.content
    assert thought.content[0].text == THOUGHT
    assert thought.id.startswith("rs_")
    assert said.type == "message"
    assert said.id.startswith("msg_")
    assert response.output_text == ANSWER
    assert response.temperature == 0
    assert response.error is response.incomplete_details is None
    usage = response.usage
    assert usage
    assert usage.input_tokens == 19
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    again = create(client).usage
    assert again
    assert again.input_tokens_details.cached_tokens == 18


def test_thinking_is_counted(client: openai.OpenAI, http: httpx.Client) -> None:
    """What the model writes up to its answer: the thinking between its tags."""
    usage = create(client).usage
    assert usage
    content = f"<think>\n{THOUGHT}\n</think>\n\n"
    n = len(http.post("/tokenize", json={"content": content, "parse_special": True}).json()["tokens"])
    assert abs(usage.output_tokens_details.reasoning_tokens - n) <= 1
    silent = create(client, reasoning={"effort": "none"})
    assert silent.usage
    assert silent.usage.output_tokens_details.reasoning_tokens == 0
    assert [item.type for item in silent.output] == ["message"]
    assert silent.reasoning
    assert silent.reasoning.effort == "none"


def test_the_clients_stream_puts_the_same_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model="any", input=QUESTION, temperature=0) as stream:
        events = [*stream]
        final = stream.get_final_response()
    whole = create(client)
    assert final.output_text == whole.output_text == ANSWER
    assert [item.type for item in final.output] == ["reasoning", "message"]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert len(deltas) > 3


def test_events_come_in_openais_order(http: httpx.Client) -> None:
    events = events_of(http)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind] == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        "completed",
    ]
    response = events[-1]["response"]
    assert events[0]["response"]["id"] == response["id"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    for event in events[2:-1]:
        item = response["output"][event["output_index"]]
        assert event.get("item_id", item["id"]) == event.get("item", item)["id"] == item["id"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]


def test_calls(client: openai.OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Reasoning("hm"), Content("I look."), ToolCall("weather", {"city": "Rome"}), ToolCall("weather", {})
    tell(monkeypatch, "responses", *said)
    response = create(client, tools=[WEATHER], max_output_tokens=1)
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    call = response.output[2]
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    assert call.id
    assert call.id.startswith("fc_")
    assert call.call_id.startswith("call_")
    assert response.tools[0].type == "function"
    assert response.tools[0].name == "weather"
    events = events_of(http, tools=[WEATHER], max_output_tokens=1)
    about = [event for event in events if event.get("output_index") == 2]
    assert [event["type"].removeprefix("response.") for event in about] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert about[0]["item"]["arguments"] == ""
    assert about[0]["item"]["status"] == "in_progress"
    assert about[1]["delta"] == about[2]["arguments"] == about[3]["item"]["arguments"]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    ],
)
def test_a_call_can_be_asked_for(client: openai.OpenAI, choice: Any) -> None:
    other = WEATHER | {"name": "other"}
    tools = [WEATHER] if choice == "required" else [other, WEATHER]
    response = create(client, tools=tools, tool_choice=choice)
    (call,) = response.output
    assert call.type == "function_call"
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")


class Colour(BaseModel):
    colour: str


def test_an_answer_of_a_given_form(client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "colour", "schema": COLOUR, "strict": True}}
    said = json.loads(create(client, text=form, reasoning={"effort": "none"}).output_text)
    assert said["colour"] in ("red", "blue")
    form = {"format": {"type": "json_object"}}
    said = create(client, text=form, reasoning={"effort": "none"}, max_output_tokens=30).output_text
    assert said.startswith("{")
    parsed = client.responses.parse(
        model="any",
        input=QUESTION,
        text_format=Colour,
        temperature=0,
        reasoning={"effort": "none"},
        max_output_tokens=300,
    )
    if parsed.status == "completed":
        assert isinstance(parsed.output_parsed, Colour)


def test_an_answer_that_is_cut_off_is_incomplete(client: openai.OpenAI, http: httpx.Client) -> None:
    response = create(client, max_output_tokens=26)
    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [getattr(item, "status", None) for item in response.output] == ["completed", "incomplete"]
    assert events_of(http, max_output_tokens=3)[-1]["type"] == "response.incomplete"


def test_items_are_the_messages_of_a_chat(
    http: httpx.Client, server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prompt_seen(
        http,
        server,
        monkeypatch,
        instructions="Be brief.",
        tools=[WEATHER],
        input=[
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": QUESTION},
                    {"type": "input_text", "text": "Well?"},
                ],
            },
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
            },
            CALL,
            CALL | {"call_id": "call_2"},
            RESULT,
            RESULT | {"call_id": "call_2", "output": [{"type": "input_text", "text": "rainy"}]},
        ],
    )
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    called = {"name": "weather", "arguments": CALL["arguments"]}
    calls = [{"id": f"call_{i}", "type": "function", "function": called} for i in (1, 2)]
    assert seen == prompt_of(
        http,
        [
            {"role": "system", "content": "Be brief.\n\nBe kind."},
            {"role": "user", "content": f"{QUESTION}\nWell?"},
            {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_2", "content": "rainy"},
        ],
        tools=[{"type": "function", "function": function}],
    )


def test_tokens_are_counted_as_they_are_used(client: openai.OpenAI, http: httpx.Client) -> None:
    usage = create(client, instructions="You help.", tools=[WEATHER], max_output_tokens=1).usage
    assert usage
    count = client.responses.input_tokens.count(input=QUESTION, instructions="You help.", tools=[WEATHER])
    assert count.object == "response.input_tokens"
    assert count.input_tokens == usage.input_tokens
    messages = [{"role": "system", "content": "You help."}, {"role": "user", "content": QUESTION}]
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    chat = {"messages": messages, "tools": [{"type": "function", "function": function}]}
    for path in "/v1/chat/completions/input_tokens", "/chat/completions/input_tokens":
        assert http.post(path, json=chat).json() == {
            "object": "response.input_tokens",
            "input_tokens": usage.input_tokens,
        }
    assert http.post("/responses/input_tokens", json={"input": "word " * 5000}).json()["input_tokens"] > 5000


def test_a_conversation_goes_on(
    client: openai.OpenAI, http: httpx.Client, server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(client)
    second = create(client, input="And of Italy?", previous_response_id=first.id, max_output_tokens=5)
    assert second.previous_response_id == first.id
    assert second.usage
    assert second.usage.input_tokens_details.cached_tokens >= 18
    seen = prompt_seen(http, server, monkeypatch, input="Why?", previous_response_id=second.id)
    said = {"role": "assistant", "content": second.output_text}
    thought = [item for item in second.output if item.type == "reasoning"]
    if thought and thought[0].content:
        said["reasoning_content"] = thought[0].content[0].text
    assert seen == prompt_of(
        http,
        [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT},
            {"role": "user", "content": "And of Italy?"},
            said,
            {"role": "user", "content": "Why?"},
        ],
    )


def test_instructions_are_not_carried_over(
    client: openai.OpenAI, http: httpx.Client, server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(client, instructions="Only this time.", max_output_tokens=1)
    seen = prompt_seen(http, server, monkeypatch, input="Why?", previous_response_id=first.id)
    assert "Only this time." not in seen
    assert QUESTION in seen


def test_kept_responses(client: openai.OpenAI, http: httpx.Client) -> None:
    response = create(client)
    assert client.responses.retrieve(response.id).output_text == ANSWER
    streamed = events_of(http, max_output_tokens=1)[-1]["response"]
    assert client.responses.retrieve(streamed["id"]).id == streamed["id"]
    client.responses.delete(response.id)
    for gone in response.id, create(client, store=False).id, "resp_unknown":
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError) as caught:
            create(client, previous_response_id=gone)
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"


def test_items_can_be_referred_to(
    client: openai.OpenAI, http: httpx.Client, server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = create(client)
    refer = [{"type": "item_reference", "id": response.output[1].id}, {"role": "user", "content": "Why?"}]
    seen = prompt_seen(http, server, monkeypatch, input=[{"role": "user", "content": QUESTION}, *refer])
    assert ANSWER in seen
    with pytest.raises(openai.NotFoundError, match="no such item"):
        create(client, input=[{"type": "item_reference", "id": "msg_unknown"}])


def test_only_who_made_a_response_finds_it() -> None:
    with serving(api_keys=("one", "two")) as server:
        one, two = (
            openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0) for key in ("one", "two")
        )
        response = create(one, max_output_tokens=5)
        assert one.responses.retrieve(response.id).id == response.id
        with pytest.raises(openai.NotFoundError):
            two.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            two.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            create(two, previous_response_id=response.id)
        with pytest.raises(openai.NotFoundError):
            create(two, input=[{"type": "item_reference", "id": response.output[0].id}])
        assert create(one, previous_response_id=response.id, max_output_tokens=1)


def test_the_least_recently_used_responses_are_dropped() -> None:
    def kept(n: int) -> Kept:
        return Kept("", "x" * n, ("y" * n,), {})

    store = Store(most=3, room=100)
    for name in "abc":
        store.add(name, kept(10))
    assert store.get("a", "")
    store.add("d", kept(10))
    assert [name for name in "abcd" if store.get(name, "")] == ["a", "c", "d"]
    store.add("e", kept(40))
    assert [name for name in "acde" if store.get(name, "")] == ["d", "e"]
    assert store.delete("e", "")
    store.add("f", kept(40))
    assert [name for name in "def" if store.get(name, "")] == ["d", "f"]
    store.add("g", kept(51))
    assert [name for name in "dfg" if store.get(name, "")] == []


def test_probabilities_are_those_of_chats(client: openai.OpenAI) -> None:
    response = create(
        client, reasoning={"effort": "none"}, include=["message.output_text.logprobs"], top_logprobs=2
    )
    chat = client.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body={"reasoning_effort": "none"},
    )
    (item,) = response.output
    assert item.type == "message"
    part = item.content[0]
    assert part.type == "output_text"
    expected = chat.choices[0].logprobs
    assert part.logprobs
    assert expected
    assert expected.content
    said = [(each.token, each.logprob, [top.token for top in each.top_logprobs]) for each in part.logprobs]
    theirs = [
        (each.token, each.logprob, [top.token for top in each.top_logprobs]) for each in expected.content
    ]
    assert said == theirs[: len(said)]
    assert "".join(each.token for each in part.logprobs) == ANSWER


def test_a_long_conversation_is_shortened_where_that_is_asked_for(
    http: httpx.Client, server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [
        [{"role": "user", "content": f"word {i} " * 60}, {"role": "assistant", "content": f"yes {i}"}]
        for i in range(20)
    ]
    conversation = [*chain(*turns), {"role": "user", "content": QUESTION}]
    long = {"instructions": "You help.", "input": conversation}
    answer = http.post("/v1/responses", json=long)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    seen = prompt_seen(http, server, monkeypatch, truncation="auto", **long)
    kept = [i for i in range(20) if f"yes {i}<" in seen]
    assert kept
    assert kept == list(range(kept[0], 20))
    assert "You help." in seen
    messages = [{"role": "system", "content": "You help."}, *chain(*turns[kept[0] - 1 :]), conversation[-1]]
    longer = http.post("/v1/responses/input_tokens", json={"input": messages}).json()["input_tokens"]
    assert longer + 1 > server.service.llm.engine.n_ctx
    answer = http.post("/v1/responses", json={"input": "word " * 5000, "truncation": "auto"})
    assert answer.status_code == 400


def test_timings_where_they_are_asked_for(http: httpx.Client) -> None:
    events = events_of(http, timings_per_token=True, max_output_tokens=3)
    assert any("timings" in event for event in events if event["type"].endswith(".delta"))
    assert events[-1]["timings"]["predicted_n"] == 3


def test_progress_where_it_is_asked_for(http: httpx.Client) -> None:
    events = events_of(http, return_progress=True, max_output_tokens=3, input="a long way to go " * 60)
    told = [event for event in events if "prompt_progress" in event]
    assert told
    assert {event["type"] for event in told} == {"response.in_progress"}
    assert told[-1]["prompt_progress"]["processed"] == told[-1]["prompt_progress"]["total"] > 60


def test_a_failure_is_the_last_event(
    http: httpx.Client, server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise QwenError("something failed")

    monkeypatch.setattr(server.service.llm.engine, "step", fail)
    last = events_of(http)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "something failed"}
    answer = http.post("/v1/responses", json={"input": QUESTION})
    assert answer.status_code == 500


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [7]}, "input.0"),
        ({"input": [{}]}, "input.0.role"),
        ({"input": [{"role": "boss", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "images"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "files"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "audio"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "items of this type"),
        ({"input": [CALL | {"arguments": {}}]}, "input.0.arguments"),
        ({"input": [RESULT | {"output": [{"type": "input_image"}]}]}, "images"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "web_search"),
        ({"input": "x", "tools": [{"type": "custom", "name": "a"}]}, "custom"),
        ({"input": "x", "tools": [{"type": "function"}]}, "needs a name"),
        ({"input": "x", "tools": [WEATHER | {"parameters": []}]}, "tools.0.parameters"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "a"}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "schema"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "max_output_tokens": "many"}, "max_output_tokens"),
        ({"input": "x", "max_output_tokens": 10**30}, "max_output_tokens"),
        ({"input": "x", "temperature": "hot"}, "temperature"),
        ({"input": "x", "metadata": {"a": "b" * 1000}}, "metadata"),
        ({"input": "x", "reasoning": {"effort": 7}}, "reasoning.effort"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
        ({"input": "x", "truncation": "some"}, "truncation"),
        ({"input": "word " * 5000}, "leaves no room"),
    ],
)
def test_bad_requests_are_refused_in_openais_form(http: httpx.Client, body: Any, says: str) -> None:
    answer = http.post("/v1/responses", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert says in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 300


def test_broken_bodies_and_other_sites(http: httpx.Client) -> None:
    assert http.post("/v1/responses", content=b'{"input": [').status_code == 400
    assert http.post("/v1/responses", content=b"x" * (11 << 20)).status_code == 413
    assert http.get("/v1/responses").status_code == 405
    for path in "/v1/responses", "/v1/responses/input_tokens", "/v1/chat/completions/input_tokens":
        evil = http.post(path, json={"input": "x"}, headers={"Origin": "https://evil.example"})
        assert evil.status_code == 403
