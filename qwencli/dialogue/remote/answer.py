"""An answer as it arrives, in any of the protocols: its events, why it ended, and what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

from ...text.chat.answers import AnswerParser, Content, Event, Reasoning, ToolCall
from .streams import parsed

MAX_COUNT = 1e15
"""Figures above it are not believed. Floats are exact up to there."""


class StreamedAnswer:
    """What the answers of all protocols share. Each has its own `add`, and says how it tells of errors and what it has counted."""

    STOP_REASONS: ClassVar[Mapping[str, str]] = {}
    """Our names for why an answer ended, by the protocol's; everything else is the model's own end."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self.finish: str | None = None
        """Why it ended, as the protocol says it; None as long as it hasn't."""
        self.begun = False
        """Whether something of it has arrived."""
        self._parser = AnswerParser(tools=tools)  # for servers that leave <think> and <tool_call> in the text
        self._calls: list[PartialCall] = []
        self._timings: Mapping[str, Any] = {}
        """llama.cpp's, where the server tells them."""
        self._begin = self._first = self._last = time.monotonic()

    def add(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """The events of a chunk of the stream, or of the whole answer where the server does not stream."""
        raise NotImplementedError

    def error(self, chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The chunk, if it tells of an error, in a form that `message_of` knows."""
        return chunk if chunk.get("error") else None

    def counts(self) -> dict[str, Any]:
        """Tokens and milliseconds by llama.cpp's names, as the server says; whether they are numbers is not known yet."""
        return {}

    def _write(self, thought: Any, content: Any) -> Iterator[Event]:
        """The events of a piece of thinking and one of the answer proper, if they are texts."""
        thought, content = text(thought), text(content)
        if thought or content:
            self._arrived()
        if thought:
            yield Reasoning(thought)
        yield from self._parser.add(content)

    def _arrived(self) -> None:
        self._last = time.monotonic()
        self._first = self._first if self.begun else self._last
        self.begun = True

    def _called(self, index: Any, id: str, name: str, arguments: Any) -> None:
        """A part of a call. The first one names it, later ones add to its arguments.

        Some servers give two calls one index, but never one id.
        """
        self._arrived()
        call = next((c for c in reversed(self._calls) if c.index == index), None)
        if call is None or (id and call.id and id != call.id):
            call = PartialCall(index, id)
            self._calls.append(call)
        call.name += name
        call.arguments.append(json.dumps(arguments) if isinstance(arguments, dict) else text(arguments))

    def end(self) -> Iterator[Event]:
        """What was held back: the text that might have begun a tag, and the calls."""
        yield from self._parser.end()
        yield from (call.event() for call in self._calls)
        self._calls = []

    @property
    def stop_reason(self) -> str:
        return self.STOP_REASONS.get(self.finish or "", "eos")

    def stats(self) -> dict[str, float]:
        """Tokens and milliseconds by llama.cpp's names, as the server gives them. Where it doesn't, times are measured here."""
        measured = {
            "prompt_ms": 1e3 * (self._first - self._begin),
            "predicted_ms": 1e3 * (self._last - self._first),
        }
        given = dict(self._timings) or measured | self.counts()
        return {name: value for name, value in given.items() if is_count(value)}


def prompt_counts(prompt: Any, cached: Any) -> dict[str, Any]:
    """How much of a prompt was read and how much was known, if both are counts. `prompt` is the whole."""
    return {"prompt_n": prompt - cached, "cache_n": cached} if is_count(prompt) and is_count(cached) else {}


class PartialCall:
    """A tool call while its parts arrive."""

    def __init__(self, index: Any, id: str) -> None:
        self.index, self.id = index, id
        self.name = ""
        self.arguments: list[str] = []

    def event(self) -> Event:
        """The call; where it is malformed or cut off, text as the model may have written it."""
        written = "".join(self.arguments).strip() or "{}"
        arguments = parsed(written)
        if self.name and arguments is not None:
            return ToolCall(self.name, arguments)
        return Content(
            f'<tool_call>\n{{"name": {json.dumps(self.name, ensure_ascii=False)}, "arguments": {written}}}\n</tool_call>'
        )


def text(value: Any) -> str:
    """`value` where it is a text, else ""; without halves of surrogate pairs, which have no UTF-8 form."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def is_count(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def message_of(answer: Mapping[str, Any]) -> str:
    """What a server says about an error, in one of the forms that are in use; "" for nothing."""
    error = answer.get("error", answer)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return text(error if isinstance(error, str) else json.dumps(error))
