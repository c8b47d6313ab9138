"""IQ1_S: 256 weights in 50 bytes (block_iq1_s in ggml-common.h).

    0  f16 d
    2  32 bytes: the lower bits of indices in a grid of -1, 0 and 1, for 8 weights each
   34  8 u16, for parts of 32 weights: the upper three bits of four indices, a scale of three bits, then 1 if delta is -1/8 and 0 if it is
       1/8

weight = d * (2 * scale + 1) * (grid's number + delta)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8, I8X32, I16, I16X32, Emitter, as_f32, load_f16, load_u8
from . import _grids as g

BLOCK, BYTES, KIND = sizes("IQ1_S")
GRID = g.Grid("IQ1_S", 8, times=8, plus=8)
"""Its bytes are 8 * (number + 1). With deltas of 0 or 2 added and 9 subtracted they become 8 * (number + delta)."""
number = GRID.number()


@njit(inline="always")
def value(p, i):
    at = p + 34 + i // 32 * 2
    word = load_u8(at) | load_u8(at + 1) << 8
    index = load_u8(p + 2 + i // 8) | (word >> (i // 8 % 4 * 3) & 7) << 8
    eighths = number(8 * index + i % 8) - 8 + (-1 if word >> 15 else 1)
    return load_f16(p) * as_f32(2 * (word >> 12 & 7) + 1) * (as_f32(eighths) * 0.125)


def words(e: Emitter, p: Any) -> Any:
    return e.load(ir.VectorType(I16, 8), p, 34)


def indices(e: Emitter, p: Any) -> Callable[[int], Any]:
    b = e.b
    fours = e.shuffle(words(e, p), [i // 4 for i in range(32)])
    upper = b.and_(b.lshr(fours, ir.Constant(I16X32, [0, 3, 6, 9] * 8)), e.int(7, I16X32))
    return g.lanes(e, b.or_(b.zext(e.load(I8X32, p, 2), I16X32), b.shl(upper, e.int(8, I16X32))))


def scales(e: Emitter, p: Any) -> Any:
    found = words(e, p)
    scale = e.b.and_(e.b.lshr(found, e.int(12, found.type)), e.int(7, found.type))
    return g.odd(e, e.b.trunc(scale, ir.VectorType(I8, 8)))


def deltas(e: Emitter, p: Any) -> Any:
    found = words(e, p)
    positive = e.b.icmp_signed(">=", found, e.int(0, found.type))
    kind = ir.VectorType(I8, 8)
    return e.shuffle(e.b.select(positive, e.int(2, kind), e.int(0, kind)), [i // 4 for i in range(32)])


FORMAT = g.GridFormat(
    GRID, n_parts=8, factor=1 / 8, indices=indices, scales=scales, deltas=deltas, minus=9, d=g.half_at(0)
)
PANEL, TILE, values, unpack = FORMAT.panel, FORMAT.tile, FORMAT.values, FORMAT.unpack
