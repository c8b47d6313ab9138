"""OpenAI's API: tools, answers of a given form, and what conversations become on the way to the model."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_builder
import jsonschema
import openai
import pytest
from serving import Serving, serving
from test_openai_api import NO_THINKING, QUESTION, chat, joined, text
from test_templates import TEMPLATES, oracle

from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.server.http.errors import ApiError
from qwencli.server.options import ServerOptions
from qwencli.server.shared.conversations import ConversationFields, prompt_of
from qwencli.server.shared.forms import call_or_answer, call_schema
from qwencli.text.chat.template import ChatTemplate
from qwencli.text.tokenizer import Tokenizer

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Köln", "Ulm"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": CITY}}
EOS = "<|im_end|>"
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALLS = [("weather", {"city": "Köln"}), ("weather", {"city": "Ulm", "days": 3})]
SPOKEN = [
    "<think>",
    "\nTwo",
    " cities",
    "\n</think>",
    "\n\nI",
    " look.\n",
    "<tool_call>\n",
    '{"name": "weather", "arg',
    'uments": {"city": "Köln"}}',
    "\n</tool_call>",
    "\n<tool_call>",
    '\n{"name": "weather", "arguments": ',
    '{"city": "Ulm", "days": 3}}\n',
    "</tool_call>\n",
]


__all__ = ["oracle"]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A model that says SPOKEN: it thinks, says something and calls a tool twice."""
    path = gguf_builder.reciter(SPOKEN).write(tmp_path_factory.mktemp("caller") / "m.gguf")
    llm = LLM(path)
    with serving(llm, template=knowing_thinking(llm)) as server:
        yield server


def knowing_thinking(llm: LLM) -> ChatTemplate:
    """The file's template with a word about thinking that changes nothing: without one, tags of thinking are text as any other."""
    assert llm.chat_template
    return ChatTemplate(llm.chat_template.source + "{% if enable_thinking is false %}{% endif %}")


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with serving() as server:
        yield server


def test_tool_calls(caller: Serving) -> None:
    choice = chat(caller, temperature=0, tools=[WEATHER]).choices[0]
    message = choice.message
    assert (message.reasoning_content, message.content, choice.finish_reason) == (
        "Two cities",
        "I look.",
        "tool_calls",
    )
    assert [(c.type, c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls] == [
        ("function", name, arguments) for name, arguments in CALLS
    ]
    again = chat(caller, temperature=0, tools=[WEATHER]).choices[0].message
    assert len({call.id for m in (message, again) for call in m.tool_calls}) == 4


def test_tool_calls_in_a_stream(caller: Serving) -> None:
    chunks = list(chat(caller, temperature=0, tools=[WEATHER], stream=True))
    assert (joined(chunks, "reasoning_content"), joined(chunks)) == ("Two cities", "I look.")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    calls: dict[int, list[Any]] = {}
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or ():
            calls.setdefault(call.index, []).append(call)
    assert [
        (parts[0].function.name, json.loads("".join(part.function.arguments for part in parts)))
        for parts in calls.values()
    ] == CALLS
    assert list(calls) == [0, 1]
    first = next(i for i, chunk in enumerate(chunks) if chunk.choices[0].delta.tool_calls)
    assert len(chunks) - first >= 3, "a call is passed on before the next one is complete"


def test_one_call_at_most(caller: Serving) -> None:
    choice = chat(caller, temperature=0, tools=[WEATHER], parallel_tool_calls=False).choices[0]
    assert [json.loads(c.function.arguments) for c in choice.message.tool_calls] == [CALLS[0][1]]
    assert choice.finish_reason == "tool_calls"
    chunks = list(chat(caller, temperature=0, tools=[WEATHER], parallel_tool_calls=False, stream=True))
    assert sum(len(chunk.choices[0].delta.tool_calls or ()) for chunk in chunks) == 1
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_calls_are_text(caller: Serving, fields: Any) -> None:
    choice = chat(caller, temperature=0, **fields).choices[0]
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    assert choice.message.content == "".join(SPOKEN).partition("</think>\n\n")[2]


def test_a_call_that_is_cut_off_is_text(caller: Serving) -> None:
    choice = chat(caller, temperature=0, tools=[WEATHER], max_tokens=8).choices[0]
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "length")
    assert choice.message.content == "".join(SPOKEN[:8]).partition("</think>\n\n")[2]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_has_to_be(demo: Serving, choice: Any, stream: bool) -> None:
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    answer = chat(demo, tools=tools, tool_choice=choice, temperature=1, seed=1, max_tokens=300, stream=stream)
    if stream:
        chunks = list(answer)
        finish, calls = (
            chunks[-1].choices[0].finish_reason,
            [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()],
        )
        assert joined(chunks) == ""
    else:
        finish, calls = answer.choices[0].finish_reason, answer.choices[0].message.tool_calls
        assert answer.choices[0].message.content is None
    assert (finish, [c.function.name for c in calls]) == ("tool_calls", ["weather"])
    jsonschema.validate(json.loads(calls[0].function.arguments), CITY)


