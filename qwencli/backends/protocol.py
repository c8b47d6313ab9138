"""The batch that a step runs, and the protocol through which the engine uses a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..network.graph import HIDDEN as HIDDEN
from ..network.graph import LOGITS as LOGITS
from ..network.model import Model
from ..sampling.sampler import Draw, choose
from .buffers import Buffer
from .kv_cache import CacheTypes, KVCache, KVSequence

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]


class Segment(NamedTuple):
    """Tokens that continue a sequence. The last `n_outputs` of them need an output."""

    seq: KVSequence
    tokens: Sequence[int] | I32
    n_outputs: int


class Batch:
    """The tokens of one step, from one or more sequences, segment by segment.

    `tokens` and `positions` are i32 [n_tokens]. `outputs`, i32 [n_outputs], are the rows that need results. `segments` says which sequence
    each token belongs to.
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
        """Reserve memory for the tokens, unless the caller has done so. (The engine does: so it knows for which sequence there is none.)

        Raises QwenError.
        """
        for segment in self.segments:
            if not cache.is_reserved(segment.seq, len(segment.tokens)):
                cache.reserve(segment.seq, len(segment.tokens))

    def commit(self, cache: KVCache) -> None:
        """Mark the tokens' positions as filled, after the step."""
        for segment in self.segments:
            cache.commit(segment.seq, len(segment.tokens))


class Backend(Protocol):
    """What runs a model's graph.

    The methods that run a batch reserve memory for it if it isn't reserved yet, and leave its keys and values in the cache. If one raises,
    no sequence has changed. They raise QwenError if there is too little memory, and InputError for a batch that the model can't run.
    """

    model: Model
    cache: KVCache
    cache_types: CacheTypes
    """The types of keys and values in the cache."""
    kv_layout: str
    """The layout of the cache's pages and states in memory: types, axes and their lengths. Only a backend with the same layout can use
    their bytes."""

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, F32] | None = None
    ) -> dict[str, F32]:
        """Run the part of the graph that the tensors named in `fetch` need, and return them as float32 arrays.

        Tensors in `feed` aren't computed but used as they are: with `feed={HIDDEN: rows}` and no batch only the output head runs. Raises
        ModelError for a name that isn't in the graph.
        """
        ...

    def step(self, batch: Batch) -> None:
        """Run a batch whose logits aren't needed."""
        ...

    def hidden(self, batch: Batch) -> F32:
        """Run a batch and return the last norm's output for each of its outputs, float32 [n_outputs, n_embd]."""
        ...

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """Run a batch and choose a token for each of its outputs, or NOT_FINITE if its logits are NaN or infinite.

        For a draw that is None the result is a copy of the logits, float32 [n_vocab], or NOT_FINITE.
        """
        ...

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """Return -log softmax(logits)[target], float64 [n], for n rows that `hidden` returned. It isn't finite if logits aren't."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page of the cache to another one, which a sequence has reserved."""
        ...

    def page_bytes(self, page: int) -> NDArray[np.uint8]:
        """Return the memory of a reserved page, not a copy: uint8 [bytes of a page]. It may be accessed while no step writes to it.

        All pages have the same number of bytes. Raises QwenError if there is no memory for the page.
        """
        ...

    def state_bytes(self, state: int) -> NDArray[np.uint8]:
        """Return the memory of a reserved state of a recurrent model, as `page_bytes` does for a page."""
        ...

    def buffers(self) -> list[Buffer]:
        """Return the backend's memory, and that of the file's weights that it reads, each byte in one buffer."""
        ...


def first_bad_layer(backend: Backend, batch: Batch) -> str | None:
    """Run a batch and return the name of the first layer with NaN or infinity in its output, or None. Raises what `run` does."""
    names = [layer.name for layer in backend.model.layers]
    values = backend.run(names, batch)
    return next((name for name in names if not np.isfinite(values[name]).all()), None)


def sample_with_numpy(backend: Backend, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
    """Implement Backend.sample with `run` and NumPy."""
    logits = backend.run([LOGITS], batch)[LOGITS]
    return [choose(row, draw) if draw else row.copy() for row, draw in zip(logits, draws)]


def score_with_numpy(backend: Backend, hidden: F32, targets: Sequence[int]) -> F64:
    """Implement Backend.score with `run` and NumPy."""
    logits = backend.run([LOGITS], feed={HIDDEN: hidden})[LOGITS]
    with np.errstate(invalid="ignore"):  # the caller reports what isn't finite
        logits = logits - logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits).sum(axis=-1, dtype=np.float64)
    wanted = np.take_along_axis(logits, np.asarray(targets)[:, None], axis=-1)
    scores: F64 = np.log(sums) - wanted[:, 0]
    return scores
