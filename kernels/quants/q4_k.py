"""Q4_K: 256 weights in 144 bytes (block_q4_K in ggml-common.h).

    0  f16 d, f16 dmin
    4  12 bytes: 8 scales and 8 mins of 6 bits, for parts of 32 weights
   16  128 bytes: 4 groups of 64 weights, the first 32 in the low nibbles, the others in the high ones

weight = d * scale * q - dmin * min
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import I8X64, I32X16, Emitter, as_f32, load_f16, load_u8
from . import _kquants as k
from ._ktiles import MicroKernel

BLOCK, BYTES, KIND = sizes("Q4_K")
PANEL = k.Panel(8, mins=True)
TILE = MicroKernel(PANEL, largest=15)


@njit(inline="always")
def six_bit_pair(p, j):
    """Return the scale and the min of part j, from the 12 packed bytes at p."""
    if j < 4:
        scale, least = load_u8(p + j) & 63, load_u8(p + j + 4) & 63
    else:
        packed = load_u8(p + j + 4)
        scale = (packed & 15) | (load_u8(p + j - 4) >> 6) << 4
        least = (packed >> 4) | (load_u8(p + j) >> 6) << 4
    return scale, least


@njit(inline="always")
def value(p, i):
    scale, least = six_bit_pair(p + 4, i // 32)
    q = load_u8(p + 16 + i // 64 * 32 + i % 32) >> (i // 32 % 2 * 4) & 15
    return load_f16(p) * as_f32(scale) * as_f32(q) - load_f16(p + 2) * as_f32(least)


def nibbles(e: Emitter, p: Any, offset: int) -> Iterator[Any]:
    """Yield the nibbles of 128 bytes at p + offset, as four i8x64 in the order of values_with_mins. Each is emitted where it is used, since
    registers are few."""
    for half in range(2):
        both = e.load(I8X64, p, offset + 64 * half)
        yield e.b.and_(both, e.int(15, I8X64))
        yield e.b.lshr(both, e.int(4, I8X64))


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    return k.values_with_mins(e, rows, lambda e, p: nibbles(e, p, 16), act)


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    store_head(e, e.transposed(rows, 0, 4), panel)
    nibble = e.int(0x0F0F0F0F, I32X16)
    for g in range(4):
        for i, word in enumerate(e.transposed(rows, 16 + 32 * g, 8)):
            e.store(e.b.and_(word, nibble), panel, (16 * g + i) * k.VECTOR)
            e.store(e.b.and_(e.b.lshr(word, e.int(4, I32X16)), nibble), panel, (16 * g + 8 + i) * k.VECTOR)


def store_head(e: Emitter, words: Sequence[Any], panel: Any) -> None:
    """d, dmin, scales and mins from the block's first four words."""
    d, dmin = k.low_and_high_halves(e, words[0])
    e.store(d, panel, PANEL.d)
    e.store(dmin, panel, PANEL.dmin)
    k.store_six_bit(e, PANEL, panel, words[1:4])
