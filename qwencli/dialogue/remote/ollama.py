"""Ollama's own chats (https://docs.ollama.com/api/chat)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import InputError
from ...text.chat.answers import Event
from ...text.chat.tool_calls import mapping
from .answer import StreamedAnswer, is_count, text
from .protocol import Body, Protocol, may_think, sampling_fields, with_calls

if TYPE_CHECKING:
    from ...text.chat.template import Message
    from ..dialogue import Settings

NANOSECONDS = 1e6
"""In a millisecond."""


class Answer(StreamedAnswer):
    """Chunks have a piece of the `message`; the last one is `done` and has figures. An answer that isn't streamed is one such chunk."""

    STOP_REASONS: ClassVar = {"length": "length"}

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        super().__init__(tools)
        self._figures: Mapping[str, Any] = {}
        self._n_calls = 0

    def add(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        message = mapping(chunk.get("message"))
        yield from self._write(message.get("thinking"), message.get("content"))
        calls = message.get("tool_calls")
        for call in map(mapping, calls if isinstance(calls, list) else ()):
            if function := mapping(call.get("function")):
                self._called(self._n_calls, "", text(function.get("name")), function.get("arguments"))
                self._n_calls += 1
        if chunk.get("done") is True:
            self._figures = chunk
            self.finish = text(chunk.get("done_reason")) or "stop"

    def counts(self) -> dict[str, Any]:
        figures = self._figures
        times = {
            "prompt_ms": figures.get("prompt_eval_duration"),
            "predicted_ms": figures.get("eval_duration"),
        }
        return {
            **{name: value / NANOSECONDS for name, value in times.items() if is_count(value)},
            "prompt_n": figures.get("prompt_eval_count"),
            "predicted_n": figures.get("eval_count"),
        }


def turns(messages: Sequence[Message]) -> Iterator[Body]:
    """The messages, with the arguments of calls as objects, and each result with the name of what was called."""
    for message, calls in with_calls(messages):
        turn: Body = {"role": message["role"], "content": message.get("content") or ""}
        if message["role"] == "tool":
            turn["tool_name"] = calls[0].name if calls else ""
        elif calls:
            turn["tool_calls"] = [{"function": {"name": c.name, "arguments": c.object}} for c in calls]
        yield turn


def body(model: str, messages: Sequence[Message], settings: Settings) -> Body:
    """See `Protocol.body`."""
    asked: Body = {"model": model, "messages": list(turns(messages)), "stream": True}
    options = sampling_fields(settings.sampling)
    if settings.max_tokens is not None:
        options["num_predict"] = settings.max_tokens
    if options:
        asked["options"] = options
    if (think := may_think(settings)) is not None:
        asked["think"] = think
    if settings.reasoning_budget:
        raise InputError("Ollama's API has no limit of thinking: take an address that ends in /v1")
    if settings.tools:
        asked["tools"] = list(settings.tools)
    return asked


PROTOCOL = Protocol("an Ollama server", "/api/chat", "/api/tags", body, Answer, "OLLAMA_API_KEY")
