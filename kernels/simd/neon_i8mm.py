"""ARMv8-A with dot products of unsigned bytes with signed bytes: Neoverse V1 and N2, Cortex-A710, Apple M2."""

from __future__ import annotations

from typing import Any

from .neon import (
    I32X4,
    PICKS_WORDS,
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

RAISED = True


def dot4(e: Any, acc: Any, u: Any, s: Any) -> Any:
    return in_registers(
        e, lambda a, p, q: e.call("llvm.aarch64.neon.usdot.v4i32.v16i8", I32X4, a, p, q), acc, u, s
    )


dot4_wide = dot4
