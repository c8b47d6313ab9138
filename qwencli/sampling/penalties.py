"""Samplers that change the logits of single tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .candidates import Candidates, likeliest


def logit_bias(c: Candidates, bias: Sequence[tuple[int, float]]) -> Candidates:
    """Add each token's bias. Tokens with a bias of -inf are left out; if that would be all, the likeliest stays."""
    sums: dict[int, float] = {}
    for token, value in bias:
        sums[token] = sums.get(token, 0.0) + value
    forbidden = np.array([token for token, value in sums.items() if value == -np.inf], np.int64)
    places, there = c.find(forbidden)
    if there.any():
        left = np.ones(c.n, bool)
        left[places[there]] = False
        c = c.pick(left) if left.any() else likeliest(c, 1)
    return add(c, {token: value for token, value in sums.items() if value != -np.inf})


def penalties(
    c: Candidates, counts: Mapping[int, int], repeat: float, frequency: float, presence: float
) -> Candidates:
    """Make recent tokens less likely; `counts` says how often each occurred (https://arxiv.org/abs/1909.05858, with llama.cpp's rule for
    negative logits, and OpenAI's frequency and presence penalties)."""
    places, there = c.find(np.fromiter(counts, np.int64, len(counts)))
    places = places[there]
    times = np.fromiter(counts.values(), np.int64, len(counts))[there]
    logits = c.logits[places]
    with np.errstate(over="ignore"):
        logits = np.where(logits <= 0, logits * repeat, logits / repeat) - (
            times * frequency + presence
        ).astype(logits.dtype)
    return c.change(places, logits)


def add(c: Candidates, amounts: Mapping[int, float]) -> Candidates:
    """Add each token's amount to its logit."""
    places, there = c.find(np.fromiter(amounts, np.int64, len(amounts)))
    places = places[there]
    values = np.fromiter(amounts.values(), np.float64, len(amounts))[there]
    with np.errstate(over="ignore"):
        return c.change(places, c.logits[places] + values.astype(c.logits.dtype))
