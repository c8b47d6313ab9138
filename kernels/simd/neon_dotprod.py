"""ARMv8-A with dot products of bytes, signed ones or unsigned ones only: Neoverse N1, Cortex-A76, Apple M1."""
from __future__ import annotations

from typing import Any

from . import I8X64, I32X16
from .neon import I32X4, dot2, f16_to_f32, f32_to_f16, fma, fma_exact, in_registers, pairs, pause, raised

__all__ = ["dot2", "dot4", "f16_to_f32", "f32_to_f16", "fma", "fma_exact", "pairs", "pause"]


def _sdot(e: Any, acc: Any, x: Any, y: Any) -> Any:
    return in_registers(e, lambda a, p, q: e.call("llvm.aarch64.neon.sdot.v4i32.v16i8", I32X4, a, p, q), acc, x, y)


def dot4(e: Any, acc: Any, u: Any, s: Any, u_below_128: bool) -> Any:
    if not u_below_128:
        acc, u = raised(e, acc, u, _sdot(e, e.int(0, I32X16), s, e.int(1, I8X64)))
    return _sdot(e, acc, u, s)
