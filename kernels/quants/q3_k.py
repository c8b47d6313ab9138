"""Q3_K: 256 weights in 110 bytes (block_q3_K in ggml-common.h), two halves of 128 weights.

    0  32 bytes: the upper bits; bit j of byte i belongs to weight 32 * j + i of the block
   32  2 * 32 bytes: the lower two bits; bits 2j, 2j+1 of byte i belong to weight 32 * j + i of the half
   96  12 bytes: 16 scales of 6 bits, for parts of 16 weights. The lower four bits of scales 0-7 are the low nibbles of bytes 0-7, those of
       scales 8-15 the high nibbles; the upper two bits of scale s are bits 2 * (s // 4) and 2 * (s // 4) + 1 of byte 8 + s % 4
  108  f16 d

weight = d * (scale - 32) * (q - 4)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import F32X4, I8X32, I8X64, I16X16, I16X32, I32X4, I32X16, Emitter, as_f32, load_f16, load_u8
from . import _kquants as k
from ._ktiles import ScaledTile

BLOCK, BYTES, KIND = sizes("Q3_K")
PANEL = k.Panel(8, scaled=True)
TILE = ScaledTile(PANEL, wide=True)


@njit(inline="always")
def value(p, i):
    part = i // 16
    scale = (load_u8(p + 96 + part % 8) >> (part // 8 * 4) & 15) | (
        load_u8(p + 104 + part % 4) >> (part // 4 * 2) & 3
    ) << 4
    low = load_u8(p + 32 + i // 128 * 32 + i % 32) >> (i // 32 % 4 * 2) & 3
    upper = load_u8(p + i % 32) >> (i // 32) & 1
    return load_f16(p + 108) * as_f32(scale - 32) * as_f32((low | upper << 2) - 4)


def quants(e: Emitter, p: Any) -> Iterator[Any]:
    """Yield four i8x64 of quants, 1, 2, 4 and 8 times as large, in the order of `k.products_of_parts`. Each is emitted where it is used.

    With these factors a single shift of the upper bits serves all four.
    """
    b, both, bits = e.b, e.load(I8X64, p, 32), e.load(I8X32, p)
    upper = e.concat(*(k.words_shifted(e, shift, bits, 2) for shift in (b.shl, b.lshr)))
    for j in range(4):
        low = b.and_(k.words_shifted(e, b.lshr, both, j), e.int(3 << j, I8X64))
        yield b.or_(low, b.and_(upper, e.int(4 << j, I8X64)))


def scales_of(e: Emitter, rows: Sequence[Any]) -> Any:
    """Return the 16 scales of four rows, i8x64."""
    b, words = e.b, k.side_by_side(e, rows, 92)  # 16 bytes, the last 12 of them scales
    low = e.shuffle(words, k.of_each_row([*range(4, 12)] * 2, 16))
    high = e.shuffle(words, k.of_each_row([*range(12, 16)] * 4, 16))

    def shifted(x: Any, shifts: Sequence[int], mask: int) -> Any:
        by = ir.Constant(I16X32, [*shifts] * 4)
        return b.and_(b.bitcast(b.lshr(b.bitcast(x, I16X32), by), I8X64), e.int(mask, I8X64))

    low = shifted(low, [0, 0, 0, 0, 4, 4, 4, 4], 15)
    high = shifted(high, [0, 0, 2, 2, 4, 4, 6, 6], 3)
    return b.sub(b.or_(low, b.shl(high, e.int(4, I8X64))), e.int(32, I8X64))


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    b, scales = e.b, scales_of(e, rows)
    offset = b.shl(k.times_sums_of_16(e, scales, act), e.int(2, I32X4))
    d = k.gathered_halves(e, rows, 108)
    # together with the quants all become 8 times as large
    factors = ir.Constant(I16X16, [8, 8, 4, 4, 2, 2, 1, 1] * 2)

    def total_of(row: Any, own: Any) -> Any:
        return k.products_of_parts(e, quants(e, row), b.mul(b.sext(own, I16X16), factors), act)

    total = k.sum_four(e, k.of_each(e, rows, total_of, scales))
    return b.fmul(d, b.sitofp(b.sub(b.ashr(total, e.int(3, I32X4)), offset), F32X4))


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    """A byte holds (scale - 32) * (4 - q), from -128 to 124, and d is negated. With q - 4 a product could be 128, too large for a signed
    byte."""
    b, n = e.b, lambda value: e.int(value, I32X16)
    uppers = e.transposed(rows, 0, 8)
    words = e.transposed(rows, 32, 16)
    packed = e.transposed(rows, 92, 4)[1:]
    for part in range(16):
        half, j, first = part // 8, part // 2 % 4, part % 2 * 4
        low = b.and_(b.lshr(packed[part // 4 % 2], n(8 * (part % 4) + part // 8 * 4)), n(15))
        high = b.and_(b.lshr(packed[2], n(8 * (part % 4) + part // 4 * 2)), n(3))
        scale = b.sub(b.or_(low, b.shl(high, n(4))), n(32))
        for i in range(first, first + 4):
            q = b.and_(b.lshr(words[8 * half + i], n(2 * j)), n(0x03030303))
            q = b.or_(q, b.shl(b.and_(b.lshr(uppers[i], n(part // 2)), n(0x01010101)), n(2)))
            # one multiplication for four bytes: adding 128 makes each of them positive
            byte = b.sub(b.mul(b.add(b.shl(scale, n(2)), n(128)), n(0x01010101)), b.mul(q, scale))
            e.store(e.raised(b.xor(byte, n(0x80808080))), panel, (32 * half + 8 * j + i) * k.VECTOR)
    e.store(b.fneg(k.gathered_halves(e, rows, 108)), panel, PANEL.d)
