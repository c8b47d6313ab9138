"""BF16: a weight is the upper half of a float32."""
from __future__ import annotations

from typing import Any

from numba import njit

from ..simd import F32, F32X16, I16, I16X16, I32, I32X16, Emitter, f32, i64, intrinsic_of

BLOCK, BYTES, KIND = 1, 2, "float"


def load(e: Emitter, p: Any) -> Any:
    return e.b.bitcast(e.b.shl(e.b.zext(e.load(I16X16, p), I32X16), e.int(16, I32X16)), F32X16)


def load_one(e: Emitter, p: Any) -> Any:
    return e.b.bitcast(e.b.shl(e.b.zext(e.load(I16, p), I32), e.int(16, I32)), F32)


load_bf16 = intrinsic_of(f32, i64)(load_one)


@njit(inline="always")
def value(p, i):
    return load_bf16(p + 2 * i)
