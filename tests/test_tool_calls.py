"""Calls of tools: what Qwen's own templates write is read back, values get the types of their schemas, malformed calls stay text."""

import json
import random

import pytest
from answer_events import TOOLS, events_of, in_random_pieces
from conftest import SHARED

from qwencli.text.chat import incoming
from qwencli.text.chat.answers import Content, Event, Reasoning, ToolCall
from qwencli.text.chat.incoming import MAX_CALL
from qwencli.text.chat.tool_calls import MAX_DEPTH

TEMPLATES = {p.stem: p for p in sorted(SHARED.glob("data/templates/Qwen*.jinja"))}
JSON, XML = "Qwen-Qwen3-0.6B", "Qwen3.5-4B"
STRINGS = [
    "",
    " ",
    "Köln",
    "你好 🎉",
    'say "hi"',
    "it's \\n <b>&amp;</b>",
    "\n",
    "\n\na\n\n",
    "  a\n\tb  ",
    "5",
    "null",
    "true",
    '{"a": 1}',
    "</tool_call>",
    "a</parameter>b",
    "</function>\n</tool_call>",
    "<tool_call>\n<function=f>",
    "</parameter>\n</parameters>",
    "\\",
    '"',
    "{",
    "\u2028\x7f",
    "<think>\n</think>",
]
ARGUMENTS = [
    {},
    *({"text": text} for text in STRINGS),
    {"n": 0},
    {"n": -12345678901234567890},
    {"x": 1.5},
    {"x": -2e-07},
    {"x": 3},
    {"flag": True},
    {"flag": False},
    {"nothing": None},
    {"list": []},
    {"list": [1, "</tool_call>", None, {"a": ['ü\n"']}]},
    {"map": {}},
    {"map": {"a": {"b": [True, 1.25, "</parameter>"]}, "": ""}},
    {"text": "def f():\n    return '''x'''\n", "n": 3, "flag": True, "list": ["a", 2], "map": {"k": "v"}},
]


def rendered(template: str, message: dict) -> str:
    """What a template writes for a message of the assistant, by transformers."""
    utils = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="transformers is not installed (extra `dev`)"
    )
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", **message}]
    text = utils.render_jinja_template(
        [messages], tools=TOOLS, chat_template=TEMPLATES[template].read_text(encoding="utf-8")
    )[0][0]
    return str(text.rpartition("<|im_start|>assistant\n")[2].rpartition("<|im_end|>")[0])


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_templates_write_is_read_back(template):
    for arguments in ARGUMENTS:
        text = rendered(
            template,
            {
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}],
            },
        )
        for size in (0, 1, 3):
            assert events_of(text, tools=TOOLS, size=size) == [ToolCall("f", arguments)], text


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("template", TEMPLATES)
def test_several_calls_after_text(template):
    calls = [ToolCall("f", {"n": 1}), ToolCall("other_tool.v-2", {"text": "ä"}), ToolCall("f", {})]
    text = rendered(
        template,
        {
            "content": "Let me look.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in calls
            ],
        },
    )
    thought: list[Event] = [Reasoning("hm")] if "hm" in text else []
    assert events_of(text, tools=TOOLS) == [*thought, Content("Let me look."), *calls]
    assert not any(isinstance(event, ToolCall) for event in events_of(text, tools=None))


def xml(key: str, value: str) -> str:
    return f"<tool_call>\n<function=f>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call>"


