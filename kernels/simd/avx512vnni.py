"""AVX-512 with VNNI: 64-byte registers and dot products of bytes in one instruction."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import generic
from .avx2 import pause
from .emitter import has_feature
from .floats import f16_to_f32, f32_to_f16, fma, fma_exact
from .prefetch import on_x86
from .vectors import F32X16, I8X64, I16X32, I32X16

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
REGISTERS = 32
PICKS_WORDS = True


class BFloatType(ir.types.Type):  # type: ignore[misc]
    """LLVM's `bfloat`, which llvmlite doesn't have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloatType)

    def __hash__(self) -> int:
        return hash(BFloatType)


BF16X32 = ir.VectorType(BFloatType(), 32)


def dot4(e: Any, acc: Any, u: Any, s: Any) -> Any:
    return e.call("llvm.x86.avx512.vpdpbusd.512", I32X16, acc, u, s)


dot4_wide = dot4


def lookup(e: Any, table: Any, indices: Any) -> Any:
    return e.call("llvm.x86.avx512.pshuf.b.512", I8X64, ir.Constant(I8X64, 4 * list(table)), indices)


def packed(e: Any, x: Any, y: Any) -> Any:
    return e.call("llvm.x86.avx512.packssdw.512", I16X32, x, y)


def pairs(e: Any, u: Any, s: Any) -> Any:
    return e.call("llvm.x86.avx512.pmaddubs.w.512", I16X32, u, s)


def dot2(e: Any, acc: Any, x: Any, y: Any) -> Any:
    return e.call("llvm.x86.avx512.vpdpwssd.512", I32X16, acc, x, y)


def dot_bf16(e: Any, acc: Any, x: Any, y: Any) -> Any:
    """One instruction if the CPU has it; this ISA doesn't guarantee it."""
    if not has_feature("avx512bf16"):
        return generic.dot_bf16(e, acc, x, y)
    factors = (e.b.bitcast(v, BF16X32) for v in (x, y))
    return e.call("llvm.x86.avx512bf16.dpbf16ps.512", F32X16, acc, *factors)


def prefetch_with(e: Any, vector: Any, address: Any, offset: int) -> Any:
    return on_x86(e, vector, address, offset, register=64)