def test_references_within_a_tools_schema_lead_where_they_did() -> None:
    schema = call_schema([CLOCK["function"], WEATHER["function"]])  # type: ignore[list-item]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name, arguments, valid in [
        ("weather", {"city": "Ulm"}, True),
        ("weather", {"city": "Rom"}, False),
        ("weather", {}, False),
        ("clock", {"a": 1}, True),
        ("other", {}, False),
    ]:
        assert validator.is_valid({"name": name, "arguments": arguments}) == valid


# Answers of a form

AGE = {"type": "integer", "minimum": 0, "maximum": 150}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": AGE},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": PERSON, "strict": True},
            }
        },
        {"response_format": {"type": "json_object", "schema": PERSON}},
        {"json_schema": PERSON},
    ],
)
@pytest.mark.parametrize("more", [NO_THINKING, {}, {"reasoning_budget": 4}])
def test_answers_follow_a_schema_and_may_think_before(demo: Serving, fields: Any, more: Any) -> None:
    choice = chat(demo, temperature=1, seed=2, max_tokens=300, **fields, **more).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), PERSON)
    assert bool(getattr(choice.message, "reasoning_content", "")) == (more is not NO_THINKING)


def test_any_json_object(demo: Serving) -> None:
    form = {"type": "json_object"}
    choice = chat(demo, temperature=1, seed=1, max_tokens=400, response_format=form, **NO_THINKING).choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_a_grammar(demo: Serving) -> None:
    grammar = 'root ::= "yes" | "no"'
    assert chat(demo, temperature=1, grammar=grammar, **NO_THINKING).choices[0].message.content in (
        "yes",
        "no",
    )
    assert text(demo, temperature=1, grammar=grammar).choices[0].text in ("yes", "no")
    assert json.loads(text(demo, temperature=1, json_schema={"enum": [12, "x"]}).choices[0].text) in (12, "x")


NOT_SUPPORTED = {"type": "function", "function": {"name": "f", "parameters": {"not": {"type": "string"}}}}
SCHEMA = {"type": "object", "properties": {"said": {"type": "string"}}, "required": ["said"]}
FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
CALL = ["<tool_call>\n", '{"name": "weather", "arguments": {"city": "', 'Ulm"}}', "\n</tool_call>"]


@pytest.mark.parametrize(
    ("spoken", "n_calls", "content"),
    [
        (CALL, 1, None),
        (['{"said"', ': "Yes', '"}'], 0, '{"said": "Yes"}'),
        (["<think>", "\nTwo", "\n</think>\n\n", *CALL], 1, None),
        (["<think>", "\nTwo", "\n</think>\n\n", '{"said"', ': "Yes', '"}'], 0, '{"said": "Yes"}'),
    ],
)
def test_a_call_or_an_answer_of_a_schema(
    tmp_path: Path, spoken: list[str], n_calls: int, content: str | None
) -> None:
    """A model that says either of its own accord may do so."""
    path = gguf_builder.reciter(spoken).write(tmp_path / "m.gguf")
    with serving(LLM(path)) as server:
        for fields in ({"response_format": FORM}, {"json_schema": SCHEMA}):
            message = chat(server, temperature=0, tools=[WEATHER], **fields).choices[0].message
            assert [json.loads(c.function.arguments) for c in message.tool_calls or ()] == [
                {"city": "Ulm"}
            ] * n_calls
            assert message.content == content
        one = chat(server, temperature=0, tools=[WEATHER], response_format=FORM, parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls or ()) == min(1, n_calls)


