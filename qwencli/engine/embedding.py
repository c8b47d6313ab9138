"""Texts as vectors, or as what a rank head says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..backends.kv_cache import KVSequence
from ..backends.protocol import F32, Backend
from ..errors import ContextFull
from .engine import Engine


def check_reading(engine: Engine, tokens: Sequence[int], text: str = "the text") -> None:
    """Check that a text can be read. Raises InputError for tokens outside the vocabulary or none, ContextFull for too many.

    Where attention goes in both directions, all keys have to be there before any query is computed, so a text has to fit into one step.
    """
    n, batch = len(tokens), engine.n_batch
    if not engine.backend.model.config.causal and n > batch:
        raise ContextFull(
            f"{text} has {n} tokens, but this model, whose attention goes in both directions, reads at most {batch} in a step:"
            " shorten it, or raise the batch size",
            n,
            batch,
        )
    engine.check_prompt(tokens, text)


class Embedding:
    """A text that is read in steps to get its vectors.

    `pooling` says what becomes of the final norm's outputs for its n tokens: "none" returns them all, [n, n_embd]; "mean" their mean,
    "cls" the first and "last" the last of them, [1, n_embd]. If there is a `head`, its result for them is returned.
    """

    def __init__(
        self, tokens: Sequence[int], pooling: str, head: Callable[[Backend, F32], F32] | None = None
    ) -> None:
        self._tokens, self._pooling, self._head = tokens, pooling, head
        self._kv = KVSequence()
        self._hidden: list[F32] = []

    def read(self, engine: Engine) -> F32 | None:
        """Read as many tokens as a step takes. Returns the result, float32, once all are read. Raises QwenError."""
        kv, n = self._kv, len(self._tokens)
        chunk = self._tokens[kv.length : kv.length + engine.n_batch]
        n_outputs = int(kv.length + len(chunk) == n) if self._pooling == "last" else len(chunk)
        self._hidden.append(engine.hidden(kv, chunk, n_outputs))
        if kv.length < n:
            return None
        pooled = POOL[self._pooling](np.concatenate(self._hidden))
        return self._head(engine.backend, pooled) if self._head else pooled

    def release(self, engine: Engine) -> None:
        """Give its pages back."""
        engine.release(self._kv)


POOL: dict[str, Callable[[F32], F32]] = {
    "none": lambda hidden: hidden,
    "mean": lambda hidden: hidden.mean(axis=0, dtype=np.float32, keepdims=True),
    "cls": lambda hidden: hidden[:1],
    "last": lambda hidden: hidden,
}


def read_at_once(engine: Engine, text: Embedding) -> F32:
    """The result of a text, read in steps one after the other. Raises QwenError."""
    try:
        while (found := text.read(engine)) is None:
            pass
        return found
    finally:
        text.release(engine)
