"""Answers of Ollama's API: piece by piece, or as one JSON object."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timezone
from typing import Any

from ...text.chat.answers import Content, Event, Reasoning, ToolCall
from ...text.tokenizer import Tokenizer
from ..service.generation import Generation, TextPart
from ..shared.chat import ChatAnswer
from ..shared.logprobs import token_reports

Object = dict[str, Any]


def now() -> str:
    """As Go writes a time."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)


class PlainAnswer:
    """A text that goes on from a prompt, told by the same events as a ChatAnswer."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    def add(self, part: TextPart) -> list[Event]:
        return [Content(part.text)] if part.text else []

    def end(self) -> list[Event]:
        return []


def message_of(thinking: str, content: str, calls: list[Object]) -> Object:
    """What /api/chat says of a piece, or of the whole."""
    message: Object = {"role": "assistant", "content": content}
    message |= {"thinking": thinking} if thinking else {}
    return {"message": message | ({"tool_calls": calls} if calls else {})}


def response_of(thinking: str, content: str, calls: list[Object]) -> Object:
    """The same for /api/generate, which knows no calls."""
    return {"response": content} | ({"thinking": thinking} if thinking else {})


Piece = Callable[[str, str, list[Object]], Object]
"""One of the last two functions."""


class Answer:
    """An answer while it comes. `with_context`: it ends with its tokens and the prompt's, for a request that goes on from there."""

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        answer: ChatAnswer | PlainAnswer,
        piece: Piece,
        n_top: int | None,
        with_context: bool = False,
    ) -> None:
        self._model, self._tokenizer, self._answer, self._piece = model, tokenizer, answer, piece
        self._generation = answer.generation
        self._n_top, self._with_context = n_top, with_context
        self._begun = time.monotonic()
        self._n_read = self._n_calls = 0

    async def pieces(self) -> AsyncIterator[Object]:
        """One for each event, and the last with the figures. Raises QwenError."""
        reports: list[Object] = []
        async for part in self._generation:
            reports += self._reports(part)
            for event in self._answer.add(part):
                yield self._told(event, reports)
                reports = []
        for event in self._answer.end():
            yield self._told(event, reports)
            reports = []
        yield self._common() | self._piece("", "", []) | logprobs_of(reports) | self._final()

    async def whole(self) -> Object:
        """All in one. Raises QwenError."""
        events: list[Event] = []
        reports: list[Object] = []
        async for part in self._generation:
            reports += self._reports(part)
            events += self._answer.add(part)
        events += self._answer.end()
        thinking = "".join(event.text for event in events if isinstance(event, Reasoning))
        content = "".join(event.text for event in events if isinstance(event, Content))
        calls = [self._call(event) for event in events if isinstance(event, ToolCall)]
        return self._common() | self._piece(thinking, content, calls) | logprobs_of(reports) | self._final()

    def _told(self, event: Event, reports: list[Object]) -> Object:
        if isinstance(event, ToolCall):
            piece = self._piece("", "", [self._call(event)])
        elif isinstance(event, Reasoning):
            piece = self._piece(event.text, "", [])
        else:
            piece = self._piece("", event.text, [])
        return self._common() | piece | logprobs_of(reports) | {"done": False}

    def _call(self, call: ToolCall) -> Object:
        self._n_calls += 1
        function = {"index": self._n_calls - 1, "name": call.name, "arguments": call.arguments}
        return {"id": f"call_{secrets.token_hex(4)}", "function": function}

    def _common(self) -> Object:
        return {"model": self._model, "created_at": now()}

    def _reports(self, part: TextPart) -> list[Object]:
        places = range(self._n_read, self._n_read + len(part.tokens))
        self._n_read = places.stop
        if self._n_top is None:
            return []
        found = token_reports(self._tokenizer, self._generation.sequence, places, self._n_top)
        return [
            without_id(each) | {"top_logprobs": [*map(without_id, each["top_logprobs"])]} for each in found
        ]

    def _final(self) -> Object:
        seq = self._generation.sequence
        ended = seq.stop_reason in ("eos", "stop", "cancelled")
        return {
            "done": True,
            "done_reason": "stop" if ended else "length",
            **({"context": seq.tokens} if self._with_context else {}),
            "total_duration": nanoseconds(time.monotonic() - self._begun),
            "load_duration": 0,
            "prompt_eval_count": seq.n_prompt,
            "prompt_eval_duration": nanoseconds(seq.prompt_seconds),
            "eval_count": len(seq.generated),
            "eval_duration": nanoseconds(seq.generation_seconds),
        }


def logprobs_of(reports: list[Object]) -> Object:
    return {"logprobs": reports} if reports else {}


def without_id(report: Object) -> Object:
    return {name: value for name, value in report.items() if name != "id"}
