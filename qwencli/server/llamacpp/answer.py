"""Answers of llama.cpp's API: part by part while they come, and as a whole, in its JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any

from ...llm import LLM
from ...request.request import Request
from ...request.timings import timings
from ...sampling import NUMBERS, SamplingParams
from ..http.sse import encoded
from ..service.generation import Generation, TextPart
from ..shared.json_text import json_array, json_object
from ..shared.logprobs import token_reports
from ..shared.progress import prompt_progress
from .fields import CompletionFields

STOP_TYPES = {"eos": "eos", "stop": "word", "length": "limit", "context": "limit"}
FEW = 50
"""Probabilities of a token that are put into words in the event loop; more would hold it up for too long."""


@dataclass(frozen=True)
class Asked:
    """What a request asks of each of its answers. `max_tokens` as the client has it: with 0 a prompt is only read."""

    body: CompletionFields
    max_tokens: int | None
    llm: LLM
    model: str


class PromptAnswer:
    """The answer to one prompt, the `index`-th of its request. `text` is the prompt's.

    An empty prompt has no `generation`, and so no answer.
    """

    def __init__(
        self, asked: Asked, index: int, request: Request, text: str, generation: Generation | None
    ) -> None:
        self._asked = asked
        self._index = index
        self._text = text
        self._generation = generation
        self._sequence = (generation.answer if generation else asked.llm.begin(request)).sequence
        self._n_told = 0
        self._has_new_line = self._late = False

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What each step brings, and at the end all else that is known of the answer. Raises QwenError where the answer fails."""
        async for part, reports in self._parts():
            yield self._event(part) | ({"completion_probabilities": reports} if reports else {})
        yield some_of(self._final("", []), self._asked.body.response_fields)

    async def whole(self) -> str:
        """The whole answer, as JSON. Raises QwenError where it fails."""
        body = self._asked.body
        texts: list[str] = []
        tokens: list[int] = []
        reports: list[str] = []
        async for part, found in self._parts():
            texts.append(part.text)
            tokens += part.tokens
            reports += map(encoded, found)  # part by part: all at once would hold the event loop up
        if word := self._generation and self._generation.answer.stop_word:
            del reports[max(0, len(reports) - len(self._asked.llm.tokenizer.encode(word))) :]
        answer = self._final("".join(texts), tokens if body.return_tokens else [])
        return as_json(answer, reports, body.response_fields)

    async def _parts(self) -> AsyncIterator[tuple[TextPart, list[dict[str, Any]]]]:
        """What comes, with its tokens' probabilities."""
        body = self._asked.body
        limit = body.t_max_predict_ms or 0
        if not self._generation:
            return
        async for part in self._generation:
            if self._asked.max_tokens == 0 and part.n_read is None:
                continue  # its token was only asked for so that the prompt is read
            yield part, await self._reports(part)
            if "\n" in part.text:
                self._has_new_line = True
                self._late = 0 < limit < 1e3 * self._sequence.generation_seconds
                if self._late:
                    self._generation.cancel()
                    return

    async def _reports(self, part: TextPart) -> list[dict[str, Any]]:
        """The probabilities of a part's tokens, if the request wants them."""
        n = self._asked.body.n_reported
        places = range(self._n_told, self._n_told + len(part.tokens))
        self._n_told = places.stop

        def reports() -> list[dict[str, Any]]:
            found = token_reports(self._asked.llm.tokenizer, self._sequence, places, n)
            for place in places:
                self._sequence.reports.pop(place, None)
            return found

        await asyncio.sleep(0)  # many parts may be there already, and others are to be served between them
        return [] if not n else reports() if n <= FEW else await asyncio.to_thread(reports)

    def _event(self, part: TextPart) -> dict[str, Any]:
        seq, body = self._sequence, self._asked.body
        event: dict[str, Any] = {
            "index": self._index,
            "content": part.text,
            "tokens": part.tokens,
            "stop": False,
            "id_slot": self._slot,
            "tokens_predicted": self._n_told,
            "tokens_evaluated": seq.n_prompt,
        }
        if body.timings_per_token:
            event["timings"] = part.timings or timings(seq)
        if progress := prompt_progress(seq, part):
            event["prompt_progress"] = progress
        return event

    def _final(self, content: str, tokens: list[int]) -> dict[str, Any]:
        asked, seq = self._asked, self._sequence
        if asked.max_tokens == 0:
            del seq.tokens[seq.n_prompt :]
        # where the time was up the engine may have gone on meanwhile
        n_predicted = self._n_told if self._late else len(seq.generated)
        reason = "limit" if self._late else STOP_TYPES.get(seq.stop_reason or "", "none")
        return {
            "index": self._index,
            "content": content,
            "tokens": tokens,
            "id_slot": self._slot,
            "stop": True,
            "model": asked.model,
            "tokens_predicted": n_predicted,
            "tokens_evaluated": seq.n_prompt,
            "generation_settings": settings(seq.sampling, seq.sampler.seed, asked.max_tokens, asked.body),
            "prompt": self._text,
            "has_new_line": self._has_new_line,
            "truncated": seq.stop_reason == "context" or seq.n_dropped > 0,
            "stop_type": reason,
            "stopping_word": self._generation.answer.stop_word if self._generation else "",
            "tokens_cached": seq.n_prompt + max(0, n_predicted - 1) - seq.n_dropped,
            "timings": timings(seq),
        }

    @property
    def _slot(self) -> int:
        slot = self._generation.slot if self._generation else None
        return 0 if slot is None else slot


def settings(
    sampling: SamplingParams, seed: int, max_tokens: int | None, body: CompletionFields | None = None
) -> dict[str, Any]:
    """What an answer is generated with, by llama.cpp's names. Some fields only where there is a `body`.

    JSON has no infinity, so the bias of a forbidden token is null.
    """
    p, n_predict = sampling, -1 if max_tokens is None else max_tokens
    known = {
        "seed": seed,
        **{s.request_name: getattr(p, s.name) for s in NUMBERS.values()},
        "max_tokens": n_predict,
        "n_predict": n_predict,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": False,
        "stream": False,
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": p.samplers,
        "speculative.types": "none",
        "timings_per_token": False,
        "post_sampling_probs": p.post_sampling_probs,
        "backend_sampling": False,
        "lora": [],
    }
    if body is None:
        return known
    return known | {
        "n_keep": body.n_keep or 0,
        "n_discard": body.n_discard or 0,
        "ignore_eos": bool(body.ignore_eos),
        "stream": bool(body.stream),
        "timings_per_token": bool(body.timings_per_token),
        "stop": body.stops,
        "grammar": body.grammar or "",
        "grammar_lazy": False,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "dry_sequence_breakers": p.dry_sequence_breakers,
        "logit_bias": [
            {"bias": None if isinf(bias) else bias, "token": token} for token, bias in p.logit_bias
        ],
    }


def some_of(answer: dict[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """Only these fields, if any are named. A field within others is named by its path, such as timings/prompt_n, and keeps that name."""
    return {path: value for path in fields for value in nested(answer, path.split("/"))} if fields else answer


def nested(value: Any, path: Sequence[str]) -> list[Any]:
    """The value at a path, in a list that is empty where there is none."""
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return []
        value = value[key]
    return [value]


def as_json(answer: dict[str, Any], reports: Sequence[str], fields: Sequence[str] | None) -> str:
    """An answer as JSON, with its tokens' probabilities, which are JSON already."""
    parts = {name: encoded(value) for name, value in some_of(answer, fields).items()}
    if reports and (not fields or "completion_probabilities" in fields):
        parts["completion_probabilities"] = json_array(reports)
    return json_object(parts)
