"""Q5_K: 256 weights in 176 bytes (block_q5_K in ggml-common.h).

    0  f16 d, f16 dmin
    4  12 bytes: 8 scales and 8 mins of 6 bits, as in Q4_K
   16  32 bytes: the fifth bits; bit j of byte i belongs to weight 32 * j + i
   48  128 bytes: the lower four bits, as in Q4_K

weight = d * scale * q - dmin * min
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import njit

from ..formats import sizes
from ..simd import I8X32, I8X64, I32X16, Emitter, as_f32, load_f16, load_u8
from . import _kquants as k
from ._ktiles import MicroKernel
from .q4_k import PANEL, nibbles, six_bit_pair, store_head

__all__ = ["BLOCK", "BYTES", "KIND", "PANEL", "TILE", "unpack", "value", "values"]
BLOCK, BYTES, KIND = sizes("Q5_K")
TILE = MicroKernel(PANEL)


@njit(inline="always")
def value(p, i):
    scale, least = six_bit_pair(p + 4, i // 32)
    q = (load_u8(p + 48 + i // 64 * 32 + i % 32) >> (i // 32 % 2 * 4) & 15) | (
        load_u8(p + 16 + i % 32) >> (i // 32) & 1
    ) << 4
    return load_f16(p) * as_f32(scale) * as_f32(q) - load_f16(p + 2) * as_f32(least)


def quants(e: Emitter, p: Any) -> Iterator[Any]:
    """Yield four i8x64 of quants, in the order of `nibbles`."""
    b = e.b
    once = e.load(I8X32, p, 16)
    fifth = e.concat(once, once)
    for low, (i, j) in zip(nibbles(e, p, 48), ((0, 2), (1, 3), (4, 6), (5, 7))):
        mask = ir.Constant(I8X64, [1 << i] * 32 + [(1 << j) - (256 if j == 7 else 0)] * 32)
        is_set = b.icmp_unsigned("!=", b.and_(fifth, mask), e.int(0, I8X64))
        yield b.or_(low, b.select(is_set, e.int(16, I8X64), e.int(0, I8X64)))


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    return k.values_with_mins(e, rows, quants, act)


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    b = e.b
    store_head(e, e.transposed(rows, 0, 4), panel)
    highs = e.transposed(rows, 16, 8)
    nibble, one, four = e.int(0x0F0F0F0F, I32X16), e.int(0x01010101, I32X16), e.int(4, I32X16)
    for g in range(4):
        for i, (word, high) in enumerate(zip(e.transposed(rows, 48 + 32 * g, 8), highs)):
            for part, low in enumerate((b.and_(word, nibble), b.and_(b.lshr(word, four), nibble))):
                fifth = b.shl(b.and_(b.lshr(high, e.int(2 * g + part, I32X16)), one), four)
                e.store(b.or_(low, fifth), panel, (16 * g + 8 * part + i) * k.VECTOR)
