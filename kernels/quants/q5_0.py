"""Q5_0: 32 weights in 22 bytes (block_q5_0 in ggml-common.h): f16 d, u32 with the fifth bits, 16 bytes of nibbles as in Q4_0.

weight = d * (q - 16)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import Emitter, as_f32, load_f16, load_u8
from ._blocks import Form, Group, four_nibbles, nibble_quarts, sixteens, with_bits
from .q4_0 import scales

__all__ = ["BLOCK", "BYTES", "FORM", "KIND", "load_four", "quarts", "scales", "value"]
BLOCK, BYTES, KIND = sizes("Q5_0")
FORM = Form(offset=16)


@njit(inline="always")
def quant(p, i):
    """Return the five bits of weight i. p is the address of the fifth bits, which are followed by the nibbles."""
    return load_u8(p + 4 + i % 16) >> (i // 16 * 4) & 15 | (load_u8(p + i // 8) >> i % 8 & 1) << 4


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32(quant(p + 2, i) - 16)


def four_of_five_bits(e: Emitter, groups: Sequence[Group], offset: int) -> tuple[Any, Any]:
    """`load_four` for a block with fifth bits at `offset`, followed by nibbles."""
    heads = sixteens(e, groups, 0)
    low, high = (
        with_bits(
            e, nibble, heads, [128 * (i // 16) + 8 * offset + 16 * half + i % 16 for i in range(64)], 16
        )
        for half, nibble in enumerate(four_nibbles(e, groups, offset + 4))
    )
    return low, high


def quarts_of_five_bits(e: Emitter, rows: Sequence[Any], offset: int) -> list[Any]:
    fifth = e.transposed(rows, offset, 4)[0]
    return [
        with_bits(e, nibble, fifth, [32 * (i // 4) + 4 * k + i % 4 for i in range(64)], 16)
        for k, nibble in enumerate(nibble_quarts(e, rows, offset + 4))
    ]


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    return four_of_five_bits(e, groups, 2)


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    return quarts_of_five_bits(e, rows, 2)