def value_of(value: str, schema: object, root: object = None) -> object:
    """What becomes of an XML parameter's value. `root` joins the parameters' schema."""
    parameters = {"type": "object", "properties": {"p": schema}} | (root or {})
    (event,) = events_of(
        xml("p", value), tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    )
    assert isinstance(event, ToolCall)
    return event.arguments["p"]


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ("5", {"type": "string"}, "5"),
        ("null", {"type": "string"}, "null"),
        (" a ", {"type": "string"}, " a "),
        ("5", {}, "5"),
        ("5", True, "5"),
        ("5", None, "5"),
        ("5", {"type": "unheard of"}, "5"),
        ("5", {"type": 3}, "5"),
        ("5", {"type": "integer"}, 5),
        (" 5\n", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("5.5", {"type": "integer"}, "5.5"),
        ("five", {"type": "integer"}, "five"),
        ("true", {"type": "integer"}, "true"),
        ("1_000", {"type": "integer"}, "1_000"),
        ("٥", {"type": "integer"}, "٥"),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("", {"type": "integer"}, ""),
        ("5", {"type": "number"}, 5),
        ("5.0", {"type": "number"}, 5.0),
        ("-2e-3", {"type": "number"}, -0.002),
        ("NaN", {"type": "number"}, "NaN"),
        ("1e999", {"type": "number"}, "1e999"),
        ("inf", {"type": "number"}, "inf"),
        ("true", {"type": "boolean"}, True),
        ("False", {"type": "boolean"}, False),
        ("1", {"type": "boolean"}, "1"),
        ("null", {"type": "null"}, None),
        ("null", {"type": "integer"}, None),
        ("None", {"type": "object"}, None),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ("[1, 2]", {"type": "object"}, "[1, 2]"),
        ("{'a': 1}", {"type": "object"}, "{'a': 1}"),
        ('{"a": NaN}', {"type": "object"}, '{"a": NaN}'),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
        ('["\\ud800"]', {"type": "array"}, '["\\ud800"]'),
        ("5", {"type": ["integer", "string"]}, 5),
        ("x", {"type": ["integer", "string"]}, "x"),
        ("null", {"type": ["string", "null"]}, None),
        ("null", {"type": ["string", "integer"]}, "null"),
        ('"x"', {"type": ["string", "integer"]}, '"x"'),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 5),
        ("null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("5", {"oneOf": [{"allOf": [{"type": "number"}]}]}, 5),
        ("5", {"enum": [4, 5]}, 5),
        ("5", {"enum": ["4", "5"]}, "5"),
        ("5", {"type": "string", "enum": [5]}, "5"),
        ("5", {"const": 5}, 5),
        ("5", {"enum": 5, "anyOf": 5, "$ref": 5}, "5"),
        ('{"a": 1}', {"$ref": "#/$defs/item"}, {"a": 1}),
        ('{"a": 1}', {"$ref": "#/$defs/none/at/all"}, '{"a": 1}'),
        ("5", {"$ref": "#/$defs/loop"}, 5),
    ],
)
def test_xml_values_have_the_types_of_their_schema(value, schema, expected):
    loop = {"anyOf": [{"$ref": "#/$defs/loop"}] * 20 + [{"type": "integer"}]}
    got = value_of(value, schema, {"$defs": {"item": {"type": "object"}, "loop": loop}})
    assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize(
    "tools",
    [
        [{}],
        [{"function": None}],
        [{"function": {"name": 3}}],
        [None],
        [{"function": {"name": "f", "parameters": 1}}],
        [{"function": {"name": "f", "parameters": {"properties": [1]}}}],
        [{"name": "f", "parameters": None}],
    ],
)
def test_tools_of_any_shape(tools):
    assert events_of(xml("p", "5"), tools=tools) == [ToolCall("f", {"p": "5"})]


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', {"a": 1}),
        ('{"arguments": {"a": 1}, "name": "f", "id": 7}', {"a": 1}),
        ('\n\n {"name":"f","arguments":{"a":1}} \n', {"a": 1}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}),
        ('{"name": "f"}', {}),
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f", "arguments": ""}', {}),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', {"a": 2}),
        ('{"name": "f", "arguments": {"a": "\\ud83c\\udf89 \\u4f60"}}', {"a": "🎉 你"}),
        (
            '{"name": "f", "arguments": {"a": "</tool_call>\\\\\\"</tool_call>"}}',
            {"a": '</tool_call>\\"</tool_call>'},
        ),
        ("<function=f></function>", {}),
        ("<function=f><parameter=a>1</parameter></function>", {"a": "1"}),
        (
            "<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n\n</parameter>\n</function>",
            {"a": "1", "b": ""},
        ),
        (
            "<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=a>\n2\n</parameter>\n</function>",
            {"a": "2"},
        ),
    ],
)
def test_calls_as_models_write_them(body, arguments):
    for size in (0, 1, 5):
        assert events_of(f"<tool_call>{body}</tool_call>", tools=TOOLS, size=size) == [
            ToolCall("f", arguments)
        ]


def parameter(name: str, value: str, end: str = "\n</parameter>") -> str:
    return f"<parameter={name}>\n{value}{end}\n"


