"""Q2_K: 256 weights in 84 bytes (block_q2_K in ggml-common.h), two halves of 128 weights.

    0  16 bytes: scales in the low nibbles and mins in the high ones, for parts of 16 weights
   16  2 * 32 bytes: bits 2j, 2j+1 of byte i belong to weight 32 * j + i of the half
   80  f16 d, f16 dmin

weight = d * scale * q - dmin * min
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import F32X4, I8X64, I16X16, I16X32, I32, I32X4, I32X16, Emitter, as_f32, load_f16, load_u8
from . import _kquants as k
from ._ktiles import ScaledTile

BLOCK, BYTES, KIND = sizes("Q2_K")
PANEL = k.Panel(16, scaled=True, mins=True)
TILE = ScaledTile(PANEL)


@njit(inline="always")
def value(p, i):
    both = load_u8(p + i // 16)
    q = load_u8(p + 16 + i // 128 * 32 + i % 32) >> (i // 32 % 4 * 2) & 3
    return load_f16(p + 80) * as_f32(both & 15) * as_f32(q) - load_f16(p + 82) * as_f32(both >> 4)


def quants(e: Emitter, p: Any) -> Iterator[Any]:
    """Yield four i8x64 of quants, 1, 4, 16 and 16 times as large, in the order of `k.products_of_parts`. Each is emitted where it is
    used."""
    both = e.load(I8X64, p, 16)
    for j in range(3):
        yield e.b.and_(both, e.int(3 << 2 * j, I8X64))
    yield e.b.and_(k.words_shifted(e, e.b.lshr, both, 2), e.int(3 << 4, I8X64))


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    b, head = e.b, k.side_by_side(e, rows, 0)
    mins = b.and_(k.words_shifted(e, b.lshr, head, 4), e.int(15, I8X64))
    offset = k.times_sums_of_16(e, mins, act)
    d, dmin = k.low_and_high_halves(e, k.gathered(e, rows, 80, I32))
    # together with the quants all become 16 times as large; scales are 240 at most, so two bytes can be multiplied at once
    factors = ir.Constant(I16X32, [16, 4, 1, 1] * 8)
    scales = b.bitcast(b.mul(b.bitcast(b.and_(head, e.int(15, I8X64)), I16X32), factors), I8X64)

    def total_of(row: Any, own: Any) -> Any:
        # LLVM combines this with later shuffles
        with_zeros = e.shuffle(own, [x for part in range(16) for x in (part, 16)], e.int(0, own.type))
        return k.products_of_parts(e, quants(e, row), b.bitcast(with_zeros, I16X16), act)

    total = k.sum_four(e, k.of_each(e, rows, total_of, scales))
    return b.fsub(
        b.fmul(d, b.sitofp(b.ashr(total, e.int(4, I32X4)), F32X4)), b.fmul(dmin, b.sitofp(offset, F32X4))
    )


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    b = e.b
    heads, words = e.transposed(rows, 0, 4), e.transposed(rows, 16, 16)
    two = e.int(0x03030303, I32X16)
    scales, mins = (
        [
            b.and_(b.lshr(heads[part // 4], e.int(8 * (part % 4) + shift, I32X16)), e.int(15, I32X16))
            for part in range(16)
        ]
        for shift in (0, 4)
    )
    for part in range(16):
        half, j, upper = part // 8, part // 2 % 4, part % 2
        for i, word in enumerate(words[8 * half + 4 * upper :][:4]):
            quart = b.and_(b.lshr(word, e.int(2 * j, I32X16)), two)
            e.store(b.mul(quart, scales[part]), panel, (4 * part + i) * k.VECTOR)
    for part in range(0, 16, 2):
        e.store(
            b.or_(mins[part], b.shl(mins[part + 1], e.int(16, I32X16))),
            panel,
            PANEL.pairs + part // 2 * k.VECTOR,
        )
    d, dmin = k.low_and_high_halves(e, k.gathered(e, rows, 80, I32))
    e.store(d, panel, PANEL.d)
    e.store(dmin, panel, PANEL.dmin)
