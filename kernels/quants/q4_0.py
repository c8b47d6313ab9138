"""Q4_0: 32 weights in 18 bytes (block_q4_0 in ggml-common.h): f16 d, 16 bytes with weights 0-15 in the low nibbles, 16-31 in the high ones.

weight = d * (q - 8)
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..simd import I8X16, I8X64, I32X16, Emitter, as_f32, load_f16, load_u8
from ._blocks import Form, Group
from ._kquants import gathered_halves

BLOCK, BYTES, KIND = 32, 18, "q8_0"
FORM = Form(offset=8)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32((load_u8(p + 2 + i % 16) >> (i // 16 * 4) & 15) - 8)


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    both = e.join([e.load(I8X16, group.block, 2) for group in groups])
    return e.b.and_(both, e.int(15, I8X64)), e.b.lshr(both, e.int(4, I8X64))


def scales(e: Emitter, groups: Sequence[Group]) -> list[Any]:
    return [gathered_halves(e, [group.block for group in groups], 0)]


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    nibble = e.int(0x0F0F0F0F, I32X16)
    words = e.transposed(rows, 2, 4)
    return [e.b.and_(word, nibble) for word in words] + [e.b.and_(e.b.lshr(word, e.int(4, I32X16)), nibble) for word in words]
