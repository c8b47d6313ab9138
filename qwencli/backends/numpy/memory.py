"""Memory of the NumPy backend: weights as float32, pages of the KV cache, states of recurrent layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, dequantize, quantize
from numpy.typing import NDArray

from ...errors import ModelError, QwenError
from ...gguf.file import GGUFFile, TensorInfo
from ...network.config import DeltaNets
from ...network.graph import Tensor, Weight
from ..buffers import by_layer
from ..kv_cache import PAGE, CacheTypes, KVSequence
from ..protocol import F32, I32
from .dequantize import to_float32

BLOCK_WEIGHTS = 2**22
"""Weights that are dequantized at once: 16 MB as float32."""


class WeightReader:
    """Reads weights of the file as float32, dequantized in blocks of rows. A weight is given as a node of the graph."""

    def __init__(self, file: GGUFFile, budget: int) -> None:
        self._file, self._left = file, budget
        self._kept: dict[tuple[str, int | None, int], F32] = {}

    def check(self, weight: Tensor) -> None:
        """Raise ModelError for a type that can't be dequantized or doesn't hold weights."""
        info = info_of(weight)
        try:
            to_float32(self._file.data(info)[:1] if len(info.shape) > 1 else self._file.data(info), info.type)
        except (NotImplementedError, ValueError):
            raise ModelError(
                f"{self._file.path}: tensor '{info.name}' has the type {info.type.name}, which cannot be run"
            ) from None

    def rows(self, weight: Tensor, which: slice | I32, expert: int | None = None) -> F32:
        """Return rows of a matrix, or of an expert's matrix: float32 [k, n]."""
        assert isinstance(weight.op, Weight)
        info, first = weight.op.info, weight.op.first
        data = self._file.data(info)
        if len(info.shape) == 1:
            return to_float32(data, info.type)[None]  # a vector as a row
        data = data if expert is None else data[expert]
        return to_float32(data[first:][which], info.type)

    def whole(self, weight: Tensor) -> F32:
        """Return all of a weight, float32 of its node's shape, without its scale."""
        *sizes, _ = (size for size in weight.shape if isinstance(size, int))
        if not sizes:
            return self.vector(weight).copy()
        rows = slice(sizes[-1])
        if len(sizes) == 1:
            return self.rows(weight, rows).copy()
        return np.stack([self.rows(weight, rows, expert) for expert in range(sizes[0])])

    def vector(self, weight: Tensor) -> F32:
        """Return a vector, or a part of it, float32 [n]."""
        assert isinstance(weight.op, Weight)
        values = to_float32(self._file.data(weight.op.info), weight.op.info.type)
        (n,) = weight.shape
        assert isinstance(n, int)
        return values[weight.op.first : weight.op.first + n]

    def scale(self, weight: Tensor, expert: int = 0) -> np.float32:
        """Return the number by which products with a weight are multiplied."""
        assert isinstance(weight.op, Weight)
        if weight.op.scale is None:
            return np.float32(1)
        return np.float32(to_float32(self._file.data(weight.op.scale), weight.op.scale.type)[expert])

    def blocks(self, weight: Tensor, expert: int | None = None) -> Iterator[tuple[slice, F32]]:
        """Yield a matrix, or an expert's, in blocks of rows: which rows, and their weights."""
        n_rows, n_cols = weight.shape[-2:]
        assert isinstance(n_rows, int)
        assert isinstance(n_cols, int)
        step = max(1, BLOCK_WEIGHTS // n_cols)
        for start in range(0, n_rows, step):
            which = slice(start, min(start + step, n_rows))
            block = self._kept.get((weight.name, expert, start))
            if block is None:
                block = self.rows(weight, which, expert)
                if block.nbytes <= self._left:
                    self._left -= block.nbytes
                    self._kept[weight.name, expert, start] = block
            yield which, block

    @property
    def kept(self) -> Iterator[tuple[int | None, list[NDArray[Any]]]]:
        """The weights that are kept as float32, by layer. What is float32 in the file, where it can't be written, is no copy."""
        copies = ((name, block) for (name, *_), block in list(self._kept.items()) if block.flags.writeable)
        return by_layer(copies)

    def product(self, weight: Tensor, x: F32, expert: int | None = None) -> F32:
        """Return x @ weight.T, [k, m], times the weight's scale."""
        n_rows = weight.shape[-2]
        assert isinstance(n_rows, int)
        out = np.empty((len(x), n_rows), np.float32)
        for rows, block in self.blocks(weight, expert):
            out[:, rows] = x @ block.T
        return out * self.scale(weight, expert or 0)


def info_of(weight: Tensor) -> TensorInfo:
    assert isinstance(weight.op, Weight)
    return weight.op.info


class KVPages:
    """The cache's memory: an array [layers, 2, PAGE, n_head_kv, head_dim] for each page, made when it is first needed.

    `layers` are the numbers of the layers that it is for, and `shape` is that of a layer.
    """

    def __init__(self, layers: Sequence[int], shape: tuple[int, ...], types: CacheTypes) -> None:
        self._layers, self._types = layers, types
        self._shape = len(layers), *shape
        self._pages: dict[int, F32] = {}

    def page(self, page: int) -> F32:
        """Return the array of a page. Raises QwenError if there is no memory for it."""
        if page not in self._pages:
            try:
                self._pages[page] = np.zeros(self._shape, np.float32)
            except MemoryError:
                raise QwenError(f"not enough memory for {PAGE} more positions of the KV cache") from None
        return self._pages[page]

    @property
    def arrays(self) -> list[F32]:
        """The arrays of all pages that were made."""
        return list(self._pages.values())

    def layer(self, page: int, layer: int) -> F32:
        """Return a layer's part of a page, [2, PAGE, n_head_kv, head_dim]."""
        part: F32 = self.page(page)[self._layers.index(layer)]
        return part

    def write(self, seq: KVSequence, layer: int, k: F32, v: F32) -> None:
        """Store k and v, [n, n_head_kv, head_dim], after the sequence's filled positions."""
        k, v = (rounded(x, kind) for x, kind in zip((k, v), self._types))
        for i in range(len(k)):
            page, slot = divmod(seq.length + i, PAGE)
            memory = self.layer(seq.pages[page], layer)
            memory[0, slot], memory[1, slot] = k[i], v[i]

    def read(self, seq: KVSequence, layer: int, length: int) -> F32:
        """Return keys and values of the first `length` positions: [2, n_head_kv, length, head_dim]."""
        pages = [self.layer(page, layer) for page in seq.pages[: -(-length // PAGE)]]
        return np.concatenate(pages, axis=1)[:, :length].swapaxes(1, 2)


def rounded(x: F32, kind: str | None) -> F32:
    """Return x, [..., head_dim], rounded to the precision of a type of the cache."""
    if kind == "f32":
        return x
    if kind == "f16":
        return x.astype(np.float16).astype(np.float32)
    to = GGMLQuantizationType[str(kind).upper()]
    found: F32 = dequantize(quantize(np.ascontiguousarray(x), to), to)
    return found


class States:
    """The states of recurrent layers: float32 [values of `layers`] for each state, made when it is first needed."""

    def __init__(self, layers: Sequence[int], nets: DeltaNets | None) -> None:
        self._layers, self._nets = layers, nets
        self._memory: dict[int, F32] = {}

    def memory(self, state: int) -> F32:
        if state not in self._memory:
            assert self._nets is not None
            self._memory[state] = np.zeros(len(self._layers) * sum(self._nets.n_state), np.float32)
        return self._memory[state]

    @property
    def arrays(self) -> list[F32]:
        """The memory of all states that were made."""
        return list(self._memory.values())

    def whole_layer(self, state: int, layer: int) -> F32:
        """Return a layer's part of a state, a vector."""
        assert self._nets is not None
        size = sum(self._nets.n_state)
        return self.memory(state)[self._layers.index(layer) * size :][:size]

    def layer(self, state: int | None, layer: int) -> tuple[F32, F32]:
        """Return a layer's part of a state: the convolution's last inputs, [d_conv - 1, n_channels], and the heads' matrices, [n_head_v, d,
        d].

        For None, the state before the first token, they are zeros.
        """
        n = self._nets
        assert n is not None
        n_conv = n.n_state[0]
        values = np.zeros(sum(n.n_state), np.float32) if state is None else self.whole_layer(state, layer)
        return values[:n_conv].reshape(n.d_conv - 1, n.n_channels), values[n_conv:].reshape(
            n.n_head_v, n.head_dim, n.head_dim
        )
