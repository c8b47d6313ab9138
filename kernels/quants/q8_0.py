"""Q8_0: 32 weights in 34 bytes (block_q8_0 in ggml-common.h): f16 d, 32 i8 quants. weight = d * q"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import I8X16, Emitter, as_f32, load_f16, load_i8
from ._blocks import Form, Group
from .q4_0 import scales

__all__ = ["BLOCK", "BYTES", "FORM", "KIND", "load_four", "quarts", "scales", "value"]
BLOCK, BYTES, KIND = sizes("Q8_0")
FORM = Form(wide=True)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32(load_i8(p + 2 + i))


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    low, high = (
        e.raised(e.join([e.load(I8X16, group.block, 2 + 16 * half) for group in groups])) for half in (0, 1)
    )
    return low, high


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    return [e.raised(word) for word in e.transposed(rows, 2, 8)]
