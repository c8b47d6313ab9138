"""Q4_0: 32 weights in 18 bytes (block_q4_0 in ggml-common.h): f16 d, 16 bytes with weights 0-15 in the low nibbles, 16-31 in the high ones.

weight = d * (q - 8)
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..simd import I8X16, I8X64, I32X16, Emitter, as_f32, load_f16, load_u8

BLOCK, BYTES, KIND = 32, 18, "q8_0"
OFFSET, WIDE = 8, False


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32((load_u8(p + 2 + i % 16) >> (i // 16 * 4) & 15) - 8)


def load_four(e: Emitter, blocks: Sequence[Any]) -> tuple[Any, Any]:
    both = e.join([e.load(I8X16, p, 2) for p in blocks])
    return e.b.and_(both, e.int(15, I8X64)), e.b.lshr(both, e.int(4, I8X64))


def quarts(e: Emitter, rows: Sequence[Any]) -> list[Any]:
    nibble = e.int(0x0F0F0F0F, I32X16)
    words = e.transposed(rows, 2, 4)
    return [e.b.and_(word, nibble) for word in words] + [e.b.and_(e.b.lshr(word, e.int(4, I32X16)), nibble) for word in words]
