"""What has crashed other servers is answered, or is an error for whoever sent it; nobody else notices anything."""

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_runs import held
from llamacpp_client import events, greedy, post
from serving import Serving, endless, serving, until

from qwencli.server.llamacpp.endpoints import LLAMACPP
from qwencli.server.service.generation import Generation
from qwencli.text.tokenizer import Tokenizer

PROMPT = "Once upon a time"
INVALID = "invalid_request_error"
HUGE = 10**30


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(apis=[LLAMACPP]) as running:
        yield running
        assert [slot.generation for slot in running.service.slots()] == [None] * 4
        assert running.service.llm.engine.running == []


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def usual(client: httpx.Client) -> str:
    return str(greedy(client, PROMPT)["content"])


def refused(response: httpx.Response, status: int = 400, type: str = INVALID) -> dict[str, Any]:
    """The error, in llama.cpp's form: nothing of it is the server's own."""
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (status, status, type), error
    assert response.json().keys() == {"error"}
    assert "Traceback" not in error["message"]
    assert str(Path(__file__).parents[1]) not in error["message"]
    assert 0 < len(error["message"]) < 400
    return error


WRONG: dict[str, list[Any]] = {
    "n_discard": [-1, -(2**31)],  # CVE-2026-21869
    "n_keep": [-2],
    "n_predict": [-2, HUGE, "many", 1.5],
    "stream": ["yes"],
    "temperature": ["hot", [1]],
    "repeat_last_n": [-2, 2**31],
    "dry_penalty_last_n": [-5],
    "min_keep": [-1],
    "n_probs": [-1, 2**31 - 1],
    "n_cmpl": [0, 5],
    "id_slot": [HUGE],
    "t_max_predict_ms": [-2],
    "stop": [5, ["x"] * 1000, ["x" * 10_000]],
    "samplers": [5, "kz", ["top_k"] * 1000],
    "logit_bias": [
        5,
        [[1, 2, 3]],
        [[1, "x"]],
        [[6016, 1.0]],
        [[-1, 1.0]],
        [[HUGE, 1.0]],
        [[1, 1e300]],
        [["x " * 2000, 1.0]],
    ],
    "dry_sequence_breakers": [[""], ["x"] * 1000],
    "grammar": ["root ::= (", "root ::= root", 5],
    "json_schema": [{"type": "unheard of"}, 5],
    "response_fields": [[1]],
    "prompt": [
        *(None, 5, [], [1.5], [[[1]]], [True], {"text": "x"}, ["x"] * 69),
        *({"content": "x"}, {"content": []}, {"content": ["x"]}, {"content": [{"type": "text", "text": 3}]}),
        {"content": [{"type": "unknown", "text": "x"}]},
    ],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_values_are_refused_before_anything_runs(
    client: httpx.Client, name: str, value: Any, stream: bool
) -> None:
    error = refused(
        client.post("/completion", json={"prompt": PROMPT, "n_predict": 2, "stream": stream} | {name: value})
    )
    assert name.split("_")[-1].rstrip("s") in error["message"]


def test_more_probabilities_than_one_answer_may_hold(client: httpx.Client) -> None:
    assert (
        "n_probs"
        in refused(client.post("/completion", json={"prompt": PROMPT, "n_probs": 1000, "n_predict": -1}))[
            "message"
        ]
    )


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"lora": [{"id": 0, "scale": 1.0}]}, 501),
        ({"n_indent": 2}, 501),
        ({"prompt": {"prompt_string": "x", "multimodal_data": ["eA=="]}}, 501),
        (
            {
                "prompt": {
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
                }
            },
            501,
        ),
    ],
)
def test_what_there_is_not_is_refused(client: httpx.Client, fields: dict[str, Any], status: int) -> None:
    refused(client.post("/completion", json={"prompt": PROMPT} | fields), status, "not_supported_error")


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"5",
    b"null",
    b'"x"',
    b"{}",
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "x", "top_p": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": -Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "logit_bias": [[1, NaN]]}',
    b'{"prompt": "x", "n_predict": ' + b"9" * 5000 + b"}",
    b'{"prompt": ' + b"[" * 15_000 + b"]" * 15_000 + b"}",
    b'{"prompt": "x", "json_schema": ' + b'{"not": ' * 5000 + b"{}" + b"}" * 5001,
    b'{"prompt": "x", "grammar": "root ::= ' + b"(" * 5000 + b'"}',
]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: body[:40].decode("latin-1"))
def test_bodies_that_are_no_request(client: httpx.Client, body: bytes) -> None:
    refused(client.post("/completion", content=body))


