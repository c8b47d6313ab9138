"""A streamed answer of OpenAI's protocol: from bytes to events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import QwenError
from ..text.chat.answers import AnswerParser, Content, Event, Reasoning, ToolCall
from ..text.chat.tool_calls import mapping

MAX_EVENT = 2**20
"""Bytes of one event."""
MAX_COUNT = 1e15
"""Figures above it are not believed. Floats are exact up to there."""


def events(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The data of server-sent events that come in pieces (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    An event that is cut off by the end of the stream is dropped. Raises QwenError for one of more than MAX_EVENT bytes.
    """
    pending, data, size = b"", list[bytes](), 0
    for piece in pieces:
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            field, colon, value = line.removesuffix(b"\r").partition(b":")
            if field in (b"data", b"error"):  # llama-server wrote its errors into a field of their own
                data.append(value.removeprefix(b" "))
                size += len(line)
            elif not field and not colon:
                if event := b"\n".join(data).strip():
                    yield event
                data, size = [], 0
        if size + len(pending) > MAX_EVENT:
            raise QwenError(f"the server sent an event of more than {MAX_EVENT} bytes")


class StreamedAnswer:
    """An answer that arrives in chunks: its events, why it ended, and what it cost."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self.finish: str | None = None
        self._parser = AnswerParser(tools=tools)  # for servers that leave <think> and <tool_call> in the text
        self._calls: list[PartialCall] = []
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self.begun = False  # whether something of it has arrived
        self._begin = self._first = self._last = time.monotonic()

    def add(self, chunk: dict[str, Any]) -> Iterator[Event]:
        """The events of a chunk: of its `choices` with a `delta`, or with a whole `message` where the server does not stream."""
        self._usage = mapping(chunk.get("usage")) or self._usage
        self._timings = mapping(chunk.get("timings")) or self._timings
        choices = chunk.get("choices")
        choice = mapping(choices[0]) if isinstance(choices, list) and choices else {}
        delta = mapping(choice.get("delta")) or mapping(choice.get("message"))
        self.finish = text(choice.get("finish_reason")) or self.finish
        thought = text(delta.get("reasoning_content")) or text(delta.get("reasoning"))
        content = text(delta.get("content"))
        calls = delta.get("tool_calls")
        if thought or content or calls:
            self._last = time.monotonic()
            self._first = self._first if self.begun else self._last
            self.begun = True
        if thought:
            yield Reasoning(thought)
        yield from self._parser.add(content)
        for call in calls if isinstance(calls, list) else ():
            self._add_call(mapping(call))

    def _add_call(self, delta: Mapping[str, Any]) -> None:
        """A call's first delta names it, later ones add to its arguments. Some servers give two calls one index, but never one id."""
        index = delta.get("index")
        id = text(delta.get("id"))
        function = mapping(delta.get("function"))
        if not function:
            return
        call = next((c for c in reversed(self._calls) if c.index == index), None)
        if call is None or (id and call.id and id != call.id):
            call = PartialCall(index, id)
            self._calls.append(call)
        call.name += text(function.get("name"))
        arguments = function.get("arguments")
        call.arguments.append(json.dumps(arguments) if isinstance(arguments, dict) else text(arguments))

    def end(self) -> Iterator[Event]:
        """What was held back: the text that might have begun a tag, and the calls."""
        yield from self._parser.end()
        yield from (call.event() for call in self._calls)
        self._calls = []

    def stats(self) -> dict[str, float]:
        """Tokens and milliseconds by llama.cpp's names, as the server gives them. Where it doesn't, times are measured here."""
        given = dict(self._timings)
        if not given:
            given = {
                "predicted_n": self._usage.get("completion_tokens"),
                "prompt_ms": 1e3 * (self._first - self._begin),
                "predicted_ms": 1e3 * (self._last - self._first),
            }
            prompt: Any = self._usage.get("prompt_tokens")
            cached = mapping(self._usage.get("prompt_tokens_details")).get("cached_tokens") or 0
            if is_count(prompt) and is_count(cached):
                given |= {"prompt_n": prompt - cached, "cache_n": cached}
        return {name: value for name, value in given.items() if is_count(value)}


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


def parsed(data: bytes | str) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def text(value: Any) -> str:
    """`value` where it is a text, else ""; without halves of surrogate pairs, which have no UTF-8 form."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def message_of(answer: Mapping[str, Any]) -> str:
    """What a server says about an error, in one of the forms that are in use; "" for nothing."""
    error = answer.get("error", answer)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return text(error if isinstance(error, str) else json.dumps(error))
