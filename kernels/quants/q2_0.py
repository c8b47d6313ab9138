"""Q2_0: 64 weights in 18 bytes (block_q2_0 in ggml-common.h): f16 d, 16 bytes with four quants each, in the lowest bits first.

weight = d * (q - 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8, I8X64, I32X16, Emitter, as_f32, load_f16, load_u8
from ._blocks import Form, Group
from .q4_0 import scales

__all__ = ["BLOCK", "BYTES", "FORM", "KIND", "load_four", "quarts", "scales", "value"]
BLOCK, BYTES, KIND = sizes("Q2_0")
FORM = Form(offset=1)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32((load_u8(p + 2 + i // 4) >> (i % 4 * 2) & 3) - 1)


def spread(e: Emitter, lanes: Any) -> Any:
    """Spread the lower 8 bits of i32 lanes over four bytes, two bits to each."""
    b = e.b
    for distance, mask in (12, 0x000F000F), (6, 0x03030303):
        lanes = b.and_(b.or_(lanes, b.shl(lanes, e.int(distance, I32X16))), e.int(mask, I32X16))
    return lanes


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    data = e.join([e.load(ir.VectorType(I8, 8), group.block, 2 + 8 * group.number) for group in groups])
    low, high = (
        e.b.bitcast(
            spread(
                e, e.b.zext(e.shuffle(data, [8 * (i // 4) + 4 * half + i % 4 for i in range(16)]), I32X16)
            ),
            I8X64,
        )
        for half in (0, 1)
    )
    return low, high


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    b, byte = e.b, e.int(255, I32X16)
    words = e.transposed(rows, 2, 4)[2 * number : 2 * number + 2]
    return [spread(e, b.and_(b.lshr(word, e.int(8 * k, I32X16)), byte)) for word in words for k in range(4)]
