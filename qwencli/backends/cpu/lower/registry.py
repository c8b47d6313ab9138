"""Which function adds the rows of an op to a program: it is registered where it is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ....network.graph import Op

Lowering = TypeVar("Lowering", bound=Callable[..., None])
LOWER: dict[type[Op], Callable[..., None]] = {}
"""f(program, node) for each op that has kernels; for one that Plus may hold also f(program, node, plus), what is added to its result."""


def lowers(op: type[Op]) -> Callable[[Lowering], Lowering]:
    """Register a function as what lowers an op."""

    def register(function: Lowering) -> Lowering:
        LOWER[op] = function
        return function

    return register
