"""Rows of gates, with the quantization of what they let through."""

from __future__ import annotations

from ....network.graph import Reshape, RMSNorm, Tensor
from ..program import Program, float_bits
from .products import residual_of


def swiglu(p: Program, node: Tensor) -> None:
    """Over a norm of heads that is computed with it too."""
    up = p.compact(node.src[1])
    norm = node.src[1].src[0] if isinstance(node.src[1].op, Reshape) else node.src[1]
    if isinstance(norm.op, RMSNorm) and len(norm.shape) == 3:
        size = norm.shape[-1]
        assert isinstance(size, int)
        p.prepare(
            node,
            "gated_norm",
            [up.address, float_bits(norm.op.eps), p.weight(norm.src[1]), size],
            [up.address],
        )
    else:
        p.prepare(node, "swiglu", [up.address, 0], [up.address])


def sigmoid(p: Program, node: Tensor) -> None:
    """A gate of each number, which may be columns of another tensor, or one of each token; that with what is added."""
    x_node, gate_node = node.src
    gate = p.values[gate_node.name]
    address, *strides = gate.place()
    if gate_node.shape == x_node.shape:
        p.prepare(node, "gate", [address, 0, *strides], [gate.address])
        return
    x = p.compact(x_node)
    target, other = residual_of(p, node)
    out, unit = p.new(target.name, x.dim, x.width), p.unit(x.dim)
    args = [
        p.inputs.count(x.dim),
        unit,
        x.address,
        address,
        x.width,
        out.address,
        0,
        0,
        0,
        0,
        other.address if other else 0,
    ]
    p.row(
        "ops:prepare:share:f32",
        args,
        [x.address, gate.address, *([other.address] if other else [])],
        [out.address],
        divisor=unit,
    )
    p.done.add(target.name)
