"""What the formats of 32-weight blocks share: panels of 16 rows with the rows in lanes, activations in Q8_0.

A panel holds, for each block of 16 rows, 8 vectors of four weights a lane and a vector of f32 scales.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..simd import I32, Emitter

QUARTS, VECTOR = 8 * 64, 64
PANEL_BYTES = QUARTS + VECTOR


def load_words(e: Emitter, rows: Sequence[Any], offset: int, count: int) -> list[Any]:
    """`count` u32 from each of 16 rows -> that many vectors with the rows in lanes."""
    kind = ir.VectorType(I32, count)
    widen = [*range(count)] + [0] * (16 - count)
    return e.transpose16([e.shuffle(e.load(kind, row, offset), widen) for row in rows])[:count]


def sums_of_rows(e: Emitter, pairs: Sequence[Any]) -> Any:
    """8 vectors, the r-th with 8 lanes of row r and 8 of row r + 8 -> i32x16, the sum for each row. Integers, so the order doesn't matter."""
    def halves(x: Any, y: Any, width: int) -> Any:
        """In each 8 lanes: pick the first, then the second half of every `width` lanes of x and y, and add."""
        def mask(which: int) -> list[int]:
            picked = [i for i in range(8) if i // (width // 2) % 2 == which]
            return [base + source + i for base in (0, 8) for source in (0, 16) for i in picked]
        return e.b.add(e.shuffle(x, mask(0), y), e.shuffle(x, mask(1), y))

    four = [halves(pairs[i], pairs[i + 4], 8) for i in range(4)]
    two = [halves(four[i], four[i + 2], 4) for i in range(2)]
    one = halves(two[0], two[1], 2)
    order = [0, 4, 2, 6, 1, 5, 3, 7]  # the row of each lane, from the pairings above
    return e.shuffle(one, [base + order.index(row) for base in (0, 8) for row in range(8)])
