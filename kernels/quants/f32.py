"""F32: a weight is a float32."""
from __future__ import annotations

from typing import Any

from numba import njit

from ..simd import F32, F32X16, Emitter, load_f32

BLOCK, BYTES, KIND = 1, 4, "float"


@njit(inline="always")
def value(p, i):
    return load_f32(p + 4 * i)


def load(e: Emitter, p: Any) -> Any:
    return e.load(F32X16, p)


def load_one(e: Emitter, p: Any) -> Any:
    return e.load(F32, p)
