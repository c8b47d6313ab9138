"""F32: a weight is a float32."""

from __future__ import annotations

from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import F32, F32X16, Emitter, load_f32
from ._floats import STEP, X_BYTES, add_products, load_one_x, load_x

__all__ = [
    "BLOCK",
    "BYTES",
    "KIND",
    "STEP",
    "X_BYTES",
    "add_products",
    "load",
    "load_one",
    "load_one_x",
    "load_x",
    "value",
]

BLOCK, BYTES, KIND = sizes("F32")


@njit(inline="always")
def value(p, i):
    return load_f32(p + 4 * i)


def load(e: Emitter, p: Any) -> Any:
    return e.load(F32X16, p)


def load_one(e: Emitter, p: Any) -> Any:
    return e.load(F32, p)
