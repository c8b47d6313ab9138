"""A program for the CPU: rows of kernels, their arguments, and the memory between them.

Rows are put into groups that may run side by side; a row that needs what its group writes begins a new one. Which rows a node of the
graph becomes is said in `lowering/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ModelError
from ...gguf.file import TensorInfo
from ...kernels import layout
from ...kernels.jit import Kernels
from ...kernels.tiles import Tiles
from ...network.graph import ExpertLinear, Linear, Tensor, Weight
from ...network.model import Model
from ..kv_cache import CacheTypes
from .memory import I64, Buffers, Bytes, Inputs, Value, address_of

SOME_TOKENS = 64
"""With more tokens than these a row takes milliseconds: chunks of products have at most two panels, others several tokens."""


def weight_info(product: Tensor) -> TensorInfo:
    """The tensor that a product's node multiplies with."""
    weight = product.src[0].op
    assert isinstance(weight, Weight)
    return weight.info


def activation_kind(info: TensorInfo) -> str:
    """What activations the kernels multiply a tensor's type with (see layout.FORMATS); "float" for a type without kernels."""
    return layout.FORMATS[info.type.name].family if info.type.name in layout.FORMATS else "float"


def layer_bytes(model: Model, types: CacheTypes) -> int:
    """Bytes of a layer in a page of the KV cache."""
    n_bytes: list[int] = [layout.kv_bytes(kind, model.config.head_dim) for kind in types]
    return sum(n_bytes) * model.config.n_head_kv


def float_bits(value: float) -> int:
    """A float32's bits, as kernels take it among their arguments."""
    return int(np.float32(value).view(np.int32))


@dataclass
class Row:
    """A kernel and its arguments; the address of the number that it does, `divisor` of them a chunk; kernels that it calls."""

    spec: str
    args: I64
    count: int
    divisor: int
    calls: Sequence[str]


