"""Backends run a model's graph. This file holds what they all share: the batch and the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..network.model import Model
from ..sampling.sampler import Draw, choose
from .kv_cache import CacheTypes, KVCache, KVSequence

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]


class Segment(NamedTuple):
    """Tokens that continue a sequence, and how many of the last ones want an output."""

    seq: KVSequence
    tokens: Sequence[int] | I32
    n_outputs: int


class Batch:
    """The tokens of one step, of one or several sequences, each sequence's in a row.

    `tokens` and `positions` are i32 [n_tokens], `outputs` i32 [n_outputs] names the rows whose results are wanted, `segments` says whose
    they are.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        starts = np.cumsum([0, *(len(p.tokens) for p in segments)])
        self.tokens: I32 = np.concatenate([np.asarray(p.tokens, np.int32) for p in segments])
        self.positions: I32 = np.concatenate(
            [np.arange(p.seq.length, p.seq.length + len(p.tokens), dtype=np.int32) for p in segments]
        )
        self.outputs: I32 = np.concatenate(
            [np.arange(end - p.n_outputs, end, dtype=np.int32) for p, end in zip(segments, starts[1:])]
        )

    def commit(self, cache: KVCache) -> None:
        for segment in self.segments:
            cache.commit(segment.seq, len(segment.tokens))


HIDDEN, LOGITS = "result_norm", "result_output"


class Backend(Protocol):
    """What the engine asks of a backend."""

    model: Model
    cache: KVCache
    cache_types: CacheTypes
    """What keys and values are kept as."""
    kv_layout: str
    """How a page of the cache, and a state, lie in memory: types, axes and their lengths. Their bytes are of use only to a backend with
    the same."""

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, F32] | None = None
    ) -> dict[str, F32]:
        """Run as much of the graph as the tensors named in `fetch` need, and return them as float32 arrays.

        Tensors in `feed` are taken as given: with `feed={HIDDEN: rows}` and no batch only the output head runs. The keys and
        values of the batch's tokens are in the cache afterwards. A step that raises has changed no sequence.
        """
        ...

    def step(self, batch: Batch) -> None:
        """Run a batch whose logits nobody looks at."""
        ...

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """Run a batch and choose a token for each of its outputs; NOT_FINITE where logits are NaN or infinite.

        For None the result is a copy of the logits, float32 [n_vocab], or NOT_FINITE.
        """
        ...

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """-log softmax(logits)[target], float64 [n], where `hidden` are n rows of HIDDEN; not finite where logits are not."""
        ...

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """Take memory for `n_tokens` more positions of a sequence. Raises QwenError if there is none."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copy what one page of the cache holds to another that a sequence has reserved."""
        ...

    def page_bytes(self, page: int) -> NDArray[np.uint8]:
        """The memory of a reserved page itself, uint8 [bytes of a page], to be read or written while no step runs that writes to it.

        Every page has as many bytes. Raises QwenError if there is no memory for them.
        """
        ...

    def state_bytes(self, state: int) -> NDArray[np.uint8]:
        """The memory of a reserved state of a recurrent model, as `page_bytes` gives a page's."""
        ...


def sample_with_numpy(backend: Backend, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
    """Backend.sample by way of the logits."""
    logits = backend.run([LOGITS], batch)[LOGITS]
    return [choose(row, draw) if draw else row.copy() for row, draw in zip(logits, draws)]


def score_with_numpy(backend: Backend, hidden: F32, targets: Sequence[int]) -> F64:
    """Backend.score by way of the logits."""
    logits = backend.run([LOGITS], feed={HIDDEN: hidden})[LOGITS]
    with np.errstate(invalid="ignore"):  # what isn't finite is the caller's to report
        logits = logits - logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits).sum(axis=-1, dtype=np.float64)
    wanted = np.take_along_axis(logits, np.asarray(targets)[:, None], axis=-1)
    scores: F64 = np.log(sums) - wanted[:, 0]
    return scores
