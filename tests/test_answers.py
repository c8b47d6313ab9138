"""Thinking, content and calls told apart: written examples, a naive twin, and any cutting into pieces."""

import random
import re

import pytest
from answer_events import TOOLS, events_of, in_random_pieces

from qwencli.text.chat import incoming
from qwencli.text.chat.answers import AnswerParser, Content, Event, Reasoning, ToolCall

CALL = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
F = ToolCall("f", {"n": 1})
BARE = "<function=f>\n<parameter=n>\n1\n</parameter>\n</function>"

PLAIN: dict[str, list[Event]] = {
    "": [],
    "Hi": [Content("Hi")],
    "\n\n Hi\n\n": [Content("\n\n Hi\n\n")],
    "<think>\nhm, 1 < 2\n</think>\n\nYes.": [Reasoning("hm, 1 < 2"), Content("Yes.")],
    " \n<think>\n\n  a\n\nb \n\n</think>\n\n\n  Yes.\n": [Reasoning("  a\n\nb "), Content("  Yes.\n")],
    "<think>\n\n</think>\n\nYes.": [Content("Yes.")],
    "<think></think>Yes.": [Content("Yes.")],
    "<think>\n\n</think>\n\n": [],
    "<think>cut off\n": [Reasoning("cut off\n")],
    "<think>cut off</thi": [Reasoning("cut off</thi")],
    "<think": [Content("<think")],
    "<thinking>no</thinking>": [Content("<thinking>no</thinking>")],
    "Yes. <think>no</think>": [Content("Yes. <think>no</think>")],
    "<think>a<think>b</think>c</think><think>": [Reasoning("a<think>b"), Content("c</think><think>")],
    "</think>\n\nx": [Content("</think>\n\nx")],
    CALL: [Content(CALL)],
    BARE: [Content(BARE)],
}
THINKING: dict[str, list[Event]] = {
    "hm\n</think>\n\nYes.": [Reasoning("hm"), Content("Yes.")],
    "\n\n hm</think>Yes.": [Reasoning(" hm"), Content("Yes.")],
    "\n<think>\nhm\n</think>\n\nYes.": [Reasoning("hm"), Content("Yes.")],  # a model that repeats the tag
    "\n</think>\n\nYes.": [Content("Yes.")],
    "</think>": [],
    "hm": [Reasoning("hm")],
    "\n\n": [],
}
CALLS: dict[str, list[Event]] = {
    CALL: [F],
    f"\n\n{CALL}\n{CALL} \n\t{CALL}\n": [F, F, F],
    f"<think>\nhm\n</think>\n\n{CALL}": [Reasoning("hm"), F],
    f"<think>\nhm\n\n{CALL}": [Reasoning("hm"), F],  # Qwen3.5 leaves the closing tag out before some calls
    f"<think>\nhm\n\n{CALL}\n<think>": [Reasoning("hm"), F, Content("\n<think>")],
    "<think>\n<tool_call>s are\n<tool_call>{}</tool_call>\n</think>\nx": [
        Reasoning("<tool_call>s are\n<tool_call>{}</tool_call>"),
        Content("x"),
    ],
    f'<think>\n<tool_call>\n{{"name": "f\n</think>\n\nyes {CALL}': [
        Reasoning('<tool_call>\n{"name": "f'),
        Content("yes"),
        F,
    ],
    f"Let me see. \n\n{CALL}\nDone.\n": [Content("Let me see."), F, Content("\nDone.\n")],
    f"Use <tool_call> for it:{CALL}": [Content("Use <tool_call> for it:"), F],
    f"<tool_call> <tool_call>\n{CALL}": [Content("<tool_call> <tool_call>"), F],
    f"a\n<tool_call>\n{{}}\n</tool_call>\n{CALL}": [Content("a\n<tool_call>\n{}\n</tool_call>"), F],
    f"{BARE}\n</tool_call>\n{BARE}{BARE}\n": [F, F, F],
    f"a\n{BARE} b": [Content("a"), F, Content(" b")],
    f"{BARE}\n</tool_calls>": [F, Content("\n</tool_calls>")],
    f"see:{CALL}{BARE}": [Content("see:"), F, F],
    f"<tool_call><function=f{CALL}": [Content("<tool_call><function=f"), F],
    f"a {BARE}": [Content(f"a {BARE}")],
    "#include\n<functional>\n<function=g>\n</function>": [
        Content("#include\n<functional>\n<function=g>\n</function>")
    ],
    " \n": [Content(" \n")],
}


