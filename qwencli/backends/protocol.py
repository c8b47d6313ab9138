"""The batch that a step runs, and the protocol through which the engine uses a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..network.graph import CLASSES as CLASSES
from ..network.graph import HIDDEN as HIDDEN
from ..network.graph import LOGITS as LOGITS
from ..network.graph import Tensor
from ..network.model import Model
from ..sampling.sampler import Draw, choose
from .buffers import Buffer
from .kv_cache import CacheTypes, KVCache, KVSequence

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
Bytes = NDArray[np.uint8]


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


@dataclass(frozen=True)
class Task:
    """What a step has to compute: the tensors named in `fetch`, from the tokens of `batch` and from tensors that are given in `feed`.

    With `draws` a token is chosen for each output, with `targets` one is scored; both need LOGITS in `fetch`. Values are returned only if
    they are `wanted`.
    """

    fetch: tuple[str, ...]
    batch: Batch | None = None
    feed: Mapping[str, Any] = field(default_factory=dict)
    draws: Sequence[Draw | None] | None = None
    targets: Sequence[int] | None = None
    wanted: bool = True


class Part(NamedTuple):
    """A kind of step: what it computes from what, and what becomes of the logits: "choose" tokens, "score" them, or None."""

    fetch: tuple[str, ...]
    feed: tuple[str, ...]
    ending: str | None = None


class Share(NamedTuple):
    """What a device of a scheduler is given: the scheduler's cache, the nodes of the graph that it runs, with their weights, and the parts
    of usual steps, so that it compiles for all of them at once."""

    cache: KVCache
    nodes: Sequence[Tensor]
    parts: Sequence[Part]


class Results(NamedTuple):
    """What a step has computed: `values` of the tensors by name; what was `chosen` for the draws, as Backend.sample returns it; the
    `scores` of the targets, as Backend.score does."""

    values: Mapping[str, Any] = {}
    chosen: Sequence[int | F32] = ()
    scores: F64 | None = None


class Backend(Protocol):
    """What runs a model's graph, or a part of it: one device, or a scheduler that is made of backends.

    `begin` and `finish` are all that a device has to do. Who calls them owns the cache: memory for the batch's tokens has to be reserved
    before, and only `commit` after the step makes them count. The other methods that run a batch do all of this. If one raises, no sequence
    has changed. They raise QwenError if there is too little memory, and InputError for a batch that the model can't run.

    Values, pages and states go in and out as arrays, so that a device need not share this process's memory.
    """

    model: Model
    cache: KVCache
    """It hands out the numbers of pages and states. A device in a scheduler has the scheduler's."""
    cache_types: CacheTypes
    """The types of keys and values in the cache."""
    kv_layout: str
    """The layout of the cache's pages and states in memory: types, axes and their lengths. Only a backend with the same layout can use
    their bytes."""

    def begin(self, task: Task) -> Any:
        """Start a step and return a token for `finish`. A device that has threads of its own runs it meanwhile."""
        ...

    def finish(self, begun: Any) -> Results:
        """Wait for a step that was begun, and return what it has computed. Nothing is committed.

        Raises ModelError for a name that isn't in the graph, or for a tensor that has no value. Ctrl-C ends the step.
        """
        ...

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the part of the graph that the tensors named in `fetch` need, and return them: float32 arrays of the tensors' shapes, but i32
        for inputs, and for a route a pair, the experts' numbers, i32, and their weights (see values.py).

        Tensors in `feed` aren't computed but used as they are: with `feed={HIDDEN: rows}` and no batch only the output head runs. Raises
        ModelError for a name that isn't in the graph or a tensor that has no value or can't be fed, InputError for what is fed in the wrong
        shape.
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
        """Return -log softmax(logits)[target], float64 [n], for n rows that `hidden` returned. It isn't finite if logits aren't.

        Raises InputError for targets outside the vocabulary, or if there isn't one for each row.
        """
        ...

    def make_page(self, page: int) -> None:
        """Make memory for a page that the cache hands out. Raises QwenError if there is none."""
        ...

    def make_state(self, state: int) -> None:
        """Make memory for a state of a recurrent model, as `make_page` does for a page."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page of the cache to another one, which a sequence has reserved."""
        ...

    def read_page(self, page: int, layer: int) -> Bytes:
        """Return what a reserved page holds of a layer (KVStore.layer): uint8 [n], as many for every page. No step may write to it.

        It may be a view of the memory. Raises QwenError if there is no memory for the page.
        """
        ...

    def write_page(self, page: int, layer: int, data: Bytes) -> None:
        """Write what `read_page` has returned, here or in a backend with the same layout."""
        ...

    def read_state(self, state: int, layer: int) -> Bytes:
        """Return what a reserved state holds of a recurrent layer (Conv.layer), as `read_page` does for a page."""
        ...

    def write_state(self, state: int, layer: int, data: Bytes) -> None:
        """Write what `read_state` has returned."""
        ...

    def buffers(self) -> list[Buffer]:
        """Return the backend's memory, and that of the file's weights that it reads, each byte in one buffer."""
        ...


