"""How likely an answer's tokens were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...engine.engine import Sequence
from ...text.tokenizer import Tokenizer

MAX_REPORTED = 1_000_000
"""Probabilities that an answer in one piece may hold, until its client has taken it; each takes a hundred bytes."""


def token_reports(
    tokenizer: Tokenizer, seq: Sequence, places: Iterable[int], n_top: int
) -> list[dict[str, Any]]:
    """The answer's tokens at some places, each with its logprob and the `n_top` likeliest with theirs. Natural logarithms.

    Tokens that were not drawn, such as those that end the thinking at its budget, were certain: their logprob is 0.
    """
    found = []
    for place in places:
        report = seq.reports.get(place)
        top = report.top[:n_top] if report else []
        found.append(
            named_token(tokenizer, seq.tokens[seq.n_prompt + place], report.logprob if report else 0.0)
            | {"top_logprobs": [named_token(tokenizer, token, logprob) for token, logprob in top]}
        )
    return found


def named_token(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    """A token as reports have it."""
    raw = tokenizer.token_bytes(token)
    return {"id": token, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob}
