"""Q1_0: 128 weights in 18 bytes (block_q1_0 in ggml-common.h): f16 d, 16 bytes of bits. weight = d where the bit is set, else -d"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import I8X16, I8X64, Emitter, as_f32, load_f16, load_u8
from ._blocks import Form, Group, with_bits
from .q4_0 import scales

__all__ = ["BLOCK", "BYTES", "FORM", "KIND", "load_four", "quarts", "scales", "value"]
BLOCK, BYTES, KIND = sizes("Q1_0")
FORM = Form(offset=1)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32((load_u8(p + 2 + i // 8) >> i % 8 & 1) * 2 - 1)


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    """`load_four`, where the four groups are one block."""
    data, zero = e.load(I8X16, groups[0].block, 2), e.int(0, I8X64)
    low, high = (
        with_bits(e, zero, data, [32 * (i // 16) + 16 * half + i % 16 for i in range(64)], 2)
        for half in (0, 1)
    )
    return low, high


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    word, zero = e.transposed(rows, 2, 4)[number], e.int(0, I8X64)
    return [
        e.b.bitcast(
            with_bits(e, zero, word, [32 * (i // 4) + 4 * k + i % 4 for i in range(64)], 2), word.type
        )
        for k in range(8)
    ]
