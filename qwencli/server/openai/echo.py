"""What an answer of /v1/completions starts with where its request asks for an echo: the prompt, and how likely its tokens are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...engine.scoring import Scoring
from ...text.tokenizer import Tokenizer
from ..service.generation import Ending
from ..service.service import Service
from ..shared.logprobs import named_token


@dataclass(frozen=True)
class Echo:
    """A prompt's text, and reports of its tokens where they are asked for. Of the first nothing is known: its figures are None."""

    text: str
    reports: Sequence[dict[str, Any]]


async def echo_of(tokens: Sequence[int], n_top: int | None, service: Service) -> Echo:
    """The echo of a prompt, with the `n_top` likeliest tokens at each place, None for no reports. Raises QwenError."""
    tokenizer = service.llm.tokenizer
    text = await asyncio.to_thread(tokenizer.decode, tokens)
    return Echo(text, [] if n_top is None else await reports_of(tokens, n_top, service, tokenizer))


async def reports_of(
    tokens: Sequence[int], n_top: int, service: Service, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """As `token_reports` has them. Steps of answers come in between. Raises QwenError."""
    scoring = Scoring(tokens, n_top)
    try:
        while (scores := await service.between_steps(scoring.read)) is None:
            await asyncio.sleep(0)
    finally:
        with suppress(Ending):
            await asyncio.shield(asyncio.ensure_future(service.between_steps(scoring.release)))
    first = named_token(tokenizer, tokens[0], None) | {"top_logprobs": None}
    return [
        first,
        *(
            named_token(tokenizer, token, score.logprob)
            | {"top_logprobs": [named_token(tokenizer, *each) for each in score.top]}
            for token, score in zip(tokens[1:], scores)
        ),
    ]
