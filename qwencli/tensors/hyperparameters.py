"""The hyperparameters of a graph that was built in Python. Backends ask for those that a file's metadata would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ModelError
from ..network.config import MOST_HEAD_DIM, Config, DeltaNets
from ..network.graph import Attention, Conv, DeltaNet, GetRows, Graph, Rope, Tensor, Weight
from ..network.rope import RopeParams

UNUSED_HEADS = 1, 1, 16
UNUSED_ROPE = RopeParams(n_rot=2, freq_base=10000.0)


def config_of(graph: Graph) -> Config:
    """Return the hyperparameters of a graph. Raises ModelError if its nodes disagree: a backend keeps all layers' keys and values in one
    cache, and has one table of angles."""
    nodes = graph.nodes.values()
    attention = [(node, heads_of(node)) for node in nodes if isinstance(node.op, Attention)]
    n_head, n_head_kv, head_dim = agreed("heads, key-value heads and head size", attention, UNUSED_HEADS)
    ropes = [(node, node.op.params) for node in nodes if isinstance(node.op, Rope)]
    tables = [
        node.src[0] for node in nodes if isinstance(node.op, GetRows) and isinstance(node.src[0].op, Weight)
    ]
    delta_nets = delta_nets_of(graph, len(attention))
    n_layer = len(attention) + (len(delta_nets.layers) if delta_nets else 0)
    for size in head_dim, delta_nets.head_dim if delta_nets else 1:
        if size > MOST_HEAD_DIM:
            raise ModelError(f"graph: heads of {size} values, expected {MOST_HEAD_DIM} at most")
    return Config(
        architecture="graph",
        n_ctx=2**31 - 1,
        n_vocab=min((int(table.shape[0]) for table in tables), default=1),
        n_blocks=n_layer,
        n_layer=n_layer,
        n_embd=0,
        n_ff=0,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        rms_eps=0.0,
        rope=agreed("rotation", ropes, UNUSED_ROPE),
        delta_nets=delta_nets,
    )


def heads_of(attention: Tensor) -> tuple[int, int, int]:
    """Return the number of heads, that of key-value heads, and the size of a head."""
    q, kv = attention.src
    return int(q.shape[1]), int(kv.shape[1]), int(q.shape[2])


def delta_nets_of(graph: Graph, first_layer: int) -> DeltaNets | None:
    """Return the shape of delta nets, which take the layers from `first_layer` on. None if there are none."""
    found = []
    for node in graph.nodes.values():
        if isinstance(node.op, DeltaNet):
            _, n_head_v, head_dim = node.shape
            conv = node.src[0]
            assert isinstance(conv.op, Conv)
            found.append((node, (node.op.n_head_k, n_head_v, head_dim, conv.src[1].shape[1], node.op.tiled)))
    if not found:
        return None
    shape = agreed("key heads, value heads, head size, convolution and order", found, None)
    return DeltaNets(tuple(range(first_layer, first_layer + len(found))), *shape)


def agreed(what: str, found: Sequence[tuple[Tensor, Any]], default: Any) -> Any:
    """Return what all nodes have, or the default if there are none. Raises ModelError if they differ."""
    if not found:
        return default
    (first, value), *others = found
    for node, other in others:
        if other != value:
            raise ModelError(
                f"graph: '{first.name}' and '{node.name}' differ in {what}: {value} and {other}; build a graph for each"
            )
    return value