@pytest.mark.parametrize("several", [False, True])
def test_several_calls_or_an_answer(llm: LLM, several: bool) -> None:
    call = "".join(CALL)
    follows = call_or_answer(llm, [WEATHER["function"]], "response_format", SCHEMA, several)

    def fits(text: str) -> bool:
        """Whether an answer may be this text, and end there."""
        constraint, tokens = follows(), llm.tokenizer.encode(text)
        for i, token in enumerate(tokens):
            mask = constraint.mask(tokens[:i])
            if mask is None or not mask[token]:
                return False
        mask = constraint.mask(tokens)
        return constraint.ended(tokens) or (
            mask is not None and bool(mask[list(llm.tokenizer.eog_ids)].any())
        )

    assert fits(call)
    assert fits('{"said": "x"}')
    assert fits(f"{call}\n{call}") == several
    for other in (f'{call}{{"said": "x"}}', '{"city": "Ulm"}', "Yes", call.replace("weather", "clock")):
        assert not fits(other)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_but_a_call_or_an_answer_of_the_schema(demo: Serving, seed: int) -> None:
    fields = {"tools": [WEATHER], "seed": seed, "temperature": 2, "max_tokens": 300, "reasoning_budget": 5}
    choice = chat(demo, response_format=FORM, **fields).choices[0]
    if choice.finish_reason == "length":
        return
    for call in choice.message.tool_calls or ():
        jsonschema.validate(json.loads(call.function.arguments), CITY)
    if not choice.message.tool_calls:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


@pytest.mark.parametrize(
    "value",
    [
        *(
            {"type": "string", "format": name}
            for name in ("password", "byte", "url", "regex", "int32", "idn-email", "")
        ),
        {"type": "integer", "format": "int64"},
        {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": False},
        {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": 1},
        {"anyOf": [{"type": "string", "format": "color"}, {"type": "null"}]},
        {"$ref": "#/$defs/format"},
        {"type": "object", "properties": {"format": {"const": "byte"}, "uniqueItems": {"type": "boolean"}}},
        {"enum": [{"format": "byte"}, "a"]},
        {
            "type": "object",
            "propertyNames": {},
            "dependentRequired": {},
            "unevaluatedProperties": True,
            "not": False,
        },
        {"type": "array", "minContains": 1, "maxItems": 1},
    ],
)
def test_keywords_that_ask_for_nothing(demo: Serving, value: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"value": value},
        "required": ["value"],
        "additionalProperties": False,
        "$defs": {"format": {"type": "string", "format": "url"}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    common = {"temperature": 1, "seed": 4, "max_tokens": 200}
    choice = chat(demo, response_format=form, **NO_THINKING, **common).choices[0]
    if choice.finish_reason == "stop":
        jsonschema.validate(json.loads(choice.message.content), schema)
    choice = chat(demo, tools=[tool], tool_choice="required", **common).choices[0]
    if choice.message.tool_calls:
        jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), schema)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "array", "uniqueItems": True},
        {"type": "array", "contains": {"const": 1}},
        {"type": "object", "propertyNames": {"maxLength": 3}},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"not": {"type": "string"}},
        {"not": {}},
        {"if": {"type": "string"}, "then": {"maxLength": 3}},
        {"type": "string", "format": 5},
        {"type": "array", "uniqueItems": 0},
    ],
)
def test_keywords_that_cannot_be_kept(demo: Serving, value: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"properties": {"value": value}}}}
    with pytest.raises(openai.BadRequestError):
        chat(demo, response_format=form)


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": {"type": "nonsense"}},
        {"grammar": "root ::= ((("},
        {"grammar": 'root ::= "a"', "json_schema": PERSON},
        {"json_schema": PERSON, "response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
        {"grammar": 'root ::= "a"', "tools": [WEATHER]},
        {"response_format": {"type": "json_object"}, "tools": [NOT_SUPPORTED]},
        {"json_schema": {"uniqueItems": True}, "tools": [WEATHER]},
        {"tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"top_logprobs": 2},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"enable_thinking": 1}},
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_generated(demo: Serving, fields: Any) -> None:
    before = demo.service.counters.n_generated
    with pytest.raises(openai.BadRequestError):
        chat(demo, stream=True, **fields)
    assert demo.service.counters.n_generated == before


# What the template gets

SHOWN = ChatTemplate(
    "{% for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.reasoning_content }}|{{ m.tool_call_id }}|{{ m.name }}|"
    "{% for c in m.tool_calls or [] %}{{ c.id }} {{ c.function.name }} {% for k, v in c.function.arguments.items() %}"
    "{{ k }}={{ v }};{% endfor %}{% endfor %}]{% endfor %}{{ tools | tojson if tools }}{{ enable_thinking }}{{ colour }}"
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED)


def shown(llm: LLM, template: ChatTemplate = SHOWN, think: bool = True, **fields: Any) -> str:
    body = ConversationFields.model_validate_json(json.dumps(fields))
    prompt = prompt_of(body, llm, ServerOptions("", template=template), think).rendered
    return prompt.text.replace(prompt.guard, "")


def test_messages_reach_the_template(llm: LLM) -> None:
    called = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 3}'},
            }
        ],
    }
    asked = {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "Ann"}
    messages = [
        {"role": "developer", "content": "brief"},
        asked,
        called,
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    ]
    assert shown(llm, messages=messages) == (
        "[system|brief||||][user|a|||Ann|][assistant||hm|||call_1 weather city=Köln;days=3;][tool|rain||call_1||]True"
    )
    assert shown(llm, messages=QUESTION[:1], chat_template_kwargs={"colour": "blue"}, think=False).endswith(
        "Falseblue"
    )


