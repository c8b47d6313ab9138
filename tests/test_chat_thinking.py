"""Who decides whether an answer thinks, and where its thinking stands. Expected texts are those of llama-server with the same model."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from serving import Serving, serving
from test_openai_api import QUESTION, SAID, THOUGHT, chat

from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.server.http.errors import ApiError
from qwencli.server.options import ServerOptions
from qwencli.server.shared.conversations import ConversationFields
from qwencli.text.chat.answers import AnswerParser, Content, ToolCall
from qwencli.text.chat.template import ChatTemplate
from qwencli.text.chat.thinking import last_block

WHOLE = f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"
EMPTY = "<think>\n\n</think>\n\n"
ALWAYS = "{{ '<|im_start|>user\n' + messages[0].content + '<|im_end|>\n<|im_start|>assistant\n<think>\n' }}"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED, n_threads=2)


@pytest.fixture(scope="module")
def demo(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as server:
        yield server


def said(server: Serving, **fields: Any) -> tuple[str, str | None]:
    """Content and thinking, the same whether they stream or not."""
    message = chat(server, **({"temperature": 0} | fields)).choices[0].message
    found = message.content, getattr(message, "reasoning_content", None)
    chunks = list(chat(server, stream=True, **({"temperature": 0} | fields)))
    for name, text in zip(("content", "reasoning_content"), found):
        assert "".join(getattr(c.choices[0].delta, name, None) or "" for c in chunks) == (text or "")
    return found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (SAID, THOUGHT)),
        ({"reasoning_format": "auto"}, (SAID, THOUGHT)),
        ({"reasoning_format": "deepseek"}, (SAID, THOUGHT)),
        ({"reasoning_format": "deepseek-legacy"}, (SAID, THOUGHT)),
        ({"reasoning_format": "none"}, (WHOLE, None)),
        ({"reasoning_format": "none", "max_tokens": 5}, ("<think>\nThe user ask", None)),
        ({"reasoning_effort": "none"}, (SAID, None)),
        ({"reasoning_effort": "none", "reasoning_format": "none"}, (EMPTY + SAID, None)),
        ({"reasoning_effort": "high"}, (SAID, THOUGHT)),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}, (SAID, None)),
        ({"think": False}, (SAID, None)),
        ({"think": True, "reasoning_effort": "none"}, (SAID, THOUGHT)),
        ({"chat_template_kwargs": '{"enable_thinking": false}'}, (SAID, None)),
        (
            {"reasoning_budget_tokens": 4, "reasoning_budget_message": " Enough."},
            (SAID, "The user ask Enough."),
        ),
    ],
)
def test_where_thinking_stands(demo: Serving, fields: Any, expected: Any) -> None:
    assert said(demo, **fields) == expected


@pytest.mark.parametrize(
    ("settings", "fields", "expected"),
    [
        ({"reasoning_format": "none"}, {}, (WHOLE, None)),
        ({"reasoning_format": "none"}, {"reasoning_format": "auto"}, (SAID, THOUGHT)),
        ({"parse_answers": False}, {}, (WHOLE, None)),
        ({"parse_answers": False}, {"reasoning_format": "auto", "reasoning_effort": "none"}, (SAID, None)),
        ({"template_kwargs": {"enable_thinking": False}}, {}, (SAID, None)),
        (
            {"template_kwargs": {"enable_thinking": False}},
            {"chat_template_kwargs": {"enable_thinking": True}},
            (SAID, THOUGHT),
        ),
        ({"reasoning_effort": "none"}, {}, (SAID, None)),
        ({"reasoning_budget": 4, "reasoning_message": " Enough."}, {}, (SAID, "The user ask Enough.")),
        ({"reasoning_budget": 4, "reasoning_message": "!"}, {"think": False}, (SAID, None)),
        ({"stop": (" France",), "think": False}, {}, ("The capital of", None)),
        ({"stop": (" France",), "think": False}, {"stop": []}, ("The capital of", None)),
        ({"stop": (" France",), "think": False}, {"stop": "."}, ("The capital of France is Paris", None)),
        ({"template": ChatTemplate(ALWAYS)}, {"reasoning_format": "none"}, (WHOLE, None)),
        ({"template": ChatTemplate(ALWAYS)}, {}, (SAID, THOUGHT)),
        (
            {"template": ChatTemplate(ALWAYS)},
            {"reasoning_format": "none", "reasoning_effort": "none"},
            (EMPTY + SAID, None),
        ),
    ],
)
def test_what_the_server_was_told(llm: LLM, settings: Any, fields: Any, expected: Any) -> None:
    with serving(llm, **settings) as server:
        assert said(server, **fields) == expected


def test_an_answer_that_goes_on_where_the_model_would_end_it(llm: LLM) -> None:
    with serving(llm, ignore_eos=True, think=False) as server:
        answers = [chat(server, max_tokens=40, temperature=0, **more) for more in ({}, {"ignore_eos": False})]
    assert [a.choices[0].finish_reason for a in answers] == ["length", "stop"]
    assert answers[0].usage.completion_tokens == 40


@pytest.mark.parametrize(
    ("settings", "fields", "expected"),
    [
        ({}, {}, {}),
        ({}, {"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({}, {"reasoning_effort": ""}, {}),
        ({}, {"reasoning_effort": "none", "chat_template_kwargs": {"reasoning_effort": "low"}}, {}),
        ({"reasoning_effort": "low"}, {}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "default"}, {}, {}),
        (
            {"template_kwargs": {"a": 1, "b": [2]}},
            {"chat_template_kwargs": {"a": 3, "c": None}},
            {"a": 3, "b": [2]},
        ),
    ],
)
def test_variables_of_the_template(settings: Any, fields: Any, expected: Any) -> None:
    body = ConversationFields.model_validate_json(json.dumps({"messages": QUESTION} | fields))
    assert body.variables(ServerOptions("", **settings)) == expected


def test_what_the_template_is_not_given(llm: LLM) -> None:
    body = ConversationFields.model_validate({"messages": QUESTION, "chat_template_kwargs": {"messages": []}})
    with pytest.raises(ApiError, match="chat_template_kwargs cannot set messages"):
        body.variables(ServerOptions(""))
    for given in "true", 1:
        body = ConversationFields.model_validate(
            {"messages": QUESTION, "chat_template_kwargs": {"enable_thinking": given}}
        )
        with pytest.raises(ApiError, match="enable_thinking: Input should be a valid boolean"):
            body.thinking(ServerOptions(""))


CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_thinking_that_is_not_told_apart(n: int) -> None:
    """All text is content, as it was written, but for calls, wherever they stand."""
    text = f"<think>\n a \n</think>\n\nb {CALL}"
    parser = AnswerParser(tools=[CLOCK], tells_thinking=False)
    events = [event for i in range(0, len(text), n) for event in parser.add(text[i : i + n])] + parser.end()
    assert "".join(e.text for e in events if isinstance(e, Content)) == "<think>\n a \n</think>\n\nb"
    assert [e for e in events if isinstance(e, ToolCall)] == [ToolCall("clock", {})]


def test_calls_that_are_not_told_apart() -> None:
    body = ConversationFields.model_validate({"messages": QUESTION, "tools": [CLOCK]})
    options = ServerOptions("")
    assert body.callable_tools(options) == [CLOCK]
    assert body.callable_tools(replace(options, parse_answers=False)) is None
    assert body.model_copy(update={"parse_tool_calls": False}).callable_tools(options) is None


@pytest.mark.parametrize(
    ("prompt", "block"),
    [
        ("a<think>\n", "<think>\n"),
        ("a<think>\n\n</think>\n\n", EMPTY),
        ("<think>\nb\n</think>\n\n", ""),
        ("<think>\n\n</think>\n\nb", ""),
        ("a", ""),
    ],
)
def test_the_block_that_a_prompt_ends_with(prompt: str, block: str) -> None:
    assert last_block(prompt) == block
