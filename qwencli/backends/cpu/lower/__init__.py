"""Lower a graph to a program for the CPU: nodes are fused (see ../fuse.py), then the function registered for each node's op adds its rows.

There is a module for each subject. Its functions know one op at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....kernels import formats, layout
from ....kernels.arguments import CHOOSE, SCORE
from ....kernels.tiles import Tiles
from ....network.graph import N_OUTPUTS, Attention, DeltaNet, Graph, Input, KVStore, Route, Tensor, Weight
from ....network.model import Model
from ...protocol import LOGITS
from ...values import reader_of_batch
from ..cache import CacheLayout
from ..fuse import ONLY_FUSED, fuse, quantized_forms
from ..inputs import Inputs
from ..memory import Args, Value, address_of
from ..program import Program, activation_kind, weight_info
from . import delta, experts, gates, heads, products  # noqa: F401 -- each registers what it lowers
from .order import in_order
from .registry import lowers


def without_kernels(model: Model) -> list[str]:
    """Return what the compiled kernels can't run: types of matrices, ops, sizes of heads. Empty if they can run the model."""
    missing = {what for node in model.graph.nodes.values() for what in lacks_kernels(model, node)}
    return sorted(missing, key=lambda what: (what.startswith("heads"), what))


def lacks_kernels(model: Model, node: Tensor) -> list[str]:
    """Return what the compiled kernels lack to run a node."""
    if isinstance(node.op, Input):
        return []
    if isinstance(node.op, Weight):
        kind = node.op.info.type.name
        return [kind] if len(node.shape) > 1 and kind not in formats.FORMATS else []
    missing = [
        what for source in node.src if isinstance(source.op, Weight) for what in lacks_kernels(model, source)
    ]
    if type(node.op) not in lowers and not isinstance(node.op, ONLY_FUSED):
        missing.append(type(node.op).__name__)
    nets = model.config.delta_nets
    sizes = {
        KVStore: model.config.head_dim,
        Attention: model.config.head_dim,
        DeltaNet: nets.head_dim if nets else 0,
    }
    head_dim = sizes.get(type(node.op), 0)
    return [*missing, f"heads of {head_dim} values"] if head_dim % layout.LANES else missing


def lower(
    model: Model,
    nodes: Sequence[Tensor],
    fetch: Sequence[str],
    feed: Sequence[str],
    inputs: Inputs,
    rooms: dict[str, int],
    n_threads: int,
    ending: str | None,
    tiles: Tiles,
    cache: CacheLayout,
) -> Program:
    """Return the program for `nodes` (see Program). `ending` says what a last row does with the logits: "choose" a token for each row,
    "score" one, or None for no such row. Raises ModelError for a graph that only the NumPy backend can run."""
    reader = reader_of_batch(nodes)
    nodes = fuse(nodes, fetch)
    forms = quantized_forms(nodes, lambda product: activation_kind(weight_info(product)))
    p = Program(model, nodes, forms, fetch, feed, inputs, rooms, n_threads, tiles, cache)
    p.reader_of_batch = reader
    for name in feed:
        allocate_fed(p, model.graph.nodes[name])
    last_use = Graph.last_uses(nodes)
    for i, node in enumerate(nodes):
        p.node = node.name
        if not isinstance(node.op, (Input, Weight)):
            if type(node.op) not in lowers:
                raise p.error(
                    f"the CPU backend has no kernels for {type(node.op).__name__}, which '{node.name}' needs: --backend numpy has"
                )
            lowers[type(node.op)](p, node)
            if node.name in fetch:
                p.results[node.name] = in_order(p, p.values[node.name])
        for source in node.src:
            if last_use[source.name] == i:
                p.release(source)
    p.node = ""
    if ending:
        add_ending(p, ending, p.values[LOGITS])
    p.end_group()
    return p


def allocate_fed(p: Program, node: Tensor) -> None:
    """Make memory for a tensor that is fed, with its rows in order. A route's slots are sorted by expert at once."""
    if isinstance(node.op, Route):
        experts.group(p, node, experts.new_route(p, node))
        return
    dim, *sizes = node.shape
    assert isinstance(dim, str)
    numbers = [size for size in sizes if isinstance(size, int)]
    per_token = numbers.pop(0) if experts.has_slots(node) else 1
    p.new(node.name, dim, math.prod(numbers), per_token)


def add_ending(p: Program, ending: str, logits: Value) -> None:
    """Add the last row: it computes a token for each row of logits, or the LIKELIHOOD of one."""
    i = p.inputs
    count = i.count(N_OUTPUTS)
    rows: Args = {"count": count, "logits": logits.address, "n_vocab": logits.width}
    if ending == "choose":
        p.row(CHOOSE, amount=count, **rows, draws=address_of(i.draws), out=address_of(i.chosen))
    else:
        p.row(SCORE, amount=count, **rows, targets=address_of(i.targets), out=address_of(i.scores))