DOCUMENT = (
    "Write\n<function=f>\n<parameter=text>\nx\n</function>\n</tool_call>\nand <parameter=n> stands for it"
)
UNCLOSED = [
    ("<function=f>\n<parameter=a>\n1\n</function>", {"a": "1"}),
    (
        '<function=f>\n<parameter=map>\n{"mode": "A", "on": true}\n</function>',
        {"map": {"mode": "A", "on": True}},
    ),
    (f"<function=f>\n{parameter('text', 'a', '')}{parameter('n', '5')}</function>", {"text": "a", "n": 5}),
    (f"<function=f>\n{parameter('text', 'a')}{parameter('n', '5', '')}</function>", {"text": "a", "n": 5}),
    (
        f"<function=f>\n{parameter('text', 'a', '')}{parameter('n', '5', '')}{parameter('x', '1', '')}</function>",
        {"text": "a", "n": 5, "x": 1},
    ),
    ("<function=f><parameter=text>a<parameter=n>5</parameter></function>", {"text": "a", "n": 5}),
    ("<function=f><parameter=text>a<parameter=n>5</function>", {"text": "a", "n": 5}),
    (f"<function=f>\n{parameter('text', 'see <parameter=n>', '')}</function>", {"text": "see <parameter=n>"}),
    (f"<function=f>\n{parameter('text', 'a</parameter>b', '')}</function>", {"text": "a</parameter>b"}),
]
"""Parameters that are not closed: they end as in vLLM's parser for Qwen3-Coder."""


@pytest.mark.parametrize(("body", "arguments"), UNCLOSED)
def test_parameters_that_are_not_closed(body, arguments):
    other = ToolCall("f", {"text": "z"})
    closed = f"<tool_call>\n<function=f>\n{parameter('text', 'z')}</function>\n</tool_call>"
    for size in (0, 1, 5):
        for text, events in (
            (f"<tool_call>\n{body}\n</tool_call>", []),
            (f"<tool_call>\n{body}\n</tool_call>\n", []),
            (f"<tool_call>\n{body}", []),
            (f"<tool_call>\n{body}\n</tool_", []),
            (f"<tool_call>{body}</tool_call>{closed}", [other]),
            (f"<tool_call>\n{body}\n</tool_call>\n{closed}", [other]),
            (f"<tool_call>\n{body}\n{closed}", [other]),
            (f"<tool_call>\n{body}\n</tool_call>\n\nDone.", [Content("\n\nDone.")]),
            (body, []),
            (f"{body}\n{closed}", [other]),
        ):
            found = events_of(text, tools=TOOLS, size=size)
            assert found == [ToolCall("f", arguments), *events], text


def test_tags_in_values_that_are_closed():
    text = f"<tool_call>\n<function=f>\n{parameter('text', DOCUMENT)}{parameter('n', '5')}</function>\n</tool_call>"
    for size in (0, 1, 5):
        found = events_of(text, tools=TOOLS, size=size)
        assert found == [ToolCall("f", {"text": DOCUMENT, "n": 5})]


@pytest.mark.parametrize("end", ["", "\n", " \n\n", "\n</tool_call", "</t", "\n<"])
@pytest.mark.parametrize(
    "body",
    [
        '{"name": "f", "arguments": {"text": "<tool_call>"}}',
        '\n{"arguments": {"text": "<tool_call>"}, "name": "f"}',
    ],
)
def test_a_whole_call_without_its_closing_tag(body, end):
    call = ToolCall("f", {"text": "<tool_call>"})
    for size in (0, 1, 5):
        assert events_of(f"Hi\n<tool_call>\n{body}{end}", tools=TOOLS, size=size) == [Content("Hi"), call]
        twice = f"<tool_call>{body}\n<tool_call>{body}{end}"
        assert events_of(twice, tools=TOOLS, size=size) == [call, call]
        for other in ("x", "</tool_cat>", "</tool_call>"[:5] + "x"):
            text = f"<tool_call>{body}{end}{other}"
            if "<tool_call>".startswith(end.strip()) or not end.strip():
                assert events_of(text, tools=TOOLS, size=size) == [Content(text)]


