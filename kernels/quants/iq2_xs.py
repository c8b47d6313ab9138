"""IQ2_XS: 256 weights in 74 bytes (block_iq2_xs in ggml-common.h).

    0  f16 d
    2  32 u16, one for every 8 weights: an index in a grid, 9 bits, and above it seven of eight signs, an even number of which is negative
   66  8 bytes: scales of 16 parts of 16 weights, even parts in the low nibbles

weight = d / 8 * (2 * scale + 1) * grid's number, with its sign
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8, I8X32, I16, I16X32, I64, Emitter, as_f32, load_f16, load_u8
from . import _grids as g

BLOCK, BYTES, KIND = sizes("IQ2_XS")
GRID = g.Grid("IQ2_XS", 8)
number = GRID.number()


@njit(inline="always")
def value(p, i):
    at = p + 2 + i // 8 * 2
    word = load_u8(at) | load_u8(at + 1) << 8
    scale = load_u8(p + 66 + i // 32) >> (i // 16 % 2 * 4) & 15
    size = load_f16(p) * (as_f32(scale) + 0.5) * 0.25 * as_f32(number(8 * (word & 511) + i % 8))
    return -size if g.is_negative(word >> 9, i % 8) else size


def indices(e: Emitter, p: Any) -> Callable[[int], Any]:
    return lambda i: e.b.and_(e.b.zext(e.load(I16, p, 2 + 2 * i), I64), e.int(511))


def scales(e: Emitter, p: Any) -> Any:
    return g.odd(e, g.in_nibbles(e, e.load(ir.VectorType(I8, 8), p, 66)))


def signs(e: Emitter, p: Any) -> Any:
    return g.odd_signs(e, e.b.trunc(e.b.lshr(e.load(I16X32, p, 2), e.int(9, I16X32)), I8X32))


FORMAT = g.GridFormat(
    GRID, n_parts=16, factor=1 / 8, indices=indices, scales=scales, signs=signs, d=g.half_at(0)
)
PANEL, TILE, values, unpack = FORMAT.panel, FORMAT.tile, FORMAT.values, FORMAT.unpack
