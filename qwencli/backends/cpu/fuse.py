"""What the CPU backend computes together: patterns of nodes that become one node, applied to a graph before it is lowered.

A pattern is a function that looks at one node, whose sources are fused already, and returns the node that replaces it and others, or None.
PATTERNS lists them. Patterns only see nodes that will run, so nothing that is fed. A pattern that would swallow a fetched tensor doesn't
apply.

Fused nodes have ops of their own, defined here next to their pattern; `lower/` knows these and the graph's. A fused node has the name of
the last node that it stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...network.graph import (
    Add,
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
    """A node that replaces the one that the pattern was asked about, at its place, and the `swallowed` ones before or after it."""

    node: Tensor
    swallowed: Sequence[Tensor]


class Neighbours:
    """The nodes of a program before anything was fused: their order, and who reads whom. A node is known by its name."""

    def __init__(self, nodes: Sequence[Tensor], fetch: Iterable[str]) -> None:
        self._place = {node.name: i for i, node in enumerate(nodes)}
        self._fetched = frozenset(fetch)
        self._readers: dict[str, list[Tensor]] = defaultdict(list)
        for node in nodes:
            for source in node.src:
                self._readers[source.name].append(node)

    def only_reader(self, node: Tensor) -> Tensor | None:
        """The one node that needs `node`; None where there are several, or it is fetched."""
        readers = self._readers[node.name]
        return readers[0] if len(readers) == 1 and node.name not in self._fetched else None

    def is_before(self, node: Tensor, other: Tensor) -> bool:
        """Whether `node` is there when `other` is computed: what is fed always is."""
        return self._place.get(node.name, -1) < self._place[other.name]

    def swallows(self, *nodes: Tensor) -> bool:
        """Whether nodes that follow each other are needed by nothing but the next of them, and the last only by whoever asks."""
        return all(node.name in self._place and self.only_reader(node) is not None for node in nodes)


Pattern = Callable[[Tensor, Neighbours], Match | None]


# -- a result that is only added to something ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Plus(Op):
    """(sources of `op`, y) -> the result of `op`, plus y of the same shape."""

    op: Op


def plus(node: Tensor, around: Neighbours) -> Match | None:
    """A product, a share of a token's network or a sum over experts, whose result is only added to what is there already."""
    one_gate = isinstance(node.op, Gate) and node.src[1].shape != node.src[0].shape
    if not (one_gate or isinstance(node.op, (Linear, ExpertSum))):
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
    """(x [k, n_head, head_dim]) or (x, weight [head_dim]) -> x, with a weight each head normalised first, then rotated.

    `eps` is the norm's, `params` are the rotation's: see RMSNorm and Rope.
    """

    params: RopeParams
    eps: float = 0.0


@dataclass(frozen=True)
class StoreHeads(Op):
    """(k, v) or (k, v, weight) -> KVStore's handle of layer `layer`, k going through `rotation` on its way."""

    layer: int
    rotation: RotateHeads


def rotate_heads(node: Tensor, around: Neighbours) -> Match | None:
    """A rotation, with the norm before it where there is one."""
    if not isinstance(node.op, Rope):
        return None
    x = node.src[0]
    if isinstance(x.op, RMSNorm) and around.swallows(x):
        return Match(replace(node, op=RotateHeads(node.op.params, x.op.eps), src=x.src), [x])
    return Match(replace(node, op=RotateHeads(node.op.params), src=(x,)), [])


def store_heads(node: Tensor, around: Neighbours) -> Match | None:
    """Keys that are rotated only to be stored."""
    if not isinstance(node.op, KVStore):
        return None
    k, v = node.src
    if not isinstance(k.op, RotateHeads) or not around.swallows(k):
        return None
    x, *weight = k.src
    return Match(replace(node, op=StoreHeads(node.op.layer, k.op), src=(x, v, *weight)), [k])


# -- gated delta nets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GatedNorm(Op):
    """(gate [k, n_head * d], x [k, n_head, d], weight [d]) -> silu(gate) * the norm of each head of x, [k, n_head * d]: see RMSNorm."""

    eps: float


@dataclass(frozen=True)
class DeltaConv(Op):
    """(x [k, n], weight [n, d_conv]) -> Conv's result, its queries and keys scaled as the delta net that reads it wants them.

    Those are the first 2 * `n_head_k` heads; `eps` is the delta net's.
    """

    layer: int
    n_head_k: int
    eps: float


def gated_norm(node: Tensor, around: Neighbours) -> Match | None:
    """A gate over normalised heads."""
    if not isinstance(node.op, SwiGLU):
        return None
    gate, flat = node.src
    norm = flat.src[0] if isinstance(flat.op, Reshape) else flat
    if not isinstance(norm.op, RMSNorm) or len(norm.shape) != 3 or not around.swallows(norm, flat):
        return None
    return Match(replace(node, op=GatedNorm(norm.op.eps), src=(gate, *norm.src)), [norm, flat])


def delta_conv(node: Tensor, around: Neighbours) -> Match | None:
    """A convolution that only a delta net reads."""
    net = around.only_reader(node)
    if not isinstance(node.op, Conv) or net is None or not isinstance(net.op, DeltaNet):
        return None
    return Match(replace(node, op=DeltaConv(node.op.layer, net.op.n_head_k, net.op.eps)), [])


PATTERNS: tuple[Pattern, ...] = (plus, rotate_heads, store_heads, gated_norm, delta_conv)
ONLY_FUSED: tuple[type[Op], ...] = (Rope, Conv)
"""Ops that `lower/` doesn't know: in every architecture a pattern replaces their nodes."""


def fuse(nodes: Sequence[Tensor], fetch: Iterable[str]) -> list[Tensor]:
    """The nodes with every pattern applied, in an order in which each comes after its sources."""
    around = Neighbours(nodes, fetch)
    done: dict[str, Tensor] = {}
    to_come: set[str] = set()  # nodes that are computed together with an earlier one
    for node in nodes:
        if node.name in to_come:
            continue
        current = reading(node, done)
        for pattern in PATTERNS:
            if match := pattern(current, around):
                current = reading(match.node, done)
                for gone in match.swallowed:
                    if done.pop(gone.name, None) is None:
                        to_come.add(gone.name)
                break
        done[current.name] = current
    return list(done.values())


def reading(node: Tensor, done: Mapping[str, Tensor]) -> Tensor:
    """The node with its sources as they are now."""
    src = tuple(done.get(source.name, source) for source in node.src)
    return node if src == node.src else Tensor(node.name, node.op, src, node.shape)


# -- results that are quantized where they are computed -----------------------------------------------------------------


def product_of(node: Tensor) -> Tensor | None:
    """The node itself where it is a product with weights, whatever is added to it; its first source is the weight."""
    op = node.op.op if isinstance(node.op, Plus) else node.op
    return node if isinstance(op, (Linear, ExpertLinear)) else None


def quantized_forms(nodes: Sequence[Tensor], form_of: Callable[[Tensor], str]) -> dict[str, str]:
    """How results are wanted by the first product that reads them and takes them quantized, by the result's name.

    `form_of` says what activations a product takes, "float" for those that aren't quantized.
    """
    forms: dict[str, str] = {}
    for node in nodes:
        if product_of(node) and (form := form_of(node)) != "float":
            forms.setdefault(node.src[1].name, form)
    return forms
