"""The compute graph: what a network does, described once, for every backend to run.

A `Graph` is a list of `Tensor` nodes in the order in which the architecture added them, so each comes after its sources. Shapes are in
NumPy's order; a dimension is a number, or one of the two that each batch sets, `N_TOKENS` and `N_OUTPUTS`. Names are llama.cpp's
(`attn_norm-0`, `l_out-0`, `result_output`), so that values can be compared by name. A graph contains no data: weights are TensorInfo of
the file, and what changes from batch to batch comes in through the three inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..errors import ModelError
from ..gguf.file import TensorInfo
from .rope import RopeParams

N_TOKENS, N_OUTPUTS = "n_tokens", "n_outputs"
HIDDEN, LOGITS = "result_norm", "result_output"
"""The tensors that every graph ends with: the last norm's output, [n_outputs, n_embd], and the logits, [n_outputs, n_vocab]."""
CLASSES = "result_class"
"""What a rank head makes of HIDDEN, [n_outputs, n_classes], where the file has one."""
Dim = int | str
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Op:
    """The base class of all ops. Each op's docstring gives its sources and its result."""


class Input(Op):
    """No sources. `tokens` and `positions` are i32 [n_tokens]; `outputs`, i32 [n_outputs], are the batch's rows whose logits are wanted."""


class Rows(Input):
    """No sources. float32 [n_tokens, n], which the caller has to feed."""


@dataclass(frozen=True)
class Weight(Op):
    """No sources: the tensor `info` of the model file, or some of its rows, from `first` on, as many as the node's shape says.

    Rows are counted along the last dimension but one; those of a vector are its numbers. `scale` is the additional F32 tensor of a scaled
    type: products are multiplied by its value, one for the whole tensor or one per expert.
    """

    info: TensorInfo
    scale: TensorInfo | None = None
    first: int = 0

    def __str__(self) -> str:
        return f"Weight({self.info.type.name})"


class GetRows(Op):
    """(x [m, n], ids [k]) -> [k, n]: x[ids]. With a weight as x this is the token embedding."""


class Linear(Op):
    """(weight [m, n], x [k, n]) or (weight, x, bias [m]) -> [k, m]: x @ weight.T * the weight's scale, if it has one, + bias."""


@dataclass(frozen=True)
class RMSNorm(Op):
    """(x [..., n], weight [n]) -> x / sqrt(mean(x**2) + eps) * weight over the last dimension (https://arxiv.org/abs/1910.07467)."""

    eps: float


class Reshape(Op):
    """(x) -> the same values in another shape."""


@dataclass(frozen=True)
class Columns(Op):
    """(x [k, n_group * width]) -> [k, n_group, count]: the columns from `first` on of each group of columns."""

    first: int


@dataclass(frozen=True)
class Rope(Op):
    """(x [k, n_head, head_dim], positions [k]) -> x with each head rotated by its token's position (https://arxiv.org/abs/2104.09864)."""

    params: RopeParams


@dataclass(frozen=True)
class KVStore(Op):
    """(k [k, n_head_kv, head_dim], v) -> a handle of `layer`'s cache, in which they are stored at their sequences' positions."""

    layer: int


@dataclass(frozen=True)
class Attention(Op):
    """(q [k, n_head, head_dim], cache handle) -> [k, n_head * head_dim]: softmax(q K^T * scale) V over each token's own sequence.

    n_head / n_head_kv consecutive query heads share one key-value head. A `causal` query sees the positions up to its own; others see the
    whole sequence, as far as the step's last token of it.
    """

    scale: float
    causal: bool = True


class Add(Op):
    """(x, y), both of the same shape -> x + y."""


class SwiGLU(Op):
    """(gate, up), both of the same shape -> silu(gate) * up (https://arxiv.org/abs/2002.05202)."""


class Gate(Op):
    """(x [k, n], gate [k, n] or [k, 1]) -> x * sigmoid(gate)."""


@dataclass(frozen=True)
class Route(Op):
    """(logits [k, n_expert]) -> a handle of each token's n_used likeliest experts, the likeliest first, and their weights.

    Weights are softmax(logits), if `normalised` divided by the sum of those chosen (at least 2**-14, as in llama.cpp).
    """

    n_used: int
    normalised: bool


