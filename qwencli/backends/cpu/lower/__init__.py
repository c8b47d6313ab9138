"""From a graph to a program for the CPU: which rows of kernels each node becomes, a module for each subject.

What shares data is fused: a norm or a gate with the quantization of its result; a matrix product with bias and residual; a head's norm,
rotation and storing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....kernels import layout
from ....kernels.arguments import CHOOSE, SCORE
from ....kernels.tiles import Tiles
from ....network.graph import (
    N_OUTPUTS,
    Add,
    Attention,
    Columns,
    Conv,
    DeltaNet,
    ExpertLinear,
    ExpertSum,
    Gate,
    GetRows,
    Input,
    KVStore,
    Linear,
    Op,
    Reshape,
    RMSNorm,
    Rope,
    Route,
    SwiGLU,
    Tensor,
    Weight,
)
from ....network.model import Model
from ...kv_cache import CacheTypes
from ...protocol import LOGITS
from ..memory import Args, Inputs, Value, address_of
from ..program import Program
from . import delta, experts, gates, heads, products

LOWER: dict[type[Op], Callable[[Program, Tensor], None]] = {
    GetRows: products.get_rows,
    Linear: products.linear,
    RMSNorm: products.rms_norm,
    SwiGLU: gates.swiglu,
    Gate: gates.sigmoid,
    Add: products.add,
    Reshape: heads.view,
    Columns: heads.columns,
    Rope: heads.view,
    KVStore: heads.kv_store,
    Attention: heads.attention,
    Route: experts.route,
    ExpertLinear: experts.linear,
    ExpertSum: experts.combine,
    Conv: delta.conv,
    DeltaNet: delta.delta_net,
}
"""What adds the rows of a node's op: f(program, node)."""


def what_has_no_kernels(model: Model) -> list[str]:
    """The tensor types of the model's matrices, and the size of its heads, that the compiled kernels don't take; none if they run it."""
    matrices = (
        node.op.info
        for node in model.graph.nodes.values()
        if isinstance(node.op, Weight) and len(node.shape) > 1
    )
    missing = sorted({info.type.name for info in matrices} - layout.FORMATS.keys())
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
    """The program for `nodes` (see Program). `ending` says what its last row does with the logits, if anything: "choose" a token for
    each or "score" one."""
    p = Program(model, nodes, fetch, feed, inputs, rooms, n_threads, tiles, types)
    for name in feed:
        dim, *widths = model.graph.nodes[name].shape
        if (
            not isinstance(dim, str) or len(widths) != 1
        ):  # a weight, or heads, whose steps are done where they are used
            raise p.error(f"the CPU backend can't take '{name}' as given; use the NumPy backend")
        width = widths[0]
        assert isinstance(width, int)
        p.new(name, dim, width)
    last_use = {source.name: i for i, node in enumerate(nodes) for source in node.src}
    for i, node in enumerate(nodes):
        if node.name not in p.done and node.name not in p.values and not isinstance(node.op, (Input, Weight)):
            LOWER[type(node.op)](p, node)
        for source in node.src:
            if last_use[source.name] == i:
                p.release(source)
    if ending:
        end(p, ending, p.values[LOGITS])
    p.end_group()
    return p


def end(p: Program, ending: str, logits: Value) -> None:
    """The last row: for each row of logits a token, or what a token's score is made of."""
    i = p.inputs
    count = i.count(N_OUTPUTS)
    rows: Args = {"count": count, "logits": logits.address, "n_vocab": logits.width}
    if ending == "choose":
        p.row(CHOOSE, amount=count, **rows, draws=address_of(i.draws), out=address_of(i.chosen))
    else:
        p.row(SCORE, amount=count, **rows, targets=address_of(i.targets), out=address_of(i.scores))
