"""Choices of OpenAI's API: each is an answer, part by part while it comes and as a whole when it has ended."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Protocol

from ...text.chat.answers import Content, Event, Reasoning, ToolCall
from ...text.tokenizer import Tokenizer
from ..http.sse import encoded
from ..service.generation import Generation, TextPart
from ..shared.chat import Asked, ChatAnswer
from ..shared.json_text import json_array, json_object
from ..shared.logprobs import token_reports
from .echo import Echo
from .logprobs import TextLogprobs

Object = dict[str, Any]
FINISH = {"eos": "stop", "stop": "stop", "cancelled": "stop"}
"""OpenAI's names for why an answer ended, by ours; all else is "length"."""


class Choice(Protocol):
    """One of a request's answers, while it comes."""

    generation: Generation

    def add(self, part: TextPart) -> list[Object]:
        """What a part brings, in the form of streamed choices."""

    def end(self) -> list[Object]:
        """What was held back, now that nothing follows."""

    def whole(self) -> dict[str, str]:
        """The choice when it has ended: its fields, as JSON."""

    @property
    def finish(self) -> str: ...


class ChatChoice:
    """The answer to a chat: thinking, text and tool calls apart."""

    def __init__(
        self, asked: Asked, generation: Generation, tokenizer: Tokenizer, n_top: int | None, stream: bool
    ) -> None:
        self.generation = generation
        self._tokenizer = tokenizer
        self._n_top = n_top
        self._stream = stream
        self._answer = ChatAnswer(asked, generation)
        self._calls: list[Object] = []
        self._texts: dict[str, list[str]] = {"reasoning_content": [], "content": []}
        self._n_read = 0
        self._unsent: list[Object] = []
        """Reports of tokens that have brought no delta yet."""
        self._sent: list[str] = []
        """All others as JSON, where the answer comes as a whole."""

    def add(self, part: TextPart) -> list[Object]:
        if self._n_top is not None:
            places = range(self._n_read, self._n_read + len(part.tokens))
            self._unsent += token_reports(self._tokenizer, self.generation.sequence, places, self._n_top)
        self._n_read += len(part.tokens)
        return self._deltas(self._answer.add(part))

    def end(self) -> list[Object]:
        deltas = self._deltas(self._answer.end())
        return deltas + ([self._with_logprobs({})] if self._unsent else [])

    def _deltas(self, events: list[Event]) -> list[Object]:
        return [self._with_logprobs(self._delta(event)) for event in events]

    def _delta(self, event: Event) -> Object:
        if isinstance(event, ToolCall):
            arguments = json.dumps(event.arguments, ensure_ascii=False)
            call = {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": event.name, "arguments": arguments},
            }
            self._calls.append(call)
            return {"tool_calls": [{"index": len(self._calls) - 1, **call}]}
        kind = {Reasoning: "reasoning_content", Content: "content"}[type(event)]
        self._texts[kind].append(event.text)
        return {kind: event.text}

    def _with_logprobs(self, delta: Object) -> Object:
        sent, self._unsent = self._unsent, []
        if sent and not self._stream:
            self._sent.append(encoded(sent)[1:-1])
        return {
            "delta": delta,
            "logprobs": {"content": sent, "refusal": None} if self._n_top is not None else None,
        }

    def whole(self) -> dict[str, str]:
        thought, said = ("".join(parts) for parts in self._texts.values())
        message: Object = {"role": "assistant", "content": said or (None if self._calls else "")}
        message |= {"reasoning_content": thought} if thought else {}
        message |= {"tool_calls": self._calls} if self._calls else {}
        logprobs = json_object({"content": json_array(self._sent), "refusal": "null"})
        return {"message": encoded(message), "logprobs": "null" if self._n_top is None else logprobs}

    @property
    def finish(self) -> str:
        reason = FINISH.get(self.generation.sequence.stop_reason or "", "length")
        return "tool_calls" if self._calls and reason == "stop" else reason


class TextChoice:
    """A text that goes on from a prompt."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        n_top: int | None,
        stream: bool,
        echo: Echo | None = None,
    ) -> None:
        self.generation = generation
        self._tokenizer = tokenizer
        self._echo = echo
        self._n_top = n_top
        self._stream = stream
        self._text: list[str] = []
        self._logprobs = TextLogprobs()
        self._n_read = 0
        self._sent: dict[str, list[str]] = {name: [] for name in TextLogprobs.NAMES}

    def add(self, part: TextPart) -> list[Object]:
        places = range(self._n_read, self._n_read + len(part.tokens))
        self._n_read += len(part.tokens)
        reports = (
            []
            if self._n_top is None
            else token_reports(self._tokenizer, self.generation.sequence, places, self._n_top)
        )
        return [*self._begun(), *self._piece(part.text, reports)]

    def end(self) -> list[Object]:
        return self._begun()

    def _begun(self) -> list[Object]:
        """The prompt, once, where it is asked for."""
        echo, self._echo = self._echo, None
        return self._piece(echo.text, echo.reports) if echo else []

    def _piece(self, text: str, reports: Sequence[Object]) -> list[Object]:
        self._text.append(text)
        if self._n_top is None:
            return [{"text": text, "logprobs": None}] if text else []
        lists = self._logprobs.add(reports)
        if reports and not self._stream:
            for name, items in lists.items():
                self._sent[name].append(encoded(items)[1:-1])
        return [{"text": text, "logprobs": lists}]

    def whole(self) -> dict[str, str]:
        lists = {name: json_array(parts) for name, parts in self._sent.items()}
        return {
            "text": encoded("".join(self._text)),
            "logprobs": "null" if self._n_top is None else json_object(lists),
        }

    @property
    def finish(self) -> str:
        return FINISH.get(self.generation.sequence.stop_reason or "", "length")
