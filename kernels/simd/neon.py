"""Base ARMv8-A: 32 registers of 16 bytes, with FMA and conversions of half floats, without dot products."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .floats import f16_to_f32, f32_to_f16, fma, fma_exact
from .generic import PICKS_WORDS, dot_bf16, packed
from .prefetch import anywhere as prefetch_with
from .vectors import I8, I16, I32

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

RAISED = False
REGISTERS = 8
I8X16, I16X8, I32X4 = ir.VectorType(I8, 16), ir.VectorType(I16, 8), ir.VectorType(I32, 4)


def in_registers(e: Any, operation: Any, *operands: Any) -> Any:
    """Apply an operation on 16-byte registers to the four parts of 64-byte vectors."""
    parts = [operation(*(e.half(e.half(x, i // 2), i % 2) for x in operands)) for i in range(4)]
    return e.concat(e.concat(parts[0], parts[1]), e.concat(parts[2], parts[3]))


def lookup(e: Any, table: Any, indices: Any) -> Any:
    values = ir.Constant(I8X16, list(table))
    return in_registers(e, lambda i: e.call("llvm.aarch64.neon.tbl1.v16i8", I8X16, values, i), indices)


def _widening_products(e: Any, x: Any, y: Any, kind: Any) -> list[Any]:
    """Return the products of two registers' lanes, as two registers with lanes twice as wide."""
    name = f"llvm.aarch64.neon.smull.v{kind.count}i{kind.element.width}"
    return [e.call(name, kind, e.half(x, which), e.half(y, which)) for which in (0, 1)]


def _neighbours(e: Any, x: Any, kind: Any) -> Any:
    """Return the sums of two neighbours, in lanes twice as wide."""
    name = (
        f"llvm.aarch64.neon.saddlp.v{kind.count}i{kind.element.width}.v{x.type.count}i{x.type.element.width}"
    )
    return e.call(name, kind, x)


def pairs(e: Any, u: Any, s: Any) -> Any:
    """In 16 bits: 2 * 127 * 128 fits."""
    return in_registers(
        e,
        lambda x, y: e.call("llvm.aarch64.neon.addp.v8i16", I16X8, *_widening_products(e, x, y, I16X8)),
        u,
        s,
    )


def dot4(e: Any, acc: Any, u: Any, s: Any) -> Any:
    return e.b.add(acc, in_registers(e, lambda x: _neighbours(e, x, I32X4), pairs(e, u, s)))


dot4_wide = dot4  # 2 * 128 * 127 fits too


def dot2(e: Any, acc: Any, x: Any, y: Any) -> Any:
    def sums(x: Any, y: Any) -> Any:
        return e.call("llvm.aarch64.neon.addp.v4i32", I32X4, *_widening_products(e, x, y, I32X4))

    return e.b.add(acc, in_registers(e, sums, x, y))


def pause(e: Any) -> None:
    """`isb sy` delays a core about as long as x86's `pause`; `yield` does nothing on most cores."""
    e.call("llvm.aarch64.isb", ir.VoidType(), e.int(15, I32))
