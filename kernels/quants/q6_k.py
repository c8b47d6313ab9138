"""Q6_K: 256 weights in 210 bytes (block_q6_K in ggml-common.h), two halves of 128 weights.

    0  2 * 64 bytes: the lower four bits; the first 64 weights of each half in the low nibbles, the others in the high ones
  128  2 * 32 bytes: the upper two bits; bits 2j, 2j+1 of byte i belong to weight 32 * j + i of the half
  192  16 i8: scales, for parts of 16 weights
  208  f16 d

weight = d * scale * (q - 32)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numba import njit

from .. import layout
from ..formats import sizes
from ..simd import F32X4, I8X16, I8X32, I8X64, I16X16, I32X16, Emitter, as_f32, load_f16, load_i8, load_u8
from . import _kquants as k
from ._ktiles import MicroKernel

BLOCK, BYTES, KIND = sizes("Q6_K")
PANEL = k.Panel(16)
TILE = MicroKernel(PANEL, minus=32)


@njit(inline="always")
def value(p, i):
    half, j = i // 128, i % 128
    low = load_u8(p + half * 64 + j % 64) >> (j // 64 * 4) & 15
    high = load_u8(p + 128 + half * 32 + j % 32) >> (j // 32 * 2) & 3
    return load_f16(p + 208) * as_f32(load_i8(p + 192 + i // 16)) * as_f32((low | high << 4) - 32)


def quants(e: Emitter, p: Any) -> Iterator[Any]:
    """Yield four i8x64 of quants, in order. Each is emitted where it is used."""
    b = e.b
    for half in range(2):
        both, high = e.load(I8X64, p, 64 * half), e.load(I8X32, p, 128 + 32 * half)
        mask, n = e.int(0x30, I8X32), lambda value: e.int(value, I8X32)
        yield b.or_(
            b.and_(both, e.int(15, I8X64)),
            e.concat(b.and_(b.shl(high, n(4)), mask), b.and_(b.shl(high, n(2)), mask)),
        )
        yield b.or_(
            b.lshr(both, e.int(4, I8X64)), e.concat(b.and_(high, mask), b.and_(b.lshr(high, n(2)), mask))
        )


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    b = e.b
    sums = b.mul(b.sext(e.load(I16X16, act.sums, layout.SUMS_OF_16), I32X16), e.int(-32, I32X16))

    def total_of(row: Any, _: Any) -> Any:
        scale = b.sext(e.load(I8X16, row, 192), I16X16)
        total = b.mul(b.sext(scale, I32X16), sums)
        for i, quant in enumerate(quants(e, row)):
            part = e.shuffle(scale, [4 * i + lane // 8 for lane in range(32)])
            total = e.dot2(total, e.pairs(quant, e.load(I8X64, act.q, 64 * i)), part)
        return total

    return b.fmul(
        k.gathered_halves(e, rows, 208), b.sitofp(k.sum_four(e, k.of_each(e, rows, total_of)), F32X4)
    )


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    b = e.b
    nibble, two, four = e.int(0x0F0F0F0F, I32X16), e.int(0x03030303, I32X16), e.int(4, I32X16)
    for half in range(2):
        highs = e.transposed(rows, 128 + 32 * half, 8)
        for i, word in enumerate(e.transposed(rows, 64 * half, 16)):
            for part, low in enumerate((b.and_(word, nibble), b.and_(b.lshr(word, four), nibble))):
                upper = b.and_(b.lshr(highs[i % 8], e.int(4 * part + 2 * (i // 8), I32X16)), two)
                e.store(b.or_(low, b.shl(upper, four)), panel, (32 * half + 16 * part + i) * k.VECTOR)
    words = e.transposed(rows, 192, 4)
    scales = [
        b.ashr(b.shl(words[j // 4], e.int(24 - 8 * (j % 4), I32X16)), e.int(24, I32X16)) for j in range(16)
    ]
    k.store_scales(e, PANEL, panel, scales)
    e.store(k.gathered_halves(e, rows, 208), panel, PANEL.d)