@pytest.mark.parametrize(
    ("text", "events", "thinking", "tools"),
    [
        *((text, events, False, None) for text, events in PLAIN.items()),
        *((text, events, False, []) for text, events in PLAIN.items()),
        *((text, events, True, None) for text, events in THINKING.items()),
        *((text, events, True, TOOLS) for text, events in THINKING.items()),
        *((text, events, False, TOOLS) for text, events in CALLS.items()),
    ],
)
def test_events_in_pieces_of_any_size(text, events, thinking, tools):
    for size in (0, 1, 2, 3, 7):
        assert events_of(text, thinking=thinking, tools=tools, size=size) == events


def naive(text: str, thinking: bool) -> list[Event]:
    """Without tools, as Qwen3's template takes its own answers apart, but for text before the tag."""
    opened = re.match(r"[ \t\r\n]*<think>", text)
    if not (opened or thinking):
        return [Content(text)] if text else []
    thought, closing, content = text[opened.end() if opened else 0 :].partition("</think>")
    thought = thought.lstrip("\n").rstrip("\n") if closing else thought.lstrip("\n")
    return [
        *([Reasoning(thought)] if thought else []),
        *([Content(content.lstrip("\n"))] if content.lstrip("\n") else []),
    ]


FRAGMENTS = [
    "<think>",
    "</think>",
    "\n",
    "\n\n",
    " ",
    "<",
    "<t",
    "hm",
    "</",
    "你好",
    "🎉",
    "<tool_call>",
    "</thi",
    ">",
]


@pytest.mark.parametrize("seed", range(4))
def test_random_answers_like_a_naive_twin(seed):
    rng = random.Random(seed)
    for _ in range(500):
        text = "".join(rng.choices(FRAGMENTS, k=rng.randrange(12)))
        thinking = rng.random() < 0.5
        assert in_random_pieces(text, rng, thinking=thinking) == naive(text, thinking), (text, thinking)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_do_not_matter(seed):
    rng = random.Random(seed)
    parts = [
        *FRAGMENTS,
        CALL,
        BARE,
        "<function=f>",
        "</function>",
        "</tool_call>",
        "<parameter=n>",
        "</parameter>",
        "{",
        '"',
        "\\",
        "}",
    ]
    n_calls = 0
    for _ in range(500):
        text = "".join(rng.choices(parts, k=rng.randrange(14)))
        options = {"thinking": rng.random() < 0.3, "tools": TOOLS}
        events = events_of(text, **options)
        assert in_random_pieces(text, rng, **options) == in_random_pieces(text, rng, **options) == events, (
            text
        )
        n_calls += sum(isinstance(event, ToolCall) for event in events)
        if (
            events
            and all(isinstance(event, Content) for event in events)
            and "<think>" not in text
            and not options["thinking"]
        ):
            assert events == [Content(text)]
    assert n_calls > 50


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("thinking", [False, True])
def test_no_more_is_held_back_than_may_begin_a_tag(thinking, tools):
    tags = (["</think>"] if thinking else []) + (["<tool_call>", "<function=f>"] if tools else [])
    parser = AnswerParser(thinking, tools)
    text = "so a <b <tool_cat </thin> <t<to<tool_calx <function=g> \n\n x </thi</thin<functio"
    shown = ""
    for i, c in enumerate(text, 1):
        shown += "".join(event.text for event in parser.add(c))
        assert text.startswith(shown)
        held = text[len(shown) : i].lstrip(" \n")
        assert not held or any(tag.startswith(held) and tag != held for tag in tags)
        assert tools or thinking or len(shown) == i
    assert shown + "".join(event.text for event in parser.end()) == text


def test_a_call_is_told_with_its_last_character():
    for text in CALL, BARE:
        parser = AnswerParser(tools=TOOLS)
        assert [parser.add(c) for c in text] == [[]] * (len(text) - 1) + [[F]]


class Counted(str):
    """Text that counts what is copied in front of it."""

    copied = 0

    def __radd__(self, left: str) -> str:
        Counted.copied += len(left)
        return str(left) + str(self)


@pytest.mark.parametrize(
    ("begin", "filling"),
    [
        ("", "\n"),
        ("", "<tool_call>"),
        ("", "<tool_call>{"),
        ("", "x" + BARE[:-1]),
        ("<think>x", "\n"),
        ("<tool_call>", "\n"),
        ("<tool_call>{", '"a" '),
        ('<tool_call>\n{"', "a"),
        ("<tool_call><function=", "a"),
        ("<tool_call><function=f><parameter=n>", "</parameter> x "),
    ],
)
def test_time_is_linear(begin, filling, monkeypatch):
    monkeypatch.setattr(incoming, "MAX_CALL", 200_000)
    text = begin + filling * (400_000 // len(filling))
    parser, events = AnswerParser(tools=TOOLS), []
    Counted.copied, pieces = 0, range(0, len(text), 60)
    for i in pieces:
        events += parser.add(Counted(text[i : i + 60]))
    events += parser.end()
    assert "".join(event.text for event in events) == text.removeprefix("<think>")
    assert Counted.copied < 15 * len(pieces)
