"""Q4_0: 32 weights in 18 bytes (block_q4_0 in ggml-common.h): f16 d, 16 bytes with weights 0-15 in the low nibbles, 16-31 in the high ones.

weight = d * (q - 8)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import Emitter, as_f32, load_f16, load_u8
from ._blocks import Form, Group, four_nibbles, halves, nibble_quarts

BLOCK, BYTES, KIND = sizes("Q4_0")
FORM = Form(offset=8)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32((load_u8(p + 2 + i % 16) >> (i // 16 * 4) & 15) - 8)


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    return four_nibbles(e, groups, 2)


def scales(e: Emitter, groups: Sequence[Group]) -> list[Any]:
    return [halves(e, groups, 0)]


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    return nibble_quarts(e, rows, 2)
