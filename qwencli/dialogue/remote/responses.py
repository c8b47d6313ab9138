"""OpenAI's responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...text.chat.answers import Event
from ...text.chat.tool_calls import mapping
from .answer import StreamedAnswer, prompt_counts, text
from .protocol import Body, Protocol, function_of, may_think, sampling_fields, with_calls

if TYPE_CHECKING:
    from ...text.chat.template import Message
    from ..dialogue import Settings

THINKS, DOES_NOT = "medium", "none"
"""OpenAI's default effort, and the word for none."""
ENDS = "response.completed", "response.incomplete"


class Answer(StreamedAnswer):
    """Chunks are events with a `type`, or the whole `response` where the server does not stream."""

    STOP_REASONS: ClassVar = {"max_output_tokens": "length", "content_filter": "stop"}

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        super().__init__(tools)
        self._usage: Mapping[str, Any] = {}

    def add(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        kind = text(chunk.get("type"))
        if chunk.get("object") == "response":
            yield from self._whole(chunk)
        elif kind in ENDS:
            self._end(mapping(chunk.get("response")))
        elif kind in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
            yield from self._write(chunk.get("delta"), "")
        elif kind in ("response.output_text.delta", "response.refusal.delta"):
            yield from self._write("", chunk.get("delta"))
        elif kind == "response.output_item.done":
            self._item(mapping(chunk.get("item")))

    def error(self, chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if chunk.get("type") == "error":
            return {"error": chunk.get("error") or chunk}
        return super().error(mapping(chunk.get("response")) or chunk)

    def _whole(self, response: Mapping[str, Any]) -> Iterator[Event]:
        output = response.get("output")
        for item in map(mapping, output if isinstance(output, list) else ()):
            content = item.get("content")
            for part in map(mapping, content if isinstance(content, list) else ()):
                said = part.get("text") or part.get("refusal")
                yield from self._write(said, "") if item.get("type") == "reasoning" else self._write("", said)
            self._item(item)
        self._end(response)

    def _item(self, item: Mapping[str, Any]) -> None:
        """A call, whole: its arguments came in pieces before, too."""
        if item.get("type") == "function_call":
            id = text(item.get("call_id"))
            self._called(id, id, text(item.get("name")), item.get("arguments"))

    def _end(self, response: Mapping[str, Any]) -> None:
        self._usage = mapping(response.get("usage"))
        self._timings = mapping(response.get("timings"))
        reason = text(mapping(response.get("incomplete_details")).get("reason"))
        self.finish = reason or text(response.get("status")) or "completed"

    def counts(self) -> dict[str, Any]:
        cached = mapping(self._usage.get("input_tokens_details")).get("cached_tokens") or 0
        counts = prompt_counts(self._usage.get("input_tokens"), cached)
        return counts | {"predicted_n": self._usage.get("output_tokens")}


def items(messages: Sequence[Message]) -> Iterator[Body]:
    """The messages, calls and results as items."""
    for message, calls in with_calls(messages):
        content = message.get("content") or ""
        if message["role"] == "tool":
            for call in calls:
                yield {"type": "function_call_output", "call_id": call.id, "output": content}
            continue
        if content or not calls:
            yield {"type": "message", "role": message["role"], "content": content}
        for call in calls:
            yield {
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
            }


def body(model: str, messages: Sequence[Message], settings: Settings) -> Body:
    """See `Protocol.body`. The server needn't keep the answer: the whole conversation is sent each time."""
    asked: Body = {
        "model": model,
        "input": list(items(messages)),
        "stream": True,
        "store": False,
        **sampling_fields(settings.sampling),
    }
    if settings.max_tokens is not None:
        asked["max_output_tokens"] = settings.max_tokens
    if (think := may_think(settings)) is not None:
        asked["reasoning"] = {"effort": THINKS if think else DOES_NOT}
    if settings.reasoning_budget is not None:
        asked["reasoning_budget_tokens"] = settings.reasoning_budget
    if settings.tools:
        asked["tools"] = [{"type": "function", **function_of(tool)} for tool in settings.tools]
    return asked


PROTOCOL = Protocol("a server of OpenAI's responses", "/responses", "/models", body, Answer, "OPENAI_API_KEY")
