"""A program for the CPU: rows of kernels, their arguments, and the memory between them.

Rows of a group may run side by side; a row that reads what its group writes begins a new group. The modules in `lower/` turn the nodes of
the graph into rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ...errors import ModelError
from ...gguf.file import TensorInfo
from ...kernels import formats, layout
from ...kernels.arguments import COPY, ROW, Arguments
from ...kernels.jit import Kernels
from ...kernels.tiles import Tiles
from ...network.graph import Linear, Op, Tensor, Weight
from ...network.model import Model
from .cache import CacheLayout
from .fuse import Plus
from .inputs import Inputs
from .memory import I64, Args, Buffers, Bytes, Value, address_of, quantized_at

SOME_TOKENS = 64
"""With more tokens than this a row takes milliseconds. Then chunks of products have at most two panels, and other chunks several tokens."""


def weight_info(product: Tensor) -> TensorInfo:
    """Return the weight tensor of a product."""
    weight = product.src[0].op
    assert isinstance(weight, Weight)
    return weight.info


def activation_kind(info: TensorInfo) -> str:
    """Return the kind of activations that kernels multiply with a tensor (see formats.FORMATS); "float" for a type without kernels."""
    return formats.FORMATS[info.type.name].family if info.type.name in formats.FORMATS else "float"


def takes(reader: Tensor, name: str, kind: str) -> bool:
    """Whether a node is a product that takes the tensor `name` as activations of a kind, and doesn't read it otherwise."""
    op = reader.op.op if isinstance(reader.op, Plus) else reader.op
    if not isinstance(op, Linear) or activation_kind(weight_info(reader)) != kind:
        return False
    _, x, *added = reader.src
    return x.name == name and name not in [source.name for source in added]


@dataclass
class Row:
    """A kernel and its arguments. `amount` is the address of the amount of work, `divisor` the amount in a chunk. `calls` are the kernels
    that it calls, by argument. Chunk n begins with data + n * chunk_bytes, if `data` isn't 0. `node` is the name of the node that it is
    a part of, empty for the ending."""

    spec: str
    args: NDArray[Any]
    amount: int
    divisor: int
    calls: Mapping[str, str]
    data: int = 0
    chunk_bytes: int = 0
    node: str = ""


class RowTime(NamedTuple):
    """The seconds that a row took, with its kernel, and the name of the node that it is a part of."""

    kernel: str
    node: str
    seconds: float


