"""TQ1_0: 256 weights in 54 bytes (block_tq1_0 in ggml-common.h), up to five base-3 digits in a byte.

   0  32 bytes: digit n of byte i belongs to weight 32 * n + i
  32  16 bytes: digit n of byte i belongs to weight 160 + 16 * n + i
  48  4 bytes, with four digits each: digit n of byte i belongs to weight 240 + 4 * n + i
  52  f16 d

A byte stands for the fraction byte / 256, whose digits in base 3 it holds: three times the byte is 256 times the first digit, plus a byte
with the other digits. weight = d * (digit - 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import F32X4, I8X16, I8X32, I8X64, I32, I32X4, I32X16, Emitter, as_f32, load_f16, load_u8
from . import _kquants as k
from ._ktiles import ScaledTile, sum_of_block

BLOCK, BYTES, KIND = sizes("TQ1_0")
PANEL = k.Panel(8, scaled=True)
TILE = ScaledTile(PANEL, minus=1)
RUNS = (0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)
"""For each run of bytes: the first byte, the number of bytes, the digits in each byte, the first weight."""


@njit(inline="always")
def value(p, i):
    if i < 160:
        byte, digit = i % 32, i // 32
    elif i < 240:
        byte, digit = 32 + i % 16, (i - 160) // 16
    else:
        byte, digit = 48 + i % 4, (i - 240) // 4
    fraction = load_u8(p + byte)
    for _ in range(digit):
        fraction = fraction * 3 & 255
    return load_f16(p + 52) * as_f32((fraction * 3 >> 8) - 1)


def block(e: Emitter, p: Any, runs: Sequence[int]) -> Any:
    """Load 32 bytes, 16 bytes and, if there are three runs, 4 bytes, each from its offset from p; the rest are zeros. i8x64."""
    parts = [e.load(kind, p, offset) for kind, offset in zip((I8X32, I8X16, I32), runs)]
    end = e.int(0, I32X4) if len(parts) < 3 else e.b.insert_element(e.int(0, I32X4), parts[2], e.int(0, I32))
    return e.concat(parts[0], e.concat(parts[1], e.b.bitcast(end, I8X16)))


def values(e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
    """Multiply without extracting digits: three times a byte minus the next byte is 256 times the digit. So there are two products per
    digit."""
    b = e.b

    def factor(q: Any) -> Any:
        return e.raised(b.xor(q, e.int(0x80, I8X64)))

    def total_of(row: Any, _: Any) -> Any:
        q = block(e, row, [first for first, *_ in RUNS])
        before = after = e.int(0, I32X16)
        for digit in range(5):
            acts = block(e, act.q, [weight + n * digit for _, n, digits, weight in RUNS if digit < digits])
            before = e.dot4_wide(before, factor(q), acts)
            q = b.add(b.add(q, q), q)
            after = e.dot4_wide(after, factor(q), acts)
        return b.ashr(b.sub(b.mul(before, e.int(3, I32X16)), after), e.int(8, I32X16))

    total = k.sum_four(e, k.of_each(e, rows, total_of))
    # signed bytes are q - 128, which makes each digit 1 smaller, since 3 * 128 - 128 is 256; raised bytes are q
    if e.raised_by:
        total = b.sub(total, e.splat(sum_of_block(e, act), 4))
    return b.fmul(k.gathered_halves(e, rows, 52), b.sitofp(total, F32X4))


def unpack(e: Emitter, rows: Sequence[Any], panel: Any) -> None:
    b, words = e.b, [*e.transposed(rows, 0, 12), k.gathered(e, rows, 48, I32)]
    for first, n, digits, weight in RUNS:
        for i, word in enumerate(words[first // 4 :][: n // 4]):
            q = b.bitcast(word, I8X64)
            for digit in range(digits):
                one, two = (
                    b.zext(b.icmp_unsigned(">", q, e.int(bound, I8X64)), I8X64) for bound in (85, 170)
                )
                e.store(b.add(one, two), panel, (weight // 4 + n // 4 * digit + i) * k.VECTOR)
                q = b.add(b.add(q, q), q)
    e.store(k.gathered_halves(e, rows, 52), panel, PANEL.d)