class Stepping:
    """The methods of Backend that run a whole step, by `begin` and `finish`: memory is reserved before, and tokens are committed after."""

    if TYPE_CHECKING:
        model: Model
        cache: KVCache

        def begin(self, task: Task) -> Any: ...
        def finish(self, begun: Any) -> Results: ...

    def complete(self, task: Task) -> Results:
        """Run a step from reserving memory to committing its tokens."""
        batch = task.batch
        if batch is None:
            return self.finish(self.begin(task))
        self._check_tokens(batch)
        batch.reserve(self.cache)
        results = self.finish(self.begin(task))
        batch.commit(self.cache)
        return results

    def _check_tokens(self, batch: Batch) -> None:
        """Raise InputError for a token outside the vocabulary: tokens are used as row numbers."""
        n_vocab = self.model.config.n_vocab
        if len(batch.tokens) and not 0 <= batch.tokens.min() <= batch.tokens.max() < n_vocab:
            raise InputError(f"the batch has a token outside the vocabulary of {n_vocab}")

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """See Backend.run."""
        return dict(self.complete(Task(tuple(fetch), batch, feed or {})).values)

    def step(self, batch: Batch) -> None:
        """See Backend.step."""
        self.complete(Task((LOGITS,), batch, wanted=False))

    def hidden(self, batch: Batch) -> F32:
        """See Backend.hidden."""
        rows: F32 = self.run([HIDDEN], batch)[HIDDEN]
        return rows

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """See Backend.sample."""
        return list(self.complete(Task((LOGITS,), batch, draws=draws, wanted=False)).chosen)

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """See Backend.score."""
        n_vocab = self.model.config.n_vocab
        if len(targets) != len(hidden) or not all(0 <= target < n_vocab for target in targets):
            raise InputError(
                f"there are {len(targets)} tokens to score, expected one below {n_vocab} for each of {len(hidden)} rows"
            )
        scores = self.complete(Task((LOGITS,), feed={HIDDEN: hidden}, targets=targets, wanted=False)).scores
        assert scores is not None
        return scores


def first_bad_layer(backend: Backend, batch: Batch) -> str | None:
    """Run a batch and return the name of the first layer with NaN or infinity in its output, or None. Raises what `run` does."""
    names = [layer.name for layer in backend.model.layers]
    values = backend.run(names, batch)
    return next((name for name in names if not np.isfinite(values[name]).all()), None)


def choose_with_numpy(logits: F32, draws: Sequence[Draw | None]) -> list[int | F32]:
    """Choose a token for each row of logits, as Backend.sample does, in NumPy."""
    return [choose(row, draw) if draw else row.copy() for row, draw in zip(logits, draws)]


def score_with_numpy(logits: F32, targets: Sequence[int]) -> F64:
    """Score a target for each row of logits, as Backend.score does, in NumPy."""
    with np.errstate(invalid="ignore"):  # the caller reports what isn't finite
        logits = logits - logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits).sum(axis=-1, dtype=np.float64)
    wanted = np.take_along_axis(logits, np.asarray(targets)[:, None], axis=-1)
    scores: F64 = np.log(sums) - wanted[:, 0]
    return scores
