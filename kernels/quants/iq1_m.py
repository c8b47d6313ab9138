"""IQ1_M: 256 weights in 56 bytes (block_iq1_m in ggml-common.h).

    0  32 bytes: the lower bits of indices in the grid of IQ1_S, for 8 weights each
   32  16 bytes: four bits for each index, even ones in the low nibbles: its upper three bits, then 1 if delta is -1/8 and 0 if it is 1/8
   48  4 u16, each with four scales of three bits (there are 16 parts of 16 weights) and above them four bits of the half float d, the
       lowest first

weight = d * (2 * scale + 1) * (grid's number + delta)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8, I8X32, I16, I16X16, I16X32, I64, Emitter, as_f32, f32, i64, intrinsic_of, like, load_u8
from . import _grids as g
from . import _kquants as k
from .iq1_s import GRID, number

BLOCK, BYTES, KIND = sizes("IQ1_M")


def d_bits(e: Emitter, words: Any) -> Any:
    """The four u16 as one i64, or lanes of these -> the bits of the half float d, in i64."""
    b, total = e.b, None
    for i in range(4):
        part = b.and_(b.lshr(words, e.int(12 * (i + 1), words.type)), e.int(15 << 4 * i, words.type))
        total = part if total is None else b.or_(total, part)
    return total


load_d = intrinsic_of(f32, i64)(lambda e, p: e.f16_to_f32(e.b.trunc(d_bits(e, e.load(I64, p, 48)), I16)))


@njit(inline="always")
def value(p, i):
    at = p + 48 + i // 64 * 2
    scale = (load_u8(at) | load_u8(at + 1) << 8) >> (i // 16 % 4 * 3) & 7
    bits = load_u8(p + 32 + i // 16) >> (i // 8 % 2 * 4)
    eighths = number(8 * (load_u8(p + i // 8) | (bits & 7) << 8) + i % 8) - 8 + (-1 if bits & 8 else 1)
    return load_d(p) * as_f32(2 * scale + 1) * (as_f32(eighths) * 0.125)


def bits(e: Emitter, p: Any) -> Any:
    """Return the four bits for each index, i8x32."""
    return g.in_nibbles(e, e.load(ir.VectorType(I8, 16), p, 32))


def indices(e: Emitter, p: Any) -> Callable[[int], Any]:
    b = e.b
    upper = b.zext(b.and_(bits(e, p), e.int(7, I8X32)), I16X32)
    return g.lanes(e, b.or_(b.zext(e.load(I8X32, p), I16X32), b.shl(upper, e.int(8, I16X32))))


def scales(e: Emitter, p: Any) -> Any:
    b = e.b
    each = e.shuffle(e.load(ir.VectorType(I16, 4), p, 48), [i // 4 for i in range(16)])
    each = b.and_(b.lshr(each, ir.Constant(I16X16, [0, 3, 6, 9] * 4)), e.int(7, I16X16))
    return g.odd(e, b.trunc(each, ir.VectorType(I8, 16)))


def deltas(e: Emitter, p: Any) -> Any:
    return e.b.xor(e.b.lshr(e.b.and_(bits(e, p), e.int(8, I8X32)), e.int(2, I8X32)), e.int(2, I8X32))


def d(e: Emitter, rows: Sequence[Any]) -> Any:
    bits = d_bits(e, k.gathered(e, rows, 48, I64))
    return e.f16_to_f32(e.b.trunc(bits, like(bits, I16)))


FORMAT = g.GridFormat(
    GRID, n_parts=16, factor=1 / 8, indices=indices, scales=scales, deltas=deltas, minus=9, d=d
)
PANEL, TILE, values, unpack = FORMAT.panel, FORMAT.tile, FORMAT.values, FORMAT.unpack