def test_many_tags_in_a_value_take_no_time():
    """A second or two for a megabyte, where each would take one if it were looked for in all that came before."""
    text = "<tool_call>\n<function=f>\n<parameter=text>\n" + "</function>\n<parameter=q>" * 30_000
    assert "".join(e.text for e in events_of(text, tools=TOOLS, size=1000) if isinstance(e, Content)) == text


DEEP = "[" * MAX_DEPTH + "]" * MAX_DEPTH
MALFORMED = [
    "",
    "\n",
    "f(1)",
    "[]",
    '"f"',
    "{",
    "{}",
    '{"name": ""}',
    '{"name": 1}',
    '{"name": null, "arguments": {}}',
    '{"arguments": {"a": 1}}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": 1}',
    '{"name": "f", "arguments": "[]"}',
    '{"name": "f", "arguments": {"a": NaN}}',
    '{"name": "f", "arguments": {"a": -Infinity}}',
    '{"name": "f", "arguments": {"a": 1e999}}',
    '{"name": "f", "arguments": {"a": 1}}}',
    "{'name': 'f'}",
    '{"name": "f"',
    '{"name": "f" "arguments": {}}',
    '{"name": "f", "arguments": {"a": "x}}',
    '{"name": "f", "arguments": {"a": "1\n2"}}',
    '{"name": "f", "arguments": {"a": "\\ud800"}}',
    '{"name": "\\udfff"}',
    '{"name": "f"} {"name": "f"}',
    '{"name": "f", "arguments": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    '{"name": "f", "arguments": {"a": ' + DEEP + "}}",
    '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
    "<function=>\n</function>",
    "<function=f\n>\n</function>",
    "<function=f",
    "<function=f>",
    "<function=f>text</function>",
    "<function=f>\n</function>text",
    "<function=f>\n<parameter=>\n1\n</parameter>\n</function>",
    "<function=f>\n<parameter=a>\n1\n</parameter>\n",
    "<function=f>\n<tool_call>\n</function>",
    "<function=<function=f>>\n</function>",
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body[:60])
def test_malformed_calls_stay_as_they_were_written(body):
    for text in (
        f"<tool_call>\n{body}\n</tool_call>",
        f"Hi \n<tool_call>{body}</tool_call>\n\nBye\n",
        f"<tool_call>{body}",
    ):
        for size in (0, 7):
            assert events_of(text, tools=TOOLS, size=size) == [Content(text)]
        thought = text.rstrip("\n")
        assert events_of(f"{thought}</think>", thinking=True, tools=TOOLS) == [Reasoning(thought)]


@pytest.mark.parametrize(
    "body",
    ["nothing", "{}", '{"name": "f', '{"name": "f", "arguments": {"a": "x}}', "<function=f>\n</functions>"],
)
def test_a_call_after_a_malformed_one(body):
    text = f"<tool_call>\n{body}\n</tool_call>"
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert events_of(f"{text}\n{call}", tools=TOOLS) == [Content(text), ToolCall("f", {})]


def test_depth_that_is_just_allowed():
    text = '<tool_call>{"name": "f", "arguments": {"a": ' + DEEP[3:-3] + "}}</tool_call>"
    (event,) = events_of(text, tools=TOOLS)
    assert isinstance(event, ToolCall)
    json.dumps(event.arguments, indent=1)


def test_a_call_that_is_too_long_is_text(monkeypatch):
    assert MAX_CALL == 2**20
    monkeypatch.setattr(incoming, "MAX_CALL", 300)
    rng = random.Random(1)
    for begin, end in (
        ('<tool_call>\n{"name": "f", "arguments": {"text": "', '"}}\n</tool_call>'),
        ("<tool_call>\n<function=f>\n<parameter=text>\n", "\n</parameter>\n</function>\n</tool_call>"),
    ):
        for n in range(280 - len(begin + end), 310 - len(begin + end)):
            text = begin + "a" * n + end
            expected: Event = ToolCall("f", {"text": "a" * n}) if len(text) <= 300 else Content(text)
            assert events_of(text, tools=TOOLS) == in_random_pieces(text, rng, tools=TOOLS) == [expected]
    long, call = '<tool_call>\n{"' + "a" * 400, '<tool_call>{"name": "f"}</tool_call>'
    for size in (0, 1, 7, 400):  # what follows is read as ever
        assert events_of(long + call, tools=TOOLS, size=size) == [Content(long), ToolCall("f", {})]
