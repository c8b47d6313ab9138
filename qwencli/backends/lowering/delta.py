"""Rows of gated delta nets, and of gates."""
from __future__ import annotations

from ...graph import Reshape, RMSNorm, Tensor
from ..program import Program


def conv(p: Program, node: Tensor) -> None:
    raise p.error(f"the CPU backend has no {type(node.op).__name__} yet, which '{node.name}' needs: use --backend numpy")


def delta_net(p: Program, node: Tensor) -> None:
    conv(p, node)


def gate(p: Program, node: Tensor) -> None:
    conv(p, node)


def is_gated_norm(node: Tensor) -> bool:
    """Whether what a SwiGLU multiplies is a norm of heads."""
    up = node.src[1]
    return isinstance(up.op, Reshape) and isinstance(up.src[0].op, RMSNorm) and len(up.src[0].shape) == 3


def gated_norm(p: Program, node: Tensor) -> None:
    conv(p, node)
