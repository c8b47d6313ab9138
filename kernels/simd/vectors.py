"""The LLVM types that kernels use, and types of LLVM values for the type checker."""

from __future__ import annotations

from typing import Any, NewType

from llvmlite import ir

from ..layout import LANES

I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
HALF = ir.HalfType()
F32 = ir.FloatType()
I8X16, I8X32, I8X64 = (ir.VectorType(I8, n) for n in (16, 32, 64))
I16X16, I16X32 = (ir.VectorType(I16, n) for n in (16, 32))
I32X4, I32X16, F32X4, F32X16 = (ir.VectorType(kind, n) for kind in (I32, F32) for n in (4, LANES))


class LLVMValue:
    """An LLVM value, as a type checker sees it: llvmlite has no types."""

    type: Any


Address = NewType("Address", LLVMValue)
"""An i64 that is an address."""
Vector = NewType("Vector", LLVMValue)
"""Lanes of floats or integers."""


def like(x: Any, element: Any) -> Any:
    """Return the type of x with another type of elements: a vector with the same number of lanes, or just `element` if x is a scalar."""
    return ir.VectorType(element, x.type.count) if isinstance(x.type, ir.VectorType) else element
