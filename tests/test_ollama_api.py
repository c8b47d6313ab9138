"""Ollama's API, by Ollama's own client and by hand."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from demo_with import demo_with
from serving import Serving, serving, until

from qwencli.llm import LLM
from qwencli.server.ollama.models import parameter_size, shown_value
from qwencli.text.chat.template import ChatTemplate

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
GREEDY = {"temperature": 0}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> ollama.Client:
    return ollama.Client(server.url)


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def greedy_text(http: httpx.Client, prompt: str, n: int) -> str:
    """What llama.cpp's API answers."""
    body = {"prompt": prompt, "n_predict": n, "temperature": 0}
    text: str = http.post("/completion", json=body).json()["content"]
    return text


def test_a_chat(client: ollama.Client) -> None:
    answer = client.chat("any", QUESTION, options=GREEDY)
    assert answer.message.content == ANSWER
    assert answer.message.role == "assistant"
    assert answer.message.thinking == "The user asks for the capital of France. It is Paris."
    assert answer.done
    assert answer.done_reason == "stop"
    assert answer.prompt_eval_count == 19
    assert answer.eval_count
    assert answer.eval_duration
    assert answer.total_duration


def test_a_streamed_chat_is_the_same(client: ollama.Client) -> None:
    whole = client.chat("any", QUESTION, options=GREEDY)
    parts = [*client.chat("any", QUESTION, options=GREEDY, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


def test_answers_stream_unless_told_otherwise_one_object_a_line(http: httpx.Client) -> None:
    answer = http.post("/api/chat", json={"model": "any", "messages": QUESTION, "options": GREEDY})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert len(lines) > 5
    assert lines[-1]["done"]


@pytest.mark.parametrize("think", [False, True, "high"])
def test_thinking_can_be_chosen(client: ollama.Client, think: bool | str) -> None:
    message = client.chat("any", QUESTION, think=think, options=GREEDY).message  # type: ignore[arg-type]
    assert bool(message.thinking) == bool(think)
    assert message.content


def test_a_conversation_with_tools(client: ollama.Client) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "thinking": "I ask.", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
    ]
    answer = client.chat("any", messages, tools=[WEATHER], options=GREEDY | {"num_predict": 20})
    assert answer.done_reason == "length"
    assert answer.eval_count == 20


def test_a_tool_call(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the tiny model calls is luck; so the text is given."""
    from qwencli.text.chat.answers import Content, Reasoning, ToolCall

    events = [[Reasoning("hm"), Content("I look."), ToolCall("weather", {"city": "Rom"})]]
    monkeypatch.setattr(
        "qwencli.server.ollama.endpoints.ChatAnswer", lambda asked, generation: Told(generation, events)
    )
    client = ollama.Client(server.url)
    message = client.chat("any", QUESTION, tools=[WEATHER], options={"num_predict": 1}).message
    assert (message.content, message.thinking) == ("I look.", "hm")
    assert message.tool_calls
    assert message.tool_calls[0].function.name == "weather"
    assert message.tool_calls[0].function.arguments == {"city": "Rom"}
    parts = [*client.chat("any", QUESTION, tools=[WEATHER], options={"num_predict": 1}, stream=True)]
    assert [part.message.tool_calls[0].function.name for part in parts if part.message.tool_calls] == [
        "weather"
    ]


class Told:
    """A ChatAnswer with given events at its end."""

    def __init__(self, generation: Any, events: list[list[Any]]) -> None:
        self.generation, self._events = generation, events

    def add(self, part: Any) -> list[Any]:
        return []

    def end(self) -> list[Any]:
        return self._events[0]


def test_an_answer_of_a_given_form(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    options = GREEDY | {"num_predict": 200}
    said = client.chat("any", QUESTION, format=schema, think=False, options=options).message.content
    assert json.loads(said or "")["colour"] in ("red", "blue")
    said = client.generate("any", "Hello", format=schema, think=False, options=options).response
    assert json.loads(said)["colour"] in ("red", "blue")
    message = client.chat(
        "any", QUESTION, format="json", think=False, options=GREEDY | {"num_predict": 400, "stop": ["}"]}
    )
    assert (message.message.content or "").startswith("{")


def test_generate_is_a_turn_of_a_chat(client: ollama.Client) -> None:
    answer = client.generate("any", QUESTION[0]["content"], options=GREEDY)
    assert answer.response == ANSWER
    assert answer.thinking
    assert answer.context
    assert len(answer.context) > answer.prompt_eval_count
    second = client.generate(
        "any", "And of Italy?", context=answer.context, options=GREEDY | {"num_predict": 3}
    )
    assert second.context
    assert list(second.context)[: len(answer.context)] == list(answer.context)


def test_a_raw_prompt_goes_on(client: ollama.Client, http: httpx.Client) -> None:
    answer = client.generate("any", "Once upon a time", raw=True, options=GREEDY | {"num_predict": 12})
    assert answer.response == greedy_text(http, "Once upon a time", 12)
    assert answer.context is None
    assert answer.thinking is None
    assert answer.done_reason == "length"


@pytest.mark.parametrize("n", [-2, -1, 0])
def test_no_limit(client: ollama.Client, n: int) -> None:
    assert client.chat("any", QUESTION, options=GREEDY | {"num_predict": n}).done_reason == "stop"


def test_options_that_say_how_a_model_is_loaded_are_taken(client: ollama.Client) -> None:
    loading = {
        "num_ctx": 64,
        "num_gpu": 99,
        "num_thread": 1,
        "use_mmap": True,
        "low_vram": False,
        "numa": True,
    }
    assert client.chat("any", QUESTION, options=GREEDY | loading).message.content == ANSWER


def test_a_stop_string_ends_the_answer(client: ollama.Client) -> None:
    answer = client.chat("any", QUESTION, think=False, options=GREEDY | {"stop": ["capital"]})
    assert answer.message.content == "The "
    assert answer.done_reason == "stop"


def test_a_seed_repeats_an_answer(client: ollama.Client) -> None:
    options = {"seed": 7, "temperature": 1.5, "num_predict": 20}
    first, second = (client.generate("any", "Once", raw=True, options=options).response for _ in range(2))
    assert first == second


def test_probabilities_are_llama_cpps(client: ollama.Client, http: httpx.Client) -> None:
    prompt, n = "Once upon a time", 3
    answer = client.generate(
        "any", prompt, raw=True, options=GREEDY | {"num_predict": n}, logprobs=True, top_logprobs=2
    )
    body = {"prompt": prompt, "n_predict": n, "temperature": 0, "n_probs": 2}
    expected = http.post("/completion", json=body).json()["completion_probabilities"]
    assert answer.logprobs
    assert len(answer.logprobs) == n
    for ours, theirs in zip(answer.logprobs, expected):
        assert (ours.token, ours.logprob) == (theirs["token"], theirs["logprob"])
        assert [top.token for top in ours.top_logprobs or ()] == [
            top["token"] for top in theirs["top_logprobs"]
        ]


def test_a_gap_is_filled(tmp_path: Path) -> None:
    """The prompt is that of Qwen2.5-Coder's report: what precedes the gap and what follows it, each after its token."""
    ids = {"fim_pre": 6009, "fim_suf": 6010, "fim_mid": 6011}
    path = demo_with(
        tmp_path / "gaps.gguf", **{f"tokenizer__ggml__{name}_token_id": id for name, id in ids.items()}
    )
    with serving(LLM(path, n_threads=2)) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        before, after = (
            http.post("/tokenize", json={"content": text}).json()["tokens"] for text in ("Once", " a time")
        )
        prompt = [6009, *before, 6010, *after, 6011]
        expected = http.post("/completion", json={"prompt": prompt, "n_predict": 8, "temperature": 0}).json()
        client = ollama.Client(server.url)
        answer = client.generate("any", "Once", " a time", options={"temperature": 0, "num_predict": 8})
        assert (answer.response, answer.prompt_eval_count) == (expected["content"], len(prompt))
        assert "insert" in (client.show("any").capabilities or ())


def test_a_model_is_unloaded_when_it_is_no_longer_wanted() -> None:
    with serving() as server:
        client, presence = ollama.Client(server.url), server.service.presence
        answer = client.generate("any", "Once", raw=True, options={"num_predict": 4}, keep_alive=0)
        assert answer.eval_count == 4
        until(lambda: presence.asleep)
        assert client.ps().models == []
        assert client.generate("any").done_reason == "load"
        assert len(client.ps().models) == 1
        assert not presence.asleep


def test_a_model_is_loaded_by_an_empty_prompt(client: ollama.Client, http: httpx.Client) -> None:
    assert client.generate("any").done_reason == "load"
    assert client.chat("any").done_reason == "load"
    unload = http.post("/api/generate", json={"model": "any", "keep_alive": 0}).json()
    assert unload["done_reason"] == "unload"


def test_embeddings_are_those_of_openais_api(client: ollama.Client, http: httpx.Client) -> None:
    texts = ["a king", "a queen"]
    data = http.post("/v1/embeddings", json={"input": texts}).json()["data"]
    answer = client.embed("any", texts)
    assert np.array_equal(answer.embeddings, [each["embedding"] for each in data])
    assert answer.prompt_eval_count == 6
    assert np.allclose(
        client.embed("any", "a king", dimensions=2).embeddings, [[-0.32066, -0.94719]], atol=1e-4
    )
    old = np.array(client.embeddings("any", "a king").embedding)
    assert np.allclose(old / np.linalg.norm(old), answer.embeddings[0], atol=1e-6)
    assert http.post("/api/embed", json={"model": "any", "input": []}).json()["embeddings"] == []


def test_a_long_text_is_cut_for_an_embedding_unless_that_is_refused(
    client: ollama.Client, server: Serving
) -> None:
    n_ctx = server.service.llm.engine.n_ctx
    text = "word " * 2 * n_ctx
    assert client.embed("any", text).prompt_eval_count == n_ctx
    with pytest.raises(ollama.ResponseError, match="leaves no room") as caught:
        client.embed("any", text, truncate=False)
    assert caught.value.status_code == 400


def test_what_there_is(client: ollama.Client, server: Serving) -> None:
    llm, name = server.service.llm, server.options.name
    (model,) = client.list().models
    assert model.model == name
    assert model.size == sum(t.n_bytes for t in llm.file.tensors.values())
    assert model.modified_at
    assert model.details
    assert model.details.family == "qwen3"
    assert model.details.quantization_level == "Q4_K_M"
    (loaded,) = client.ps().models
    assert (loaded.name, loaded.context_length, loaded.size_vram) == (name, llm.engine.n_ctx, 0)
    shown = client.show(name)
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "qwen3"
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert shown.template == llm.file.metadata["tokenizer.chat_template"]
    assert set(shown.capabilities or ()) == {"completion", "tools", "thinking", "embedding"}


def test_a_vocabulary_is_shown_where_it_is_asked_for(http: httpx.Client, server: Serving) -> None:
    info = http.post("/api/show", json={"model": "any", "verbose": True}).json()["model_info"]
    assert len(info["tokenizer.ggml.tokens"]) == server.service.llm.tokenizer.n_vocab


def test_the_version_is_new_enough_for_clients(http: httpx.Client) -> None:
    assert tuple(map(int, http.get("/api/version").json()["version"].split("."))) >= (0, 12, 0)
    assert http.head("/api/version").status_code == http.head("/api/tags").status_code == 200


@pytest.mark.parametrize("call", ["pull", "push", "delete"])
def test_models_are_not_changed_by_a_request(client: ollama.Client, call: str) -> None:
    with pytest.raises(ollama.ResponseError, match="qwencli pull") as caught:
        getattr(client, call)("llama3")
    assert caught.value.status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("chat", {"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role"),
        ("chat", {"messages": "hello"}, "messages"),
        ("chat", {"messages": QUESTION, "options": {"temperature": "hot"}}, "options.temperature"),
        ("chat", {"messages": QUESTION, "options": {"num_predict": 10**30}}, "options.num_predict"),
        ("chat", {"messages": QUESTION, "format": 7}, "format"),
        ("chat", {"messages": QUESTION, "format": {"type": "thing"}}, "type"),
        ("chat", {"messages": QUESTION, "tools": [{"type": "function"}]}, "tools"),
        ("chat", {"messages": QUESTION, "think": "a lot"}, "think"),
        ("chat", {"messages": QUESTION, "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("generate", {"prompt": "x", "images": ["aGk="]}, "images"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "raw"),
        ("generate", {"prompt": "x", "context": [10**9]}, "context"),
        ("generate", {"prompt": "x", "context": [1] * 5000}, "context"),
        ("generate", {"prompt": "x " * 5000}, "leaves no room"),
        ("generate", {"prompt": "x", "suffix": "y"}, "insert"),
        ("embed", {"input": [""]}, "input"),
        ("embed", {"input": {}}, "input"),
        ("show", {"model": 7}, "model"),
    ],
)
def test_bad_requests_are_refused_in_ollamas_form(
    http: httpx.Client, path: str, body: Any, says: str
) -> None:
    answer = http.post(f"/api/{path}", json={"model": "any", **body})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert says in answer.json()["error"]


def test_broken_bodies_and_unknown_paths(http: httpx.Client) -> None:
    assert http.post("/api/chat", content=b'{"messages": [').status_code == 400
    assert http.post("/api/chat", content=b"x" * (11 << 20)).status_code == 413
    answer = http.get("/api/nothing")
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}
    assert http.get("/api/chat").status_code == 405


def test_other_sites_pages_are_refused(http: httpx.Client) -> None:
    for path in "/api/tags", "/api/version":
        assert http.get(path, headers={"Origin": "https://evil.example"}).status_code == 403


def test_keys_are_asked_for_in_ollamas_form() -> None:
    with serving(api_keys=("secret",)) as server:
        answer = httpx.get(f"{server.url}/api/tags")
        assert answer.status_code == 401
        assert "error" in answer.json()
        client = ollama.Client(server.url, headers={"Authorization": "Bearer secret"})
        assert len(client.list().models) == 1


def test_the_asynchronous_client(server: Serving) -> None:
    answer = asyncio.run(ollama.AsyncClient(server.url).chat("any", QUESTION, options=GREEDY))
    assert answer.message.content == ANSWER


def test_a_model_that_cannot_think_refuses_to() -> None:
    with serving(template=ChatTemplate.named("chatml")) as server:
        client = ollama.Client(server.url)
        with pytest.raises(ollama.ResponseError, match="does not support thinking") as caught:
            client.chat("any", QUESTION, think=True)
        assert caught.value.status_code == 400
        assert "thinking" not in (client.show("any").capabilities or ())


def test_figures_of_a_file_that_json_does_not_know_are_left_out() -> None:
    assert shown_value([1.5, float("nan"), float("inf")], True) == [1.5, None, None]


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (751_632_384, "751.63M"),
        (4_022_468_096, "4.0B"),
        (30_532_122_624, "30.5B"),
        (260_123, "260K"),
        (4_000_000_000, "4B"),
        (12, "12"),
    ],
)
def test_numbers_of_weights_as_ollama_writes_them(n: int, text: str) -> None:
    assert parameter_size(n) == text
