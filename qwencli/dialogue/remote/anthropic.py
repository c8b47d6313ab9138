"""Anthropic's messages (https://docs.anthropic.com/en/api/messages)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...text.chat.answers import Event
from ...text.chat.tool_calls import mapping
from .answer import StreamedAnswer, is_count, text
from .protocol import Body, Protocol, function_of, may_think, sampling_fields, with_calls

if TYPE_CHECKING:
    from ...text.chat.template import Message
    from ..dialogue import Settings

MAX_TOKENS = 8192
"""Of an answer whose length is left open: this protocol asks for a number."""
LEAST_BUDGET = 1024
"""The fewest tokens of thinking that may be asked for; they have to be fewer than those of the answer."""


class Answer(StreamedAnswer):
    """Chunks are events with a `type`, or the whole `message` where the server does not stream."""

    STOP_REASONS: ClassVar = {
        "max_tokens": "length",
        "model_context_window_exceeded": "context",
        "stop_sequence": "stop",
        "refusal": "stop",
    }

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        super().__init__(tools)
        self._usage: dict[str, Any] = {}

    def add(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        kind = chunk.get("type")
        if kind == "message":
            yield from self._whole(chunk)
        elif kind == "message_start":
            self._usage.update(mapping(mapping(chunk.get("message")).get("usage")))
        elif kind == "content_block_start":
            yield from self._block(chunk.get("index"), mapping(chunk.get("content_block")))
        elif kind == "content_block_delta":
            delta = mapping(chunk.get("delta"))
            if delta.get("type") == "input_json_delta":
                self._called(chunk.get("index"), "", "", delta.get("partial_json"))
            else:
                yield from self._write(delta.get("thinking"), delta.get("text"))
        elif kind == "message_delta":
            self._end(mapping(chunk.get("delta")), chunk)

    def _whole(self, message: Mapping[str, Any]) -> Iterator[Event]:
        content = message.get("content")
        for index, block in enumerate(map(mapping, content if isinstance(content, list) else ())):
            yield from self._block(index, block)
        self._end(message, message)

    def _block(self, index: Any, block: Mapping[str, Any]) -> Iterator[Event]:
        if block.get("type") == "tool_use":  # in a stream its input is empty, and follows in pieces
            self._called(index, text(block.get("id")), text(block.get("name")), block.get("input") or "")
        else:
            yield from self._write(block.get("thinking"), block.get("text"))

    def _end(self, reasons: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        self._usage.update(mapping(figures.get("usage")))
        self.finish = text(reasons.get("stop_reason")) or self.finish

    def counts(self) -> dict[str, Any]:
        written = self._usage.get("cache_creation_input_tokens") or 0
        read = self._usage.get("input_tokens")
        return {
            "prompt_n": read + written if is_count(read) and is_count(written) else None,
            "cache_n": self._usage.get("cache_read_input_tokens") or 0,
            "predicted_n": self._usage.get("output_tokens"),
        }


def turns(messages: Sequence[Message]) -> Iterator[Body]:
    """The messages without the system's, with calls and their results as blocks."""
    for message, calls in with_calls(messages):
        content = message.get("content") or ""
        if message["role"] == "system":
            continue
        if message["role"] == "tool":
            results = [{"type": "tool_result", "tool_use_id": call.id, "content": content} for call in calls]
            yield {"role": "user", "content": results}
        elif calls:
            blocks: list[Body] = [{"type": "text", "text": content}] if content else []
            blocks += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.object} for c in calls]
            yield {"role": message["role"], "content": blocks}
        else:
            yield {"role": message["role"], "content": content}


def body(model: str, messages: Sequence[Message], settings: Settings) -> Body:
    """See `Protocol.body`."""
    limit = MAX_TOKENS if settings.max_tokens is None else settings.max_tokens
    asked: Body = {
        "model": model,
        "messages": list(turns(messages)),
        "max_tokens": limit,
        "stream": True,
        **sampling_fields(settings.sampling),
    }
    if system := [message["content"] for message in messages if message["role"] == "system"]:
        asked["system"] = "\n\n".join(system)
    think, budget = may_think(settings), settings.reasoning_budget
    if think is False:
        asked["thinking"] = {"type": "disabled"}
    elif think or budget:
        asked["thinking"] = {"type": "enabled", "budget_tokens": budget or max(LEAST_BUDGET, limit // 2)}
    if settings.tools:
        asked["tools"] = [
            {
                "name": f.get("name"),
                "description": f.get("description") or "",
                "input_schema": f.get("parameters") or {"type": "object"},
            }
            for f in map(function_of, settings.tools)
        ]
    return asked


PROTOCOL = Protocol(
    "a server of Anthropic's messages",
    "/messages",
    "/models",
    body,
    Answer,
    "ANTHROPIC_API_KEY",
    lambda key: {"x-api-key": key},
    {"anthropic-version": "2023-06-01"},
)
