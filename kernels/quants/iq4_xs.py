"""IQ4_XS: 256 weights in 136 bytes (block_iq4_xs in ggml-common.h).

    0  f16 d
    2  u16: the upper two bits of the scales of 8 parts of 32 weights, the first part's lowest
    4  4 bytes: the lower four bits of these scales, even parts in the low nibbles
    8  8 * 16 bytes: the first 16 weights of each part in the low nibbles, the others in the high ones

weight = d * (scale - 32) * IQ4_NL's VALUES[q]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import F32X4, I8X64, I16X16, I16X32, I32X16, I64, Emitter, as_f32, load_f16, load_u8
from . import _kquants as k
from ._ktiles import MicroKernel
from .iq4_nl import entry, raised_values

BLOCK, BYTES, KIND = sizes("IQ4_XS")
PANEL = k.Panel(8)
TILE = MicroKernel(PANEL, wide=True)


@njit(inline="always")
def value(p, i):
    part = i // 32
    scale = (load_u8(p + 4 + part // 2) >> (part % 2 * 4) & 15) | (
        load_u8(p + 2 + part // 4) >> (part % 4 * 2) & 3
    ) << 4
    q = load_u8(p + 8 + part * 16 + i % 16) >> (i // 16 % 2 * 4) & 15
    return load_f16(p) * as_f32(scale - 32) * as_f32(entry(q))


def scales_of(e: Emitter, rows: Sequence[Any]) -> tuple[Any, Any]:
    """Return the first 8 bytes of four rows as i16x16, and the 8 scales of each row as i16x32."""
    b, n = e.b, lambda *each: ir.Constant(I16X32, list(each) * (32 // len(each)))
    words = b.bitcast(k.gathered(e, rows, 0, I64), I16X16)

    def each(numbers: Sequence[int]) -> Any:
        return e.shuffle(words, k.of_each_row(numbers, 4))

    upper = b.and_(b.lshr(each([1] * 8), n(*range(0, 16, 2))), n(3))
    lower = b.and_(b.lshr(each([2] * 4 + [3] * 4), n(0, 4, 8, 12)), n(15))
    return words, b.sub(b.or_(lower, b.shl(upper, n(4))), n(32))


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    b, table = e.b, raised_values(e)
    head, scales = scales_of(e, rows)
    activations = []
    for offset in 0, 128:
        once, again = (e.load(I8X64, act.q, offset + 64 * i) for i in (0, 1))
        activations.append(
            [
                e.shuffle(once, [32 * part + 16 * half + i for part in range(4) for i in range(16)], again)
                for half in (0, 1)
            ]
        )

    def total_of(row: Any, own: Any) -> Any:
        total = e.int(0, I32X16)
        for which, (low, high) in enumerate(activations):
            both = e.load(I8X64, row, 8 + 64 * which)
            sums = e.dot4_wide(e.int(0, I32X16), e.lookup(table, b.and_(both, e.int(15, I8X64))), low)
            sums = e.dot4_wide(sums, e.lookup(table, b.lshr(both, e.int(4, I8X64))), high)
            scale = b.sext(e.shuffle(own, [4 * which + lane // 4 for lane in range(16)]), I32X16)
            total = b.add(total, b.mul(sums, scale))
        return total

    total = k.sum_four(e, k.of_each(e, rows, total_of, scales))
    if e.raised_by:
        total = b.sub(total, b.mul(k.times_sums_of_32(e, scales, act), e.int(e.raised_by, total.type)))
    d = e.f16_to_f32(e.shuffle(head, k.of_each_row([0], 4)))
    return b.fmul(d, b.sitofp(total, F32X4))


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    b, table = e.b, raised_values(e)
    n = lambda value: e.int(value, I32X16)  # noqa: E731
    first, second, *_ = e.transposed(rows, 0, 4)
    scales = []
    for j in range(8):
        upper = b.and_(b.lshr(first, n(16 + 2 * j)), n(3))
        scales.append(b.sub(b.or_(b.and_(b.lshr(second, n(4 * j)), n(15)), b.shl(upper, n(4))), n(32)))
    k.store_scales(e, PANEL, panel, scales)
    e.store(k.low_and_high_halves(e, first)[0], panel, PANEL.d)
    for part in range(8):
        for i, word in enumerate(e.transposed(rows, 8 + 16 * part, 4)):
            both = b.bitcast(word, I8X64)
            for half, indices in enumerate((b.and_(both, e.int(15, I8X64)), b.lshr(both, e.int(4, I8X64)))):
                e.store(e.lookup(table, indices), panel, (8 * part + 4 * half + i) * k.VECTOR)
