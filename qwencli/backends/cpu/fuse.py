"""Fusion: patterns of nodes that the CPU backend computes as one node. They are applied to a graph before it is lowered.

A pattern is a function that looks at a node, whose sources are fused already, and returns the node that replaces it and others, or None.
It is registered for the ops of the nodes that it looks at. Patterns see only nodes that will run, not tensors that are fed. A tensor that
is fetched is never fused away, so a pattern that would do this doesn't apply.

Fused nodes have ops of their own, each defined here next to its pattern. `lower/` knows these ops and those of the graph. A fused node has
the name of the last node that it replaces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...network.graph import (
    Add,
    Attention,
    Conv,
    DeltaNet,
    ExpertLinear,
    ExpertSum,
    Gate,
    KVStore,
    Linear,
    Op,
    Reshape,
    RMSNorm,
    Rope,
    SwiGLU,
    Tensor,
)
from ...network.rope import RopeParams


class Match(NamedTuple):
    """`node` takes the place of the node that the pattern was called with, and also replaces those in `swallowed`, before or after it."""

    node: Tensor
    swallowed: Sequence[Tensor]


class Neighbours:
    """The nodes of a program before anything is fused: their order, and which node reads which. Nodes are known by name."""

    def __init__(self, nodes: Sequence[Tensor], fetch: Iterable[str]) -> None:
        self._place = {node.name: i for i, node in enumerate(nodes)}
        self._fetched = frozenset(fetch)
        self._readers: dict[str, list[Tensor]] = defaultdict(list)
        for node in nodes:
            for source in node.src:
                self._readers[source.name].append(node)

    def only_reader(self, node: Tensor) -> Tensor | None:
        """Return the only node that reads `node`, or None if there are several, or if `node` is fetched."""
        readers = self._readers[node.name]
        return readers[0] if len(readers) == 1 and node.name not in self._fetched else None

    def is_before(self, node: Tensor, other: Tensor) -> bool:
        """Whether `node` is computed before `other`. A tensor that is fed always is."""
        return self._place.get(node.name, -1) < self._place[other.name]

    def swallows(self, *nodes: Tensor) -> bool:
        """Whether each node in a chain is read only by the next, and the last one only by the node that the pattern was called with."""
        return all(node.name in self._place and self.only_reader(node) is not None for node in nodes)


Pattern = Callable[[Tensor, Neighbours], Match | None]
PATTERNS: dict[type[Op], Pattern] = {}
"""By the op of the node that a pattern is called with."""


def pattern(*ops: type[Op]) -> Callable[[Pattern], Pattern]:
    """Register a function as the pattern of nodes with these ops."""

    def register(function: Pattern) -> Pattern:
        PATTERNS.update(dict.fromkeys(ops, function))
        return function

    return register


# -- a result that is only added to something ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Plus(Op):
    """(sources of `op`, y) -> the result of `op`, plus y of the same shape."""

    op: Op


@pattern(Linear, Gate, ExpertSum)
def plus(node: Tensor, around: Neighbours) -> Match | None:
    """A product, a gate with one number per token or a sum over experts, if its result is only added to something that is computed
    before."""
    if isinstance(node.op, Gate) and node.src[1].shape == node.src[0].shape:
        return None
    total = around.only_reader(node)
    if total is None or not isinstance(total.op, Add):
        return None
    other = next((source for source in total.src if source.name != node.name), None)
    if other is None or not around.is_before(other, node):
        return None
    return Match(replace(total, op=Plus(node.op), src=(*node.src, other)), [total])


# -- heads on their way to attention ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RotateHeads(Op):
    """(x [k, n_head, head_dim]) or (x, weight [head_dim]) -> x with each head rotated. With a weight, the head is normalised first.

    `eps` belongs to the norm and `params` to the rotation: see RMSNorm and Rope.
    """

    params: RopeParams
    eps: float = 0.0


@dataclass(frozen=True)
class StoreHeads(Op):
    """(k, v) or (k, v, weight) -> KVStore's handle of layer `layer`. `rotation` is applied to k first."""

    layer: int
    rotation: RotateHeads


@pattern(Rope)
def rotate_heads(node: Tensor, around: Neighbours) -> Match | None:
    """A rotation, and the norm before it if there is one."""
    assert isinstance(node.op, Rope)
    x = node.src[0]
    if isinstance(x.op, RMSNorm) and around.swallows(x):
        return Match(replace(node, op=RotateHeads(node.op.params, x.op.eps), src=x.src), [x])
    return Match(replace(node, op=RotateHeads(node.op.params), src=(x,)), [])


