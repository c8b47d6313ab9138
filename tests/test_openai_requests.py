"""OpenAI's API: what is wrong with a request is said by field, and nothing that a client sends does harm."""

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Serving, serving

from qwencli.server.openai.fields import ChatRequest, CompletionRequest, EmbeddingRequest

USER = {"role": "user", "content": "Hi"}
PATHS = {
    ChatRequest: "/v1/chat/completions",
    CompletionRequest: "/v1/completions",
    EmbeddingRequest: "/v1/embeddings",
}
LEAST: dict[Any, dict[str, Any]] = {
    ChatRequest: {"messages": [USER], "max_tokens": 1},
    CompletionRequest: {"prompt": "Hi", "max_tokens": 1},
    EmbeddingRequest: {"input": "Hi"},
}
TEXT, VECTOR = CompletionRequest, EmbeddingRequest
FIELDS = [(model, field.alias or name) for model in PATHS for name, field in model.model_fields.items()]


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def http(demo: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo.url, timeout=60) as client:
        yield client


def refused(http: httpx.Client, model: Any, **fields: Any) -> dict[str, Any]:
    response = http.post(PATHS[model], json=LEAST[model] | fields)
    assert response.status_code == 400, (fields, response.text[:300])
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_values_of_wrong_types(http: httpx.Client, model: Any, name: str) -> None:
    """Each field refuses some of these, by its name; null is as good as none."""
    n_refused = 0
    for value in ({"a": [1]}, [{"a": 1}], "§", True, 1.5, -7):
        response = http.post(PATHS[model], json=LEAST[model] | {name: value})
        assert response.status_code in (200, 400), response.text[:300]
        if response.status_code == 400:
            n_refused += 1
            assert str(response.json()["error"]["param"]).split(".")[0] == name
            assert name in response.json()["error"]["message"]
    assert n_refused >= 3
    if name not in LEAST[model]:
        assert http.post(PATHS[model], json=LEAST[model] | {name: None}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"typical_p": 2}, "typical_p"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 100}, "n"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"mirostat": 3}, "mirostat"),
        ({"stop": ["a"] * 40}, "stop"),
        ({"stop": "a" * 300}, "stop"),
        ({"stop": ["a", 1]}, "stop.1"),
        ({"samplers": ["best"]}, "samplers"),
        ({"samplers": "kz"}, "samplers"),
        ({"logit_bias": {"7": 1e9}}, "logit_bias"),
        ({"logit_bias": {"6016": 1}}, "logit_bias"),
        ({"logit_bias": [[-1, 1]]}, "logit_bias"),
        ({"logit_bias": {"a" * 300: 1}}, "logit_bias"),
        ({"logit_bias": [[5, True]]}, "logit_bias.0.1"),
        ({"logit_bias": {str(i): 0 for i in range(2000)}}, "logit_bias"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            {
                "messages": [
                    USER,
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
                ]
            },
            "messages.1.content.0.type",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages.0.tool_calls.0.function.name",
        ),
        ({"reasoning_budget": "low"}, "reasoning_budget"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ({"json_schema": "{}"}, "json_schema"),
    ],
)
def test_the_field_at_fault(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert refused(http, ChatRequest, **fields)["param"] == param


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (TEXT, {"prompt": 5}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": ["a"] * 200}, "prompt"),
        (TEXT, {"echo": 1}, "echo"),
        (TEXT, {"echo": True, "suffix": "x"}, "echo"),
        (TEXT, {"best_of": 3}, "best_of"),
        (TEXT, {"suffix": "x"}, "suffix"),
        (TEXT, {"logprobs": True}, "logprobs"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": [2**40]}, "prompt"),
        (VECTOR, {"input": []}, "input"),
        (VECTOR, {"input": ""}, "input"),
        (VECTOR, {"input": [[1], [2.5]]}, "input"),
        (VECTOR, {"input": [-1]}, "input"),
        (VECTOR, {"dimensions": 257}, "dimensions"),
        (VECTOR, {"dimensions": 0}, "dimensions"),
        (VECTOR, {"encoding_format": "int8"}, "encoding_format"),
        (VECTOR, {"input": ["a"] * 2049}, "input"),
    ],
)
def test_the_field_at_fault_elsewhere(
    http: httpx.Client, model: Any, fields: dict[str, Any], param: str | None
) -> None:
    assert refused(http, model, **fields)["param"] == param


@pytest.mark.parametrize("n_words", [3000, 300_000], ids=["cut", "too long whatever its tokens are"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context(http: httpx.Client, stream: bool, n_words: int) -> None:
    long = "word " * n_words
    for path, fields in (
        ("chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("completions", {"prompt": long}),
        ("embeddings", {"input": long}),
    ):
        response = http.post(f"/v1/{path}", json=fields | {"stream": stream})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["n_ctx"]) == (400, "context_length_exceeded", 1024)
        assert (n_words if n_words == 3000 else 1025) <= error["n_prompt_tokens"] <= n_words + 20


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b'{"messages": [' + b"1," * 200_000 + b"1]}",
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"n": 1e400}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_bodies_that_are_no_requests(http: httpx.Client, body: bytes) -> None:
    for path in PATHS.values():
        response = http.post(path, content=body)
        assert response.status_code == 400
        assert len(response.content) < 1000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"input": [' + b"[1]," * 100_000 + b"[1]]}",
        b'{"input": [' + b"1," * 400_000 + b"1]}",
    ],
)
def test_bodies_of_too_many_values(http: httpx.Client, body: bytes) -> None:
    assert {http.post(path, content=body).status_code for path in PATHS.values()} == {413}


def test_random_requests_are_answered_or_refused(http: httpx.Client) -> None:
    rs = random.Random(3)

    def value(depth: int = 0) -> Any:
        kinds: list[Any] = [None, True, 0, -1, 2**70, 1.5, "", "a", "\0", "<|im_end|>", "€" * 9]
        if depth < 3 and rs.random() < 0.5:
            return (
                [value(depth + 1) for _ in range(rs.randrange(3))]
                if rs.random() < 0.5
                else {rs.choice(NAMES): value(depth + 1)}
            )
        return rs.choice(kinds)

    NAMES = [name for _, name in FIELDS] + ["type", "role", "content", "function", "text", "$ref"]
    for _ in range(150):
        model = rs.choice(list(PATHS))
        body = (
            LEAST[model] | {rs.choice(NAMES): value() for _ in range(rs.randrange(1, 4))} | {"max_tokens": 1}
        )
        response = http.post(PATHS[model], content=json.dumps(body))
        assert response.status_code in (200, 400), (body, response.text[:300])


def test_unknown_fields_are_ignored(http: httpx.Client) -> None:
    more = {
        "frobnicate": 5,
        "functions": [],
        "temp": "hot",
        "service_tier": "auto",
        "store": True,
        "metadata": {"a": "b"},
    }
    for model, path in PATHS.items():
        assert http.post(path, json=LEAST[model] | more).status_code == 200


def test_fields_without_effect_and_with(http: httpx.Client, demo: Serving) -> None:
    """Values that reach the samplers as they are: those of the sequence that ran last."""
    given = {
        "temperature": 0.9,
        "top_k": -1,
        "top_p": 0.8,
        "min_p": 0.01,
        "typical_p": 0.7,
        "repeat_penalty": 1.2,
        "repeat_last_n": 5,
        "dry_multiplier": 0.5,
        "dry_base": 2,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 9,
        "dry_sequence_breakers": ["x"],
        "xtc_probability": 0.1,
        "xtc_threshold": 0.2,
        "mirostat": 2,
        "mirostat_tau": 4,
        "mirostat_eta": 0.3,
        "dynatemp_range": 0.1,
        "dynatemp_exponent": 2,
        "top_n_sigma": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "min_keep": 2,
        "seed": -3,
        "samplers": ["top_k", "temperature"],
        "cache_prompt": False,
        "id_slot": 2,
        "user": "me",
        "model": "x",
    }
    body = CompletionRequest.model_validate_json(json.dumps({"prompt": "a"} | given))
    params = body.sampling(demo.options.sampling, demo.service.llm.tokenizer)
    wire = {"temperature": "temp", "repeat_last_n": "penalty_last_n"}
    expected = given | {
        "top_k": 0,
        "seed": 2**64 - 3,
        "samplers": ("top_k", "temperature"),
        "dry_sequence_breakers": ("x",),
    }
    for name in given.keys() - {"cache_prompt", "id_slot", "user", "model"}:
        assert getattr(params, wire.get(name, name)) == expected[name], name
    assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2} | given).status_code == 200


def test_the_description_names_what_stands_in_paths(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()["paths"]["/v1/models/{id}"]["get"]
    assert [(p["name"], p["in"]) for p in described["parameters"]] == [("id", "path")]
