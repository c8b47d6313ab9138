"""IQ2_S: 256 weights in 82 bytes (block_iq2_s in ggml-common.h).

    0  f16 d
    2  32 bytes: the lower bits of indices in a grid, for 8 weights each
   34  32 bytes: signs
   66  8 bytes: the upper two bits of four indices each, the first one's lowest
   74  8 bytes: scales of 16 parts of 16 weights, even parts in the low nibbles

weight = d / 8 * (2 * scale + 1) * grid's number, with its sign
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8, I8X32, I16X32, Emitter, as_f32, load_f16, load_u8
from . import _grids as g

BLOCK, BYTES, KIND = sizes("IQ2_S")
GRID = g.Grid("IQ2_S", 8)
number = GRID.number()


@njit(inline="always")
def value(p, i):
    index = load_u8(p + 2 + i // 8) | (load_u8(p + 66 + i // 32) >> (i // 8 % 4 * 2) & 3) << 8
    scale = load_u8(p + 74 + i // 32) >> (i // 16 % 2 * 4) & 15
    size = load_f16(p) * (as_f32(scale) + 0.5) * 0.25 * as_f32(number(8 * index + i % 8))
    return -size if load_u8(p + 34 + i // 8) >> (i % 8) & 1 else size


def indices(e: Emitter, p: Any) -> Callable[[int], Any]:
    b = e.b
    fours = e.shuffle(e.load(ir.VectorType(I8, 8), p, 66), [i // 4 for i in range(32)])
    upper = b.and_(b.shl(b.zext(fours, I16X32), ir.Constant(I16X32, [8, 6, 4, 2] * 8)), e.int(0x300, I16X32))
    return g.lanes(e, b.or_(b.zext(e.load(I8X32, p, 2), I16X32), upper))


def scales(e: Emitter, p: Any) -> Any:
    return g.odd(e, g.in_nibbles(e, e.load(ir.VectorType(I8, 8), p, 74)))


def signs(e: Emitter, p: Any) -> Any:
    return e.load(I8X32, p, 34)


FORMAT = g.GridFormat(
    GRID, n_parts=16, factor=1 / 8, indices=indices, scales=scales, signs=signs, d=g.half_at(0)
)
PANEL, TILE, values, unpack = FORMAT.panel, FORMAT.tile, FORMAT.values, FORMAT.unpack
