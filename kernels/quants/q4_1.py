"""Q4_1: 32 weights in 20 bytes (block_q4_1 in ggml-common.h): f16 d, f16 m, 16 bytes of nibbles as in Q4_0. weight = d * q + m"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import Emitter, as_f32, load_f16, load_u8
from ._blocks import Form, Group, four_nibbles, halves, nibble_quarts
from .q4_0 import scales

__all__ = ["BLOCK", "BYTES", "FORM", "KIND", "load_four", "mins", "quarts", "scales", "value"]
BLOCK, BYTES, KIND = sizes("Q4_1")
FORM = Form(mins=True)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32(load_u8(p + 4 + i % 16) >> (i // 16 * 4) & 15) + load_f16(p + 2)


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    return four_nibbles(e, groups, 4)


def mins(e: Emitter, groups: Sequence[Group]) -> Any:
    return halves(e, groups, 2)


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    return nibble_quarts(e, rows, 4)
