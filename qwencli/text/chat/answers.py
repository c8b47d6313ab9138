"""What an answer consists of: thinking, the answer proper and tool calls, told apart while the text streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .incoming import Incoming, NotACall, Reading, Tags
from .thinking import CLOSE as THINK_CLOSE
from .thinking import OPEN as THINK_OPEN
from .tool_calls import CLOSE, FUNCTION, OPEN, SPACE, ToolCall, read_call, schemas_of


@dataclass(frozen=True)  # unlike tuples of the same text, events of two kinds are not equal
class Reasoning:
    """A piece of thinking."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer proper."""

    text: str


Event = Reasoning | Content | ToolCall

__all__ = ["AnswerParser", "Content", "Event", "Reasoning", "ToolCall"]


class AnswerParser:
    """Turns an answer's text, in whatever pieces it comes, into events; joined, these do not depend on the pieces.

    An answer thinks if it begins with `<think>`, or with `thinking` because the prompt ended so. The newlines at the tags belong to
    neither side. `tools` are OpenAI's tool definitions; without any, tool calls are text. So is a malformed one, exactly as it was
    written. Whitespace before a call, between calls and after the last belongs to the format. No more is held back than may begin a tag,
    the whitespace before it, and a call up to its end.

    With `tells_thinking` False, thinking and its tags are content. With `goes_on` the text goes on from the middle of an answer: of its
    thinking if `thinking`, else of what it says.
    """

    def __init__(
        self,
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tells_thinking: bool = True,
        goes_on: bool = False,
    ) -> None:
        self._text = Incoming()
        self._thinking, self._tells_thinking, self._goes_on = thinking, tells_thinking, goes_on
        self._schemas = schemas_of(tools or ())
        self._calls = [OPEN] if tools else []
        self._bare_calls = [f"{FUNCTION}{name}>" for name in self._schemas if not set("<>\n") & set(name)]
        self._events: list[Event] = []
        self._space: list[str] = []  # whitespace that is dropped if a call or the end of thinking follows
        self._called = False  # a call was the last event
        self._last = "" if goes_on else "\n"  # the last character of content
        self._reading = self._answer()
        next(self._reading)

    def add(self, text: str) -> list[Event]:
        """The events that are complete now that `text` follows."""
        self._text.add(text)
        return self._resume()

    def end(self) -> list[Event]:
        """What was held back, now that nothing follows. The parser is spent then."""
        self._text.ended = True
        return self._resume()

    def _resume(self) -> list[Event]:
        next(self._reading, None)
        events, self._events = self._events, []
        return events

    def _answer(self) -> Reading[None]:
        if self._goes_on and self._thinking and self._tells_thinking:
            yield from self._passages(Reasoning)
        elif self._tells_thinking and not self._goes_on:
            yield from self._thought()
        yield from self._passages(Content)

    def _thought(self) -> Reading[None]:
        """The thinking that the answer begins with, or the space before an answer without any."""
        space = yield from self._text.span(SPACE)
        if (yield from self._text.starts(THINK_OPEN)):
            yield from self._text.span("\n")
            yield from self._passages(Reasoning)
        elif self._thinking:
            self._pass(Reasoning, space.lstrip("\n"))
            yield from self._passages(Reasoning)
        else:
            self._pass(Content, space)

    def _passages(self, kind: type[Reasoning] | type[Content]) -> Reading[None]:
        """Text of one kind, and calls in it. Thinking ends with its tag, or by a call: Qwen3.5 leaves the tag out before some."""
        tags = Tags(*self._calls, THINK_CLOSE) if kind is Reasoning else Tags(*self._calls, *self._bare_calls)
        while True:
            text, tag = yield from self._text.passage(tags)
            self._pass(kind, text)
            if tag == THINK_CLOSE:
                yield from self._text.read(len(tag))
                yield from self._text.span("\n")
                self._space, self._last = [], "\n"
                return
            if tag == OPEN or (tag and self._last == "\n"):
                if (yield from self._call(kind, tag)) and kind is Reasoning:
                    return
            elif tag:
                self._pass(kind, (yield from self._text.read(len(tag))))
            elif not text:
                if self._space and not self._called:
                    self._events.append(kind("".join(self._space)))
                self._space = []
                return

    def _call(self, kind: type[Reasoning] | type[Content], opening: str) -> Reading[bool]:
        """A call if there is one, else its text."""
        self._text.mark(THINK_CLOSE if kind is Reasoning else "")
        try:
            call = yield from read_call(self._text, self._schemas)
        except NotACall:
            self._pass(kind, self._text.unmark())
            return False
        self._text.unmark()
        self._events.append(call)
        self._space, self._called, self._last = [], True, "\n"
        if opening != OPEN:  # the closing tag may come all the same
            space = yield from self._text.span(SPACE)
            if not (yield from self._text.starts(CLOSE)):
                self._pass(kind, space)
        return True

    def _pass(self, kind: type[Reasoning] | type[Content], text: str) -> None:
        """Pass text on, but for whitespace at its end that a tag may make superfluous."""
        body = text.rstrip("\n" if kind is Reasoning else SPACE if self._calls else "")
        if body:
            self._events.append(kind("".join(self._space) + body))
            self._space, self._called = [], False
        if len(body) < len(text):
            self._space.append(text[len(body) :])
        self._last = text[-1:] or self._last