class Program:
    """The rows that compute certain results, and where these are afterwards. It is empty at first; `lower.lower` fills it.

    `rooms` is the number of tokens and of outputs for which there is memory, `tiles` says how products are divided, and `cache` where keys,
    values and states are.
    """

    def __init__(
        self,
        model: Model,
        nodes: Sequence[Tensor],
        forms: Mapping[str, str],
        fetch: Sequence[str],
        feed: Sequence[str],
        inputs: Inputs,
        rooms: dict[str, int],
        n_threads: int,
        tiles: Tiles,
        cache: CacheLayout,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.rooms = rooms
        self.n_threads = n_threads
        self.tiles = tiles
        self.cache = cache
        self._needed = {*fetch, *feed}
        self._forms = forms
        self._readers: dict[str, list[Tensor]] = defaultdict(list)
        for node in nodes:
            for source in node.src:
                self._readers[source.name].append(node)
        self.values: dict[str, Value] = {}
        """The tensors as kernels read them."""
        self.results: dict[str, Value] = {}
        """The tensors that are fetched, with their rows in order."""
        self._memory = Buffers()
        self._keep: list[I64] = []
        self.node = ""
        """The name of the node whose rows are added."""
        self._rows: list[Row] = []
        self._ends: list[int] = []
        self._reads: set[int | str] = set()  # the buffers of this group, and names of memory without a buffer
        self._writes: set[int | str] = set()
        self._resting: list[Bytes] = []  # free as soon as the group ends
        self.rows = ROW.zeros(0)
        self.reader_of_batch: str | None = None
        """A node that needs a batch, if there is one."""

    @property
    def specs(self) -> list[str]:
        """All kernels that are needed: those of the rows, and those that they call."""
        return [spec for row in self._rows for spec in (row.spec, *row.calls.values())]

    def times(self, seconds: Sequence[float]) -> list[RowTime]:
        """The seconds of the rows, in order, with what each row is."""
        return [RowTime(row.spec, row.node, taken) for row, taken in zip(self._rows, seconds)]

    @property
    def buffer_bytes(self) -> int:
        return self._memory.n_bytes

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All memory that steps write: inputs, and the values between the rows."""
        return [*self.inputs.arrays, *self._memory.all]

    def value(self, name: str) -> Value:
        """Return the memory of a tensor that is computed and fetched, or fed. Its rows are in order."""
        return self.results.get(name) or self.values[name]

    def result(self, name: str, counts: Mapping[str, int]) -> Any:
        """Return a copy of a fetched tensor's value (see ../values.py). Inputs aren't part of a program."""
        node = self.model.graph.nodes[name]
        if isinstance(node.op, Weight):
            from ..numpy.memory import WeightReader  # here, since importing gguf takes a while

            return WeightReader(self.model.file, 0).whole(node)
        value = self.value(name)
        return value.read(counts[value.dim], [size for size in node.shape[1:] if isinstance(size, int)])

    def n_readers(self, node: Tensor, op: type[Op]) -> int:
        """Return the number of nodes with an op of this type that read a tensor."""
        return sum(isinstance(reader.op, op) for reader in self._readers[node.name])

    def error(self, what: str) -> ModelError:
        """Return an error that names the file."""
        return ModelError(f"{self.model.file.path}: {what}")

    # -- rows -----------------------------------------------------------------------------------------------------------

    def row(
        self,
        kernel: Arguments,
        *variant: object,
        amount: int | str,
        divisor: int = 1,
        spec: str = "",
        calls: Mapping[str, str] | None = None,
        data: int = 0,
        chunk_bytes: int = 0,
        **args: Any,
    ) -> None:
        """Add a row that runs a variant of a kernel, or the kernel `spec`, with these arguments.

        `amount`, the amount of work, is the name of an argument or an address, which an earlier group may write; a chunk is `divisor` of
        it. `calls` are kernels whose addresses become arguments. `data` is the address of the weights, of which each chunk reads
        `chunk_bytes`. Raises TypeError if an argument is missing or unknown.
        """
        calls = calls or {}
        array = kernel.pack(**args, **dict.fromkeys(calls, 0))
        buffers = self._memory.holding(args)
        reads = {*buffers.values(), *kernel.reads}
        writes = {buffers.get(name, name) for name in kernel.writes if name in buffers or name not in args}
        if reads & self._writes or writes & (self._writes | self._reads):
            self.end_group()
        self._reads |= reads
        self._writes |= writes
        place = address_of(array) + kernel.offset(amount) if isinstance(amount, str) else amount
        self._rows.append(
            Row(spec or kernel.spec(*variant), array, place, divisor, calls, data, chunk_bytes, self.node)
        )

    def token_row(self, kernel: Arguments, *variant: object, of: Value, **args: Any) -> None:
        """Add a row over the tokens (or rows) of a value. If there are many, a chunk has several."""
        n = of.per_token
        count = self.inputs.multiple(of.dim, n) if n > 1 else self.inputs.count(of.dim)
        unit = self.unit(of.dim)
        self.row(kernel, *variant, amount=count, divisor=unit, count=count, unit=unit, **args)

    def end_group(self) -> None:
        if self._rows:  # there is none if all results are fed
            self._ends.append(len(self._rows) - 1)
        self._reads, self._writes = set(), set()
        for buffer in self._resting:
            self._memory.give(buffer)
        self._resting = []

    def link(self, kernels: Kernels) -> None:
        """Load the kernels and make the rows as the executor reads them: see kernels/runtime.py. Raises KernelError."""
        addresses = kernels.load(self.specs)
        self.rows = ROW.zeros(len(self._rows))
        first = 0
        for end in self._ends:
            self.rows["first"][first : end + 1] = first
            self.rows["last"][end] = 1
            first = end + 1
        for words, row in zip(self.rows, self._rows):
            for name, spec in row.calls.items():
                row.args[name] = addresses[spec]
            words["kernel"] = addresses[row.spec]
            words["args"] = address_of(row.args)
            words["count"] = row.amount
            words["divisor"] = row.divisor
            words["data"] = row.data
            words["chunk_bytes"] = row.chunk_bytes
        following = 0
        for number in reversed(range(len(self._rows))):
            self.rows["following"][number] = following
            if self._rows[number].data:
                following = number

    def unit(self, dim: str) -> int:
        """Return the number of tokens in a chunk."""
        return 1 if self.rooms[dim] <= SOME_TOKENS else 8

    def form(self, dim: str) -> str:
        """Return the form of products: "one" for one token, "many" for more."""
        return "one" if self.rooms[dim] == 1 else "many"

    # -- memory ---------------------------------------------------------------------------------------------------------

    def take(self, n_bytes: int) -> Bytes:
        """Return memory. It is freed when no value needs it any more: see Value.buffers."""
        return self._memory.take(n_bytes)

    def keep(self, array: I64) -> int:
        """Keep an array alive as long as the program. Returns its address."""
        self._keep.append(array)
        return address_of(array)

    def new(self, name: str, dim: str, width: int, per_token: int = 1, has_floats: bool = True) -> Value:
        """Make memory for a tensor with `per_token` rows of `width` numbers for each token. If there are several per token, rows may be in
        any order. Without `has_floats` there is only memory for what `room_for` is called for."""
        n_bytes = 4 * self.rooms[dim] * per_token * width if has_floats else 0
        value = Value(dim, width, self._memory.take(n_bytes), per_token=per_token, has_floats=has_floats)
        self.values[name] = value
        return value

    def room_for(self, kind: str, x: Value) -> Args:
        """Make memory for the quantized x, and return its addresses."""
        buffers = tuple(
            self._memory.take(self.rooms[x.dim] * x.per_token * n)
            for n in layout.activation_bytes(kind, x.width)
        )
        if kind != "f32":
            x.quantized[kind] = buffers
        return quantized_at(buffers)

    def may_overwrite(self, x: Value) -> bool:
        """Whether a node that reads a value may change it in place: no other node needs it, and it isn't a result."""
        names = [name for name, value in self.values.items() if value.memory is x.memory]
        readers = [reader for name in names for reader in self._readers[name]]
        is_result = not self._needed.isdisjoint(names)
        is_plain = x.is_in_order and x.has_floats and not x.quantized
        return is_plain and not is_result and len(names) == len(readers) == 1

    def release(self, node: Tensor) -> None:
        """Free a tensor's memory after its last use, unless it is a result, or as far as another value needs it too."""
        value = self.values.get(node.name)
        if value is None or node.name in self._needed:
            return
        del self.values[node.name]
        held = {id(buffer) for other in self.values.values() for buffer in other.buffers}
        self._resting += [buffer for buffer in value.buffers if id(buffer) not in held]

    def weight(self, node: Tensor, kinds: Sequence[str] = ("F32",)) -> int:
        """Return the address of a weight in the mapped file, or of the first expert's. GGUFFile has checked its extent.

        Raises ModelError for a type that isn't in `kinds`.
        """
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

    def prepare(self, node: Tensor, kernel: Arguments, of: Value, **args: Any) -> Value:
        """Add a row that computes `node`, which has the size and the order of rows of `of`, and quantizes it for the first product that
        reads it.

        `args` are the arguments that this kernel has in addition to those of all prologues (see kernels/ops.py).
        """
        out = self.new(node.name, of.dim, of.width, of.per_token, self._needs_floats(node))
        out.at_places = of.at_places
        kind, quantized = self.quantized(node, out)
        self.token_row(kernel, kind, of=of, n_cols=of.width, out=out.address, **quantized, **args)
        return out

    def _needs_floats(self, node: Tensor) -> bool:
        """Whether a result is wanted as float32 too: it is fetched, or not all that read it are products that take its quantized form."""
        kind = self._forms.get(node.name, "f32")
        readers = self._readers[node.name]
        return node.name in self._needed or not all(takes(reader, node.name, kind) for reader in readers)

    def quantized(self, node: Tensor, out: Value) -> tuple[str, Args]:
        """Return the form in which the first product that reads `node` needs it, and the addresses of memory for that."""
        kind = self._forms.get(node.name, "f32")
        return kind, self.room_for(kind, out)

    def activations(self, x: Value, kind: str) -> Args:
        """Return x as arguments of a product that takes activations of a kind: float32 or quantized. Adds a row that quantizes x if none
        has done so yet. The arguments that the product doesn't read are 0.
        """
        if kind == "float":
            return {"x": x.address, **quantized_at(None)}
        if kind not in x.quantized:
            quantized = self.room_for(kind, x)
            self.token_row(COPY, kind, of=x, x=x.address, n_cols=x.width, **quantized)
        return {"x": 0, **quantized_at(x.quantized[kind])}