class ExpertLinear(Op):
    """(weight [n_expert, m, n], x [k, n] or [k, n_used, n], route) -> [k, n_used, m]: x multiplied with the experts chosen for it.

    If x has one row per token, all of the token's experts get that row; otherwise each expert gets its own.
    """


class ExpertSum(Op):
    """(x [k, n_used, n], route) -> [k, n]: the sum over the experts, starting with the likeliest, of x times their weight."""


@dataclass(frozen=True)
class Conv(Op):
    """(x [k, n], weight [n, d_conv]) -> [k, n]: silu of each channel's convolution over a value and the d_conv - 1 values before it.

    The values before the start of a sequence are zeros. The last d_conv - 1 rows of x are kept in the sequence's state, in the part of
    recurrent layer `layer`.
    """

    layer: int


@dataclass(frozen=True)
class DeltaNet(Op):
    """(qkv [k, (2 * n_head_k + n_head_v) * d], alpha, beta [k, n_head_v], dt, a [n_head_v]) -> [k, n_head_v, d]: a gated delta net.

    For each head with queries q, keys k, values v of size d, q and k divided by sqrt(sum of squares + eps), and its state S, [d, d],
    S = exp(a * softplus(alpha + dt)) * S; S += k (sigmoid(beta) * (v - S^T k))^T; the result is S^T q / sqrt(d)
    (https://arxiv.org/abs/2412.06464). Value head h uses key head h // (n_head_v / n_head_k), or h % n_head_k if `tiled`. S is kept in
    the sequence's state, in the part of recurrent layer `layer`; at the start of a sequence it is zero.
    """

    layer: int
    n_head_k: int
    eps: float
    tiled: bool


