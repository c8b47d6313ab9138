"""What a step has to do, counted from the model's graph: bytes that must be read, operations that must be done, by kind."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from .backends.limits import Limits
from .backends.program import activation_kind, weight_info
from .graph import N_OUTPUTS, Attention, Linear
from .kv_cache import HALVES, TYPES, CacheTypes
from .model import Model


class Cost(NamedTuple):
    """Bytes of weights and of the KV cache, each read once a step; operations on int8 and on float32, a product and its addition being two.

    What stays in the caches between two operations is not counted, neither norms nor gates, which cost next to nothing.
    """
    n_bytes: float = 0.0
    products: float = 0.0
    flops: float = 0.0

    @property
    def ops(self) -> float:
        return self.products + self.flops

    def plus(self, other: Cost) -> Cost:
        return Cost(*(x + y for x, y in zip(self, other)))

    def read_seconds(self, limits: Limits) -> float:
        """The least time that reading takes on a machine of these limits."""
        return self.n_bytes / limits.bandwidth

    def compute_seconds(self, limits: Limits) -> float:
        """The least time that computing takes on a machine of these limits."""
        return self.products / limits.products + self.flops / limits.flops


class Piece(NamedTuple):
    """`n_tokens` of a sequence that continue `position` others."""
    n_tokens: int
    position: int


class Costs:
    """The costs of a model's steps, with keys and values kept as `types`."""

    def __init__(self, model: Model, types: CacheTypes = HALVES) -> None:
        self._products: Counter[tuple[str, bool, bool, int, int]] = Counter()
        self._n_attentions = sum(isinstance(node.op, Attention) for node in model.graph.nodes.values())
        for node in model.graph.nodes.values():
            if isinstance(node.op, Linear):
                info = weight_info(node)
                kind = "matmul " + info.type.name.lower()
                is_float, for_outputs = activation_kind(info) in ("float", "bf16"), node.shape[0] == N_OUTPUTS
                self._products[kind, is_float, for_outputs, info.n_bytes, info.n_weights] += 1
        c = model.config
        self._query_values, self._kv_bytes = c.n_head * c.head_dim, types.n_bytes(c.n_head_kv * c.head_dim)
        self._quantized = sum(name is not None and TYPES[name].block_size > 1 for name in types)

    def of_step(self, pieces: Iterable[Piece], n_outputs: int) -> dict[str, Cost]:
        """The cost of one step by kind of operation."""
        pieces = list(pieces)
        n_tokens = sum(n for n, _ in pieces)
        found: dict[str, Cost] = {}
        for (kind, is_float, of_outputs, n_bytes, n_weights), times in self._products.items():
            n = n_outputs if of_outputs else n_tokens
            ops = 2.0 * n * n_weights * times
            cost = Cost(n_bytes * times if n else 0, 0.0 if is_float else ops, ops if is_float else 0.0)
            found[kind] = found.get(kind, Cost()).plus(cost)
        seen = sum(n * position + n * (n + 1) / 2 for n, position in pieces)  # positions, summed over queries
        length = sum(n + position for n, position in pieces)
        each = self._n_attentions * 2.0 * self._query_values * seen  # scores, and sums of values
        found["attention"] = Cost(self._n_attentions * self._kv_bytes * length, self._quantized * each, (2 - self._quantized) * each)
        return found


def kind_of(spec: str) -> str:
    """The kind of operation that a kernel belongs to, by its spec."""
    module, *words = (word for word in spec.split(":") if not word.isdigit())
    if module == "matmul":
        return f"matmul {words[0]}"
    if module == "heads":
        return words[0]
    if words[0] in ("attend", "merge"):
        return "attention"
    return " ".join(word for word in words if word != "prepare")
