"""The primitives that kernels are written with: vectors, and loads and stores for Numba code.

A kernel is a Numba function that works on addresses and counts. Vector code is emitted by Python functions that take an `Emitter`;
`intrinsic_of` makes them callable from Numba code.

Vectors have the same width on every CPU, 64 lanes of 8 bits or 16 of 32 bits; LLVM splits them for shorter registers. So a kernel is
written once, and the file of an ISA holds only the few operations that LLVM would not find by itself, such as the dot product of bytes and
the conversion of half floats. Only these files name instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from ..layout import LANES
from .emitter import Emitter
from .vectors import (
    F32,
    F32X4,
    F32X16,
    HALF,
    I8,
    I8X16,
    I8X32,
    I8X64,
    I16,
    I16X16,
    I16X32,
    I32,
    I32X4,
    I32X16,
    I64,
    Address,
    Vector,
    like,
)

__all__ = [
    "F32",
    "F32X4",
    "F32X16",
    "HALF",
    "I8",
    "I8X16",
    "I8X32",
    "I8X64",
    "I16",
    "I16X16",
    "I16X32",
    "I32",
    "I32X4",
    "I32X16",
    "I64",
    "LANES",
    "Address",
    "Emitter",
    "Vector",
    "as_f32",
    "f32",
    "i64",
    "intrinsic_of",
    "like",
    "load_f16",
    "load_f32",
    "load_i8",
    "load_i32",
    "load_i64",
    "load_u8",
    "store_f32",
    "store_i64",
    "void",
]


def intrinsic_of(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function of an Emitter and LLVM values callable from Numba code. `result` and `arguments` are Numba types."""

    def decorate(function: Callable[..., Any]) -> Any:
        def typing(typing_context: Any, *args: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                value = function(Emitter(builder), *values)
                return context.get_dummy_value() if value is None else value

            return result(*arguments), codegen

        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        scope: dict[str, Any] = {"typing": typing}
        # Numba needs parameters with names
        exec(f"def op(typing_context, {names}):\n    return typing(typing_context, {names})", scope)
        return intrinsic(scope["op"])

    return decorate


i64 = types.int64
f32 = types.float32
void = types.void
load_i64 = intrinsic_of(i64, i64)(lambda e, address: e.load(I64, address))
load_i32 = intrinsic_of(i64, i64)(lambda e, address: e.b.sext(e.load(I32, address), I64))
load_f32 = intrinsic_of(f32, i64)(lambda e, address: e.load(F32, address))
load_u8 = intrinsic_of(i64, i64)(lambda e, address: e.b.zext(e.load(I8, address), I64))
load_i8 = intrinsic_of(i64, i64)(lambda e, address: e.b.sext(e.load(I8, address), I64))
load_f16 = intrinsic_of(f32, i64)(lambda e, address: e.load_f16(address))
store_i64 = intrinsic_of(void, i64, i64)(lambda e, address, value: e.store(value, address))
store_f32 = intrinsic_of(void, i64, f32)(lambda e, address, value: e.store(value, address))
as_f32 = intrinsic_of(f32, i64)(lambda e, value: e.b.sitofp(value, F32))
