"""What clients write in more than one way: llama-server takes each of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Serving, serving
from test_openai_api import QUESTION, SAID
from test_templates import TEMPLATES

from qwencli.text.chat.template import ChatTemplate

CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with serving(think=False) as server:
        yield server


def post(server: Serving, path: str, **body: Any) -> Any:
    return httpx.post(server.url + path, json=body, timeout=60)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 12.0},
        {"max_completion_tokens": 1e1},
        {"n_predict": 12.0},
        {"n": 1.0},
        {"seed": 7.0},
        {"top_k": 40.0},
        {"repeat_last_n": 64.0},
        {"logprobs": True, "top_logprobs": 2.0},
        {"reasoning_budget_tokens": -1.0},
        {"chat_template_kwargs": "{}"},
        {"chat_template_kwargs": '{"enable_thinking": false, "colour": [1]}'},
        {"echo": False},
        {"suffix": ""},
        {"best_of": 1},
        {"stop": ""},
        {"stop": [""]},
        {"tools": [], "tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"stream_options": None},
        {"cache_prompt": True, "id_slot": -1.0},
    ],
)
def test_chats(demo: Serving, fields: dict[str, Any]) -> None:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 20} | fields
    response = post(demo, "/v1/chat/completions", **body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == SAID


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 12.0}, {"n_predict": 3.0}, {"echo": False}, {"suffix": ""}, {"best_of": 1}, {"n": 1.0}],
)
def test_texts(demo: Serving, path: str, fields: dict[str, Any]) -> None:
    response = post(demo, path, **({"prompt": "Once", "max_tokens": 2} | fields))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 12.5}, "max_tokens"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 1e300}, "max_tokens"),
        ({"seed": 0.5}, "seed"),
        ({"n": True}, "n"),
        ({"chat_template_kwargs": "[1]"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "{"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "{" * 10_000}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "5"}, "chat_template_kwargs"),
    ],
)
def test_what_is_refused_all_the_same(demo: Serving, fields: dict[str, Any], param: str) -> None:
    response = post(demo, "/v1/chat/completions", messages=QUESTION, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], "\n" in error["message"]) == (param, False)


def prompt(server: Serving, *messages: dict[str, Any], **fields: Any) -> str:
    response = post(server, "/apply-template", messages=messages, **fields)
    assert response.status_code == 200, response.text
    return str(response.json()["prompt"])


def test_messages_without_content(demo: Serving) -> None:
    user, empty = "<|im_start|>user\n", {"role": "user", "content": None}
    assert prompt(demo, empty).startswith(f"{user}<|im_end|>\n")
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    for result in (
        {"role": "tool", "tool_call_id": "1", "content": None},
        {"role": "function", "name": "clock", "content": None},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ):
        text = prompt(demo, *QUESTION, called, result)
        assert f"{user}<tool_response>\n\n</tool_response><|im_end|>\n" in text
    assert post(demo, "/apply-template", messages=[{"role": "user"}]).status_code == 400


def test_an_old_functions_result_is_a_tools(demo: Serving) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    results = [{"role": role, "name": "clock", "content": "12:30"} for role in ("function", "tool")]
    texts = {prompt(demo, *QUESTION, called, result) for result in results}
    assert len(texts) == 1
    assert "<tool_response>\n12:30\n</tool_response>" in texts.pop()


LATE = [{"role": "system", "content": "A"}, *QUESTION, {"role": "system", "content": "B"}, *QUESTION]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_late_system_message(template: str) -> None:
    """Where the template refuses it, in its words; else it is there."""
    with serving(template=ChatTemplate(TEMPLATES[template])) as server:
        response = post(server, "/apply-template", messages=LATE)
        if "System message must be at the beginning" in TEMPLATES[template]:
            assert response.status_code == 400
            assert "System message must be at the beginning" in response.json()["error"]["message"]
        elif "deepseek" not in template:  # that one writes all of them at the start
            text = response.json()["prompt"]
            assert text.index("A<|im_end|>") < text.index("system\nB<|im_end|>")
