"""Rows of gates, with the quantization of what they let through."""

from __future__ import annotations

from ....kernels.arguments import GATE, GATED_NORM, SHARE, SWIGLU
from ....network.graph import Reshape, RMSNorm, Tensor
from ..memory import quantized_at
from ..program import Program
from .products import residual_of


def swiglu(p: Program, node: Tensor) -> None:
    """Over a norm of heads that is computed with it too."""
    gate = p.compact(node.src[0])
    up = p.compact(node.src[1])
    norm = node.src[1].src[0] if isinstance(node.src[1].op, Reshape) else node.src[1]
    if isinstance(norm.op, RMSNorm) and len(norm.shape) == 3:
        size = norm.shape[-1]
        assert isinstance(size, int)
        p.prepare(
            node,
            GATED_NORM,
            gate=gate.address,
            x=up.address,
            weight=p.weight(norm.src[1]),
            head_dim=size,
            eps=norm.op.eps,
        )
    else:
        p.prepare(node, SWIGLU, gate=gate.address, up=up.address)


def sigmoid(p: Program, node: Tensor) -> None:
    """A gate of each number, which may be columns of another tensor, or one of each token; that with what is added."""
    x_node, gate_node = node.src
    x = p.compact(x_node)
    gate = p.values[gate_node.name].place()
    if gate_node.shape == x_node.shape:
        p.prepare(
            node,
            GATE,
            x=x.address,
            gate=gate.address,
            token_bytes=gate.token_bytes,
            group_cols=gate.n_columns,
            group_bytes=gate.group_bytes,
        )
        return
    target, other = residual_of(p, node)
    out = p.new(target.name, x.dim, x.width)
    p.token_row(
        SHARE,
        "f32",
        of=out,
        x=x.address,
        gate=gate.address,
        other=other.address if other else 0,
        n_cols=x.width,
        out=out.address,
        **quantized_at(None),
    )
    p.done.add(target.name)
