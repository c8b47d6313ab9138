"""MXFP4: 32 weights in 17 bytes (block_mxfp4 in ggml-common.h): a byte with the scale's exponent, 16 bytes of nibbles as in Q4_0.

weight = 2**(exponent - 128) * DOUBLED[q]. Quants are floats of four bits, E2M1 (OCP Microscaling spec), doubled to be integers; the scale
is halved instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import F32, I16, I32, I32X16, Emitter, as_f32, f32, i64, intrinsic_of, like, load_u8
from ._blocks import Form, Group, entry_of, four_nibbles, looked_up, nibble_quarts
from ._kquants import gathered

BLOCK, BYTES, KIND = sizes("MXFP4")
DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
FORM = Form(offset=max(DOUBLED))
entry = entry_of(DOUBLED)


def power(e: Emitter, exponents: Any) -> Any:
    """Return 2**(exponent - 128) as f32, for i32 lanes or one i32. For exponents 0 and 1 the float is subnormal: a single bit in its
    mantissa."""
    b, n = e.b, lambda value: e.int(value, exponents.type)
    normal, small = b.shl(b.sub(exponents, n(1)), n(23)), b.shl(b.add(exponents, n(1)), n(21))
    return b.bitcast(b.select(b.icmp_unsigned(">", exponents, n(1)), normal, small), like(exponents, F32))


power_of_byte = intrinsic_of(f32, i64)(lambda e, exponent: power(e, e.b.trunc(exponent, I32)))


@njit(inline="always")
def value(p, i):
    return power_of_byte(load_u8(p)) * as_f32(entry(load_u8(p + 1 + i % 16) >> (i // 16 * 4) & 15))


def raised_entries(e: Emitter, indices: Any) -> Any:
    """Look up DOUBLED plus the offset, for bytes in lanes of any width."""
    return looked_up(e, [value + FORM.offset for value in DOUBLED], indices)


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    low, high = (raised_entries(e, nibble) for nibble in four_nibbles(e, groups, 1))
    return low, high


def scales(e: Emitter, groups: Sequence[Group]) -> list[Any]:
    words = e.b.zext(gathered(e, [group.block for group in groups], 0, I16), I32X16)
    return [power(e, e.b.and_(words, e.int(255, I32X16)))]


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    return [raised_entries(e, nibble) for nibble in nibble_quarts(e, rows, 1)]
