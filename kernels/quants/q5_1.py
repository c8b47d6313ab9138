"""Q5_1: 32 weights in 24 bytes (block_q5_1 in ggml-common.h): f16 d, f16 m, u32 with the fifth bits, 16 bytes of nibbles as in Q4_0.

weight = d * q + m
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import Emitter, as_f32, load_f16
from ._blocks import Form, Group
from .q4_1 import mins, scales
from .q5_0 import four_of_five_bits, quant, quarts_of_five_bits

__all__ = ["BLOCK", "BYTES", "FORM", "KIND", "load_four", "mins", "quarts", "scales", "value"]
BLOCK, BYTES, KIND = sizes("Q5_1")
FORM = Form(mins=True)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32(quant(p + 4, i)) + load_f16(p + 2)


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    return four_of_five_bits(e, groups, 4)


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    return quarts_of_five_bits(e, rows, 4)