@pattern(KVStore)
def store_heads(node: Tensor, around: Neighbours) -> Match | None:
    """Keys that are rotated only to be stored."""
    assert isinstance(node.op, KVStore)
    k, v = node.src
    if not isinstance(k.op, RotateHeads) or not around.swallows(k):
        return None
    x, *weight = k.src
    return Match(replace(node, op=StoreHeads(node.op.layer, k.op), src=(x, v, *weight)), [k])


@dataclass(frozen=True)
class Attend(Op):
    """Attention, with the layer whose keys and values its handle stands for."""

    layer: int
    scale: float


@pattern(Attention)
def attend(node: Tensor, around: Neighbours) -> Match | None:
    """Attention to a layer of the cache."""
    assert isinstance(node.op, Attention)
    handle = node.src[1].op
    assert isinstance(handle, (KVStore, StoreHeads))
    return Match(replace(node, op=Attend(handle.layer, node.op.scale)), [])


# -- gated delta nets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GatedNorm(Op):
    """(gate [k, n_head * d], x [k, n_head, d], weight [d]) -> silu(gate) * norm(each head of x), [k, n_head * d]. See RMSNorm."""

    eps: float


@dataclass(frozen=True)
class DeltaConv(Op):
    """(x [k, n], weight [n, d_conv]) -> Conv's result, with queries and keys already scaled as the delta net needs them.

    Queries and keys are the first 2 * `n_head_k` heads. `eps` belongs to the delta net.
    """

    layer: int
    n_head_k: int
    eps: float


@pattern(SwiGLU)
def gated_norm(node: Tensor, around: Neighbours) -> Match | None:
    """A gate over normalised heads."""
    gate, flat = node.src
    norm = flat.src[0] if isinstance(flat.op, Reshape) else flat
    if not isinstance(norm.op, RMSNorm) or len(norm.shape) != 3 or not around.swallows(norm, flat):
        return None
    return Match(replace(node, op=GatedNorm(norm.op.eps), src=(gate, *norm.src)), [norm, flat])


@pattern(Conv)
def delta_conv(node: Tensor, around: Neighbours) -> Match | None:
    """A convolution that only a delta net reads. If its result is wanted as it is, queries and keys are scaled by a row of their own."""
    assert isinstance(node.op, Conv)
    net = around.only_reader(node)
    if net is None or not isinstance(net.op, DeltaNet):
        return None
    return Match(replace(node, op=DeltaConv(node.op.layer, net.op.n_head_k, net.op.eps)), [])


ONLY_FUSED: tuple[type[Op], ...] = (Rope, Attention)
"""Ops that `lower/` doesn't know, since a pattern always replaces their nodes."""


def fuse(nodes: Sequence[Tensor], fetch: Iterable[str]) -> list[Tensor]:
    """Apply the patterns. Returns the nodes in an order in which each comes after its sources."""
    around = Neighbours(nodes, fetch)
    done: dict[str, Tensor] = {}
    to_come: set[str] = set()  # nodes that are computed together with an earlier one
    for node in nodes:
        if node.name in to_come:
            continue
        current = reading(node, done)
        found = PATTERNS.get(type(node.op))
        if found and (match := found(current, around)):
            current = reading(match.node, done)
            for gone in match.swallowed:
                if done.pop(gone.name, None) is None:
                    to_come.add(gone.name)
        done[current.name] = current
    return list(done.values())


def reading(node: Tensor, done: Mapping[str, Tensor]) -> Tensor:
    """The node with its sources as they are now."""
    src = tuple(done.get(source.name, source) for source in node.src)
    return node if src == node.src else Tensor(node.name, node.op, src, node.shape)


# -- results that are quantized where they are computed -----------------------------------------------------------------


def product_of(node: Tensor) -> Tensor | None:
    """Return the node itself if it is a product with weights, also with something added to it. Its first source is the weight."""
    op = node.op.op if isinstance(node.op, Plus) else node.op
    return node if isinstance(op, (Linear, ExpertLinear)) else None


def quantized_forms(nodes: Sequence[Tensor], form_of: Callable[[Tensor], str]) -> dict[str, str]:
    """Return, by name, the form in which the first product that reads a result quantized needs it.

    `form_of` returns the form of activations that a product reads, "float" if they aren't quantized.
    """
    forms: dict[str, str] = {}
    for node in nodes:
        if product_of(node) and (form := form_of(node)) != "float":
            forms.setdefault(node.src[1].name, form)
    return forms
