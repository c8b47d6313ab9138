"""BF16: the upper halves of float32, rounded to nearest even."""

from __future__ import annotations

from typing import Any

from ..simd import F32, I16, I32, Emitter, like
from ._floats import Floats


def widen(e: Emitter, halves: Any) -> Any:
    wide = like(halves, I32)
    return e.b.bitcast(e.b.shl(e.b.zext(halves, wide), e.int(16, wide)), like(halves, F32))


FORMAT = Floats(2, I16, widen, Emitter.f32_to_bf16)
