"""Conversations with a model that says what it is told to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

import pytest

from qwencli.dialogue.dialogue import Dialogue, Settings
from qwencli.errors import ContextFull, InputError, QwenError
from qwencli.sampling import SamplingParams
from qwencli.text.chat.answers import Content, Event, Reasoning, ToolCall

Script = Sequence[Event | BaseException]


class Scripted:
    """A ChatModel that gives one script after another, in which errors are raised. It has room for `n_ctx` characters."""

    def __init__(self, *scripts: Script, n_ctx: int = 10**9) -> None:
        self._scripts, self._n_ctx = iter(scripts), n_ctx
        self.asked: list[list[Any]] = []
        self.n_closed = 0
        self.stop_reason: str | None = None
        self.last_reason = "eos"

    def answer(self, messages: Sequence[Any], settings: Settings) -> Iterator[Event]:
        if sum(len(m["content"]) for m in messages) > self._n_ctx:
            raise ContextFull("too long")
        self.asked.append(list(messages))
        try:
            for event in next(self._scripts):
                if isinstance(event, BaseException):
                    raise event
                yield event
            self.stop_reason = self.last_reason
        finally:
            self.n_closed += 1

    def stats(self) -> dict[str, float]:
        return {}


def settings() -> Settings:
    return Settings(SamplingParams())


def says(text: str) -> Script:
    return [Content(text)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "be kind"}


def dialogue(*scripts: Script, messages: Sequence[Any] = (), n_ctx: int = 10**9, **options: Any) -> Dialogue:
    return Dialogue(Scripted(*scripts, n_ctx=n_ctx), settings(), messages, **options)


def test_questions_and_answers_join_the_messages() -> None:
    d = dialogue([Content("o"), Content("ne")], says("two"))
    assert list(d.ask("1?")) == [Content("o"), Content("ne")]
    assert list(d.ask("2?")) == [Content("two")]
    assert d.messages == [user("1?"), assistant("one"), user("2?"), assistant("two")]
    assert d.draft == ""


def test_thinking_and_calls_are_kept_apart() -> None:
    call = ToolCall("find", {"what": "é", "n": 3})
    d = dialogue([Reasoning("hm"), Reasoning("m"), Content("I look"), call, call])
    list(d.ask("?"))
    message = dict(d.messages[-1])
    calls = message.pop("tool_calls")
    assert message == assistant("I look", reasoning_content="hmm")
    assert len({c["id"] for c in calls}) == 2
    for c in calls:
        assert (c["type"], c["function"]["name"]) == ("function", "find")
        assert json.loads(c["function"]["arguments"]) == {"what": "é", "n": 3}


@pytest.mark.parametrize("script", [[], [Reasoning("hm")]], ids=["nothing", "thinking"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), QwenError("no memory")], ids=["Ctrl-C", "error"])
def test_a_question_without_an_answer_is_taken_back(script: Script, error: BaseException) -> None:
    d = dialogue(says("one"), [*script, error], says("two"))
    list(d.ask("1?"))
    with pytest.raises(type(error)):
        list(d.ask("2?"))
    assert (d.messages, d.draft) == ([user("1?"), assistant("one")], "2?")
    list(d.ask("3?"))
    assert (d.messages[2:], d.draft) == ([user("3?"), assistant("two")], "")


def test_what_was_written_of_an_answer_stays() -> None:
    d = dialogue([Reasoning("hm"), Content("on"), KeyboardInterrupt()], [Content("t"), Content("wo")])
    with pytest.raises(KeyboardInterrupt):
        list(d.ask("1?"))
    with closing(d.ask("2?")) as events:
        assert next(events) == Content("t")
    assert d.messages == [user("1?"), assistant("on", reasoning_content="hm"), user("2?"), assistant("t")]
    assert d.draft == ""
    assert isinstance(d.model, Scripted)
    assert d.model.n_closed == 2


def test_a_call_is_something_of_an_answer() -> None:
    d = dialogue([Reasoning("hm"), ToolCall("find", {}), KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        list(d.ask("1?"))
    assert [m["role"] for m in d.messages] == ["user", "assistant"]
    assert len(d.messages[1]["tool_calls"]) == 1


def test_an_empty_answer_is_one() -> None:
    d = dialogue([])
    assert list(d.ask("1?")) == []
    assert d.messages == [user("1?"), assistant("")]


def test_regenerate() -> None:
    d = dialogue(says("one"), says("uno"), [Reasoning("hm"), KeyboardInterrupt()], messages=[SYSTEM])
    list(d.ask("1?"))
    list(d.regenerate())
    assert d.messages == [SYSTEM, user("1?"), assistant("uno")]
    with pytest.raises(KeyboardInterrupt):
        list(d.regenerate())
    assert d.messages == [SYSTEM, user("1?"), assistant("uno")]
    assert isinstance(d.model, Scripted)
    assert d.model.asked == [[SYSTEM, user("1?")]] * 3


def test_regenerate_takes_tool_results_back_too() -> None:
    tool = {"role": "tool", "content": "42"}
    d = dialogue(says("it is 42"), messages=[user("1?"), assistant("", tool_calls=[]), tool, assistant("42")])
    list(d.regenerate())
    assert d.messages == [user("1?"), assistant("it is 42")]


def test_undo_and_edit() -> None:
    d = dialogue(messages=[SYSTEM, user("1?"), assistant("one"), user("2?"), assistant("two")])
    assert d.undo() == "2?"
    assert (d.messages, d.draft) == ([SYSTEM, user("1?"), assistant("one")], "")
    d.edit()
    assert (d.messages, d.draft) == ([SYSTEM], "1?")


@pytest.mark.parametrize(
    "action",
    [Dialogue.undo, Dialogue.edit, lambda d: list(d.regenerate())],
    ids=["undo", "edit", "regenerate"],
)
@pytest.mark.parametrize("messages", [[], [SYSTEM], [SYSTEM, assistant("hello")]])
def test_without_a_question_there_is_nothing_to_take_back(
    action: Callable[[Dialogue], object], messages: list[Any]
) -> None:
    d = dialogue(messages=messages)
    with pytest.raises(InputError, match="nothing was asked"):
        action(d)
    assert d.messages == messages


def test_clear_and_system() -> None:
    d = dialogue(messages=[user("1?"), assistant("one")])
    assert d.system == ""
    d.system = "be kind"
    assert d.messages == [SYSTEM, user("1?"), assistant("one")]
    d.system = "be brief"
    assert (d.system, len(d.messages)) == ("be brief", 3)
    d.attached = "text"
    d.clear()
    assert (d.messages, d.attached) == ([{"role": "system", "content": "be brief"}], "")
    d.system = ""
    assert d.messages == []


def test_attached_text_goes_before_the_next_question_once() -> None:
    d = dialogue([KeyboardInterrupt()], says("one"), says("two"))
    d.attached = "a file\n"
    with pytest.raises(KeyboardInterrupt):
        list(d.ask("1?"))
    assert (d.draft, d.attached) == ("1?", "a file\n")
    list(d.ask("1?"))
    list(d.ask("2?"))
    assert [m["content"] for m in d.messages] == ["a file\n1?", "one", "2?", "two"]


# Full contexts

LONG = [
    SYSTEM,
    user("a" * 10),
    assistant("A" * 10),
    user("b" * 20),
    assistant("B" * 20),
    user("c" * 30),
    assistant("C" * 30),
]
"""Turns of 20, 40 and 60 characters after a system message of 7."""


def test_a_full_context_changes_nothing_unless_turns_may_go() -> None:
    asked = []

    def refuse() -> bool:
        asked.append("may they go?")
        return False

    d = dialogue(says("one"), messages=LONG, n_ctx=130, may_drop=refuse)
    with pytest.raises(ContextFull, match=r"^too long$"):
        list(d.ask("1234"))
    assert (d.messages, d.draft, asked) == (LONG, "1234", ["may they go?"])


@pytest.mark.parametrize(("n_ctx", "first"), [(131, 1), (130, 5), (71, 5), (70, 7), (11, 7)])
def test_the_oldest_turns_go_until_the_rest_fits(n_ctx: int, first: int) -> None:
    """At least a quarter of the text before the question at once: of 120 characters the first 20 are less, the first 60 are not."""
    lines: list[str] = []
    d = dialogue(says("one"), messages=LONG, n_ctx=n_ctx, may_drop=lambda: True, report=lines.append)
    list(d.ask("1234"))
    assert d.messages == [SYSTEM, *LONG[first:], user("1234"), assistant("one")]
    assert lines == ([f"the context is full: dropped the {first - 1} oldest messages"] if first > 1 else [])


def test_a_message_that_is_too_long_by_itself_drops_nothing() -> None:
    d = dialogue(messages=LONG, n_ctx=100, may_drop=lambda: True)
    with pytest.raises(ContextFull, match=r"^the last message alone is too long: too long$"):
        list(d.ask("x" * 100))
    assert (d.messages, d.draft) == (LONG, "x" * 100)
    alone = dialogue(n_ctx=100, may_drop=lambda: pytest.fail("there are no turns to drop"))
    with pytest.raises(ContextFull, match=r"^too long$"):
        list(alone.ask("x" * 101))


def test_what_was_dropped_is_back_where_no_answer_came() -> None:
    d = dialogue([KeyboardInterrupt()], messages=LONG, n_ctx=130, may_drop=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        list(d.ask("1234"))
    assert d.messages == LONG


@pytest.mark.parametrize("again", [lambda d: d.ask("1234"), Dialogue.regenerate], ids=["ask", "regenerate"])
@pytest.mark.parametrize("may_drop", [True, False])
def test_after_an_answer_that_filled_the_context_turns_go(
    again: Callable[[Dialogue], Iterator[Event]], may_drop: bool
) -> None:
    asked = []
    d = dialogue(
        says("on"), says("one"), says("two"), messages=LONG[:5], may_drop=lambda: asked.append(0) or may_drop
    )
    model = d.model
    assert isinstance(model, Scripted)
    model.last_reason = "context"
    list(d.ask("?"))
    assert (d.messages[:5], asked) == (LONG[:5], [])
    model.last_reason = "eos"
    list(again(d))
    assert d.messages[:4] == ([SYSTEM, *LONG[3:5], user("?")] if may_drop else LONG[:4])
    list(d.ask("?"))
    assert asked == [0]


def test_turns_go_once_also_where_the_next_answer_is_stopped() -> None:
    asked: list[int] = []
    d = dialogue(
        says("on"),
        [Content("ma"), KeyboardInterrupt()],
        says("two"),
        messages=LONG,
        may_drop=lambda: not asked.append(0),
    )
    assert isinstance(d.model, Scripted)
    d.model.last_reason = "context"
    list(d.ask("?"))
    d.model.last_reason = "cancelled"
    with pytest.raises(KeyboardInterrupt):
        list(d.ask("?"))
    messages = d.messages
    list(d.ask("?"))
    assert asked == [0]
    assert d.messages[: len(messages)] == messages


def test_what_was_taken_back_makes_room() -> None:
    for take_back in Dialogue.undo, Dialogue.clear:
        d = dialogue(says("on"), says("two"), messages=LONG, may_drop=lambda: pytest.fail("there is room"))
        assert isinstance(d.model, Scripted)
        d.model.last_reason = "context"
        list(d.ask("?"))
        take_back(d)
        list(d.ask("?"))


def test_any_commands_in_any_order_leave_a_conversation() -> None:
    """Questions and answers alternate after at most one system message, whatever is done."""
    rng = random.Random(5)
    scripts: list[Script] = [
        says("yes"),
        [Reasoning("hm"), Content("no")],
        [KeyboardInterrupt()],
        [Content("ma"), KeyboardInterrupt()],
        [QwenError("broken")],
        [Reasoning("hm"), QwenError("broken")],
    ]
    d = Dialogue(
        Scripted(*(rng.choice(scripts) for _ in range(2000)), n_ctx=60),
        settings(),
        may_drop=lambda: rng.random() < 0.7,
    )
    actions: list[Callable[[], object]] = [
        lambda: list(d.ask("what" * rng.randrange(1, 4))),
        lambda: list(d.regenerate()),
        d.undo,
        d.edit,
        d.clear,
        lambda: setattr(d, "system", rng.choice(["", "be kind"])),
    ]
    longest = 0
    for action in rng.choices(actions, weights=[60, 10, 5, 5, 1, 5], k=1000):
        with suppress(KeyboardInterrupt, QwenError):
            action()
        roles = [m["role"] for m in d.messages]
        assert roles[int(roles[:1] == ["system"]) :] == ["user", "assistant"] * (len(roles) // 2)
        assert sum(len(m["content"]) for m in d.messages) <= 60 + len("yes") + len("be kind")
        longest = max(longest, len(roles))
    assert longest > 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": -1},
        {"max_tokens": 2**31},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"reasoning_budget": "0"},
        {"think": 1},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} is "):
        Settings(SamplingParams(), **wrong)
