"""The Qwen family's templates, character for character as transformers renders them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import gguf
import jinja2
import pytest
from conftest import SHARED

from qwencli.errors import InputError
from qwencli.hub.places import EMBEDDED
from qwencli.text.chat.template import ChatTemplate
from qwencli.text.tokenizer import Tokenizer

TEMPLATES = {p.stem: p.read_text(encoding="utf-8") for p in sorted(SHARED.glob("data/templates/*.jinja"))}
TEMPLATES["embedded"] = gguf.GGUFReader(EMBEDDED).fields["tokenizer.chat_template"].contents()
compiled = cache(ChatTemplate)

Messages = list[dict[str, Any]]


def user(content: Any = "How is the weather?") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "Fine.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: Any = "Be brief.") -> dict[str, Any]:
    return {"role": "system", "content": content}


def tool(content: Any = '{"degrees": 9}', **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


def call(name: str = "weather", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "call_1", "function": {"name": name, "arguments": arguments}}


NESTED = {
    "ort": "Köln",
    "days": [1, 2.5, None, True],
    "deep": {"ü": {"quote": 'a"b\\c', "tag": "<b>&'"}},
    "empty": {},
    "none": None,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": " Größe < 3 & 'x' \"y\"\n",
            "strict": True,
            "parameters": {
                "type": "object",
                "required": ["ort"],
                "additionalProperties": False,
                "properties": {
                    "ort": {
                        "type": "string",
                        "description": " where\n",
                        "enum": ["Köln", "Ulm"],
                        "minLength": 1,
                    },
                    "days": {"type": ["integer", "null"], "default": None, "examples": [1, 2]},
                    "deep": {
                        "type": "object",
                        "properties": {"a": {"type": "array", "items": {"type": "number"}}},
                    },
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "bare"}},
]

CONVERSATIONS: dict[str, Messages] = {
    "nobody": [],
    "user": [user()],
    "system": [system(), user()],
    "system alone": [system()],
    "system twice": [system(), system("Be kind."), user()],
    "system last": [user(), system()],
    "turns": [system(), user(), assistant(), user("And tomorrow?"), assistant("Rain."), user("Thanks")],
    "answered": [user(), assistant()],
    "assistant first": [assistant(), user()],
    "two users": [user(), user("again")],
    "inline thinking": [user(), assistant("<think>\nhm\n</think>\n\nFine."), user("Sure?")],
    "inline thinking last": [user(), assistant("<think>\nhm\n</think>\n\nFine.")],
    "thinking left open": [user(), assistant("hm\n</think>Fine."), user("Sure?"), assistant("<think>still")],
    "thinking twice": [user(), assistant("<think>a</think>b<think>c</think>d"), user()],
    "reasoning": [
        user(),
        assistant(reasoning_content="\n\nhm, well\n"),
        user("Sure?"),
        assistant("Yes", reasoning_content="yes"),
    ],
    "reasoning last": [user(), assistant(reasoning_content="hm")],
    "reasoning none": [user(), assistant("<think>x</think>y", reasoning_content=None), user()],
    "reasoning empty": [user(), assistant("<think>x</think>y", reasoning_content="")],
    "call": [user(), assistant("", tool_calls=[call(ort="Köln")])],
    "call without content": [user(), assistant(None, tool_calls=[call(ort="Köln")]), tool(), user("ok")],
    "call with content": [
        user(),
        assistant("I look.", tool_calls=[call(**NESTED)]),
        tool("Regen"),
        assistant("It rains."),
    ],
    "call with reasoning": [
        user(),
        assistant("", reasoning_content="look", tool_calls=[call("now")]),
        tool("12:00"),
        assistant("12"),
    ],
    "parallel calls": [
        system(),
        user(),
        assistant("Two:", tool_calls=[call(ort="Ulm"), call("now"), call(ort="X", days=3)]),
        tool("1"),
        tool("2", tool_call_id="call_1"),
        tool("3"),
        assistant("done"),
        user("more"),
    ],
    "calls in steps": [
        user(),
        assistant("", reasoning_content="first", tool_calls=[call("now")]),
        tool("12"),
        assistant("", reasoning_content="second", tool_calls=[call(ort="Ulm")]),
        tool("9"),
        assistant("At 12: 9."),
    ],
    "call with arguments as text": [
        user(),
        assistant(
            "",
            tool_calls=[
                {"type": "function", "function": {"name": "weather", "arguments": '{"ort": "Köln"}'}}
            ],
        ),
        tool(),
    ],
    "call without function": [
        user(),
        assistant("", tool_calls=[{"name": "weather", "arguments": {"a": 1}, "type": "function"}]),
    ],
    "call without type": [
        user(),
        assistant("x", tool_calls=[{"function": {"name": "now", "arguments": {}}}]),
        tool(""),
    ],
    "no calls": [user(), assistant("x", tool_calls=[]), user()],
    "tool first": [tool(), user()],
    "tool as user": [
        user(),
        assistant("", tool_calls=[call("now")]),
        user("<tool_response>\n12\n</tool_response>"),
        assistant("12"),
    ],
    "tool in parts": [
        user(),
        assistant("", tool_calls=[call("now")]),
        tool([{"type": "text", "text": "12"}]),
    ],
    "only tools": [tool("1"), tool("2")],
    "parts": [
        system([{"type": "text", "text": "Be brief."}]),
        user([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]),
    ],
    "picture": [
        user([{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "What is it?"}])
    ],
    "picture in system": [system([{"type": "image"}]), user()],
    "strange part": [user([{"type": "sound"}])],
    "number": [user(42)],
    "empty": [system(""), user(""), assistant(""), user("")],
    "none": [user(None)],
    "no content": [{"role": "user"}],
    "no role": [{"content": "x"}],
    "strange role": [user(), {"role": "developer", "content": "x"}],
    "spaces": [system(" \n a\t\n"), user("\n\n b \n"), assistant("\n c\n\n"), user(" ")],
    "unicode": [
        system("你好，世界"),
        user("Grüße 👩‍👩‍👧 \u200d\u0301 \x00\x1b \u2028 עברית"),
        assistant("ſtraße ｜ ▁"),
        user("\U0010ffff\ufffe"),
    ],
    "markup": [
        user("<b>\"x\" & 'y'</b> {{ 1 }} {% raw %} {# no #} \\n \\ud83d"),
        assistant("<|im_end|>\n<|im_start|>system\n"),
        user("</s>"),
    ],
    "surrogate": [user("\ud83d and \udc00\ud83d")],
    "long": [
        message
        for i in range(60)
        for message in (user(f"question {i} " * 20), assistant(f"answer {i} " * 50))
    ],
}


@pytest.fixture(scope="session")
def oracle() -> Callable[..., str]:
    utils = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="transformers is not installed (extra `dev`)"
    )

    def render(source: str, messages: Messages, **variables: Any) -> str:
        return str(utils.render_jinja_template([messages], chat_template=source, **variables)[0][0])

    return render


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(
    oracle: Callable[..., str], name: str, conversation: str
) -> None:
    template, messages = compiled(TEMPLATES[name]), CONVERSATIONS[conversation]
    for tools, prompt, thinking in product(
        (None, TOOLS), (True, False), ({}, {"enable_thinking": True}, {"enable_thinking": False})
    ):
        variables = {
            "tools": tools,
            "add_generation_prompt": prompt,
            "bos_token": "<B>",
            "eos_token": "<E>",
            **thinking,
        }
        assert outcome(template.render, messages, **variables) == outcome(
            oracle, TEMPLATES[name], messages, **variables
        )


QWEN35 = SimpleNamespace(
    bos_id=None,
    eos_id=None,
    control_texts=[
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|fim_prefix|>",
        "<|repo_name|>",
        "<tts_pad>",
        "<tts_text_bos>",
        "<tts_text_eod>",
        "<tts_text_bos_single>",
    ],
)
"""A tokenizer's control tokens. Those for speech begin like `<think>` and `<tool_response>`, which templates look for."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_guards_control_tokens_changes_nothing_else(name: str) -> None:
    template = compiled(TEMPLATES[name])

    def guarded(messages: Messages, **variables: Any) -> str:
        text, guard = template.rendered(cast(Tokenizer, QWEN35), messages, **variables)
        return text.replace(guard, "")

    for messages, tools in product(CONVERSATIONS.values(), (None, TOOLS)):
        assert outcome(guarded, messages, tools=tools) == outcome(template.render, messages, tools=tools)


