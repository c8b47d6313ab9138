"""Answers of llama.cpp's API: as they come, piece by piece, and as a whole, in its JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.engine import Sequence as EngineSequence
from ...llm import LLM
from ...sampling import NUMBERS, SamplingParams
from ..http.sse import encoded
from ..openai.choices import json_object
from ..service.generation import Generation, Piece
from ..shared.reports import timings, token_reports
from .request import CompletionFields

STOP_TYPES = {"eos": "eos", "stop": "word", "length": "limit", "context": "limit"}
LEAST = -3.4028234663852886e38
"""The lowest float32, for a bias of minus infinity, which JSON does not know."""
FEW = 50
"""Probabilities of a token that are put into words at once; more would keep the event loop for too long."""
POLL_SECONDS = 0.1
"""How often it is looked how much of a prompt was read."""


@dataclass(frozen=True)
class Asked:
    """What a request asks of each of its answers."""

    body: CompletionFields
    sampling: SamplingParams
    max_tokens: int | None
    llm: LLM
    model: str


class Answer:
    """The answer to one prompt, the `index`-th of its request. `generation` is None for an empty prompt, which has none."""

    def __init__(
        self, asked: Asked, index: int, prompt: list[int], text: str, generation: Generation | None
    ) -> None:
        self._asked, self._index, self._text, self._generation = asked, index, text, generation
        self._sequence = generation.sequence if generation else EngineSequence(prompt, asked.sampling)
        self._n_told = 0
        self._has_new_line = self._late = False

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What each step brings, and at the end all else that is known of the answer. Raises QwenError."""
        async for piece, reports in self._pieces():
            yield self._event(piece) | ({"completion_probabilities": reports} if reports else {})
        yield some_of(self._final("", []), self._asked.body.response_fields)

    async def whole(self) -> str:
        """The answer as one, as JSON. Raises QwenError."""
        body, texts, tokens, reports = self._asked.body, [], list[int](), list[str]()
        async for piece, found in self._pieces():
            if piece:
                texts.append(piece.text)
                tokens += piece.tokens
                reports += map(
                    encoded, found
                )  # at once: all of a long answer would keep the event loop for too long
        if word := self._generation and self._generation.stop_word:
            del reports[max(0, len(reports) - len(self._asked.llm.tokenizer.encode(word))) :]
        answer = self._final("".join(texts), tokens if body.return_tokens else [])
        return as_json(answer, reports, body.response_fields)

    async def _pieces(self) -> AsyncIterator[tuple[Piece | None, list[dict[str, Any]]]]:
        """What comes, with its tokens' probabilities; None whenever more of the prompt was read, where that is wanted."""
        body, limit = self._asked.body, self._asked.body.t_max_predict_ms or 0
        if not self._generation:
            return
        async for piece in (
            with_progress(self._generation) if body.stream and body.return_progress else self._generation
        ):
            if piece and self._asked.max_tokens == 0:
                continue  # its token was asked for only to have the prompt read
            yield piece, await self._reports(piece)
            if piece and "\n" in piece.text:
                self._has_new_line = True
                self._late = 0 < limit < 1e3 * self._sequence.generation_seconds
                if self._late:
                    self._generation.cancel()
                    return

    async def _reports(self, piece: Piece | None) -> list[dict[str, Any]]:
        """The probabilities of a piece's tokens, if the request wants them."""
        n, places = (
            self._asked.body.n_reported,
            range(self._n_told, self._n_told + len(piece.tokens if piece else ())),
        )
        self._n_told = places.stop

        def reports() -> list[dict[str, Any]]:
            found = token_reports(self._asked.llm.tokenizer, self._sequence, places, n)
            for place in places:
                self._sequence.reports.pop(place, None)
            return found

        await asyncio.sleep(0)  # many pieces may be there already, and others want to be served between them
        return [] if not n else reports() if n <= FEW else await asyncio.to_thread(reports)

    def _event(self, piece: Piece | None) -> dict[str, Any]:
        seq, body = self._sequence, self._asked.body
        event: dict[str, Any] = {
            "index": self._index,
            "content": piece.text if piece else "",
            "tokens": piece.tokens if piece else [],
            "stop": False,
            "id_slot": self._slot,
            "tokens_predicted": self._n_told,
            "tokens_evaluated": seq.n_prompt,
        }
        if body.timings_per_token:
            event["timings"] = timings(seq)
        if piece is None:
            event["prompt_progress"] = {
                "total": seq.n_prompt,
                "cache": seq.n_cached,
                "processed": seq.n_prompt_done,
                "time_ms": round(1e3 * seq.prompt_seconds),
            }
        return event

    def _final(self, content: str, tokens: list[int]) -> dict[str, Any]:
        asked, seq = self._asked, self._sequence
        if asked.max_tokens == 0:
            del seq.tokens[seq.n_prompt :]
        n_predicted = (
            self._n_told if self._late else len(seq.generated)
        )  # the engine may have gone on meanwhile
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
            "truncated": seq.stop_reason == "context",
            "stop_type": reason,
            "stopping_word": self._generation.stop_word if self._generation else "",
            "tokens_cached": seq.n_prompt + max(0, n_predicted - 1),
            "timings": timings(seq),
        }

    @property
    def _slot(self) -> int:
        slot = self._generation.slot if self._generation else None
        return 0 if slot is None else slot


async def with_progress(generation: Generation) -> AsyncIterator[Piece | None]:
    """What a generation brings, and None at first and whenever more of its prompt was read, up to all."""
    seq, told = generation.sequence, -1
    pending = asyncio.ensure_future(generation.__anext__())
    try:
        while True:
            await asyncio.wait({pending}, timeout=POLL_SECONDS if told < seq.n_prompt else None)
            if generation.slot is not None and seq.n_prompt_done > told:
                told = seq.n_prompt_done
                yield None
            if pending.done():
                try:
                    yield pending.result()
                except StopAsyncIteration:
                    return
                pending = asyncio.ensure_future(generation.__anext__())
    finally:
        pending.cancel()


def settings(
    sampling: SamplingParams, seed: int, max_tokens: int | None, body: CompletionFields | None = None
) -> dict[str, Any]:
    """What an answer was or is generated with, by llama.cpp's names. What concerns texts only where there is a `body`."""
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
        "samplers": p.samplers,
        "timings_per_token": False,
        "post_sampling_probs": False,
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
        "dry_sequence_breakers": p.dry_sequence_breakers,
        "logit_bias": [{"bias": max(bias, LEAST), "token": token} for token, bias in p.logit_bias],
    }


def some_of(answer: dict[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """Only these fields, if there are any; what lies within others by its path, such as timings/prompt_n, which is its name then."""
    return {path: value for path in fields for value in nested(answer, path.split("/"))} if fields else answer


def nested(value: Any, path: Sequence[str]) -> list[Any]:
    """What lies there, in a list; none if nothing does."""
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return []
        value = value[key]
    return [value]


def as_json(answer: dict[str, Any], reports: Sequence[str], fields: Sequence[str] | None) -> str:
    """An answer as JSON, with its tokens' probabilities, which are JSON already."""
    parts = {name: encoded(value) for name, value in some_of(answer, fields).items()}
    if reports and (not fields or "completion_probabilities" in fields):
        parts["completion_probabilities"] = f"[{','.join(reports)}]"
    return json_object(parts)
