"""Answers of OpenAI's API: choices as they come, piece by piece, and as a whole, and what stands around them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from ... import __version__
from ...text.chat.answers import AnswerParser, Content, Event, Reasoning, ToolCall
from ...text.chat.tool_calls import CLOSE
from ...text.tokenizer import Tokenizer
from ..http.sse import encoded
from ..service.generation import Generation, Piece
from ..shared.conversations import ConversationFields, Prompt
from ..shared.reports import TextLogprobs, timings, token_reports, usage
from ..shared.schemas import GenerationFields

Object = dict[str, Any]
FINISH = {"eos": "stop", "stop": "stop", "cancelled": "stop"}
"""Why an answer ended; all else is "length"."""


class Choice(Protocol):
    """One of a request's answers, while it comes."""

    generation: Generation

    def add(self, piece: Piece) -> list[Object]:
        """What a piece brings, as a streamed choice has it."""

    def end(self) -> list[Object]:
        """What was held back, now that nothing follows."""

    def whole(self) -> dict[str, str]:
        """The choice as one, when it has ended: the JSON of its fields."""

    @property
    def finish(self) -> str: ...


class ChatChoice:
    """The answer to a chat: thinking, text and tool calls apart."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        body: ConversationFields,
        prompt: Prompt,
        n_top: int | None,
    ) -> None:
        self.generation, self._tokenizer, self._prompt, self._n_top = generation, tokenizer, prompt, n_top
        self._parser = AnswerParser(prompt.inside, body.usable_tools)
        self._one_call, self._calls = body.parallel_tool_calls is False, list[Object]()
        self._texts: dict[str, list[str]] = {"reasoning_content": [], "content": []}
        self._unsent, self._sent = list[Object](), list[str]()
        self._stream, self._n_read = body.stream, 0
        self._parser.add(prompt.opening)

    def add(self, piece: Piece) -> list[Object]:
        if self._n_top is not None:
            places = range(self._n_read, self._n_read + len(piece.tokens))
            self._unsent += token_reports(self._tokenizer, self.generation.sequence, places, self._n_top)
        self._n_read += len(piece.tokens)
        return self._deltas(self._parser.add(piece.text))

    def end(self) -> list[Object]:
        closed = self._prompt.opening and self.generation.sequence.stop_reason == "eos"
        events = self._parser.add("\n" + CLOSE) if closed else []
        deltas = self._deltas(events + self._parser.end())
        return deltas + ([self._with_logprobs({})] if self._unsent else [])

    def _deltas(self, events: list[Event]) -> list[Object]:
        return [self._with_logprobs(delta) for event in events if (delta := self._delta(event))]

    def _delta(self, event: Event) -> Object:
        """What clients are told of an event, nothing of what follows a call that was to be the only one."""
        if self._one_call and self._calls:
            return {}
        if isinstance(event, ToolCall):
            if self._one_call:
                self.generation.cancel()
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
        logprobs = "null" if self._n_top is None else f'{{"content":[{",".join(self._sent)}],"refusal":null}}'
        return {"message": encoded(message), "logprobs": logprobs}

    @property
    def finish(self) -> str:
        reason = FINISH.get(self.generation.sequence.stop_reason or "", "length")
        return "tool_calls" if self._calls and reason == "stop" else reason


class TextChoice:
    """A text that goes on from a prompt."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer, n_top: int | None, stream: bool) -> None:
        self.generation, self._tokenizer, self._n_top, self._stream = generation, tokenizer, n_top, stream
        self._text, self._logprobs, self._n_read = list[str](), TextLogprobs(), 0
        self._sent: dict[str, list[str]] = {name: [] for name in TextLogprobs.NAMES}

    def add(self, piece: Piece) -> list[Object]:
        places = range(self._n_read, self._n_read + len(piece.tokens))
        self._n_read += len(piece.tokens)
        self._text.append(piece.text)
        if self._n_top is None:
            return [{"text": piece.text, "logprobs": None}] if piece.text else []
        lists = self._logprobs.add(
            token_reports(self._tokenizer, self.generation.sequence, places, self._n_top)
        )
        if piece.tokens and not self._stream:
            for name, items in lists.items():
                self._sent[name].append(encoded(items)[1:-1])
        return [{"text": piece.text, "logprobs": lists}]

    def end(self) -> list[Object]:
        return []

    def whole(self) -> dict[str, str]:
        lists = {name: f"[{','.join(parts)}]" for name, parts in self._sent.items()}
        return {
            "text": encoded("".join(self._text)),
            "logprobs": "null" if self._n_top is None else json_object(lists),
        }

    @property
    def finish(self) -> str:
        return FINISH.get(self.generation.sequence.stop_reason or "", "length")


