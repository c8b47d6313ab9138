"""AVX2 with VNNI, on CPUs without AVX-512 (Alder Lake and later): dot products of bytes in one instruction on 32-byte registers."""

from __future__ import annotations

from typing import Any

from .avx2 import (
    I32X8,
    PICKS_WORDS,
    REGISTERS,
    dot_bf16,
    f16_to_f32,
    f32_to_f16,
    fma,
    fma_exact,
    halves,
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
    return halves(e, lambda a, p, q: e.call("llvm.x86.avx512.vpdpbusd.256", I32X8, a, p, q), acc, u, s)


dot4_wide = dot4


def dot2(e: Any, acc: Any, x: Any, y: Any) -> Any:
    return halves(e, lambda a, p, q: e.call("llvm.x86.avx512.vpdpwssd.256", I32X8, a, p, q), acc, x, y)
