"""IQ3_S: 256 weights in 110 bytes (block_iq3_s in ggml-common.h).

    0  f16 d
    2  64 bytes: the lower bits of indices in a grid, for 4 weights each
   66  8 bytes: their ninth bits
   74  32 bytes: signs
  106  4 bytes: scales of 8 parts of 32 weights, even parts in the low nibbles

weight = d * (2 * scale + 1) * grid's number, with its sign
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8, I8X32, I16X32, Emitter, as_f32, load_f16, load_u8
from . import _grids as g

BLOCK, BYTES, KIND = sizes("IQ3_S")
GRID = g.Grid("IQ3_S", 4)
number = GRID.number()


@njit(inline="always")
def value(p, i):
    index = load_u8(p + 2 + i // 4) | (load_u8(p + 66 + i // 32) >> (i // 4 % 8) & 1) << 8
    scale = load_u8(p + 106 + i // 64) >> (i // 32 % 2 * 4) & 15
    size = load_f16(p) * as_f32(2 * scale + 1) * as_f32(number(4 * index + i % 4))
    return -size if load_u8(p + 74 + i // 8) >> (i % 8) & 1 else size


def indices(e: Emitter, p: Any) -> Callable[[int], Any]:
    b = e.b
    halves = []
    for half in range(2):
        ninth = e.bits(e.load(ir.VectorType(I8, 4), p, 66 + 4 * half))
        lower = b.zext(e.load(I8X32, p, 2 + 32 * half), I16X32)
        halves.append(g.lanes(e, b.select(ninth, b.or_(lower, e.int(256, I16X32)), lower)))
    return lambda i: halves[i // 32](i % 32)


def scales(e: Emitter, p: Any) -> Any:
    return g.odd(e, g.in_nibbles(e, e.load(ir.VectorType(I8, 4), p, 106)))


def signs(e: Emitter, p: Any) -> Any:
    return e.load(I8X32, p, 74)


FORMAT = g.GridFormat(
    GRID, n_parts=8, factor=1.0, indices=indices, scales=scales, signs=signs, d=g.half_at(0)
)
PANEL, TILE, values, unpack = FORMAT.panel, FORMAT.tile, FORMAT.values, FORMAT.unpack
