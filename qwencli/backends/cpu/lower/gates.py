"""Rows of gates, with their results quantized."""

from __future__ import annotations

from ....kernels.arguments import GATE, GATED_NORM, SHARE, SWIGLU
from ....network.graph import Gate, SwiGLU, Tensor
from ..fuse import GatedNorm
from ..memory import Value, quantized_at
from ..program import Program
from .order import compact, in_order
from .registry import lowers


@lowers(SwiGLU)
def swiglu(p: Program, node: Tensor) -> None:
    gate, up = (compact(p, source) for source in node.src)
    if gate.at_places is not up.at_places:  # one has been computed here, the other is fed
        gate, up = in_order(p, gate), in_order(p, up)
    p.prepare(node, SWIGLU, of=gate, gate=gate.address, up=up.address)


@lowers(GatedNorm)
def gated_norm(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, GatedNorm)
    gate_node, x_node, weight = node.src
    head_dim = x_node.shape[-1]
    assert isinstance(head_dim, int)
    gate = compact(p, gate_node)
    p.prepare(
        node,
        GATED_NORM,
        of=gate,
        gate=gate.address,
        x=compact(p, x_node).address,
        weight=p.weight(weight),
        head_dim=head_dim,
        eps=node.op.eps,
    )


@lowers(Gate)
def sigmoid(p: Program, node: Tensor, plus: Value | None = None) -> None:
    """Add a gate for each number, which may be a view of another tensor's columns, or one gate for each token. The latter may have `plus`
    added."""
    x_node, gate_node = node.src
    x = compact(p, x_node)
    gate = p.values[gate_node.name].place()
    if gate_node.shape == x_node.shape:
        p.prepare(
            node,
            GATE,
            of=x,
            x=x.address,
            gate=gate.address,
            token_bytes=gate.token_bytes,
            group_cols=gate.n_columns,
            group_bytes=gate.group_bytes,
        )
        return
    out = p.new(node.name, x.dim, x.width)
    p.token_row(
        SHARE,
        "f32",
        of=out,
        x=x.address,
        gate=gate.address,
        other=plus.address if plus else 0,
        n_cols=x.width,
        out=out.address,
        **quantized_at(None),
    )
