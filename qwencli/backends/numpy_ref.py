"""The NumPy backend: the graph in plain float32, with nothing clever in it. It is the oracle by which compiled kernels are judged.

Weights are dequantized when they are first used and kept while they fit into a budget; what doesn't fit is dequantized again each time,
some rows at once.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, dequantize, quantize
from numpy.typing import NDArray

from ..errors import ModelError, QwenError
from ..gguf_file import GGUFFile, TensorInfo
from ..graph import Add, Attention, GetRows, Graph, Input, KVStore, Linear, Op, Reshape, RMSNorm, Rope, SwiGLU, Tensor, Weight
from ..kv_cache import DEFAULT_TYPES, PAGE, CacheTypes, KVCache, KVSequence
from ..model import Model
from ..sampling import Draw
from . import F32, F64, I32, LOGITS, Batch, sample_with_numpy, score_with_numpy
from .dequantize import to_float32

BLOCK_WEIGHTS = 2**22  # weights dequantized at once: 16 MB as float32
QUERY_BLOCK = 256  # query positions whose scores are held at once


class NumpyBackend:
    """Runs `model` in NumPy.

    `n_threads` limits those of its matrix products, `weight_budget` the bytes of dequantized weights that are kept. Keys and values are
    float32, rounded as `cache_types` would.
    """

    def __init__(self, model: Model, n_threads: int | None = None, weight_budget: int = 4 * 2**30,
                 cache_types: CacheTypes = DEFAULT_TYPES) -> None:
        if n_threads:
            from threadpoolctl import threadpool_limits
            threadpool_limits(n_threads)
        self.model, self.cache = model, KVCache()
        self._weights = WeightReader(model.file, weight_budget)
        shape = model.config.n_layer, 2, PAGE, model.config.n_head_kv, model.config.head_dim
        self.cache_types = cache_types.chosen("f32", model.config.head_dim)
        self._kv = KVPages(shape, self.cache_types)
        rounded = "" if self.cache_types == ("f32", "f32") else f" rounded to {self.cache_types.k} and {self.cache_types.v}"
        self.kv_layout = f"{np.dtype(np.float32).str} {list(shape)}{rounded}"
        for node in model.graph.nodes.values():
            if isinstance(node.op, Weight):
                self._weights.check(node.op.info)
            elif type(node.op) is not Input and type(node.op) not in COMPUTE:
                raise ModelError(f"{model.file.path}: the NumPy backend has no {type(node.op).__name__}, which '{node.name}' needs")

    def run(self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, F32] | None = None) -> dict[str, F32]:
        """See Backend.run."""
        feed = feed or {}
        nodes = self.model.graph.subgraph(fetch, feed)
        values: dict[str, Any] = dict(feed)
        if batch is not None:
            for piece in batch.pieces:
                self.reserve(piece.seq, len(piece.tokens))
            values |= {"inp_tokens": batch.tokens, "inp_pos": batch.positions, "inp_out_ids": batch.outputs}
        step = Step(self._weights, self._kv, batch)
        last_use = Graph.last_uses(nodes)
        with np.errstate(all="ignore"):  # what isn't finite is reported where logits are used
            for i, node in enumerate(nodes):
                if node.name in values:
                    continue
                if isinstance(node.op, Weight):
                    values[node.name] = node.op.info
                else:
                    values[node.name] = COMPUTE[type(node.op)](step, node, *(values[s.name] for s in node.src))
                for source in node.src:
                    if last_use[source.name] == i and source.name not in fetch:
                        values.pop(source.name, None)
        if batch is not None:
            batch.commit(self.cache)
        return {name: values[name] for name in fetch}

    def step(self, batch: Batch) -> None:
        """See Backend.step."""
        self.run([LOGITS], batch)

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """See Backend.sample."""
        return sample_with_numpy(self, batch, draws)

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """See Backend.score."""
        return score_with_numpy(self, hidden, targets)

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """See Backend.reserve; the memory is taken when a page is written."""
        self.cache.reserve(seq, n_tokens)

    def copy_page(self, source: int, target: int) -> None:
        """See Backend.copy_page."""
        self._kv.page(target)[:] = self._kv.page(source)

    def page_bytes(self, page: int) -> NDArray[np.uint8]:
        """See Backend.page_bytes."""
        return self._kv.page(page).reshape(-1).view(np.uint8)


class WeightReader:
    """Weights of the file as float32, dequantized in blocks of rows."""

    def __init__(self, file: GGUFFile, budget: int) -> None:
        self._file, self._left = file, budget
        self._kept: dict[tuple[str, int], F32] = {}

    def check(self, info: TensorInfo) -> None:
        """Raises ModelError for a type that cannot be dequantized, or that holds no weights."""
        try:
            self.rows(info, slice(0, 1))
        except (NotImplementedError, ValueError):
            raise ModelError(f"{self._file.path}: tensor '{info.name}' has the type {info.type.name}, which cannot be run") from None

    def rows(self, info: TensorInfo, which: slice | I32) -> F32:
        """Rows of a weight, [k, n], or of a vector, [n], as float32."""
        data = self._file.data(info)
        if len(info.shape) > 1:
            data = data[which]
        return to_float32(data, info.type)

    def vector(self, info: TensorInfo) -> F32:
        return self.rows(info, slice(None))

    def blocks(self, info: TensorInfo) -> Iterator[tuple[slice, F32]]:
        """The whole matrix, a block of rows at a time."""
        n_rows, n_cols = info.shape
        step = max(1, BLOCK_WEIGHTS // n_cols)
        for start in range(0, n_rows, step):
            which = slice(start, min(start + step, n_rows))
            block = self._kept.get((info.name, start))
            if block is None:
                block = self.rows(info, which)
                if block.nbytes <= self._left:
                    self._left -= block.nbytes
                    self._kept[info.name, start] = block
            yield which, block


class KVPages:
    """The cache's memory: an array [n_layer, 2, PAGE, n_head_kv, head_dim] for each page, made when it is first asked for."""

    def __init__(self, shape: tuple[int, ...], types: CacheTypes) -> None:
        self._shape, self._types = shape, types
        self._pages: dict[int, F32] = {}

    def page(self, page: int) -> F32:
        """Raises QwenError if there is no memory for the page."""
        if page not in self._pages:
            try:
                self._pages[page] = np.zeros(self._shape, np.float32)
            except MemoryError:
                raise QwenError(f"not enough memory for {PAGE} more positions of the KV cache") from None
        return self._pages[page]

    def write(self, seq: KVSequence, layer: int, k: F32, v: F32) -> None:
        """Store k and v, [n, n_head_kv, head_dim], behind the sequence's filled positions."""
        k, v = (rounded(x, kind) for x, kind in zip((k, v), self._types))
        for i in range(len(k)):
            page, slot = divmod(seq.length + i, PAGE)
            memory = self.page(seq.pages[page])
            memory[layer, 0, slot], memory[layer, 1, slot] = k[i], v[i]

    def read(self, seq: KVSequence, layer: int, length: int) -> F32:
        """Keys and values of the first `length` positions: [2, n_head_kv, length, head_dim]."""
        pages = [self._pages[page][layer] for page in seq.pages[:-(-length // PAGE)]]
        return np.concatenate(pages, axis=1)[:, :length].swapaxes(1, 2)


def rounded(x: F32, kind: str | None) -> F32:
    """What is left of x, [..., head_dim], in a type of the cache."""
    if kind == "f32":
        return x
    if kind == "f16":
        return x.astype(np.float16).astype(np.float32)
    to = GGMLQuantizationType[str(kind).upper()]
    found: F32 = dequantize(quantize(np.ascontiguousarray(x), to), to)
    return found


class Step:
    """What an op may look at beside its sources."""

    def __init__(self, weights: WeightReader, kv: KVPages, batch: Batch | None) -> None:
        self.weights, self.kv, self.batch = weights, kv, batch

    def sequences(self) -> Iterator[tuple[KVSequence, slice]]:
        """Each sequence of the batch and its rows."""
        assert self.batch is not None
        start = 0
        for piece in self.batch.pieces:
            yield piece.seq, slice(start, start + len(piece.tokens))
            start += len(piece.tokens)


def get_rows(step: Step, node: Tensor, x: F32 | TensorInfo, ids: I32) -> F32:
    return step.weights.rows(x, ids) if isinstance(x, TensorInfo) else x[ids]


def linear(step: Step, node: Tensor, weight: TensorInfo, x: F32, bias: TensorInfo | None = None) -> F32:
    out = np.empty((len(x), weight.shape[0]), np.float32)
    for rows, block in step.weights.blocks(weight):
        out[:, rows] = x @ block.T
    op = node.src[0].op
    if isinstance(op, Weight) and op.scale:
        out *= step.weights.vector(op.scale)
    return out if bias is None else out + step.weights.vector(bias)


def rms_norm(step: Step, node: Tensor, x: F32, weight: TensorInfo) -> F32:
    assert isinstance(node.op, RMSNorm)
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    rms: F32 = np.sqrt(mean_square + np.float32(node.op.eps))
    return x / rms * step.weights.vector(weight)


def reshape(step: Step, node: Tensor, x: F32) -> F32:
    return x.reshape(len(x), *(d for d in node.shape[1:] if isinstance(d, int)))


def rope(step: Step, node: Tensor, x: F32, positions: I32) -> F32:
    assert isinstance(node.op, Rope)
    p = node.op.params
    frequencies, magnitude = p.frequencies()
    angles = positions[:, None, None] * frequencies  # float64: positions reach hundreds of thousands
    cos, sin = ((f(angles) * magnitude).astype(np.float32) for f in (np.cos, np.sin))
    half = p.n_rot // 2
    a, b = x[..., :half], x[..., half:p.n_rot]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., p.n_rot:]], axis=-1)


