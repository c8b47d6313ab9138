"""How likely a text's tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..backends.kv_cache import KVSequence
from ..backends.protocol import F32
from .engine import Engine

AT_ONCE = 1 << 22
"""Logits of a step; each takes 4 bytes, and some more while the likeliest are looked for."""


class TokenScore(NamedTuple):
    """The natural logarithm of a token's probability, and the likeliest tokens at its place with theirs, the likeliest first."""

    logprob: float
    top: list[tuple[int, float]]


class Scoring:
    """A text that is read in steps, to see how likely each of its tokens is after those before it."""

    def __init__(self, tokens: Sequence[int], n_top: int) -> None:
        self._tokens, self._n_top = tokens, n_top
        self._kv = KVSequence()
        self._found: list[TokenScore] = []

    def read(self, engine: Engine) -> list[TokenScore] | None:
        """Read as many tokens as a step takes. Returns a score for each token but the first, once all are read. Raises QwenError."""
        n_read, n_last = self._kv.length, len(self._tokens) - 1
        n = min(engine.n_batch, max(1, AT_ONCE // engine.backend.model.config.n_vocab))
        if chunk := self._tokens[n_read : min(n_read + n, n_last)]:
            rows = engine.logits(self._kv, chunk)
            self._found += map(self._score, rows, self._tokens[n_read + 1 :])
        return self._found if self._kv.length >= n_last else None

    def _score(self, logits: F32, token: int) -> TokenScore:
        most = logits.max()
        total = float(most) + float(np.log(np.exp(logits - most).sum(dtype=np.float64)))
        likely = np.argpartition(logits, -self._n_top)[-self._n_top :] if self._n_top else np.empty(0, int)
        likely = likely[np.lexsort((likely, -logits[likely]))]
        top = [(int(i), float(logits[i]) - total) for i in likely]
        return TokenScore(float(logits[token]) - total, top)

    def release(self, engine: Engine) -> None:
        """Give its pages back."""
        engine.release(self._kv)