class Program:
    """The rows for one choice of results, and where these are afterwards.

    `rooms` says how many tokens and outputs there is memory for, `tiles` how products are divided, `types` as what keys and values are
    kept. It is empty at first: `lowering.lower` fills it.
    """

    def __init__(
        self,
        model: Model,
        nodes: Sequence[Tensor],
        fetch: Sequence[str],
        feed: Sequence[str],
        inputs: Inputs,
        rooms: dict[str, int],
        n_threads: int,
        tiles: Tiles,
        types: CacheTypes,
    ) -> None:
        self.model, self.nodes, self.inputs = model, nodes, inputs
        self.rooms, self.n_threads, self.tiles, self.types = rooms, n_threads, tiles, types
        self.fetch, self.feed = set(fetch), feed
        self.users: dict[str, list[Tensor]] = defaultdict(list)
        for node in nodes:
            for source in node.src:
                self.users[source.name].append(node)
        self.values: dict[str, Value] = {}
        self.done: set[str] = set()
        """Nodes that were computed together with another."""
        self.hidden: set[str] = set()
        """Nodes whose memory holds a later or an earlier step of the same heads."""
        self._memory = Buffers()
        self._keep: list[I64] = []
        self._rows: list[Row] = []
        self._ends: list[int] = []
        self._reads: set[int | str] = set()
        self._writes: set[int | str] = set()
        self._resting: list[Bytes] = []  # free as soon as the group ends
        self.rows = np.zeros((0, layout.ROW_WORDS), np.int64)

    @property
    def specs(self) -> list[str]:
        """All kernels that the rows need: their own, and those that they call."""
        return [spec for row in self._rows for spec in (row.spec, *row.calls)]

    @property
    def names(self) -> list[str]:
        """The kernels of the rows, in their order."""
        return [row.spec for row in self._rows]

    def value(self, name: str) -> Value:
        """The memory of a fetched or fed tensor. Raises ModelError for one that was fused into another."""
        if name not in self.values or name in self.hidden:
            raise ModelError(
                f"the CPU backend computes '{name}' together with another tensor: only the NumPy backend can fetch it"
            )
        return self.values[name]

    def error(self, what: str) -> ModelError:
        """An error that names the file."""
        return ModelError(f"{self.model.file.path}: {what}")

    # -- rows -----------------------------------------------------------------------------------------------------------

    def row(
        self,
        spec: str,
        args: Sequence[int],
        reads: Sequence[int | str],
        writes: Sequence[int | str],
        divisor: int = 1,
        count: int | None = None,
        count_in: int = 0,
        calls: Sequence[str] = (),
    ) -> None:
        """Add a row that does the number at the address `count`, by default its first argument, `divisor` a chunk.

        That number may be written by an earlier group; with `count_in` it is the argument of this index itself. The first arguments
        become the addresses of the kernels `calls`.
        """
        if set(reads) & self._writes or set(writes) & (self._writes | self._reads):
            self.end_group()
        self._reads.update(reads)
        self._writes.update(writes)
        array = np.array(args, np.int64)
        if count is None:
            count = address_of(array) + 8 * count_in if count_in else args[0]
        self._rows.append(Row(spec, array, count, divisor, calls))

    def end_group(self) -> None:
        if self._rows:  # else everything that is wanted was fed
            self._ends.append(len(self._rows) - 1)
        self._reads, self._writes = set(), set()
        for buffer in self._resting:
            self._memory.give(buffer)
        self._resting = []

    def link(self, kernels: Kernels) -> None:
        """Put the kernels' addresses into the rows, as the executor reads them: see kernels/runtime.py."""
        addresses = kernels.load(self.specs)
        self.rows = np.zeros((len(self._rows), layout.ROW_WORDS), np.int64)
        first = 0
        for end in self._ends:
            self.rows[first : end + 1, 4], self.rows[end, 5] = first, 1
            first = end + 1
        for words, row in zip(self.rows, self._rows):
            row.args[: len(row.calls)] = [addresses[spec] for spec in row.calls]
            words[:4] = addresses[row.spec], address_of(row.args), row.count, row.divisor

    def unit(self, dim: str) -> int:
        """Tokens of a chunk."""
        return 1 if self.rooms[dim] <= SOME_TOKENS else 8

    def form(self, dim: str) -> str:
        """For one token or for many."""
        return "one" if self.rooms[dim] == 1 else "many"

    # -- memory ---------------------------------------------------------------------------------------------------------

    def take(self, n_bytes: int) -> Bytes:
        """Memory that ends with the value among whose `others` it is."""
        return self._memory.take(n_bytes)

    def keep(self, array: I64) -> int:
        """The address of an array that lives as long as the program."""
        self._keep.append(array)
        return address_of(array)

    def new(self, name: str, dim: str, width: int, per_token: int = 1) -> Value:
        """Memory for a tensor of `per_token` rows of `width` numbers for each token. If it is several, they may be in any order."""
        if per_token > 1:
            self.hidden.add(name)
        self.values[name] = value = Value(
            dim, width, self._memory.take(4 * self.rooms[dim] * per_token * width), per_token=per_token
        )
        return value

    def room_for(self, kind: str, x: Value) -> list[int]:
        """The addresses of memory for x quantized."""
        buffers = tuple(
            self._memory.take(self.rooms[x.dim] * x.per_token * n)
            for n in layout.activation_bytes(kind, x.width)
        )
        if kind != "f32":
            x.quantized[kind] = buffers
        return [address_of(buffer) for buffer in buffers]

    def release(self, node: Tensor) -> None:
        """Give back a tensor's memory after its last use, unless it is a result or lives on under another name."""
        value = self.values.get(node.name)
        if value is None or node.name in self.fetch or node.name in self.feed:
            return
        del self.values[node.name]
        if not any(other.memory is value.memory for other in self.values.values()):
            self._resting += [
                value.memory,
                *(buffer for form in value.quantized.values() for buffer in form),
                *value.others,
            ]

    def weight(self, node: Tensor, kinds: Sequence[str] = ("F32",)) -> int:
        """The address of a weight in the mapped file, whose extent GGUFFile has checked; of experts the first one's."""
        assert isinstance(node.op, Weight)
        info = node.op.info
        if info.type.name not in kinds:
            raise self.error(
                f"tensor '{info.name}' has the type {info.type.name}, expected {' or '.join(kinds)}:"
                " the CPU backend can't run it, --backend numpy can"
            )
        stride = info.type.n_bytes(info.shape[-1]) if len(info.shape) > 1 else info.type.block_bytes
        return address_of(self.model.file.data(info)) + node.op.first * stride

    # -- activations ----------------------------------------------------------------------------------------------------

    def prepare(self, node: Tensor, prologue: str, args: Sequence[int], reads: Sequence[int]) -> Value:
        """A row that computes `node`, the size of its first source, and quantizes it as the first product after it wants.

        `args` are those of the prologue, see kernels/ops.py, `reads` what they name beside the first source.
        """
        x = self.compact(node.src[0])
        out = self.new(node.name, x.dim, x.width, x.per_token)
        kind, addresses = self.quantized(node, out)
        self._quantize(prologue, kind, x, out, addresses, args, [x.address, *reads])
        return out

    def quantized(self, node: Tensor, out: Value) -> tuple[str, list[int]]:
        """How the first product after `node` wants its result, and memory for that."""
        kinds = (
            activation_kind(weight_info(user))
            for user in self.users[node.name]
            if isinstance(user.op, (Linear, ExpertLinear))
        )
        kind = next((k for k in kinds if k != "float"), "f32")
        return kind, self.room_for(kind, out)

    def quantized_as(self, x: Value, kind: str) -> list[int]:
        """The addresses of x quantized; a row that does it, where none did yet."""
        if kind != "float" and kind not in x.quantized:
            self._quantize("copy", kind, x, x, self.room_for(kind, x), [0, 0], [x.address])
        return [address_of(buffer) for buffer in x.quantized[kind]] if kind != "float" else [0, 0, 0]

    def _quantize(
        self,
        prologue: str,
        kind: str,
        x: Value,
        out: Value,
        addresses: Sequence[int],
        args: Sequence[int],
        reads: Sequence[int],
    ) -> None:
        """The row that computes `out` from x and quantizes it; with the prologue "copy" out is x."""
        unit = self.unit(x.dim)
        second, eps, *more = args
        count = self.inputs.multiple(x.dim, x.per_token) if x.per_token > 1 else self.inputs.count(x.dim)
        all_args = [count, unit, x.address, second, x.width, out.address, *addresses, eps, *more]
        writes = addresses if prologue == "copy" else [*addresses, out.address]
        self.row(f"ops:prepare:{prologue}:{kind}", all_args, reads, writes, divisor=unit)

    def compact(self, node: Tensor) -> Value:
        """The value of a node whose rows have to follow each other without gaps. Raises ModelError for a view."""
        value = self.values[node.name]
        if value.columns is not None:
            raise self.error(
                f"the CPU backend can't take '{node.name}', columns of another tensor, there; --backend numpy can"
            )
        return value