class Answer:
    """All choices of a request. `n` in a row answer one prompt; `kind` is "chat.completion" or "text_completion"."""

    def __init__(
        self,
        kind: str,
        model: str,
        body: GenerationFields,
        choices: Sequence[Choice],
        n: int,
        with_usage: bool,
    ) -> None:
        self._kind, self._body, self._choices, self._n, self._with_usage = kind, body, choices, n, with_usage
        self._sequences = [choice.generation.sequence for choice in choices]
        prefix = "chatcmpl-" if kind == "chat.completion" else "cmpl-"
        self._common = {
            "id": prefix + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"qwencli-{__version__}",
        }

    async def whole(self) -> str:
        """JSON. Raises QwenError where one of them fails."""
        async for i, piece in merged([choice.generation for choice in self._choices]):
            self._choices[i].add(piece) if piece else self._choices[i].end()
        choices = []
        for i, choice in enumerate(self._choices):
            rest = {"finish_reason": choice.finish, **self._tokens(i)}
            choices.append(json_object({"index": str(i), **choice.whole(), **all_encoded(rest)}))
            await asyncio.sleep(0)  # others need not wait for all of them
        costs = {"usage": usage(self._sequences, self._n), "timings": timings(self._sequences[0])}
        return json_object(
            {**all_encoded(self._common), "choices": f"[{','.join(choices)}]", **all_encoded(costs)}
        )

    async def chunks(self) -> AsyncIterator[Object]:
        """The events of a stream. Raises QwenError."""
        running = len(self._choices)
        if self._kind == "chat.completion":
            for i in range(running):
                yield self._chunk(
                    {
                        "index": i,
                        "delta": {"role": "assistant", "content": ""},
                        "logprobs": None,
                        "finish_reason": None,
                    }
                )
        async for i, piece in merged([choice.generation for choice in self._choices]):
            choice = self._choices[i]
            for part in choice.add(piece) if piece else choice.end():
                timed = (
                    {"timings": timings(choice.generation.sequence)} if self._body.timings_per_token else {}
                )
                yield self._chunk({"index": i, **part, "finish_reason": None}) | timed
            if piece is None:
                running -= 1
                nothing: Object = {"delta": {}} if self._kind == "chat.completion" else {"text": ""}
                last = self._chunk(
                    {
                        "index": i,
                        **nothing,
                        "logprobs": None,
                        "finish_reason": choice.finish,
                        **self._tokens(i),
                    }
                )
                yield last if running or self._with_usage else last | {"timings": timings(self._sequences[0])}
        if self._with_usage:
            yield self._chunk() | {
                "usage": usage(self._sequences, self._n),
                "timings": timings(self._sequences[0]),
            }

    def _chunk(self, *choices: Object) -> Object:
        kind = "chat.completion.chunk" if self._kind == "chat.completion" else self._kind
        return {**self._common, "object": kind, "choices": choices} | (
            {"usage": None} if self._with_usage else {}
        )

    def _tokens(self, i: int) -> Object:
        return {"tokens": self._sequences[i].generated} if self._body.return_tokens else {}


def json_object(fields: Mapping[str, str]) -> str:
    """JSON of an object whose values are JSON already: what is long is encoded while it comes, and not at once at the end."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


def all_encoded(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: encoded(value) for name, value in fields.items()}


async def merged(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Piece | None]]:
    """The pieces of all as they come, each with whose it is; None for the end of one. Raises QwenError where one fails."""

    def following(i: int) -> asyncio.Future[Piece | None]:
        task = asyncio.ensure_future(anext(generations[i], None))
        task.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # where another fails first, nobody asks
        return task

    waiting = {following(i): i for i in range(len(generations))}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                i, piece = waiting.pop(task), task.result()
                yield i, piece
                if piece is not None:
                    waiting[following(i)] = i
    finally:
        for task in waiting:
            task.cancel()
