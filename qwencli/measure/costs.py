"""What a step costs, counted from the model's graph: bytes that must be read and operations that must be done, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from ..backends.cpu.program import activation_kind, weight_info
from ..backends.kv_cache import HALVES, TYPES, CacheTypes
from ..machine.peak import Peak
from ..network.config import DeltaNets
from ..network.graph import N_OUTPUTS, Attention, Conv, DeltaNet, ExpertLinear, Linear, Route, Tensor
from ..network.model import Model


class Cost(NamedTuple):
    """Bytes of weights, of the KV cache and of states, each read once per step; operations on int8 and on float32, where a product and its
    addition are two.

    What stays in the caches between two operations isn't counted, nor are norms and gates, which cost next to nothing.
    """

    n_bytes: float = 0.0
    products: float = 0.0
    flops: float = 0.0

    @property
    def ops(self) -> float:
        return self.products + self.flops

    def plus(self, other: Cost) -> Cost:
        return Cost(*(x + y for x, y in zip(self, other)))

    def times(self, n: int) -> Cost:
        return Cost(*(n * x for x in self))

    def read_seconds(self, peak: Peak) -> float:
        """The least time that reading takes at that peak."""
        return self.n_bytes / peak.bandwidth

    def compute_seconds(self, peak: Peak) -> float:
        """The least time that computing takes at that peak."""
        return self.products / peak.products + self.flops / peak.flops


class Extent(NamedTuple):
    """`n_tokens` tokens of a sequence, after `position` others."""

    n_tokens: int
    position: int


class Product(NamedTuple):
    """A product with a matrix, or with `n_used` of `n_expert` matrices for each token. Bytes and weights are those of one matrix."""

    kind: str
    is_float: bool
    of_outputs: bool
    n_bytes: int
    n_weights: int
    n_expert: int
    n_used: int

    @classmethod
    def of(cls, node: Tensor) -> Product:
        weight, info = node.src[0], weight_info(node)
        kind = "matmul " + info.type.name.lower()
        n_expert = 1
        n_used = 1
        if isinstance(node.op, ExpertLinear):
            route = node.src[2].op
            assert isinstance(route, Route)
            kind = "matmul experts"
            n_expert = int(weight.shape[0])
            n_used = route.n_used
        # Of the rows that are used, which may be only some of the tensor's.
        n_weights = prod(int(n) for n in weight.shape[-2:])
        is_float = activation_kind(info) in ("float", "bf16")
        return cls(
            kind,
            is_float,
            node.shape[0] == N_OUTPUTS,
            info.type.n_bytes(n_weights),
            n_weights,
            n_expert,
            n_used,
        )

    def cost(self, n: int) -> Cost:
        """The cost of n tokens. They choose experts as if at random, which gives the mean number of experts that are read."""
        n_read = self.n_expert * (1 - (1 - self.n_used / self.n_expert) ** n)
        ops = 2.0 * n * self.n_used * self.n_weights
        return Cost(n_read * self.n_bytes, 0.0 if self.is_float else ops, ops if self.is_float else 0.0)


class Costs:
    """The costs of a model's steps, with a KV cache of these types."""

    def __init__(self, model: Model, types: CacheTypes = HALVES) -> None:
        nodes = model.graph.nodes.values()
        self._products = Counter(
            Product.of(node) for node in nodes if isinstance(node.op, (Linear, ExpertLinear))
        )
        self._n_attentions = sum(isinstance(node.op, Attention) for node in nodes)
        c = model.config
        self._query_values = c.n_head * c.head_dim
        self._kv_bytes = types.n_bytes(c.n_head_kv * c.head_dim)
        self._quantized = sum(name is not None and TYPES[name].block_size > 1 for name in types)
        self._nets = c.delta_nets

    def of_step(self, extents: Iterable[Extent], n_outputs: int) -> dict[str, Cost]:
        """The cost of one step by kind of operation."""
        extents = list(extents)
        n_tokens = sum(n for n, _ in extents)
        found: dict[str, Cost] = {}
        for product, times in self._products.items():
            cost = product.cost(n_outputs if product.of_outputs else n_tokens)
            found[product.kind] = found.get(product.kind, Cost()).plus(cost.times(times))
        found["attention"] = self._attention(extents).times(self._n_attentions)
        if self._nets:
            layer = delta_net(self._nets, n_tokens, len(extents))
            found |= {kind: cost.times(len(self._nets.layers)) for kind, cost in layer.items()}
        return found

    def of_node(self, node: Tensor, extents: Sequence[Extent], n_outputs: int) -> Cost:
        """The cost of one node in such a step."""
        n_tokens = sum(n for n, _ in extents)
        if isinstance(node.op, (Linear, ExpertLinear)):
            product = Product.of(node)
            return product.cost(n_outputs if product.of_outputs else n_tokens)
        if isinstance(node.op, Attention):
            return self._attention(extents)
        if self._nets and isinstance(node.op, (Conv, DeltaNet)):
            kind = "delta conv" if isinstance(node.op, Conv) else "delta scan"
            return delta_net(self._nets, n_tokens, len(extents))[kind]
        return Cost()

    def _attention(self, extents: Sequence[Extent]) -> Cost:
        """The cost of one layer's attention."""
        # The positions that are seen, summed over queries.
        seen = sum(n * position + n * (n + 1) / 2 for n, position in extents)
        length = sum(n + position for n, position in extents)
        each = 2.0 * self._query_values * seen  # scores, and sums of values
        return Cost(self._kv_bytes * length, self._quantized * each, (2 - self._quantized) * each)


def delta_net(nets: DeltaNets, n_tokens: int, n_seq: int) -> dict[str, Cost]:
    """What a recurrent layer costs besides its products: a sequence's state is read and written once per step.

    For each number of a head's matrix and each token there are a decay, and a product and a sum each for what is known about the key, for
    what is learned, and for what the query gets.
    """
    n_conv, n_heads = nets.n_state
    n_weights = nets.d_conv * nets.n_channels
    return {
        "delta conv": Cost(4 * (n_weights + 2 * n_seq * n_conv), 0.0, 2.0 * n_tokens * n_weights),
        "delta scan": Cost(4 * 2 * n_seq * n_heads, 0.0, 7.0 * n_tokens * n_heads),
    }


def kind_of(spec: str) -> str:
    """The kind of operation that a kernel belongs to, by its spec."""
    module, *words = (word for word in spec.split(":") if not word.isdigit())
    if module == "matmul":
        return f"matmul {words[0]}"
    if module == "heads":
        return words[0]
    if words[0] in ("attend", "merge"):
        return "attention"
    if module == "experts" and words[0] in ("one", "many"):
        return "matmul experts"
    if module in ("delta", "experts"):
        return f"{module} {words[0]}"
    return " ".join(word for word in words if word != "prepare")
