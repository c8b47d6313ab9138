"""Float32 activations, for F32 and F16 weights."""

from __future__ import annotations

from typing import Any

from ..simd import F32, F32X16, LANES, Emitter

STEP, X_BYTES = LANES, 4


def load_x(e: Emitter, p: Any) -> Any:
    return e.load(F32X16, p)


def load_one_x(e: Emitter, p: Any) -> Any:
    return e.load(F32, p)


def add_products(e: Emitter, acc: Any, weights: Any, x: Any) -> Any:
    return e.fma(weights, x, acc)