@dataclass(frozen=True, eq=False, repr=False)
class Tensor:
    """A node: the result of `op` on `src`. `name` is unique in its graph."""

    name: str
    op: Op
    src: tuple[Tensor, ...]
    shape: Shape

    def shape_for(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in a step in which N_TOKENS and N_OUTPUTS have these sizes."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    def n_bytes(self, sizes: Mapping[str, int]) -> int:
        """Return the bytes of a weight in the file, or of a value in a step with these sizes: float32, or i32 for an input; for a route an
        expert's number and its weight."""
        n = prod(self.shape_for(sizes))
        if isinstance(self.op, Weight):
            return self.op.info.type.n_bytes(n)
        return 8 * n if isinstance(self.op, Route) else 4 * n

    def __repr__(self) -> str:
        """Its sources by name alone: with all that these read it would grow without end."""
        shape = ", ".join(map(str, self.shape))
        op = str(self.op).removesuffix("()")
        sources = f"({', '.join(source.name for source in self.src)})" if self.src else ""
        return f"<{self.name} [{shape}]: {op}{sources}>"


class Graph:
    """Nodes in the order of execution. The methods below add them, check their shapes, and raise ModelError naming the tensor."""

    def __init__(self) -> None:
        self.nodes: dict[str, Tensor] = {}
        self.tokens = self._add("inp_tokens", Input(), (), (N_TOKENS,))
        self.positions = self._add("inp_pos", Input(), (), (N_TOKENS,))
        self.outputs = self._add("inp_out_ids", Input(), (), (N_OUTPUTS,))

    def _add(self, name: str, op: Op, src: tuple[Tensor, ...], shape: Shape) -> Tensor:
        if name in self.nodes:
            raise ModelError(f"graph: two tensors are named '{name}'")
        for source in src:
            if self.nodes.get(source.name) is not source:
                raise ModelError(
                    f"graph: '{source.name}', which '{name}' reads, is a tensor of another graph"
                )
        self.nodes[name] = tensor = Tensor(name, op, src, shape)
        return tensor

    def _expect(self, holds: bool, name: str, *tensors: Tensor) -> None:
        if not holds:
            shapes = ", ".join(f"{t.name} [{', '.join(map(str, t.shape))}]" for t in tensors)
            raise ModelError(f"graph: the shapes of {shapes} don't fit together in '{name}'")

    def input(self, name: str, width: int) -> Tensor:
        """Rows of `width` numbers that the caller feeds."""
        return self._add(name, Rows(), (), (N_TOKENS, width))

    def weight(
        self,
        info: TensorInfo,
        scale: TensorInfo | None = None,
        rows: range | None = None,
        as_row: bool = False,
    ) -> Tensor:
        """A tensor of the file, or some rows of it: numbers of a vector, rows of a matrix, or rows of each expert's matrix.

        `as_row`: take a vector as a matrix of one row.
        """
        if as_row:
            return self._add(f"{info.name} as a row", Weight(info), (), (1, *info.shape))
        if rows is None:
            return self.nodes.get(info.name) or self._add(info.name, Weight(info, scale), (), info.shape)
        name, axis = f"{info.name}[{rows.start}:{rows.stop}]", max(len(info.shape) - 2, 0)
        shape = (*info.shape[:axis], len(rows), *info.shape[axis + 1 :])
        return self.nodes.get(name) or self._add(name, Weight(info, scale, rows.start), (), shape)

    def get_rows(self, x: Tensor, ids: Tensor, name: str) -> Tensor:
        self._expect(len(x.shape) == 2 and len(ids.shape) == 1, name, x, ids)
        return self._add(name, GetRows(), (x, ids), (ids.shape[0], x.shape[1]))

    def linear(self, weight: Tensor, x: Tensor, name: str, bias: Tensor | None = None) -> Tensor:
        self._expect(
            len(x.shape) == len(weight.shape) == 2 and x.shape[1:] == weight.shape[1:], name, weight, x
        )
        self._expect(bias is None or bias.shape == weight.shape[:1], name, weight, bias or weight)
        return self._add(
            name, Linear(), (weight, x, *([bias] if bias else [])), (x.shape[0], weight.shape[0])
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, name: str) -> Tensor:
        self._expect(weight.shape == x.shape[-1:], name, x, weight)
        return self._add(name, RMSNorm(eps), (x, weight), x.shape)

    def _width(self, x: Tensor, name: str) -> int:
        """The number of columns of a matrix, which `name` reads."""
        self._expect(len(x.shape) == 2, name, x)
        width = x.shape[1]
        assert isinstance(width, int)
        return width

    def heads(self, x: Tensor, n_head: int, name: str) -> Tensor:
        """[k, n_head * head_dim] -> [k, n_head, head_dim]"""
        width = self._width(x, name)
        self._expect(n_head > 0 and width % n_head == 0, name, x)
        return self._add(name, Reshape(), (x,), (x.shape[0], n_head, width // n_head))

    def columns(self, x: Tensor, n_group: int, first: int, count: int, name: str) -> Tensor:
        """[k, n_group * width] -> [k, n_group, count]"""
        width = self._width(x, name)
        self._expect(n_group > 0 and width % n_group == 0, name, x)
        self._expect(0 <= first < first + count <= width // n_group, name, x)
        return self._add(name, Columns(first), (x,), (x.shape[0], n_group, count))

    def flat(self, x: Tensor, name: str) -> Tensor:
        """[k, n, m] -> [k, n * m]"""
        self._expect(len(x.shape) == 3, name, x)
        k, n, m = x.shape
        assert isinstance(n, int)
        assert isinstance(m, int)
        return self._add(name, Reshape(), (x,), (k, n * m))

    def rope(self, x: Tensor, params: RopeParams, name: str) -> Tensor:
        self._expect(len(x.shape) == 3, name, x)
        head_dim = x.shape[2]
        assert isinstance(head_dim, int)
        if params.n_rot % 2 or not 0 < params.n_rot <= head_dim:
            raise ModelError(
                f"graph: '{name}' rotates {params.n_rot} values of heads of {head_dim}, expected an even number of them"
            )
        return self._add(name, Rope(params), (x, self.positions), x.shape)

    def kv_store(self, k: Tensor, v: Tensor, layer: int, name: str) -> Tensor:
        self._expect(k.shape == v.shape and len(k.shape) == 3, name, k, v)
        return self._add(name, KVStore(layer), (k, v), k.shape)

    def attention(self, q: Tensor, kv: Tensor, scale: float, name: str, causal: bool = True) -> Tensor:
        self._expect(len(q.shape) == len(kv.shape) == 3 and q.shape[0] == kv.shape[0], name, q, kv)
        (n, n_head, head_dim), (_, n_head_kv, kv_dim) = q.shape, kv.shape
        assert isinstance(n_head, int)
        assert isinstance(n_head_kv, int)
        assert isinstance(head_dim, int)
        self._expect(head_dim == kv_dim and n_head % n_head_kv == 0, name, q, kv)
        return self._add(name, Attention(scale, causal), (q, kv), (n, n_head * head_dim))

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        self._expect(x.shape == y.shape, name, x, y)
        return self._add(name, Add(), (x, y), x.shape)

    def swiglu(self, gate: Tensor, up: Tensor, name: str) -> Tensor:
        self._expect(gate.shape == up.shape, name, gate, up)
        return self._add(name, SwiGLU(), (gate, up), gate.shape)

    def gate(self, x: Tensor, gate: Tensor, name: str) -> Tensor:
        self._expect(gate.shape == x.shape or gate.shape == (x.shape[0], 1), name, x, gate)
        return self._add(name, Gate(), (x, gate), x.shape)

    def route(self, logits: Tensor, n_used: int, normalised: bool, name: str) -> Tensor:
        n_expert = self._width(logits, name)
        if not 0 < n_used <= n_expert:
            raise ModelError(f"graph: '{name}' takes {n_used} of {n_expert} experts")
        return self._add(name, Route(n_used, normalised), (logits,), (logits.shape[0], n_used))

    def expert_linear(self, weight: Tensor, x: Tensor, route: Tensor, name: str) -> Tensor:
        self._expect(len(weight.shape) == 3 and x.shape[-1] == weight.shape[2], name, weight, x)
        logits = route.src[0]
        self._expect(logits.shape[1] == weight.shape[0], name, weight, logits)
        self._expect(x.shape[:-1] in (route.shape[:1], route.shape), name, x, route)
        return self._add(name, ExpertLinear(), (weight, x, route), (*route.shape, weight.shape[1]))

    def expert_sum(self, x: Tensor, route: Tensor, name: str) -> Tensor:
        self._expect(x.shape[:-1] == route.shape, name, x, route)
        return self._add(name, ExpertSum(), (x, route), (x.shape[0], x.shape[-1]))

    def conv(self, x: Tensor, weight: Tensor, layer: int, name: str) -> Tensor:
        self._expect(len(weight.shape) == 2 and weight.shape[:1] == x.shape[1:], name, x, weight)
        return self._add(name, Conv(layer), (x, weight), x.shape)

    def delta_net(
        self,
        qkv: Tensor,
        alpha: Tensor,
        beta: Tensor,
        dt: Tensor,
        a: Tensor,
        op: DeltaNet,
        head_dim: int,
        name: str,
    ) -> Tensor:
        self._expect(len(dt.shape) == 1, name, dt)
        n_head_v = dt.shape[0]
        assert isinstance(n_head_v, int)
        self._expect(
            qkv.shape[1:] == ((2 * op.n_head_k + n_head_v) * head_dim,) and a.shape == dt.shape,
            name,
            qkv,
            dt,
            a,
        )
        self._expect(alpha.shape == beta.shape == (qkv.shape[0], n_head_v), name, alpha, beta)
        return self._add(name, op, (qkv, alpha, beta, dt, a), (qkv.shape[0], n_head_v, head_dim))

    def subgraph(self, fetch: Sequence[str], feed: Iterable[str] = ()) -> list[Tensor]:
        """The nodes to run, in order, to compute the tensors named in `fetch` when those in `feed` are given.

        Raises ModelError if there is no tensor of such a name.
        """
        for name in (*fetch, *feed):
            if name not in self.nodes:
                raise ModelError(f"graph: no tensor is named '{name}'")
        given, wanted = set(feed), set(fetch)
        nodes = []
        for node in reversed(self.nodes.values()):
            if node.name in wanted and node.name not in given:
                nodes.append(node)
                wanted.update(source.name for source in node.src)
        return nodes[::-1]

    def results(self) -> list[str]:
        """The names of what the graph is for: the logits, or without them all that no other node reads."""
        if LOGITS in self.nodes:
            return [LOGITS]
        read = {source.name for node in self.nodes.values() for source in node.src}
        leaves = Input, Weight
        return [
            name for name, node in self.nodes.items() if name not in read and not isinstance(node.op, leaves)
        ]

    def given(self) -> list[str]:
        """The names of the rows that the caller has to feed."""
        return [name for name, node in self.nodes.items() if isinstance(node.op, Rows)]

    @staticmethod
    def last_uses(nodes: Sequence[Tensor]) -> dict[str, int]:
        """For each tensor, the index of the last node in `nodes` that reads it: after that node its memory is free."""
        return {source.name: i for i, node in enumerate(nodes) for source in node.src}