def test_a_body_of_too_many_lists(client: httpx.Client) -> None:
    refused(
        client.post("/completion", content=b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        413,
        "invalid_request_error",
    )


@pytest.mark.parametrize("token", [6016, 2**31, HUGE, -1, -(2**63)])
def test_tokens_outside_the_vocabulary(client: httpx.Client, token: int) -> None:
    for path, body in (
        ("/completion", {"prompt": [1, token]}),
        ("/completion", {"prompt": ["x", [token]], "stream": True}),
        ("/completion", {"prompt": PROMPT, "logit_bias": [[token, 1.0]]}),
        ("/detokenize", {"tokens": [token]}),
        ("/tokenize", {"content": [token], "with_pieces": True}),
        ("/embedding", {"content": [token]}),
    ):
        refused(client.post(path, json=body))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": 5}),
        ("/tokenize", {"content": [None]}),
        ("/tokenize", {"content": "x", "add_special": "no"}),
        ("/detokenize", {"tokens": "x"}),
        ("/apply-template", {}),
        ("/apply-template", {"messages": 5}),
        ("/apply-template", {"messages": []}),
        ("/embedding", {}),
        ("/embedding", {"content": ""}),
        ("/embedding", {"content": {}}),
        ("/embedding", {"content": ["x"] * 2000}),
        ("/embedding", {"content": "x", "embd_normalize": -2}),
    ],
)
def test_other_endpoints_refuse_what_is_wrong(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    refused(client.post(path, json=body))


def test_a_prompt_longer_than_the_context(client: httpx.Client) -> None:
    """llama.cpp #10380. At least one token of an answer has to fit."""
    for n in 1024, 5000:
        for body in {"prompt": [1] * n}, {"prompt": [1] * n, "stream": True}, {"prompt": ["x", [1] * n]}:
            error = refused(client.post("/completion", json=body), type="exceed_context_size_error")
            assert (error["n_prompt_tokens"], error["n_ctx"]) == (n, 1024)
    assert greedy(client, [1] * 1023, 5, ignore_eos=True)["tokens_predicted"] == 1
    assert post(client, "/embedding", content=[1] * 1024)
    refused(client.post("/embedding", json={"content": [1] * 1025}), type="exceed_context_size_error")


NUMBERS = [
    "temperature",
    "dynatemp_range",
    "dynatemp_exponent",
    "top_k",
    "top_p",
    "min_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "typical_p",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "min_keep",
    "n_probs",
    "seed",
    "n_keep",
    "n_discard",
    "id_slot",
    "t_max_predict_ms",
]


@pytest.mark.parametrize("name", NUMBERS)
def test_absurd_values_are_refused_or_answered(client: httpx.Client, usual: str, name: str) -> None:
    """llama.cpp #19367."""
    for value in (
        0,
        -1,
        1e-45,
        -1e-45,
        1e38,
        -1e38,
        1.7e308,
        2**31 - 1,
        -(2**31),
        2**32,
        2**63,
        -(2**63) - 1,
        HUGE,
    ):
        for others in {}, {"mirostat": 2}, {"dry_multiplier": 1.0, "xtc_probability": 1.0}:
            response = client.post(
                "/completion", json={"prompt": PROMPT, "n_predict": 3, "seed": 1} | others | {name: value}
            )
            if response.status_code != 200:
                refused(response)
            else:
                assert response.json()["stop"] is True
    assert greedy(client, PROMPT)["content"] == usual


def test_everything_absurd_at_once(client: httpx.Client, usual: str) -> None:
    for fields in (
        {
            "temperature": 100.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repeat_penalty": 100.0,
            "presence_penalty": 100.0,
            "frequency_penalty": 100.0,
            "dry_multiplier": 100.0,
            "dry_base": 100.0,
            "dry_allowed_length": 1,
        },
        {
            "temperature": 1e-30,
            "repeat_penalty": 0.01,
            "presence_penalty": -100.0,
            "frequency_penalty": -100.0,
            "top_n_sigma": 1e-9,
        },
        {
            "top_p": 0.0,
            "min_p": 1.0,
            "typical_p": 0.0,
            "xtc_probability": 1.0,
            "xtc_threshold": 0.0,
            "top_k": 1,
            "min_keep": 2**31 - 1,
        },
        {
            "logit_bias": [[token, False] for token in range(1000)]
            + [[token, 1e4] for token in range(1000, 1024)]
        },
        {"mirostat": 1, "mirostat_tau": 0.0, "mirostat_eta": 100.0},
        {"mirostat": 2, "mirostat_tau": 100.0, "mirostat_eta": 0.0},
        {"dynatemp_range": 100.0, "dynatemp_exponent": 100.0},
        {"samplers": []},
        {"samplers": ["temperature"] * 64},
    ):
        answer = post(
            client, "/completion", prompt=PROMPT, n_predict=20, ignore_eos=True, n_probs=2, **fields
        )
        assert answer["tokens_predicted"] == 20
        assert all(math.isfinite(each["logprob"]) for each in answer["completion_probabilities"])
    assert greedy(client, PROMPT)["content"] == usual


def test_a_million_newlines_keep_nobody_waiting(
    server: Serving, client: httpx.Client, usual: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llamafile #835. Others are answered while they are tokenized."""

    def ask(path: str, field: str) -> httpx.Response:
        return httpx.post(server.url + path, content=json.dumps({field: "\n" * 1_000_000}), timeout=60)

    begun, go, encode = threading.Event(), threading.Event(), Tokenizer.encode

    def held_encode(self: Tokenizer, text: str, *args: Any, **options: Any) -> list[int]:
        if len(text) == 1_000_000:
            begun.set()
            go.wait(60)
        return encode(self, text, *args, **options)

    monkeypatch.setattr(Tokenizer, "encode", held_encode)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, "/tokenize", "content")
        assert begun.wait(60)
        for _ in range(3):
            assert greedy(client, PROMPT)["content"] == usual
            assert client.get("/health").status_code == 200
        go.set()
        while not answer.done():
            assert greedy(client, PROMPT)["content"] == usual
    tokens = answer.result().json()["tokens"]
    assert (
        1024
        < refused(ask("/completion", "prompt"), type="exceed_context_size_error")["n_prompt_tokens"]
        <= len(tokens)
    )
    assert post(client, "/detokenize", tokens=tokens) == {"content": "\n" * 1_000_000}


@pytest.fixture
def generations(server: Serving, monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    """All that the server generates."""
    return noted(server, monkeypatch)


def noted(server: Serving, monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    found: list[Generation] = []
    generate = server.service.generate
    monkeypatch.setattr(
        server.service, "generate", lambda *asked: (found.append(generate(*asked)), found[-1])[1]
    )
    return found


def test_many_probabilities_are_not_kept_once_they_are_told(
    client: httpx.Client, generations: list[Generation]
) -> None:
    body = {"prompt": PROMPT, "n_predict": 20, "n_probs": 1000, "ignore_eos": True}
    answer = post(client, "/completion", **body)
    assert [len(each["top_logprobs"]) for each in answer["completion_probabilities"]] == [1000] * 20
    streamed = events(client, **body)
    assert (
        sum(
            len(each["top_logprobs"])
            for event in streamed
            for each in event.get("completion_probabilities", [])
        )
        == 20_000
    )
    assert [generation.sequence.reports for generation in generations] == [{}, {}]


def test_a_client_that_leaves_frees_its_slots(monkeypatch: pytest.MonkeyPatch, usual: str) -> None:
    body: dict[str, Any]
    with (
        serving(endless(), apis=[LLAMACPP]) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        generations = noted(server, monkeypatch)
        for body in {"prompt": PROMPT}, {"prompt": [PROMPT] * 6}:
            body |= {"n_predict": -1, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", server.url + "/completion", json=body, timeout=60) as response:
                next(response.iter_lines())
            until(
                lambda: (
                    not any(slot["is_processing"] for slot in client.get("/slots").json())
                    and not server.service.n_waiting
                )
            )
        assert [generation.sequence.stop_reason for generation in generations] == ["cancelled"] * 7
        assert greedy(client, PROMPT)["content"] == usual


def test_more_than_slots_and_queue_hold() -> None:
    """Of a list of prompts all are answered, or none."""
    with (
        serving(n_slots=1, n_queue=1, apis=[LLAMACPP]) as small,
        httpx.Client(base_url=small.url, timeout=60) as client,
    ):
        with ThreadPoolExecutor(1) as pool, held(small.service.llm.engine) as go:
            first = pool.submit(greedy, client, PROMPT)
            until(lambda: client.get("/slots", params={"fail_on_no_slot": 1}).status_code == 503)
            full = client.post("/completion", json={"prompt": ["x", "y"]})
            assert refused(full, 429, "rate_limit_error")
            assert int(full.headers["Retry-After"]) > 0
            go.set()
            assert first.result()["content"] == greedy(client, PROMPT)["content"]
        refused(client.post("/completion", json={"prompt": ["x", "y", "z"]}))
