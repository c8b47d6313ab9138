"""Perplexity by llama.cpp's algorithm (tools/perplexity), so that figures can be compared digit by digit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..backends.kv_cache import KVSequence
from ..backends.protocol import F32, F64, Backend, Batch, Segment
from ..errors import InputError, QwenError

LOGITS_AT_ONCE = 2**24  # values: 64 MB of float32, whatever the context and the vocabulary


class Estimate(NamedTuple):
    """Perplexity over the first `n_chunks` chunks and its standard error, None if llama.cpp prints none: too few or equal values."""

    n_chunks: int
    ppl: float
    stderr: float | None


def count_chunks(n_tokens: int, n_ctx: int, limit: int | None = None) -> int:
    """How many chunks a text has; a tail shorter than a chunk is dropped. Raises InputError for a text of less than two."""
    if n_tokens < 2 * n_ctx:
        raise InputError(
            f"the text has {n_tokens} tokens, but perplexity with a context of {n_ctx} needs at least {2 * n_ctx}: "
            "use a longer text or a smaller -c"
        )
    return min(n_tokens // n_ctx, limit or n_tokens)


def perplexity(
    backend: Backend,
    tokens: Sequence[int],
    n_ctx: int,
    n_batch: int = 2048,
    bos: int | None = None,
    limit: int | None = None,
) -> Iterator[Estimate]:
    """Yield the estimate after each chunk of `n_ctx` tokens (at most `limit` chunks).

    Positions n_ctx/2 .. n_ctx-2 of a chunk are scored on the token that follows. `bos`, if not None, replaces each chunk's first token.
    A step takes `n_batch` tokens: part of a chunk, or several whole chunks. Raises InputError, QwenError.
    """
    n_chunks = count_chunks(len(tokens), n_ctx, limit)
    first, together = n_ctx // 2, max(1, n_batch // n_ctx)
    total = total_squares = 0.0
    count = 0
    for start in range(0, n_chunks, together):
        chunks = [
            list(tokens[c * n_ctx : (c + 1) * n_ctx]) for c in range(start, min(start + together, n_chunks))
        ]
        inputs = [[bos, *chunk[1:]] if bos is not None else chunk for chunk in chunks]
        for i, (chunk, hidden) in enumerate(zip(chunks, hidden_states(backend, inputs, first, n_batch))):
            nll = negative_log_likelihoods(backend, hidden, chunk[first + 1 :])
            if not np.isfinite(nll).all():
                raise QwenError(
                    f"{backend.model.file.path}: chunk {start + i + 1}: the logits are not finite: is the model damaged?"
                )
            total += nll.sum()
            total_squares += np.square(nll).sum()
            count += len(nll)
            yield Estimate(start + i + 1, *summarize(total, total_squares, count))


def hidden_states(backend: Backend, chunks: Sequence[list[int]], first: int, n_batch: int) -> list[F32]:
    """For each chunk the states after the last norm at positions first .. n_ctx-2: float32 [n, n_embd]."""
    n_ctx = len(chunks[0])
    sequences = [KVSequence() for _ in chunks]
    found: list[list[F32]] = [[] for _ in chunks]
    try:
        for begin in range(0, n_ctx, n_batch):
            end = min(begin + n_batch, n_ctx)
            n_outputs = max(0, end - max(begin, first))
            batch = Batch(
                [Segment(seq, chunk[begin:end], n_outputs) for seq, chunk in zip(sequences, chunks)]
            )
            states = backend.hidden(batch)
            for i, part in enumerate(found):
                part.append(states[i * n_outputs : (i + 1) * n_outputs])
    finally:
        for seq in sequences:
            backend.cache.release(seq)
    return [np.concatenate(part)[:-1] for part in found]


def negative_log_likelihoods(backend: Backend, hidden: F32, targets: Sequence[int]) -> F64:
    """-log softmax(logits)[target] for each row, float64; the logits are computed some rows at a time."""
    step = max(1, LOGITS_AT_ONCE // backend.model.config.n_vocab)
    parts = []
    for i in range(0, len(hidden), step):
        parts.append(backend.score(hidden[i : i + step], targets[i : i + step]))
    return np.concatenate(parts)


def summarize(total: float, total_squares: float, count: int) -> tuple[float, float | None]:
    """exp(mean) of `count` values with the given sum and sum of squares, and its standard error."""
    mean = total / count
    with np.errstate(over="ignore"):  # a broken model's may be infinite
        ppl = float(np.exp(mean))
    variance = total_squares / count - mean * mean
    return ppl, ppl * math.sqrt(variance / (count - 1)) if variance > 0 and count > 1 else None
