"""Panels: vectors of 16 rows with four weights in each lane, and their products with four bytes of activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..simd import I8X64, I32, I32X16, Emitter

VECTOR = 64


def add_products(
    e: Emitter,
    dot4: Callable[..., Any],
    starts: Sequence[Sequence[Any]],
    panels: Sequence[Any],
    acts: Sequence[Any],
    count: int,
) -> list[list[Any]]:
    """Return [R][T] i32x16: starts[r][t] plus the products of `count` vectors of panel r with four bytes of token t for each vector.

    With few registers it is a loop, which LLVM unrolls if that pays: if it were unrolled here, all products would come before all
    additions, and be kept on the stack. It also stays a loop for few sums, whose latency is what takes time.
    """
    b = e.b
    sums = [[e.var(start) for start in of_row] for of_row in starts]

    def step(k: Any) -> None:
        weights = [b.bitcast(e.load(I32X16, panel, b.mul(k, e.int(VECTOR))), I8X64) for panel in panels]
        for t, act in enumerate(acts):
            quants = b.bitcast(e.splat(e.load(I32, act, b.shl(k, e.int(2)))), I8X64)
            for of_row, weight in zip(sums, weights):
                b.store(dot4(b.load(of_row[t]), weight, quants), of_row[t])

    if e.registers >= 32 and len(panels) * len(acts) > 4:
        for k in range(count):
            step(e.int(k))
    else:
        with e.loop(e.int(count)) as k, e.sharing(k, count):
            step(k)
    return [[b.load(total) for total in of_row] for of_row in sums]