def test_tools_reach_the_template_as_they_are(llm: LLM) -> None:
    tool = {
        "type": "function",
        "function": {"strict": True, "parameters": {"b": 1, "a": 2}, "name": "f", "description": "<é>"},
    }
    assert json.loads(shown(llm, messages=QUESTION, tools=[tool]).partition("]")[2].removesuffix("True")) == [
        tool
    ]
    assert '"strict": true, "parameters": {"b": 1, "a": 2}, "name"' in shown(
        llm, messages=QUESTION, tools=[tool]
    )
    assert shown(llm, messages=QUESTION, tools=[tool], tool_choice="none").endswith("]True")


def test_what_users_write_names_no_control_tokens(llm: LLM) -> None:
    body = ConversationFields.model_validate({"messages": [{"role": "user", "content": "<|im_end|>"}]})
    options = ServerOptions("", template=ChatTemplate.named("chatml"))
    prompt = prompt_of(body, llm, options, True).rendered
    end: int = Tokenizer(llm.file).encode("<|im_end|>", parse_special=True)[0]
    assert prompt.encode(llm.tokenizer).count(end) == 1


def test_a_template_that_always_thinks(llm: LLM) -> None:
    always = ChatTemplate("{{ messages[0].content }}<think>{{ '\n' }}")
    assert shown(llm, always, think=False, messages=QUESTION).endswith("<think>\n\n</think>\n\n")
    assert shown(llm, always, messages=QUESTION).endswith("<think>\n")


@pytest.mark.parametrize(
    ("server", "kwargs", "budget", "expected"),
    [
        ({}, {}, {}, (True, None)),
        ({"think": False}, {}, {}, (False, None)),
        ({"think": False}, {"enable_thinking": True}, {}, (True, None)),
        ({"think": False}, {"enable_thinking": None}, {}, (False, None)),
        ({}, {"enable_thinking": False}, {}, (False, None)),
        ({"reasoning_budget": 9}, {}, {}, (True, 9)),
        ({"reasoning_budget": 9}, {}, {"reasoning_budget_tokens": 5}, (True, 5)),
        ({"reasoning_budget": 9}, {}, {"thinking_budget_tokens": -1}, (True, None)),
        ({}, {}, {"reasoning_budget": 0}, (False, 0)),
    ],
)
def test_who_decides_about_thinking(
    server: dict[str, Any], kwargs: dict[str, Any], budget: dict[str, Any], expected: Any
) -> None:
    body = ConversationFields.model_validate({"messages": QUESTION, "chat_template_kwargs": kwargs} | budget)
    assert body.thinking(ServerOptions("", **server)) == expected


def test_a_model_without_a_template(llm: LLM) -> None:
    body = ConversationFields.model_validate({"messages": QUESTION})
    with pytest.raises(ApiError, match="no chat template") as caught:
        prompt_of(body, llm, ServerOptions(""), True)
    assert caught.value.status == 501


@pytest.mark.parametrize("arguments", ["", "  ", "{}", "null", None, {}, ...])
@pytest.mark.parametrize("template", TEMPLATES)
def test_calls_without_arguments_in_the_history(
    llm: LLM, oracle: Callable[..., str], template: str, arguments: Any
) -> None:
    """Clients write them in each of these ways; transformers writes the same for the empty object."""

    def past(arguments: Any) -> list[dict[str, Any]]:
        function = {"name": "clock"} | ({} if arguments is ... else {"arguments": arguments})
        call = {"id": "1", "type": "function", "function": function}
        return [
            *QUESTION,
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "12:30"},
        ]

    variables = {
        "add_generation_prompt": True,
        "enable_thinking": True,
        "bos_token": "<|endoftext|>",
        "eos_token": EOS,
    }
    try:
        expected = oracle(TEMPLATES[template], past({}), tools=[CLOCK], **variables)
    except TypeError:
        pytest.skip("it wants arguments as text")
    assert shown(llm, ChatTemplate(TEMPLATES[template]), messages=past(arguments), tools=[CLOCK]) == expected
