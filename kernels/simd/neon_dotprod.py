"""ARMv8-A with dot products of bytes, either both signed or both unsigned: Neoverse N1, Cortex-A76, Apple M1."""

from __future__ import annotations

from typing import Any

from .neon import (
    I32X4,
    PICKS_WORDS,
    RAISED,
    REGISTERS,
    dot2,
    dot_bf16,
    f16_to_f32,
    f32_to_f16,
    fma,
    fma_exact,
    in_registers,
    lookup,
    packed,
    pairs,
    pause,
    prefetch_with,
)

__all__ = [
    "PICKS_WORDS",
    "RAISED",
    "REGISTERS",
    "dot2",
    "dot4",
    "dot4_wide",
    "dot_bf16",
    "f16_to_f32",
    "f32_to_f16",
    "fma",
    "fma_exact",
    "lookup",
    "packed",
    "pairs",
    "pause",
    "prefetch_with",
]


def dot4(e: Any, acc: Any, u: Any, s: Any) -> Any:
    return in_registers(
        e, lambda a, p, q: e.call("llvm.aarch64.neon.sdot.v4i32.v16i8", I32X4, a, p, q), acc, u, s
    )


dot4_wide = dot4
