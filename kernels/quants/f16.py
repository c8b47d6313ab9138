"""F16: a weight is an IEEE half float."""

from __future__ import annotations

from typing import Any

from numba import njit

from ..formats import sizes
from ..simd import I16X16, Emitter, load_f16
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

BLOCK, BYTES, KIND = sizes("F16")


@njit(inline="always")
def value(p, i):
    return load_f16(p + 2 * i)


def load(e: Emitter, p: Any) -> Any:
    return e.f16_to_f32(e.load(I16X16, p))


def load_one(e: Emitter, p: Any) -> Any:
    return e.load_f16(p)
