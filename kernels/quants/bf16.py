"""BF16: a weight is the upper half of a float32. Activations are rounded to BF16 too, as in llama.cpp, and multiplied in pairs if the
CPU can do that."""

from __future__ import annotations

from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import F32, I16, I16X32, I32, Emitter, f32, i64, intrinsic_of

BLOCK, BYTES, KIND = sizes("BF16")
STEP, X_BYTES = 32, 2


def load(e: Emitter, p: Any) -> Any:
    return e.load(I16X32, p)


def load_one(e: Emitter, p: Any) -> Any:
    return e.b.bitcast(e.b.shl(e.b.zext(e.load(I16, p), I32), e.int(16, I32)), F32)


def add_products(e: Emitter, acc: Any, weights: Any, x: Any) -> Any:
    return e.dot_bf16(acc, weights, x)


load_x, load_one_x = load, load_one
load_bf16 = intrinsic_of(f32, i64)(load_one)


@njit(inline="always")
def value(p, i):
    return load_bf16(p + 2 * i)
