"""Base ARMv8-A: 32 registers of 16 bytes, with FMA and conversions of half floats, without dot products."""
from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import I8, I8X64, I16, I32, I32X16
from .avx2 import f16_to_f32, f32_to_f16, fma, fma_exact

__all__ = ["dot2", "dot4", "f16_to_f32", "f32_to_f16", "fma", "fma_exact", "in_registers", "pairs", "pause"]

I8X16, I16X8, I32X4 = ir.VectorType(I8, 16), ir.VectorType(I16, 8), ir.VectorType(I32, 4)


def in_registers(e: Any, operation: Any, *operands: Any) -> Any:
    """An operation on 16-byte registers, done on the four parts of 64-byte vectors."""
    parts = [operation(*(e.half(e.half(x, i // 2), i % 2) for x in operands)) for i in range(4)]
    return e.concat(e.concat(parts[0], parts[1]), e.concat(parts[2], parts[3]))


def _widening_products(e: Any, x: Any, y: Any, kind: Any) -> list[Any]:
    """The products of two registers' lanes, in two registers of lanes twice as wide."""
    name = f"llvm.aarch64.neon.smull.v{kind.count}i{kind.element.width}"
    return [e.call(name, kind, e.half(x, which), e.half(y, which)) for which in (0, 1)]


def _neighbours(e: Any, x: Any, kind: Any) -> Any:
    """Sums of two neighbours, in lanes twice as wide."""
    name = f"llvm.aarch64.neon.saddlp.v{kind.count}i{kind.element.width}.v{x.type.count}i{x.type.element.width}"
    return e.call(name, kind, x)


def pairs(e: Any, u: Any, s: Any) -> Any:
    """In 16 bits: 2 * 127 * 128 fits."""
    return in_registers(e, lambda x, y: e.call("llvm.aarch64.neon.addp.v8i16", I16X8, *_widening_products(e, x, y, I16X8)), u, s)


def raised(e: Any, acc: Any, u: Any, sums_of_4: Any) -> tuple[Any, Any]:
    """For products of signed bytes only: acc and u such that u - 128, a signed byte, gives what u would have given.

    `sums_of_4` are those of the other factor, which several rows share, so that LLVM computes them once.
    """
    return e.b.add(acc, e.b.shl(sums_of_4, e.int(7, I32X16))), e.b.xor(u, e.int(-128, I8X64))


def dot4(e: Any, acc: Any, u: Any, s: Any, u_below_128: bool) -> Any:
    b = e.b
    if u_below_128:
        return b.add(acc, in_registers(e, lambda x: _neighbours(e, x, I32X4), pairs(e, u, s)))
    acc, u = raised(e, acc, u, in_registers(e, lambda y: _neighbours(e, _neighbours(e, y, I16X8), I32X4), s))

    def sums(x: Any, y: Any) -> Any:  # two products of -128 and -128 don't fit 16 bits
        return e.call("llvm.aarch64.neon.addp.v4i32", I32X4, *(_neighbours(e, p, I32X4) for p in _widening_products(e, x, y, I16X8)))

    return b.add(acc, in_registers(e, sums, u, s))


def dot2(e: Any, acc: Any, x: Any, y: Any) -> Any:
    def sums(x: Any, y: Any) -> Any:
        return e.call("llvm.aarch64.neon.addp.v4i32", I32X4, *_widening_products(e, x, y, I32X4))

    return e.b.add(acc, in_registers(e, sums, x, y))


def pause(e: Any) -> None:
    """`isb sy` holds a core back about as long as x86's `pause`; `yield` does nothing on most."""
    e.call("llvm.aarch64.isb", ir.VoidType(), e.int(15, I32))
