"""What all backends share: the batch that a step runs, and the protocol by which the engine uses a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..network.graph import HIDDEN as HIDDEN
from ..network.graph import LOGITS as LOGITS
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
    """The tokens of one step, of one or several sequences, segment after segment.

    `tokens` and `positions` are i32 [n_tokens]. `outputs`, i32 [n_outputs], are the rows whose results are wanted. `segments` says which
    sequence each token belongs to.
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

    def reserve(self, cache: KVCache) -> None:
        """Take memory for the tokens, unless the caller of the step has: the engine does, as it can say which sequence has none.

        Raises QwenError.
        """
        for segment in self.segments:
            if not cache.is_reserved(segment.seq, len(segment.tokens)):
                cache.reserve(segment.seq, len(segment.tokens))

    def commit(self, cache: KVCache) -> None:
        """The step is done: the tokens' positions are filled."""
        for segment in self.segments:
            cache.commit(segment.seq, len(segment.tokens))


class Backend(Protocol):
    """What runs a model's graph.

    The methods that run a batch take memory for it where that was not done before, and its keys and values are in the cache afterwards. If
    one raises, no sequence has changed. They raise QwenError where there is too little memory, InputError for a batch that the model can't
    run.
    """

    model: Model
    cache: KVCache
    cache_types: CacheTypes
    """The types that keys and values are kept in."""
    kv_layout: str
    """How a page of the cache, and a state, lie in memory: types, axes and their lengths. Only a backend with the same layout can use
    their bytes."""

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, F32] | None = None
    ) -> dict[str, F32]:
        """Run as much of the graph as the tensors named in `fetch` need, and return them as float32 arrays.

        Tensors in `feed` are taken as given: with `feed={HIDDEN: rows}` and no batch only the output head runs. Raises ModelError for a
        name that the graph doesn't have.
        """
        ...

    def step(self, batch: Batch) -> None:
        """Run a batch whose logits nobody looks at."""
        ...

    def hidden(self, batch: Batch) -> F32:
        """Run a batch and return the last norm's output for each of its outputs, float32 [n_outputs, n_embd]."""
        ...

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """Run a batch and choose a token for each of its outputs; NOT_FINITE where logits are NaN or infinite.

        For a draw that is None the result is a copy of the logits, float32 [n_vocab], or NOT_FINITE.
        """
        ...

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """-log softmax(logits)[target], float64 [n], for n rows that `hidden` returned; not finite where logits are not."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copy what one page of the cache holds to another that a sequence has reserved."""
        ...

    def page_bytes(self, page: int) -> NDArray[np.uint8]:
        """The memory of a reserved page itself, uint8 [bytes of a page], to be read or written while no step runs that writes to it.

        All pages have the same number of bytes. Raises QwenError if there is no memory for them.
        """
        ...

    def state_bytes(self, state: int) -> NDArray[np.uint8]:
        """The memory of a reserved state of a recurrent model, as `page_bytes` returns a page's."""
        ...


def first_bad_layer(backend: Backend, batch: Batch) -> str | None:
    """Run a batch; the name of the first layer whose output is NaN or infinite somewhere, None if there is none. Raises as `run` does."""
    names = [layer.name for layer in backend.model.layers]
    values = backend.run(names, batch)
    return next((name for name in names if not np.isfinite(values[name]).all()), None)


def sample_with_numpy(backend: Backend, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
    """Backend.sample by way of the logits."""
    logits = backend.run([LOGITS], batch)[LOGITS]
    return [choose(row, draw) if draw else row.copy() for row, draw in zip(logits, draws)]


def score_with_numpy(backend: Backend, hidden: F32, targets: Sequence[int]) -> F64:
    """Backend.score by way of the logits."""
    logits = backend.run([LOGITS], feed={HIDDEN: hidden})[LOGITS]
    with np.errstate(invalid="ignore"):  # it is up to the caller to report what isn't finite
        logits = logits - logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits).sum(axis=-1, dtype=np.float64)
    wanted = np.take_along_axis(logits, np.asarray(targets)[:, None], axis=-1)
    scores: F64 = np.log(sums) - wanted[:, 0]
    return scores
