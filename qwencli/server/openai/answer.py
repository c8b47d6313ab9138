"""Answers of OpenAI's API: all choices of a request, as a stream of chunks or as one JSON object."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ... import __version__
from ...request.timings import timings
from ...text.tokenizer import Tokenizer
from ..shared.json_text import all_encoded, json_array, json_object
from ..shared.progress import prompt_progress
from ..shared.streams import merged
from ..shared.verbose import verbose
from .choices import Choice, Object
from .fields import AnswerFields


class Choices:
    """All choices of a request, and what OpenAI's API has around them. `n` in a row answer one prompt.

    `kind` is "chat.completion" or "text_completion".
    """

    def __init__(
        self,
        kind: str,
        model: str,
        body: AnswerFields,
        choices: Sequence[Choice],
        tokenizer: Tokenizer,
        is_verbose: bool,
    ) -> None:
        self._kind, self._body, self._choices, self._tokenizer = kind, body, choices, tokenizer
        self._is_verbose = is_verbose
        self._n = body.n or 1
        self._with_usage = body.with_usage
        self._sequences = [choice.generation.sequence for choice in choices]
        prefix = "chatcmpl-" if kind == "chat.completion" else "cmpl-"
        self._common = {
            "id": prefix + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"b-qwencli-{__version__}",
        }

    async def whole(self) -> str:
        """JSON. Raises QwenError where one of them fails."""
        async for i, part in merged([choice.generation for choice in self._choices]):
            self._choices[i].add(part) if part else self._choices[i].end()
        choices = []
        for i, choice in enumerate(self._choices):
            rest = {"finish_reason": choice.finish, **self._tokens(i)}
            choices.append(json_object({"index": str(i), **choice.whole(), **all_encoded(rest)}))
            await asyncio.sleep(0)  # others need not wait for all of them
        costs = {"usage": self._usage(), "timings": timings(self._sequences[0]), **self._verbose()}
        return json_object(
            {**all_encoded(self._common), "choices": json_array(choices), **all_encoded(costs)}
        )

    async def chunks(self) -> AsyncIterator[Object]:
        """The events of a stream. Raises QwenError."""
        n_running = len(self._choices)
        if self._kind == "chat.completion":
            begun = {"delta": {"role": "assistant", "content": None}, "logprobs": None, "finish_reason": None}
            for i in range(n_running):
                yield self._chunk({"index": i, **begun})
        async for i, part in merged([choice.generation for choice in self._choices]):
            choice = self._choices[i]
            if part and (progress := prompt_progress(choice.generation.sequence, part)):
                yield self._empty_chunk(i) | {"prompt_progress": progress}
                continue
            for fields in choice.add(part) if part else choice.end():
                chunk = self._chunk({"index": i, **fields, "finish_reason": None})
                if self._body.timings_per_token:
                    chunk["timings"] = timings(choice.generation.sequence)
                yield chunk
            if part is None:
                n_running -= 1
                chunk = self._empty_chunk(i, choice.finish, **self._tokens(i))
                if not n_running and not self._with_usage:
                    chunk |= {"timings": timings(self._sequences[0]), **self._verbose()}
                yield chunk
        if self._with_usage:
            costs = {"usage": self._usage(), "timings": timings(self._sequences[0])}
            yield self._chunk() | costs | self._verbose()

    def _empty_chunk(self, i: int, finish: str | None = None, **more: Any) -> Object:
        """A chunk without text, and with `finish` the one that says why the i-th choice ended."""
        nothing: Object = {"delta": {}} if self._kind == "chat.completion" else {"text": ""}
        return self._chunk({"index": i, **nothing, "logprobs": None, "finish_reason": finish, **more})

    def _chunk(self, *choices: Object) -> Object:
        kind = "chat.completion.chunk" if self._kind == "chat.completion" else self._kind
        chunk = {**self._common, "object": kind, "choices": choices}
        return chunk | {"usage": None} if self._with_usage else chunk

    def _verbose(self) -> Object:
        """The first choice word for word, where that is wanted."""
        if not self._is_verbose:
            return {}
        return {"__verbose": verbose(self._choices[0].generation, self._tokenizer)}

    def _tokens(self, i: int) -> Object:
        return {"tokens": self._sequences[i].generated} if self._body.return_tokens else {}

    def _usage(self) -> Object:
        """Tokens, where a prompt counts once for all its answers."""
        prompts = self._sequences[:: self._n]
        n_prompt = sum(seq.n_prompt for seq in prompts)
        n_generated = sum(len(seq.generated) for seq in self._sequences)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_generated,
            "total_tokens": n_prompt + n_generated,
            "prompt_tokens_details": {"cached_tokens": sum(seq.n_cached for seq in prompts)},
        }
