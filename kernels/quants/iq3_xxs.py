"""IQ3_XXS: 256 weights in 98 bytes (block_iq3_xxs in ggml-common.h).

    0  f16 d
    2  64 bytes: indices in a grid, for 4 weights each
   66  8 u32, for parts of 32 weights: four times seven of eight signs, an even number of which is negative, and a scale, 4 bits

weight = d / 4 * (2 * scale + 1) * grid's number, with its sign
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8, I32, I64, Emitter, as_f32, load_f16, load_i32, load_u8
from . import _grids as g

BLOCK, BYTES, KIND = sizes("IQ3_XXS")
GRID = g.Grid("IQ3_XXS", 4)
number = GRID.number()


@njit(inline="always")
def value(p, i):
    word = load_i32(p + 66 + i // 32 * 4)
    size = (
        load_f16(p)
        * (as_f32(word >> 28 & 15) + 0.5)
        * 0.5
        * as_f32(number(4 * load_u8(p + 2 + i // 4) + i % 4))
    )
    return -size if g.is_negative(word >> (i // 8 % 4 * 7), i % 8) else size


def indices(e: Emitter, p: Any) -> Callable[[int], Any]:
    return lambda i: e.b.zext(e.load(I8, p, 2 + i), I64)


def words(e: Emitter, p: Any) -> Any:
    return e.load(ir.VectorType(I32, 8), p, 66)


def scales(e: Emitter, p: Any) -> Any:
    return g.scales_of_words(e, words(e, p))


def signs(e: Emitter, p: Any) -> Any:
    return g.signs_of_words(e, words(e, p))


FORMAT = g.GridFormat(
    GRID, n_parts=8, factor=1 / 4, indices=indices, scales=scales, signs=signs, d=g.half_at(0)
)
PANEL, TILE, values, unpack = FORMAT.panel, FORMAT.tile, FORMAT.values, FORMAT.unpack