def kv_store(step: Step, node: Tensor, k: F32, v: F32) -> int:
    assert isinstance(node.op, KVStore)
    for seq, rows in step.sequences():
        step.kv.write(seq, node.op.layer, k[rows], v[rows])
    return node.op.layer


def attention(step: Step, node: Tensor, q: F32, layer: int) -> F32:
    assert isinstance(node.op, Attention)
    out = np.empty((len(q), q.shape[1] * q.shape[2]), np.float32)
    for seq, rows in step.sequences():
        k, v = step.kv.read(seq, layer, seq.length + rows.stop - rows.start)
        for start in range(rows.start, rows.stop, QUERY_BLOCK):
            block = slice(start, min(start + QUERY_BLOCK, rows.stop))
            first = seq.length + start - rows.start
            end = first + block.stop - block.start
            out[block] = attend(q[block], k[:, :end], v[:, :end], first, node.op.scale)
    return out


def attend(q: F32, k: F32, v: F32, first: int, scale: float) -> F32:
    """q [n, n_head, d] at positions first ...; k, v [n_head_kv, n_kv, d] -> [n, n_head * d]."""
    (n, n_head, d), (n_head_kv, n_kv, _) = q.shape, k.shape
    shared = n_head // n_head_kv
    q = q.reshape(n, n_head_kv, shared, d).transpose(1, 2, 0, 3).reshape(n_head_kv, shared * n, d)
    scores = (q @ k.swapaxes(1, 2) * np.float32(scale)).reshape(n_head_kv, shared, n, n_kv)
    masked = np.arange(n_kv) > first + np.arange(n)[:, None]
    scores[:, :, masked] = -np.inf
    weights: F32 = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = (weights.reshape(n_head_kv, shared * n, n_kv) @ v).reshape(n_head_kv, shared, n, d)
    return out.transpose(2, 0, 1, 3).reshape(n, n_head * d)


def add(step: Step, node: Tensor, x: F32, y: F32) -> F32:
    return x + y


def swiglu(step: Step, node: Tensor, gate: F32, up: F32) -> F32:
    e: F32 = np.exp(-gate)
    return gate / (1 + e) * up


COMPUTE: dict[type[Op], Callable[..., Any]] = {
    GetRows: get_rows, Linear: linear, RMSNorm: rms_norm, Reshape: reshape, Rope: rope,
    KVStore: kv_store, Attention: attention, Add: add, SwiGLU: swiglu}
"""What computes each op: f(step, node, *values of its sources)."""
