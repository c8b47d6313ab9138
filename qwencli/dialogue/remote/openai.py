"""OpenAI's chat completions, which llama-server, vLLM, Ollama, LM Studio and others speak, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...text.chat.answers import Event
from ...text.chat.tool_calls import mapping
from .answer import StreamedAnswer, prompt_counts, text
from .protocol import Body, Protocol, may_think, sampling_fields

if TYPE_CHECKING:
    from ...text.chat.template import Message
    from ..dialogue import Settings


class Answer(StreamedAnswer):
    """Chunks have `choices` with a `delta`, or with a whole `message` where the server does not stream."""

    STOP_REASONS: ClassVar = {"length": "length", "content_filter": "stop"}

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        super().__init__(tools)
        self._usage: Mapping[str, Any] = {}

    def add(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        self._usage = mapping(chunk.get("usage")) or self._usage
        self._timings = mapping(chunk.get("timings")) or self._timings
        choices = chunk.get("choices")
        choice = mapping(choices[0]) if isinstance(choices, list) and choices else {}
        whole = mapping(choice.get("message"))
        delta = mapping(choice.get("delta")) or whole
        self.finish = text(choice.get("finish_reason")) or ("stop" if whole else self.finish)
        yield from self._write(delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content"))
        calls = delta.get("tool_calls")
        for call in map(mapping, calls if isinstance(calls, list) else ()):
            if function := mapping(call.get("function")):
                name = text(function.get("name"))
                self._called(call.get("index"), text(call.get("id")), name, function.get("arguments"))

    def error(self, chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return chunk if chunk.get("error") or ("message" in chunk and "choices" not in chunk) else None

    def counts(self) -> dict[str, Any]:
        cached = mapping(self._usage.get("prompt_tokens_details")).get("cached_tokens") or 0
        counts = prompt_counts(self._usage.get("prompt_tokens"), cached)
        return counts | {"predicted_n": self._usage.get("completion_tokens")}


def body(model: str, messages: Sequence[Message], settings: Settings) -> Body:
    """See `Protocol.body`. A last message that is the assistant's is to be continued, and only what is new to be sent."""
    goes_on = messages[-1]["role"] == "assistant"
    past = messages[:-1] if goes_on else messages
    asked: Body = {
        "model": model,
        "messages": [
            *({k: v for k, v in m.items() if k != "reasoning_content"} for m in past),
            *messages[len(past) :],
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling_fields(settings.sampling),
    }
    if settings.max_tokens is not None:
        asked["max_tokens"] = settings.max_tokens
    if (think := may_think(settings)) is not None:
        asked["chat_template_kwargs"] = {"enable_thinking": think}
    if settings.reasoning_budget is not None:  # llama-server had one name for it, then the other
        asked["thinking_budget_tokens"] = asked["reasoning_budget_tokens"] = settings.reasoning_budget
    if goes_on:
        asked |= {"continue_final_message": True, "add_generation_prompt": False}
    if settings.tools:
        asked["tools"] = list(settings.tools)
    return asked


PROTOCOL = Protocol(
    "an OpenAI-compatible server", "/chat/completions", "/models", body, Answer, "OPENAI_API_KEY"
)
