"""Answers of Anthropic's API: event by event, or as one message."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

from ...text.chat.answers import Event, Reasoning, ToolCall
from ..http.sse import encoded
from ..shared.chat import ChatAnswer

Object = dict[str, Any]
REASONS = {
    "eos": "end_turn",
    "stop": "stop_sequence",
    "cancelled": "end_turn",
    "context": "model_context_window_exceeded",
}
"""Anthropic's names for why an answer ended, by ours; all else is "max_tokens"."""
SIGNATURE = "unsigned"
"""Of thinking: nobody checks it, and some clients leave out blocks whose signature is empty."""


class Blocks:
    """The blocks of an answer, each begun, gone on with and ended in turn. `shown` is the list of them so far."""

    def __init__(self, hides_thinking: bool) -> None:
        self._hides_thinking = hides_thinking
        self._open: type[Event] | None = None
        self._texts: list[str] = []
        self.shown: list[Object] = []
        self.n_calls = 0

    def add(self, event: Event) -> list[Object]:
        """What a stream says of a piece of the answer."""
        if isinstance(event, ToolCall):
            return [*self.end(), *self._call(event)]
        said = [] if type(event) is self._open else [*self.end(), self._begin(type(event))]
        if isinstance(event, Reasoning):
            if self._hides_thinking:
                return said
            delta = {"type": "thinking_delta", "thinking": event.text}
        else:
            delta = {"type": "text_delta", "text": event.text}
        self._texts.append(event.text)
        return [*said, self._delta(delta)]

    def end(self) -> list[Object]:
        """What it says at the end of the block that is open, if one is."""
        if self._open is None:
            return []
        block, text = self.shown[-1], "".join(self._texts)
        said = []
        if self._open is Reasoning:
            block |= {"thinking": text, "signature": SIGNATURE}
            said.append(self._delta({"type": "signature_delta", "signature": SIGNATURE}))
        else:
            block["text"] = text
        self._open, self._texts = None, []
        return [*said, self._stop()]

    def _begin(self, kind: type[Event]) -> Object:
        self._open = kind
        thinks = kind is Reasoning
        return self._start(
            {"type": "thinking", "thinking": "", "signature": ""} if thinks else {"type": "text", "text": ""}
        )

    def _call(self, call: ToolCall) -> list[Object]:
        self.n_calls += 1
        block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": {}}
        said = [
            self._start(block),
            self._delta({"type": "input_json_delta", "partial_json": encoded(call.arguments)}),
            self._stop(),
        ]
        self.shown[-1]["input"] = call.arguments
        return said

    def _start(self, block: Object) -> Object:
        self.shown.append({**block})
        return {"type": "content_block_start", "index": len(self.shown) - 1, "content_block": block}

    def _delta(self, delta: Object) -> Object:
        return {"type": "content_block_delta", "index": len(self.shown) - 1, "delta": delta}

    def _stop(self) -> Object:
        return {"type": "content_block_stop", "index": len(self.shown) - 1}


class Answer:
    """An answer while it comes."""

    def __init__(self, model: str, answer: ChatAnswer, hides_thinking: bool) -> None:
        self._model, self._answer = model, answer
        self._generation = answer.generation
        self._blocks = Blocks(hides_thinking)
        self._id = f"msg_{secrets.token_hex(12)}"

    async def events(self) -> AsyncIterator[Object]:
        """The events of a stream: the first comes with the first token. Raises QwenError."""
        begun = False
        async for part in self._generation:
            if not begun:
                begun = True
                for event in self._begin():
                    yield event
            for piece in self._answer.add(part):
                for event in self._blocks.add(piece):
                    yield event
        if not begun:
            for event in self._begin():
                yield event
        for piece in self._answer.end():
            for event in self._blocks.add(piece):
                yield event
        for event in self._blocks.end():
            yield event
        yield {"type": "message_delta", "delta": self._ending(), "usage": self._usage()}
        yield {"type": "message_stop"}

    async def whole(self) -> Object:
        """All in one. Raises QwenError."""
        async for part in self._generation:
            for piece in self._answer.add(part):
                self._blocks.add(piece)
        for piece in self._answer.end():
            self._blocks.add(piece)
        self._blocks.end()
        return self._message(self._blocks.shown) | self._ending() | {"usage": self._usage()}

    def _begin(self) -> list[Object]:
        nothing = {"stop_reason": None, "stop_sequence": None}
        message = self._message([]) | nothing | {"usage": self._usage() | {"output_tokens": 0}}
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def _message(self, content: list[Object]) -> Object:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
        }

    def _ending(self) -> Object:
        """Why the answer ended, and with which stop sequence."""
        word = self._generation.answer.stop_word
        reason = REASONS.get(self._generation.sequence.stop_reason or "", "max_tokens")
        if self._blocks.n_calls and reason == "end_turn":
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": word or None}

    def _usage(self) -> Object:
        """Tokens: those of the prompt that were computed, those that were known, and those of the answer."""
        seq = self._generation.sequence
        return {
            "input_tokens": seq.n_prompt - seq.n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": seq.n_cached,
            "output_tokens": len(seq.generated),
        }
