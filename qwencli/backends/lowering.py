"""From a graph to a program for the CPU: rows of kernels, their arguments, and the memory between them.

What shares data is fused: a norm or a gate with the quantization of its result; a matrix product with bias and residual; a head's norm,
rotation and storing. Rows are put into groups that may run side by side; a row that needs what its group writes begins a new one.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..errors import ModelError
from ..gguf_file import TensorInfo
from ..graph import N_OUTPUTS, N_TOKENS, Add, Attention, GetRows, Input, KVStore, Linear, Reshape, RMSNorm, Rope, SwiGLU, Tensor, Weight
from ..kernels import layout
from ..kernels.jit import Kernels
from ..kernels.tiles import Tiles
from ..kv_cache import CacheTypes
from ..model import Model
from . import LOGITS
from .memory import I64, Buffers, Bytes, Inputs, Value, address_of

CHUNK_BYTES = 16384, 262144
"""The least and the most bytes of weights that one chunk of a product reads: claiming a chunk costs as much as reading a few kB."""
CHUNKS_A_THREAD = 6
SOME_TOKENS = 64
"""With more tokens than these a row takes milliseconds: chunks of products have at most two panels, others several tokens."""
ONE = np.ones(1, np.float32)
KV = "the KV cache"  # what stores write and attention reads, for the order of rows


def what_has_no_kernels(model: Model) -> list[str]:
    """The tensor types of the model's matrices, and the size of its heads, that the compiled kernels don't take; none if they run it."""
    matrices = (node.op.info for node in model.graph.nodes.values() if isinstance(node.op, Weight) and len(node.shape) > 1)
    missing = sorted({info.type.name for info in matrices} - layout.FORMATS.keys())
    head_dim = model.config.head_dim
    return missing + ([f"heads of {head_dim} values"] if head_dim % layout.LANES else [])


def weight_info(product: Tensor) -> TensorInfo:
    """The tensor that a Linear node multiplies with."""
    weight = product.src[0].op
    assert isinstance(weight, Weight)
    return weight.info


def activation_kind(info: TensorInfo) -> str:
    """What activations the kernels multiply a tensor's type with (see layout.FORMATS); "float" for a type without kernels."""
    return layout.FORMATS[info.type.name].kind if info.type.name in layout.FORMATS else "float"


def layer_bytes(model: Model, types: CacheTypes) -> int:
    """Bytes of a layer in a page of the KV cache."""
    n_bytes: list[int] = [layout.kv_bytes(kind, model.config.head_dim) for kind in types]
    return sum(n_bytes) * model.config.n_head_kv


def float_bits(value: float) -> int:
    """A float32's bits, as kernels take it among their arguments."""
    return int(np.float32(value).view(np.int32))


