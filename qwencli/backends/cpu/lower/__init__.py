"""Lower a graph to a program for the CPU: nodes are fused (see ../fuse.py), then the function registered for each node's op adds its rows.

There is a module for each subject. Its functions know one op at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....kernels import formats, layout
from ....kernels.arguments import CHOOSE, SCORE
from ....kernels.tiles import Tiles
from ....network.graph import N_OUTPUTS, Graph, Input, Tensor, Weight
from ....network.model import Model
from ...kv_cache import CacheTypes
from ...protocol import LOGITS
from ..fuse import ONLY_FUSED, fuse, quantized_forms
from ..inputs import Inputs
from ..memory import Args, Value, address_of
from ..program import Program, activation_kind, weight_info
from . import delta, experts, gates, heads, products  # noqa: F401 -- each registers what it lowers
from .registry import lowers


def without_kernels(model: Model) -> list[str]:
    """Return what the compiled kernels can't run: types of matrices, ops, sizes of heads. Empty if they can run the model."""
    nodes = model.graph.nodes.values()
    types = {node.op.info.type.name for node in nodes if isinstance(node.op, Weight) and len(node.shape) > 1}
    ops = {type(node.op) for node in nodes} - {Input, Weight, *ONLY_FUSED}
    missing = sorted(types - formats.FORMATS.keys()) + sorted(op.__name__ for op in ops if op not in lowers)
    nets = model.config.delta_nets
    sizes = {model.config.head_dim, *([nets.head_dim] if nets else [])}
    return missing + [f"heads of {size} values" for size in sorted(sizes) if size % layout.LANES]


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
    types: CacheTypes,
) -> Program:
    """Return the program for `nodes` (see Program). `ending` says what a last row does with the logits: "choose" a token for each row,
    "score" one, or None for no such row. Raises ModelError for a graph that only the NumPy backend can run."""
    nodes = fuse(nodes, fetch)
    forms = quantized_forms(nodes, lambda product: activation_kind(weight_info(product)))
    p = Program(model, nodes, forms, fetch, feed, inputs, rooms, n_threads, tiles, types)
    for name in feed:
        allocate_fed(p, name)
    last_use = Graph.last_uses(nodes)
    for i, node in enumerate(nodes):
        p.node = node.name
        if not isinstance(node.op, (Input, Weight)):
            if type(node.op) in ONLY_FUSED:
                raise p.fused_error(node.name)
            if type(node.op) not in lowers:
                raise p.error(
                    f"the CPU backend has no kernels for {type(node.op).__name__}, which '{node.name}' needs: --backend numpy has"
                )
            lowers[type(node.op)](p, node)
        for source in node.src:
            if last_use[source.name] == i:
                p.release(source)
    p.node = ""
    if ending:
        add_ending(p, ending, p.values[LOGITS])
    p.end_group()
    return p


def allocate_fed(p: Program, name: str) -> None:
    """Make memory for a tensor that is fed. Raises ModelError if it isn't rows of numbers, as for a weight or heads."""
    dim, *widths = p.model.graph.nodes[name].shape
    if not isinstance(dim, str) or len(widths) != 1:
        raise p.error(f"the CPU backend can't take '{name}' as given; use the NumPy backend")
    width = widths[0]
    assert isinstance(width, int)
    p.new(name, dim, width)


def add_ending(p: Program, ending: str, logits: Value) -> None:
    """Add the last row: it computes a token for each row of logits, or the LIKELIHOOD of one."""
    i = p.inputs
    count = i.count(N_OUTPUTS)
    rows: Args = {"count": count, "logits": logits.address, "n_vocab": logits.width}
    if ending == "choose":
        p.row(CHOOSE, amount=count, **rows, draws=address_of(i.draws), out=address_of(i.chosen))
    else:
        p.row(SCORE, amount=count, **rows, targets=address_of(i.targets), out=address_of(i.scores))
