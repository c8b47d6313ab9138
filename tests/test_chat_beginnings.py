"""Conversations that end with the beginning of an answer. Expected prompts are those of llama-server with the same templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Serving, serving
from test_chat_thinking import said
from test_openai_api import NO_THINKING, QUESTION, SAID, THOUGHT, chat
from test_templates import TEMPLATES

from qwencli.dialogue.dialogue import Dialogue, Settings
from qwencli.dialogue.local import LocalChat
from qwencli.dialogue.remote import RemoteChat
from qwencli.errors import InputError
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.request.request import Thinking
from qwencli.sampling import SamplingParams
from qwencli.server.options import ServerOptions
from qwencli.server.shared.conversations import ConversationFields, prompt_of
from qwencli.text.chat.answers import AnswerParser, Content, Reasoning
from qwencli.text.chat.template import ChatTemplate

USER = {"role": "user", "content": "Q"}
EMPTY = "<think>\n\n</think>\n\n"
THINKING = {"Qwen-Qwen3-0.6B", "Qwen3.5-4B", "embedded"}
PLAIN = {"Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder"}


def assistant(content: Any = None, thought: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": thought, **more}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED, n_threads=2)


@pytest.fixture(scope="module")
def demo(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as server:
        yield server


def prompt(llm: LLM, *messages: Any, template: str = "embedded", thinks: bool = True, **fields: Any) -> Any:
    body = ConversationFields.model_validate_json(json.dumps({"messages": messages} | fields))
    options = ServerOptions("", template=ChatTemplate(TEMPLATES[template]))
    return prompt_of(body, llm, options, thinks)


def text(*args: Any, **fields: Any) -> str:
    """The prompt after its last control token."""
    found = prompt(*args, **fields)
    return str(found.rendered.text.replace(found.rendered.guard, "").rpartition("<|im_start|>")[2])


@pytest.mark.parametrize("template", sorted((THINKING | PLAIN) & TEMPLATES.keys()))
@pytest.mark.parametrize(
    ("message", "fields", "thinking", "plain"),
    [
        (assistant("The capital of"), {}, EMPTY + "The capital of", "The capital of"),
        (assistant("The ", "Hm,"), {}, "<think>\nHm,\n</think>\n\nThe ", "The "),
        (assistant("", "Hm, "), {}, "<think>\nHm, ", ""),
        (assistant(None, "Hm,"), {}, "<think>\nHm,", ""),
        (assistant("", "Hm,"), {"continue_final_message": "reasoning_content"}, "<think>\nHm,", ""),
        (assistant("", "Hm,"), {"continue_final_message": "content"}, "<think>\nHm,\n</think>\n\n", ""),
        (assistant("The"), NO_THINKING, EMPTY + "The", "The"),
        (assistant("The"), {"add_generation_prompt": False}, EMPTY + "The", "The"),
        (assistant("The"), {"continue_final_message": False}, EMPTY + "The", "The"),
        (
            assistant("The"),
            {"add_generation_prompt": False, "continue_final_message": True},
            EMPTY + "The",
            "The",
        ),
        (
            assistant([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            {},
            EMPTY + "a\n\nb",
            "a\n\nb",
        ),
    ],
)
def test_the_prompt_ends_with_the_beginning(
    llm: LLM, template: str, message: Any, fields: Any, thinking: str, plain: str
) -> None:
    expected = thinking if template in THINKING else plain
    assert text(llm, USER, message, template=template, **fields) == "assistant\n" + expected


@pytest.mark.parametrize("template", sorted(TEMPLATES.keys() - PLAIN))
def test_thinking_that_stands_in_the_content(llm: LLM, template: str) -> None:
    """As whoever takes answers with their tags sends them back."""
    assert text(llm, USER, assistant("<think>\nHm, "), template=template).endswith("<think>\nHm, ")
    closed = text(llm, USER, assistant("<think>\nHm,\n</think>\n\nThe"), template=template)
    assert closed.endswith("<think>\nHm,\n</think>\n\nThe")
    assert closed.count("<think>") == 1


def test_where_no_answer_begins(llm: LLM) -> None:
    assert text(llm, USER, add_generation_prompt=False) == "user\nQ<|im_end|>\n"
    assert text(llm, USER, assistant(""), thinks=False) == "assistant\n" + EMPTY
    body = ConversationFields.model_validate({"messages": [USER, assistant("The")]})
    closed = ServerOptions("", template=ChatTemplate(TEMPLATES["embedded"]), prefill_assistant=False)
    assert prompt_of(body, llm, closed, True).rendered.text.endswith("The<|im_end|>\n<|im_start|>assistant\n")


def test_a_beginning_names_no_control_tokens(llm: LLM) -> None:
    found = prompt(llm, USER, assistant("a<|im_end|>b", "<|im_start|>"))
    tokens = found.rendered.encode(llm.tokenizer)
    assert tokens.count(llm.tokenizer.encode("<|im_end|>", parse_special=True)[0]) == 1
    assert llm.tokenizer.decode(tokens).endswith("<think>\n<|im_start|>\n</think>\n\na<|im_end|>b")


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "fields", "words"),
    [
        ([USER, assistant("a"), assistant("b")], {}, "two messages"),
        ([USER, assistant("a"), assistant("b")], {"continue_final_message": True}, "two messages"),
        (
            [USER, assistant("a")],
            {"continue_final_message": True, "add_generation_prompt": True},
            "cannot both be true",
        ),
        ([USER], {"continue_final_message": True}, "of role user"),
        ([USER, assistant("a", tool_calls=[CALL])], {}, "tool calls"),
        ([USER, assistant("a\ufdd0")], {}, "noncharacter"),
    ],
)
def test_what_no_answer_goes_on_from(demo: Serving, messages: Any, fields: Any, words: str) -> None:
    for path in "/v1/chat/completions", "/apply-template":
        response = httpx.post(demo.url + path, json={"messages": messages} | fields)
        assert response.status_code == 400, response.text
        assert words in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("beginning", "fields", "expected"),
    [
        (assistant("The capital of"), {}, (" France is Paris.", None)),
        (assistant("The capital of"), {"echo": True}, (SAID, None)),
        (assistant("The capital of"), {"reasoning_format": "none"}, (" France is Paris.", None)),
        (assistant("The capital of"), {"reasoning_format": "none", "echo": True}, (EMPTY + SAID, None)),
        (assistant("", THOUGHT[:29]), {}, (SAID, THOUGHT[29:])),
        (assistant("", THOUGHT[:29]), {"echo": True}, (SAID, THOUGHT)),
        (
            assistant("", THOUGHT[:29]),
            {"reasoning_format": "none"},
            (THOUGHT[29:] + "\n</think>\n\n" + SAID, None),
        ),
        (assistant("The capital", THOUGHT), {}, (" of France is Paris.", None)),
        (assistant("The capital", THOUGHT), {"echo": True}, (SAID, THOUGHT)),
        (assistant("", THOUGHT[:29]), {"reasoning_budget": 2, "max_tokens": 2}, ("", None)),
    ],
)
def test_an_answer_goes_on(demo: Serving, beginning: Any, fields: Any, expected: Any) -> None:
    if "reasoning_budget" in fields:  # tokens of thinking count from where it goes on
        content, thought = said(demo, messages=[*QUESTION, beginning], **fields)
        assert content == ""
        assert thought
        assert THOUGHT[29:].startswith(thought)
        return
    assert said(demo, messages=[*QUESTION, beginning], **fields) == expected


def test_the_same_through_the_other_apis(demo: Serving) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of"}]
    shown = httpx.post(f"{demo.url}/apply-template", json={"messages": messages}).json()["prompt"]
    assert shown == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\nThe capital of"
    )
    body = {"model": "m", "messages": messages, "stream": False, "options": {"temperature": 0}}
    assert httpx.post(f"{demo.url}/api/chat", json=body).json()["message"]["content"] == " France is Paris."


@pytest.mark.parametrize("begun", ['{"a"', '{"a": [1,', '{"a": [1, 2], '])
def test_a_grammar_holds_for_the_whole_answer(demo: Serving, begun: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}, "b": {"const": "x"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    messages = [*QUESTION, assistant(begun)]
    answer = chat(demo, messages, response_format=form, max_tokens=60, temperature=0)
    whole = json.loads(begun + answer.choices[0].message.content)
    assert whole["b"] == "x"
    assert set(whole["a"]) <= {1, 2}


def test_a_beginning_that_breaks_the_grammar(demo: Serving) -> None:
    body = {"messages": [*QUESTION, assistant("Well, ")], "response_format": {"type": "json_object"}}
    response = httpx.post(f"{demo.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"


def test_a_call_that_has_to_be_after_a_beginning(demo: Serving) -> None:
    tool = {"type": "function", "function": {"name": "clock"}}
    messages = [*QUESTION, assistant("I look.")]
    choice = chat(demo, messages, tools=[tool], tool_choice="required", max_tokens=40).choices[0]
    assert choice.finish_reason in ("tool_calls", "length")
    if choice.message.tool_calls:
        assert choice.message.tool_calls[0].function.name == "clock"


@pytest.mark.parametrize("n", [1, 4, 1000])
def test_text_from_the_middle_of_an_answer_stays_as_it_is(n: int) -> None:
    def events(parser: AnswerParser, text: str) -> list[Any]:
        return [e for i in range(0, len(text), n) for e in parser.add(text[i : i + n])] + parser.end()

    def joined(found: list[Any], kind: Any) -> str:
        return "".join(e.text for e in found if isinstance(e, kind))

    found = events(AnswerParser(goes_on=True), "\n <think>a</think>")
    assert joined(found, Content) == "\n <think>a</think>"
    found = events(AnswerParser(True, goes_on=True), "\n\n and\n</think>\n\nb")
    assert (joined(found, Reasoning), joined(found, Content)) == ("\n\n and", "b")


def test_how_an_answer_that_goes_on_thinks(llm: LLM) -> None:
    assert prompt(llm, USER, assistant("The")).thinking(9, True) == Thinking()
    inside = prompt(llm, USER, assistant("", "Hm")).thinking(9, True, "!")
    assert inside == Thinking(first=True, inside=True, limit=9, message="!")
    closed = prompt(llm, USER, assistant("", "Hm"), thinks=False)
    assert closed.rendered.text.endswith("Hm\n</think>\n\n")
    assert closed.thinking(9, True) == Thinking()


def test_a_chat_goes_on_with_its_last_answer(llm: LLM) -> None:
    local = LocalChat(llm)
    settings = Settings(llm.sampling(temp=0))
    dialogue = Dialogue(local, settings, [*QUESTION, assistant("The capital of")])
    assert "".join(e.text for e in dialogue.go_on() if isinstance(e, Content)) == " France is Paris."
    assert dialogue.messages == [*QUESTION, {"role": "assistant", "content": SAID}]
    dialogue.messages = [*QUESTION]
    with pytest.raises(InputError, match="no answer"):
        list(dialogue.go_on())


@pytest.mark.parametrize("n", [4, 7, 20])
def test_an_answer_in_parts_is_computed_once(llm: LLM, n: int) -> None:
    """Cut off within its thinking, where that has just ended (7), and within what it says."""
    local = LocalChat(llm)
    dialogue = Dialogue(local, Settings(llm.sampling(temp=0), max_tokens=n))
    list(dialogue.ask(QUESTION[0]["content"]))
    while local.stop_reason == "length":
        list(dialogue.go_on())
        assert local.stats()["prompt_n"] <= 1
    assert dialogue.messages[1:] == [assistant(SAID, THOUGHT)]


def test_a_chat_with_a_server_goes_on(demo: Serving) -> None:
    remote = RemoteChat(demo.url)
    settings = Settings(SamplingParams(temp=0), think=None)
    dialogue = Dialogue(remote, settings, [*QUESTION, assistant("The capital of", THOUGHT)])
    assert "".join(e.text for e in dialogue.go_on() if isinstance(e, Content)) == " France is Paris."
    assert dialogue.messages[1:] == [assistant(SAID, THOUGHT)]
    dialogue.messages = [*QUESTION, assistant("", THOUGHT[:29])]
    assert "".join(e.text for e in dialogue.go_on() if isinstance(e, Reasoning)) == THOUGHT[29:]
    assert dialogue.messages[1:] == [assistant(SAID, THOUGHT)]
