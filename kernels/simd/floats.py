"""FMA and half floats on CPUs with instructions for them: AVX2 with F16C, and all of ARMv8-A. LLVM selects these by itself."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .vectors import F32, HALF, I16, like


def fma(e: Any, x: Any, y: Any, z: Any) -> Any:
    suffix = f"v{x.type.count}f32" if isinstance(x.type, ir.VectorType) else "f32"
    return e.call(f"llvm.fma.{suffix}", x.type, x, y, z)


fma_exact = fma


def f16_to_f32(e: Any, halves: Any) -> Any:
    return e.b.fpext(e.b.bitcast(halves, like(halves, HALF)), like(halves, F32))


def f32_to_f16(e: Any, x: Any) -> Any:
    return e.b.bitcast(e.b.fptrunc(x, like(x, HALF)), like(x, I16))
