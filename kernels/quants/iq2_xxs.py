"""IQ2_XXS: 256 weights in 66 bytes (block_iq2_xxs in ggml-common.h).

    0  f16 d
    2  8 parts of 32 weights, 8 bytes each: four indices of 8 weights in a grid; then a u32 with four times seven of eight signs, an even
       number of which is negative, and a scale in the upper four bits

weight = d / 8 * (2 * scale + 1) * grid's number, with its sign
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import I8, I8X64, I32X16, I64, Emitter, as_f32, load_f16, load_i32, load_u8
from . import _grids as g

BLOCK, BYTES, KIND = sizes("IQ2_XXS")
GRID = g.Grid("IQ2_XXS", 8)
number = GRID.number()


@njit(inline="always")
def value(p, i):
    part = p + 2 + i // 32 * 8
    word = load_i32(part + 4)
    size = (
        load_f16(p)
        * (as_f32(word >> 28 & 15) + 0.5)
        * 0.25
        * as_f32(number(8 * load_u8(part + i // 8 % 4) + i % 8))
    )
    return -size if g.is_negative(word >> (i // 8 % 4 * 7), i % 8) else size


def indices(e: Emitter, p: Any) -> Callable[[int], Any]:
    return lambda i: e.b.zext(e.load(I8, p, 2 + i // 4 * 8 + i % 4), I64)


def words(e: Emitter, p: Any) -> Any:
    return e.shuffle(e.b.bitcast(e.load(I8X64, p, 2), I32X16), range(1, 16, 2))


def scales(e: Emitter, p: Any) -> Any:
    return g.scales_of_words(e, words(e, p))


def signs(e: Emitter, p: Any) -> Any:
    return g.signs_of_words(e, words(e, p))


FORMAT = g.GridFormat(
    GRID, n_parts=8, factor=1 / 8, indices=indices, scales=scales, signs=signs, d=g.half_at(0)
)
PANEL, TILE, values, unpack = FORMAT.panel, FORMAT.tile, FORMAT.values, FORMAT.unpack
