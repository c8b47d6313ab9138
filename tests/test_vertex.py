"""Predictions as Vertex AI's containers answer them, by its documentation and llama-server's names for formats."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import serving

from qwencli.errors import InputError
from qwencli.server.vertex.variables import Variables, read

CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        serving(
            predict_path="/predict", health_path="/alive", api_keys=("key",), api_prefix="/under"
        ) as server,
        httpx.Client(
            base_url=f"{server.url}/under", headers={"Authorization": "Bearer key"}, timeout=60
        ) as client,
    ):
        yield client


def predictions(http: httpx.Client, *instances: dict[str, Any]) -> list[Any]:
    answer = http.post("/predict", json={"instances": instances})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"predictions"}
    return list(answer.json()["predictions"])


def test_each_instance_is_answered_by_the_endpoint_it_names(http: httpx.Client) -> None:
    chat = {**CHAT, **NO_THINKING}
    first, second, tokens, template = predictions(
        http,
        {"@requestFormat": "chatCompletions", **chat, "stream": True},
        {"@requestFormat": "/v1/chat/completions", **chat},
        {"@requestFormat": "tokenize", "content": "Hello"},
        {"@requestFormat": "applyTemplate", "messages": CHAT["messages"]},
    )
    for answer in first, second:
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert tokens == http.post("/tokenize", json={"content": "Hello"}).json()
    assert template == http.post("/apply-template", json={"messages": CHAT["messages"]}).json()


def test_an_instance_that_fails_leaves_the_others_alone(http: httpx.Client) -> None:
    unknown, missing, itself, wrong, good = predictions(
        http,
        {"@requestFormat": "nonsense"},
        {"messages": []},
        {"@requestFormat": "/predict", "instances": []},
        {"@requestFormat": "chatCompletions", "messages": "text"},
        {"@requestFormat": "tokenize", "content": "a"},
    )
    for answer in unknown, missing, itself:
        assert "expected the name of an endpoint" in answer["error"]["message"]
    assert "messages" in wrong["error"]["message"]
    assert good["tokens"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "Input should be an object"),
        ({}, "instances: Field required"),
        ({"instances": 1}, "instances: Input should be a valid array"),
        ({"instances": [1]}, "instances.0"),
        ({"instances": [{}] * 129}, "at most 128 items"),
    ],
)
def test_bodies_that_are_none(http: httpx.Client, body: Any, said: str) -> None:
    answer = http.post("/predict", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_who_may_ask(http: httpx.Client) -> None:
    """Health alone needs no key."""
    stranger = {"Authorization": ""}
    assert http.post("/predict", json={"instances": []}, headers=stranger).status_code == 401
    assert http.get("/alive", headers=stranger).json() == {"status": "ok"}


def test_the_path_is_there_for_vertex_alone() -> None:
    with serving() as server:
        assert httpx.post(f"{server.url}/predict", json={"instances": []}).status_code == 404


def test_the_variables() -> None:
    assert read({"AIP_HTTP_PORT": "9000"}) is None
    assert read({"AIP_MODE": "PREDICTION"}) == Variables(8080, "/predict", None)
    told = {
        "AIP_MODE": "PREDICTION",
        "AIP_HTTP_PORT": "9000",
        "AIP_PREDICT_ROUTE": "p/q",
        "AIP_HEALTH_ROUTE": "/h",
    }
    assert read(told) == Variables(9000, "/p/q", "/h")
    for name, value in ("AIP_HTTP_PORT", "x"), ("AIP_HTTP_PORT", "65536"), ("AIP_PREDICT_ROUTE", "/a?b"):
        with pytest.raises(InputError, match=name):
            read({**told, name: value})


def test_the_command_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    monkeypatch.setenv("AIP_HTTP_PORT", "none")
    done = subprocess.run(
        [sys.executable, "-m", "qwencli", "serve"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "AIP_HTTP_PORT is 'none', expected a port" in done.stderr