class Program:
    """The rows for one choice of results, and where these are afterwards.

    `rooms` says how many tokens and outputs there is memory for, `ending` what the last row
    does with the logits, if anything: "choose" a token for each or "score" one, `tiles` how
    products are divided, `types` as what keys and values are kept.
    """

    def __init__(self, model: Model, nodes: Sequence[Tensor], fetch: Sequence[str], feed: Sequence[str], inputs: Inputs,
                 rooms: dict[str, int], n_threads: int, ending: str | None, tiles: Tiles, types: CacheTypes) -> None:
        self.inputs = inputs
        self._model, self._nodes, self._fetch, self._feed = model, nodes, set(fetch), feed
        self._rooms, self._n_threads, self._tiles, self._types = rooms, n_threads, tiles, types
        self._forms = {dim: "one" if room == 1 else "many" for dim, room in rooms.items()}
        self._users: dict[str, list[Tensor]] = defaultdict(list)
        for node in nodes:
            for source in node.src:
                self._users[source.name].append(node)
        self._memory = Buffers()
        self._values: dict[str, Value] = {}
        self._keep: list[I64] = []
        self._rows: list[tuple[str, int, int, int]] = []
        self._ends: list[int] = []
        self._reads: set[int | str] = set()
        self._writes: set[int | str] = set()
        self._resting: list[Bytes] = []  # free as soon as the group ends
        self._done: set[str] = set()
        self._overwritten: set[str] = set()  # whose memory holds a later or an earlier step of the same heads
        self._lower()
        if ending:
            self._end(ending, self._values[LOGITS])
        self._end_group()
        self.specs = [spec for spec, *_ in self._rows]
        self.rows = np.zeros((0, layout.ROW_WORDS), np.int64)

    def value(self, name: str) -> Value:
        """The memory of a fetched or fed tensor. Raises ModelError for one that was fused into another."""
        if name not in self._values or name in self._overwritten:
            raise ModelError(f"the CPU backend computes '{name}' together with another tensor: only the NumPy backend can fetch it")
        return self._values[name]

    # -- rows and memory ------------------------------------------------------------------------------------------------

    def _row(self, spec: str, args: Sequence[int], reads: Sequence[int | str], writes: Sequence[int | str], divisor: int = 1,
             count: int | None = None, count_in: int = 0) -> None:
        """Add a row that does the number at the address `count`, by default its first argument, `divisor` a chunk.

        With `count_in` that number is the argument of this index itself.
        """
        if set(reads) & self._writes or set(writes) & (self._writes | self._reads):
            self._end_group()
        self._reads.update(reads)
        self._writes.update(writes)
        array = np.array(args, np.int64)
        self._keep.append(array)
        if count is None:
            count = address_of(array) + 8 * count_in if count_in else args[0]
        self._rows.append((spec, address_of(array), count, divisor))

    def _end_group(self) -> None:
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
            self.rows[first:end + 1, 4], self.rows[end, 5] = first, 1
            first = end + 1
        for row, (spec, args, count, divisor) in zip(self.rows, self._rows):
            row[:4] = addresses[spec], args, count, divisor

    def _new(self, name: str, dim: str, width: int) -> Value:
        self._values[name] = value = Value(dim, width, self._memory.take(4 * self._rooms[dim] * width))
        return value

    def _unit(self, dim: str) -> int:
        return 1 if self._rooms[dim] <= SOME_TOKENS else 8

    # -- nodes ----------------------------------------------------------------------------------------------------------

    def _lower(self) -> None:
        for name in self._feed:
            dim, *widths = self._model.graph.nodes[name].shape
            if not isinstance(dim, str) or len(widths) != 1:  # a weight, or heads, whose steps are done where they are used
                raise ModelError(f"the CPU backend can't take '{name}' as given; use the NumPy backend")
            width = widths[0]
            assert isinstance(width, int)
            self._new(name, dim, width)
        last_use = {source.name: i for i, node in enumerate(self._nodes) for source in node.src}
        for i, node in enumerate(self._nodes):
            if node.name not in self._done and node.name not in self._values:
                self._lower_node(node)
            for source in node.src:
                if last_use[source.name] == i:
                    self._release(source)

    def _release(self, node: Tensor) -> None:
        """Give back a tensor's memory after its last use, unless it is a result or lives on under another name."""
        value = self._values.get(node.name)
        if value is None or node.name in self._fetch or node.name in self._feed:
            return
        del self._values[node.name]
        if not any(other.memory is value.memory for other in self._values.values()):
            self._resting += [value.memory, *(buffer for form in value.quantized.values() for buffer in form)]

    def _lower_node(self, node: Tensor) -> None:
        op = node.op
        if isinstance(op, (Input, Weight)):
            return
        if isinstance(op, GetRows):
            self._get_rows(node)
        elif isinstance(op, Linear):
            self._linear(node)
        elif isinstance(op, RMSNorm) and len(node.shape) == 2:
            assert isinstance(node.src[1].op, Weight)
            self._prepare(node, "norm", self._weight(node.src[1]), float_bits(op.eps))
        elif isinstance(op, SwiGLU):
            self._prepare(node, "swiglu", self._values[node.src[1].name].address, 0)
        elif isinstance(op, (Reshape, RMSNorm, Rope)):
            self._values[node.name] = self._values[node.src[0].name]  # a view, or a head's step, which is done where it is used
            if not isinstance(op, Reshape):
                self._overwritten.add(node.name)
        elif isinstance(op, KVStore):
            self._kv_store(node, op)
        elif isinstance(op, Attention):
            self._attention(node, op)
        elif isinstance(op, Add):
            x, y = (self._values[s.name] for s in node.src)
            out = self._new(node.name, x.dim, x.width)
            args = [self.inputs.count(x.dim), self._unit(x.dim), x.address, y.address, x.width, out.address]
            self._row("ops:add", args, [x.address, y.address], [out.address], divisor=self._unit(x.dim))
        else:
            raise ModelError(f"{self._model.file.path}: the CPU backend has no {type(op).__name__}, which '{node.name}' needs")

    def _end(self, ending: str, logits: Value) -> None:
        """The last row: for each row of logits a token, or what a token's score is made of."""
        i = self.inputs
        given, result = (i.draws, i.chosen) if ending == "choose" else (i.targets, i.scores)
        args = [i.count(N_OUTPUTS), logits.address, logits.width, address_of(given), address_of(result)]
        self._row(f"sampling:{ending}", args, [logits.address], ["result"])

    def _weight(self, node: Tensor, kinds: Sequence[str] = ("F32",)) -> int:
        """The address of a weight in the mapped file, whose extent GGUFFile has checked."""
        assert isinstance(node.op, Weight)
        info = node.op.info
        if info.type.name not in kinds:
            raise ModelError(f"{self._model.file.path}: tensor '{info.name}' has the type {info.type.name}, expected {' or '.join(kinds)}:"
                             " the CPU backend can't run it, --backend numpy can")
        return address_of(self._model.file.data(info))

    def _get_rows(self, node: Tensor) -> None:
        table, ids = node.src
        dim, width = node.shape
        assert isinstance(dim, str)
        assert isinstance(width, int)
        unit, count = self._unit(dim), self.inputs.count(dim)
        out = self._new(node.name, dim, width)
        id_address = address_of(self.inputs.tokens if ids.name == "inp_tokens" else self.inputs.outputs)
        if isinstance(table.op, Weight):
            kind = table.op.info.type
            args = [count, unit, self._weight(table, list(layout.FORMATS)), kind.n_bytes(width), width, id_address, out.address]
            self._row(f"ops:embed:{kind.name.lower()}", args, [], [out.address], divisor=unit)
        else:
            x = self._values[table.name]
            args = [count, unit, x.address, id_address, width, out.address]
            self._row("ops:gather", args, [x.address], [out.address], divisor=unit)

    def _prepare(self, node: Tensor, prologue: str, second: int, eps: int) -> None:
        """A norm or a gate, with the quantization that the first product after it wants."""
        x = self._values[node.src[0].name]
        out = self._new(node.name, x.dim, x.width)
        kind, addresses = self._quantized(node, out)
        reads = [x.address] + ([second] if prologue == "swiglu" else [])
        self._quantize(prologue, kind, x, second, out, addresses, eps, reads)

    def _quantized(self, node: Tensor, out: Value) -> tuple[str, list[int]]:
        """How the first product after `node` wants its result, and memory for that."""
        kinds = (activation_kind(weight_info(user)) for user in self._users[node.name] if isinstance(user.op, Linear))
        kind = next((k for k in kinds if k != "float"), "f32")
        return kind, self._room_for(kind, out)

    def _room_for(self, kind: str, x: Value) -> list[int]:
        """The addresses of memory for x quantized."""
        buffers = tuple(self._memory.take(self._rooms[x.dim] * n) for n in layout.activation_bytes(kind, x.width))
        if kind != "f32":
            x.quantized[kind] = buffers
        return [address_of(buffer) for buffer in buffers]

    def _quantize(self, prologue: str, kind: str, x: Value, second: int, out: Value, addresses: Sequence[int], eps: int,
                  reads: Sequence[int]) -> None:
        """The row that computes `out` from x and quantizes it; with the prologue "copy" out is x."""
        unit = self._unit(x.dim)
        args = [self.inputs.count(x.dim), unit, x.address, second, x.width, out.address, *addresses, eps]
        writes = addresses if prologue == "copy" else [*addresses, out.address]
        self._row(f"ops:prepare:{prologue}:{kind}", args, reads, writes, divisor=unit)

    def _linear(self, node: Tensor) -> None:
        """A product, with bias and, where its result is only added to something, the sum."""
        weight, x_node, *bias = node.src
        info = weight_info(node)
        address, kind = self._weight(weight, list(layout.FORMATS)), activation_kind(info)
        n_rows, n_cols = info.shape
        x = self._values[x_node.name]
        if kind != "float" and kind not in x.quantized:
            self._quantize("copy", kind, x, 0, x, self._room_for(kind, x), 0, [x.address])
        target, residual = self._residual_of(node)
        out = self._new(target.name, x.dim, n_rows)
        form, row_bytes = self._forms[x.dim], info.type.n_bytes(n_cols)
        chunk_rows = self._chunk_rows(n_rows, row_bytes, self._rooms[x.dim])
        quantized = [address_of(buffer) for buffer in x.quantized[kind]] if kind != "float" else [0, 0, 0]
        args = [self.inputs.count(x.dim), chunk_rows, address, row_bytes, n_rows, n_cols, x.address, *quantized, out.address, 4 * n_rows,
                self._weight(bias[0]) if bias else 0, residual.address if residual else 0, *self._scale(weight)]
        reads = [*(quantized if kind != "float" else [x.address]), *([residual.address] if residual else [])]
        spec = self._tiles.one(info.type.name, n_cols) if form == "one" else self._tiles.many(info.type.name)
        self._row(spec, args, reads, [out.address], chunk_rows, count_in=4)
        self._done.add(target.name)

    def _scale(self, weight: Tensor) -> list[int]:
        """The address of what products with a scaled type are multiplied by; 1 where the tensor has no scale."""
        assert isinstance(weight.op, Weight)
        if not weight.op.info.type.scaled:
            return []
        return [address_of(ONE if weight.op.scale is None else self._model.file.data(weight.op.scale))]

    def _chunk_rows(self, n_rows: int, row_bytes: int, room: int) -> int:
        """Rows of a chunk: some chunks for each thread, of a size worth claiming and, with many tokens, soon done."""
        n_bytes = min(max(n_rows * row_bytes // (CHUNKS_A_THREAD * self._n_threads), CHUNK_BYTES[0]), CHUNK_BYTES[1])
        unit = int(layout.LANES if room == 1 else layout.PANEL_ROWS)
        most = n_rows if room <= SOME_TOKENS else 2 * unit
        return min(max(1, n_bytes // row_bytes // unit) * unit, most)

    def _residual_of(self, node: Tensor) -> tuple[Tensor, Value | None]:
        users = self._users[node.name]
        if len(users) == 1 and isinstance(users[0].op, Add) and node.name not in self._fetch:
            other = next((s for s in users[0].src if s is not node), None)
            if other is not None and other.name in self._values:
                return users[0], self._values[other.name]
        return node, None

    def _head_steps(self, node: Tensor) -> tuple[int, int]:
        """The weight of a head's norm (0 if it has none) and its eps, from the nodes that lead to `node`."""
        while isinstance(node.op, (Rope, Reshape)):
            node = node.src[0]
        if isinstance(node.op, RMSNorm) and len(node.shape) == 3:
            return self._weight(node.src[1]), float_bits(node.op.eps)
        return 0, 0

    def _heads(self, node: Tensor) -> list[int]:
        """The arguments that rotating and storing heads share."""
        x = self._values[node.name]
        _, n_head, head_dim = node.shape
        assert isinstance(n_head, int)
        assert isinstance(head_dim, int)
        if not isinstance(node.op, Rope):
            raise ModelError(f"{self._model.file.path}: the CPU backend needs '{node.name}' to be rotated")
        self._overwritten |= {name for name, value in self._values.items() if value.memory is x.memory}
        self._overwritten.remove(node.name)
        angles, n_rot = address_of(self.inputs.angles), node.op.params.n_rot
        return [self.inputs.count(N_TOKENS), self._unit(N_TOKENS), x.address, n_head, head_dim, *self._head_steps(node), angles, n_rot]

    def _kv_store(self, node: Tensor, op: KVStore) -> None:
        k, v = node.src
        keys, values = self._values[k.name].address, self._values[v.name].address
        pages, slots = address_of(self.inputs.pages), address_of(self.inputs.slots)
        args = [*self._heads(k), values, pages, slots, op.layer * self._layer_bytes()]
        self._row(f"heads:store:{self._types.k}:{self._types.v}", args, [keys, values], [keys, KV], divisor=self._unit(N_TOKENS))

    def _layer_bytes(self) -> int:
        return layer_bytes(self._model, self._types)

    def _attention(self, node: Tensor, op: Attention) -> None:
        q, store = node.src
        assert isinstance(store.op, KVStore)
        c, x = self._model.config, self._values[q.name]
        if c.head_dim % layout.LANES:
            raise ModelError(f"{self._model.file.path}: heads of {c.head_dim} values, the CPU backend expects a multiple of {layout.LANES}:"
                             " use --backend numpy")
        self._row("heads:rotate", self._heads(q), [x.address], [x.address], divisor=self._unit(N_TOKENS))
        out = self._new(node.name, N_TOKENS, c.n_head * c.head_dim)
        pointers, writes = address_of(self.inputs.pointers), (out.address, "partials")
        args = [x.address, out.address, pointers, c.n_head, c.n_head_kv, float_bits(op.scale), store.op.layer * self._layer_bytes()]
        spec = f"attention:attend:{c.head_dim}:{self._types.k}:{self._types.v}"
        self._row(spec, args, [x.address, KV], writes, count=self.inputs.count("attend"))
        kind, addresses = self._quantized(node, out)
        args = [self.inputs.count(N_TOKENS), self._unit(N_TOKENS), out.address, pointers, c.n_head, *addresses]
        self._row(f"attention:merge:{c.head_dim}:{kind}", args, ["partials"], [out.address, *addresses], divisor=self._unit(N_TOKENS))
