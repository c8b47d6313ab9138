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

    Tokens that were not drawn, such as those that end the thinking at its budget, were certain: their logprob is 0. Where the request wants
    what the samplers have left, there are probabilities in place of logprobs.
    """
    left = seq.sampling.post_sampling_probs
    name, certain = ("prob", 1.0) if left else ("logprob", 0.0)
    found = []
    for place in places:
        token, report = seq.tokens[seq.n_prompt + place], seq.reports.get(place)
        value = certain if report is None else report.probability if left else report.logprob
        top = [] if report is None else report.left if left else report.top
        found.append(
            named_token(tokenizer, token, value, name)
            | {f"top_{name}s": [named_token(tokenizer, other, p, name) for other, p in top[:n_top]]}
        )
    return found


def named_token(
    tokenizer: Tokenizer, token: int, value: float | None, name: str = "logprob"
) -> dict[str, Any]:
    """A token as reports have it, with a value by its name: "logprob" or "prob"."""
    raw = tokenizer.token_bytes(token)
    return {"id": token, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), name: value}
