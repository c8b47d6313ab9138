"""What the formats of 32-weight blocks share: panels of 16 rows with the rows in lanes, activations in Q8_0.

A panel holds, for each block of 16 rows, 8 vectors of four weights a lane and a vector of f32 scales.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..simd import Emitter, in_quarters
from ._quarts import VECTOR

QUARTS = 8 * VECTOR
PANEL_BYTES = QUARTS + VECTOR


ROW_OF_LANE = [quarter // 2 * 4 + i for quarter in range(4) for i in range(4)]
BLOCK_OF_LANE = [quarter % 2 for quarter in range(4) for _ in range(4)]
"""Which of 8 rows, and which of its two blocks, each lane of `sums_of_rows` belongs to."""


def sums_of_rows(e: Emitter, rows: Sequence[Any]) -> Any:
    """8 vectors, each with 8 lanes of a row's block and 8 of its next -> the 16 sums, as ROW_OF_LANE and BLOCK_OF_LANE say.

    A transposed tree of additions: with four lanes in a register's quarter, two steps give four rows' sums of each quarter.
    """
    def step(x: Any, y: Any, low: Sequence[int], high: Sequence[int]) -> Any:
        return e.b.add(e.shuffle(x, in_quarters(low), y), e.shuffle(x, in_quarters(high), y))

    two = [step(rows[i], rows[i + 1], (0, 4, 1, 5), (2, 6, 3, 7)) for i in range(0, 8, 2)]
    four = [step(two[i], two[i + 1], (0, 1, 4, 5), (2, 3, 6, 7)) for i in range(0, 4, 2)]
    even = [lane for lane in range(32) if lane // 4 % 2 == 0]
    odd = [lane for lane in range(32) if lane // 4 % 2 == 1]
    return e.b.add(e.shuffle(four[0], even, four[1]), e.shuffle(four[0], odd, four[1]))
