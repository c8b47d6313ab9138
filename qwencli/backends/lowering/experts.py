"""Rows of mixtures of experts."""
from __future__ import annotations

from ...graph import Tensor
from ..program import Program


def route(p: Program, node: Tensor) -> None:
    raise p.error(f"the CPU backend has no experts yet, which '{node.name}' needs: use --backend numpy")


def linear(p: Program, node: Tensor) -> None:
    route(p, node)


def combine(p: Program, node: Tensor) -> None:
    route(p, node)
