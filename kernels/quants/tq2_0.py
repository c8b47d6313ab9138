"""TQ2_0: 256 weights in 66 bytes (block_tq2_0 in ggml-common.h), two halves of 128 weights.

   0  2 * 32 bytes: bits 2j, 2j+1 of byte i belong to weight 32 * j + i of the half
  64  f16 d

weight = d * (q - 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import F32X4, I8X32, I8X64, I32X16, Emitter, as_f32, load_f16, load_u8
from . import _kquants as k
from ._ktiles import ScaledTile, sum_of_block

BLOCK, BYTES, KIND = sizes("TQ2_0")
PANEL = k.Panel(8, scaled=True)
TILE = ScaledTile(PANEL, minus=1)


@njit(inline="always")
def value(p, i):
    return load_f16(p + 64) * as_f32((load_u8(p + i // 128 * 32 + i % 32) >> (i // 32 % 4 * 2) & 3) - 1)


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    b = e.b

    def total_of(row: Any, _: Any) -> Any:
        both, total = e.load(I8X64, row), e.int(0, I32X16)
        for j in range(4):
            quant = b.and_(k.words_shifted(e, b.lshr, both, 2 * j), e.int(3, I8X64))
            total = e.dot4(
                total, quant, e.concat(e.load(I8X32, act.q, 32 * j), e.load(I8X32, act.q, 128 + 32 * j))
            )
        return total

    total = b.sub(k.sum_four(e, k.of_each(e, rows, total_of)), e.splat(sum_of_block(e, act), 4))
    return b.fmul(k.gathered_halves(e, rows, 64), b.sitofp(total, F32X4))


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    for i, word in enumerate(e.transposed(rows, 0, 16)):
        for j in range(4):
            quart = e.b.and_(e.b.lshr(word, e.int(2 * j, I32X16)), e.int(0x03030303, I32X16))
            e.store(quart, panel, (32 * (i // 8) + 8 * j + i % 8) * k.VECTOR)
    e.store(k.gathered_halves(e, rows, 64), panel, PANEL.d)
