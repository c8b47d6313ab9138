"""The compute graph: what a network does, described once, for every backend to run.

A `Graph` is a list of `Tensor` nodes in the order in which a model file wrote them down, so each stands behind its sources. Shapes are in
NumPy's order; a dimension is a number or one of the two that each batch sets, `N_TOKENS` and `N_OUTPUTS`. Names are llama.cpp's
(`attn_norm-0`, `l_out-0`, `result_output`), so that a value can be compared with its by name. A graph holds no data: weights
are TensorInfo of the file, and what changes from batch to batch enters through the three inputs.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import ModelError
from .gguf_file import TensorInfo
from .rope import RopeParams

N_TOKENS, N_OUTPUTS = "n_tokens", "n_outputs"
Dim = int | str
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Op:
    """Base of the op vocabulary. Each op's docstring gives its sources and its result."""


@dataclass(frozen=True)
class Input(Op):
    """No sources. `tokens` and `positions` are i32 [n_tokens]; `outputs` is i32 [n_outputs], rows of the batch whose results are wanted."""


@dataclass(frozen=True)
class Weight(Op):
    """No sources: the tensor `info` of the model file. `scale` is the F32 [1] of a scaled type: products are multiplied by its value."""
    info: TensorInfo
    scale: TensorInfo | None = None


@dataclass(frozen=True)
class GetRows(Op):
    """(x [m, n], ids [k]) -> [k, n]: x[ids]. With a weight as x this is the token embedding."""


@dataclass(frozen=True)
class Linear(Op):
    """(weight [m, n], x [k, n]) or (weight, x, bias [m]) -> [k, m]: x @ weight.T * scale of the weight, if it has one, + bias."""


@dataclass(frozen=True)
class RMSNorm(Op):
    """(x [..., n], weight [n]) -> x / sqrt(mean(x**2) + eps) * weight over the last dimension (https://arxiv.org/abs/1910.07467)."""
    eps: float


@dataclass(frozen=True)
class Reshape(Op):
    """(x) -> the same values in another shape."""


@dataclass(frozen=True)
class Rope(Op):
    """(x [k, n_head, head_dim], positions [k]) -> x with each head rotated by its token's position (https://arxiv.org/abs/2104.09864)."""
    params: RopeParams


@dataclass(frozen=True)
class KVStore(Op):
    """(k [k, n_head_kv, head_dim], v) -> a handle of `layer`'s cache that holds them, at the positions of their sequences."""
    layer: int


@dataclass(frozen=True)
class Attention(Op):
    """(q [k, n_head, head_dim], cache handle) -> [k, n_head * head_dim]: causal softmax(q K^T * scale) V over each token's own sequence.

    n_head / n_head_kv query heads in a row share one key-value head.
    """
    scale: float


@dataclass(frozen=True)
class Add(Op):
    """(x, y) of one shape -> x + y."""


@dataclass(frozen=True)
class SwiGLU(Op):
    """(gate, up) of one shape -> silu(gate) * up (https://arxiv.org/abs/2002.05202)."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A node: the result of `op` on `src`. `name` is unique in its graph."""
    name: str
    op: Op
    src: tuple[Tensor, ...]
    shape: Shape


class Graph:
    """Nodes in execution order, built by the methods below, which check shapes and raise ModelError naming the tensor."""

    def __init__(self) -> None:
        self.nodes: dict[str, Tensor] = {}
        self.tokens = self._add("inp_tokens", Input(), (), (N_TOKENS,))
        self.positions = self._add("inp_pos", Input(), (), (N_TOKENS,))
        self.outputs = self._add("inp_out_ids", Input(), (), (N_OUTPUTS,))

    def _add(self, name: str, op: Op, src: tuple[Tensor, ...], shape: Shape) -> Tensor:
        if name in self.nodes:
            raise ModelError(f"graph: two tensors are named '{name}'")
        self.nodes[name] = tensor = Tensor(name, op, src, shape)
        return tensor

    def _expect(self, holds: bool, name: str, *tensors: Tensor) -> None:
        if not holds:
            shapes = ", ".join(f"{t.name} {list(t.shape)}" for t in tensors)
            raise ModelError(f"graph: the shapes of {shapes} don't fit together in '{name}'")

    def weight(self, info: TensorInfo, scale: TensorInfo | None = None) -> Tensor:
        return self.nodes.get(info.name) or self._add(info.name, Weight(info, scale), (), info.shape)

    def get_rows(self, x: Tensor, ids: Tensor, name: str) -> Tensor:
        self._expect(len(x.shape) == 2, name, x)
        return self._add(name, GetRows(), (x, ids), (ids.shape[0], x.shape[1]))

    def linear(self, weight: Tensor, x: Tensor, name: str, bias: Tensor | None = None) -> Tensor:
        self._expect(len(x.shape) == 2 and x.shape[1:] == weight.shape[1:], name, weight, x)
        self._expect(bias is None or bias.shape == weight.shape[:1], name, weight, bias or weight)
        return self._add(name, Linear(), (weight, x, *([bias] if bias else [])), (x.shape[0], weight.shape[0]))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, name: str) -> Tensor:
        self._expect(weight.shape == x.shape[-1:], name, x, weight)
        return self._add(name, RMSNorm(eps), (x, weight), x.shape)

    def heads(self, x: Tensor, n_head: int, name: str) -> Tensor:
        """[k, n_head * head_dim] -> [k, n_head, head_dim]"""
        width = x.shape[1]
        self._expect(isinstance(width, int) and width % n_head == 0, name, x)
        assert isinstance(width, int)
        return self._add(name, Reshape(), (x,), (x.shape[0], n_head, width // n_head))

    def rope(self, x: Tensor, params: RopeParams, name: str) -> Tensor:
        self._expect(len(x.shape) == 3, name, x)
        return self._add(name, Rope(params), (x, self.positions), x.shape)

    def kv_store(self, k: Tensor, v: Tensor, layer: int, name: str) -> Tensor:
        self._expect(k.shape == v.shape, name, k, v)
        return self._add(name, KVStore(layer), (k, v), k.shape)

    def attention(self, q: Tensor, kv: Tensor, scale: float, name: str) -> Tensor:
        (n, n_head, head_dim), (_, n_head_kv, kv_dim) = q.shape, kv.shape
        assert isinstance(n_head, int)
        assert isinstance(n_head_kv, int)
        assert isinstance(head_dim, int)
        self._expect(head_dim == kv_dim and n_head % n_head_kv == 0, name, q, kv)
        return self._add(name, Attention(scale), (q, kv), (n, n_head * head_dim))

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        self._expect(x.shape == y.shape, name, x, y)
        return self._add(name, Add(), (x, y), x.shape)

    def swiglu(self, gate: Tensor, up: Tensor, name: str) -> Tensor:
        self._expect(gate.shape == up.shape, name, gate, up)
        return self._add(name, SwiGLU(), (gate, up), gate.shape)

    def subgraph(self, fetch: Sequence[str], feed: Iterable[str] = ()) -> list[Tensor]:
        """The nodes to run, in order, to get the tensors named in `fetch` when those in `feed` are given."""
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

    @staticmethod
    def last_uses(nodes: Sequence[Tensor]) -> dict[str, int]:
        """For each tensor, the index of the last node of `nodes` that reads it: behind that its memory is free."""
        return {source.name: i for i, node in enumerate(nodes) for source in node.src}