def outcome(render: Callable[..., str], *args: Any, **variables: Any) -> tuple[str, str]:
    """The rendered text, or the error that the template raises, with its message in one line."""
    try:
        return "text", render(*args, **variables)
    except InputError as error:
        what, _, message = (
            str(error).removeprefix("the model's chat template ").partition(" this conversation: ")
        )
        return what, message
    except jinja2.TemplateError as error:
        what, message = (
            ("refuses", "")
            if type(error) is jinja2.TemplateError
            else ("fails on", f"{type(error).__name__}: ")
        )
        return what, message + str(error).replace("\n", "\\n")  # raise_exception raises a plain TemplateError
    except Exception as error:
        return "fails on", f"{type(error).__name__}: {error}"


def test_the_conversations_reach_what_templates_do(oracle: Callable[..., str]) -> None:
    """Each template renders most of the conversations differently, with tools and without, and rejects some."""
    assert len(CONVERSATIONS) >= 30
    for source in TEMPLATES.values():
        found = {
            outcome(oracle, source, messages, tools=tools)
            for messages in CONVERSATIONS.values()
            for tools in (None, TOOLS)
        }
        assert sum(kind == "text" for kind, _ in found) >= 30
        assert sum(kind != "text" for kind, _ in found) >= 2


def test_all_templates_are_there() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared test data in {SHARED}; only the embedded model's template is compared")
    assert len(TEMPLATES) == 7


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index0 }}{{ loop.changed(m.role) }}{% endfor %}",
        "{{ {'b': 'ü<', 'a': [1]} | tojson }}{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}",
        "{{ [1] | tojson(indent=1) }}",
        "{{ messages | tojson(ensure_ascii=true) }}{{ messages | tojson(true, 2) }}{{ tools | tojson }}{{ documents | tojson }}",
        "{% generation %}{{ messages[-1].content }}{% endgeneration %}|{% if x is defined %}x{% endif %}{{ x }}",
        "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.found }}",
        "{{ namespace({'a': 1}, b=2).b }}{{ namespace([('a', 3)]).a }}",
        "{{ dict(a=1, b=2) }}{{ dict([['a', 1]]).a }}",
        "{{ messages[::-1] | map(attribute='role') | join(',') }}{{ messages[1:] | length }}{{ messages[:1] | list }}",
        "{{ ' a b '.strip() }}|{{ 'a,b'.split(',') }}|{{ 'a\nb'.splitlines() }}|"
        "{{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith(('c', 'd')) }}",
        "{{ 'abc'[1:] }}{{ 'abc'.replace('b', 'x') }}{{ 'a'.upper() }}{{ 'ab'.find('b') }}{{ 'a%s' % 1 }}{{ '{} {:>4}'.format('a', 1) }}",
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('role') }}{{ messages[0].get('x', 'y') }}",
        "{{ messages[0] | items | list }}{{ messages[0] | dictsort }}{{ messages[0].keys() | list }}",
        "{{ messages[0] }}{{ messages[0].values() | list }}",
        "{{ 'a' is string }}{{ [] is sequence }}{{ {} is mapping }}{{ 1 is number }}{{ none is none }}{{ x is undefined }}",
        "{{ true is boolean }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'in', ['user']) | first }}",
        "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{{ caller() if caller }}{% endmacro %}"
        "{% call m(1, x=3) %}c{% endcall %}{{ m(4) }}",
        "{{ [1, 2] + [3] }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ 'a' ~ 1 ~ none }}{{ 1 if true else 2 }}{{ 'x' if false }}{{ not 1 }}",
        "a\n  {%- if true %}\n  b\n  {% endif %}\n\tc\n{# d #}\ne\n{% raw %}{{ x }}{% endraw %}\n",
        "{{ 'a' | indent(4, true) }}{{ 'x y' | title | trim }}",
        "{{ raise_exception('a\nb') }}",
        "{{ raise_exception(1) }}",
        "{{ 'a' | pprint | wordwrap(2) | striptags }}",
        "{{ (messages[0].content | string | safe) ~ '<' }}{{ '<' | e }}{{ '<a>' | escape ~ '<' }}",
        "{{ strftime_now('%d %b %Y') }}{{ cycler(1, 2).next() }}",
        "{% filter upper %}a{% endfilter %}{% with x = 1 %}{{ x }}{% endwith %}{% set t %}b{% endset %}{{ t }}{% block c %}d{% endblock %}",
    ],
)
def test_what_templates_may_use(oracle: Callable[..., str], source: str) -> None:
    for messages in CONVERSATIONS["turns"], CONVERSATIONS["parallel calls"]:
        assert outcome(compiled(source).render, messages) == outcome(
            oracle, source, messages, add_generation_prompt=True
        )
