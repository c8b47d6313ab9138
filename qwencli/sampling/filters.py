"""Samplers that leave out tokens or change the temperature: functions from candidates to candidates.

A formula's paper is named; what it leaves open is as in llama.cpp (src/llama-sampler.cpp).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from .candidates import I64, Candidates, Floats, largest, likeliest, surprise, weights

FIRST = 256
"""How many of the likeliest tokens are tried first when it is unknown how many it takes to reach a probability."""
LOWEST_TEMP = 1e-30
"""Below it, float32 logits divided by the temperature could be beyond float64's range."""


def top_k(c: Candidates, k: int) -> Candidates:
    """The k likeliest; all if k is 0."""
    return likeliest(c, k) if k else c


def top_p(c: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """The fewest of the likeliest whose probabilities add up to p (nucleus sampling, https://arxiv.org/abs/1904.09751)."""
    if p >= 1.0:
        return c
    w = weights(c.logits)
    best = reaching(c.logits, w, p * w.sum(dtype=np.float64), min_keep)
    return Candidates(c.ids[best], c.logits[best], True)


def min_p(c: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Those with at least p times the likeliest one's probability (https://arxiv.org/abs/2407.01082)."""
    if p <= 0.0:
        return c
    left = c.pick(c.logits >= c.logits.max() + c.logits.dtype.type(math.log(p)))
    return left if left.n >= min_keep else likeliest(c, min_keep)


def typical_p(c: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """The fewest tokens, by how near their surprise is to the expected one, whose probabilities exceed p (https://arxiv.org/abs/2202.00666)."""
    if p >= 1.0:
        return c
    probabilities, nats, entropy = surprise(c.logits)
    return c.pick(np.sort(reaching(-np.abs(nats - entropy), probabilities, p, min_keep, "right")))


def reaching(
    keys: Floats, shares: Floats, goal: float, min_keep: int, side: Literal["left", "right"] = "left"
) -> I64:
    """The indices of the largest keys, largest first, as many as it takes for their shares to reach the goal (`right`: to exceed it)."""
    k = max(FIRST, min_keep)
    while True:
        best = largest(keys, k)
        count = int(np.searchsorted(np.cumsum(shares[best], dtype=np.float64), goal, side)) + 1
        if count <= len(best) or len(best) == len(keys):
            return best[: max(count, min_keep)]
        k *= 8


def top_n_sigma(c: Candidates, n: float) -> Candidates:
    """Those whose logit is at most n standard deviations below the largest (https://arxiv.org/abs/2411.07641); all if n <= 0."""
    if n <= 0.0:
        return c
    with np.errstate(over="ignore"):
        return c.pick(c.logits >= c.logits.dtype.type(c.logits.max() - n * c.logits.std(dtype=np.float64)))


def xtc(c: Candidates, threshold: float, min_keep: int = 0) -> Candidates:
    """Leave out the tokens of at least this probability except the least likely of them (exclude top choices,
    https://github.com/oobabooga/text-generation-webui/pull/6335)."""
    w = weights(c.logits)
    above = np.flatnonzero(w >= threshold * w.sum(dtype=np.float64))
    if len(above) < 2 or c.n - len(above) + 1 < min_keep:
        return c
    left = np.ones(c.n, bool)
    left[above] = False
    left[above[len(above) - 1 - np.argmin(c.logits[above][::-1])]] = True  # of equal ones the last
    return c.pick(left)


def temperature(c: Candidates, temp: float) -> Candidates:
    """Logits divided by the temperature, in float64; at 0 only the likeliest token stays."""
    if temp <= 0.0:
        return likeliest(c, 1)
    return c._replace(logits=c.logits.astype(np.float64) / max(temp, LOWEST_TEMP))


def dynamic_temperature(c: Candidates, temp: float, spread: float, exponent: float) -> Candidates:
    """A temperature between temp - spread and temp + spread that follows the entropy, as a share of its maximum, to the power `exponent`
    (https://arxiv.org/abs/2309.02772 has the idea, llama.cpp the formula)."""
    if c.n == 1:
        return c
    _, _, entropy = surprise(c.logits)
    low = max(0.0, temp - spread)
    return temperature(c, low + (temp + spread - low) * max(0.0, entropy / math.log(c.n)) ** exponent)
