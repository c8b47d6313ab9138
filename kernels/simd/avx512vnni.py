"""AVX-512 with VNNI: 64-byte registers and dot products of bytes in one instruction."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import I8X64, I16X32, I32X16
from .avx2 import f16_to_f32, f32_to_f16, fma, fma_exact, pause

__all__ = [
    "RAISED",
    "REGISTERS",
    "dot2",
    "dot4",
    "dot4_wide",
    "f16_to_f32",
    "f32_to_f16",
    "fma",
    "fma_exact",
    "lookup",
    "packed",
    "pairs",
    "pause",
]

RAISED = True
REGISTERS = 32


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
