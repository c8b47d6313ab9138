"""Texts as vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...backends.kv_cache import KVSequence
from ...engine.engine import Engine


class Embedding:
    """A text that is read in steps to get its embedding: with `pooling` "last" the last token's state, with "mean" the mean of all."""

    def __init__(self, tokens: list[int], pooling: str) -> None:
        self._tokens, self._pooling = tokens, pooling
        self._kv = KVSequence()
        self._hidden: list[NDArray[np.float32]] = []

    def read(self, engine: Engine) -> NDArray[np.float32] | None:
        """Read as many tokens as a step takes. Returns the final norm's output, float32 [n_embd], once all are read. Raises QwenError."""
        kv, n = self._kv, len(self._tokens)
        chunk = self._tokens[kv.length : kv.length + engine.n_batch]
        n_outputs = len(chunk) if self._pooling == "mean" else int(kv.length + len(chunk) == n)
        self._hidden.append(engine.hidden(kv, chunk, n_outputs))
        if kv.length < n:
            return None
        pooled: NDArray[np.float32] = np.concatenate(self._hidden).mean(axis=0, dtype=np.float32)
        return pooled

    @property
    def n_read(self) -> int:
        """How many of its tokens are read by now."""
        return self._kv.length

    def release(self, engine: Engine) -> None:
        """Give its pages back."""
        engine.release(self._kv)
