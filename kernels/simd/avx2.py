"""x86-64-v3: 32-byte registers with FMA and F16C."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .floats import f16_to_f32, f32_to_f16, fma, fma_exact
from .generic import dot_bf16
from .prefetch import on_x86
from .vectors import I8X32, I8X64, I16X16, I16X32, I32

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

I1, I32X8 = ir.IntType(1), ir.VectorType(I32, 8)
RAISED = False
REGISTERS = 8
PICKS_WORDS = False


def halves(e: Any, operation: Any, *operands: Any) -> Any:
    """Apply an operation on 32-byte registers to both halves of 64-byte vectors."""
    return e.concat(*(operation(*(e.half(x, which) for x in operands)) for which in (0, 1)))


def _madd(e: Any, x: Any, y: Any) -> Any:
    """i16x32, i16x32 -> i32x16: sums of the products of two neighbours."""
    return halves(e, lambda p, q: e.call("llvm.x86.avx2.pmadd.wd", I32X8, p, q), x, y)


def lookup(e: Any, table: Any, indices: Any) -> Any:
    both = ir.Constant(I8X32, 2 * list(table))
    return halves(e, lambda i: e.call("llvm.x86.avx2.pshuf.b", I8X32, both, i), indices)


def packed(e: Any, x: Any, y: Any) -> Any:
    return halves(e, lambda p, q: e.call("llvm.x86.avx2.packssdw", I16X16, p, q), x, y)


def pairs(e: Any, u: Any, s: Any) -> Any:
    return halves(e, lambda p, q: e.call("llvm.x86.avx2.pmadd.ub.sw", I16X16, p, q), u, s)


def dot4(e: Any, acc: Any, u: Any, s: Any) -> Any:
    """`maddubs` saturates at 16 bits: 2 * 127 * 127 fits."""
    return e.b.add(acc, _madd(e, pairs(e, u, s), e.int(1, I16X32)))


def dot4_wide(e: Any, acc: Any, w: Any, s: Any) -> Any:
    """2 * 255 * 127 would not fit into 16 bits. So w stays signed, and its sign is moved to the other factor: 2 * 128 * 127 fits."""
    signed = halves(e, lambda p, q: e.call("llvm.x86.avx2.psign.b", I8X32, p, q), s, w)
    return dot4(e, acc, e.call("llvm.abs.v64i8", I8X64, w, e.int(0, I1)), signed)


def dot2(e: Any, acc: Any, x: Any, y: Any) -> Any:
    return e.b.add(acc, _madd(e, x, y))


def pause(e: Any) -> None:
    e.call("llvm.x86.sse2.pause", ir.VoidType())


def prefetch_with(e: Any, vector: Any, address: Any, offset: int) -> Any:
    return on_x86(e, vector, address, offset, register=32)
