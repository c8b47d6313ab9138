"""IQ4_NL: 32 weights in 18 bytes (block_iq4_nl in ggml-common.h): f16 d, 16 bytes of nibbles as in Q4_0. weight = d * VALUES[q]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import Emitter, as_f32, load_f16, load_u8
from ._blocks import Form, Group, entry_of, four_nibbles, looked_up, nibble_quarts
from .q4_0 import scales

__all__ = ["BLOCK", "BYTES", "FORM", "KIND", "VALUES", "load_four", "quarts", "scales", "value"]
BLOCK, BYTES, KIND = sizes("IQ4_NL")
FORM = Form(wide=True)
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""kvalues_iq4nl in ggml-common.h."""
entry = entry_of(VALUES)


@njit(inline="always")
def value(p, i):
    return load_f16(p) * as_f32(entry(load_u8(p + 2 + i % 16) >> (i // 16 * 4) & 15))


def raised_values(e: Emitter) -> list[int]:
    """Return VALUES as bytes for dot4_wide."""
    return [(v & 255) - 128 if e.raised_by else v for v in VALUES]


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    low, high = (looked_up(e, raised_values(e), nibble) for nibble in four_nibbles(e, groups, 2))
    return low, high


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    return [looked_up(e, raised_values(e), nibble) for nibble in nibble_quarts(e, rows, 2)]
