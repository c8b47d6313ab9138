"""Mirostat (https://arxiv.org/abs/2007.14966): keeps as many tokens as it takes for the surprise of the choice to stay near a target.

Both versions look at `mu`, the largest surprise in bits that is allowed now, and adapt it to what was then chosen.
"""

from __future__ import annotations

import math

import numpy as np

from .candidates import Candidates, likeliest, weights

MOST = 100
"""The number of likeliest tokens from which the exponent of Zipf's law is estimated."""


def mirostat_1(c: Candidates, mu: float, n_vocab: int) -> Candidates:
    """The k likeliest, k from mu by Zipf's law, whose exponent s is estimated (equations 30 and 31 of the paper)."""
    logits = likeliest(c, MOST).logits.astype(np.float64)
    ranks = np.arange(1, len(logits))
    t = np.log((ranks + 1) / ranks)
    with np.errstate(all="ignore"):
        s = t @ -np.diff(logits) / (t @ t)
        k = ((s - 1) * np.exp2(mu) / (1 - float(n_vocab) ** (1 - s))) ** (1 / s)
    return likeliest(c, int(min(max(k, 1), c.n)) if not np.isnan(k) else c.n)


def mirostat_2(c: Candidates, mu: float) -> Candidates:
    """Those with a surprise of at most mu, but at least one."""
    total = math.log(weights(c.logits).sum(dtype=np.float64))
    return likeliest(c, max(1, int(np.count_nonzero(c.logits >= c.logits.max() + total - mu * math.log(2)))))


def adapted(mu: float, probability: float, tau: float, eta: float) -> float:
    """The next mu, after a token of this probability among those left was chosen."""
    return mu - eta * (-math.log2(probability) - tau)
