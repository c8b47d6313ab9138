"""Q4_0: 32 quants of 4 bits and a scale (block_q4_0 in ggml-common.h), quantized as quantize_row_q4_0_ref in ggml-quants.c does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..activations import largest_magnitude
from ..simd import F32, F32X16, I8X16, I8X32, I16, I16X32, I32, I32X16, Emitter
from ._blocks import Blocks


def quantize(e: Emitter, x: Any) -> tuple[Any, Any]:
    """The scale is the value of largest magnitude (the first of equals) / -8. Quants from 0 to 15 stand for -8 to 7."""
    b = e.b
    values = [e.load(F32X16, x), e.load(F32X16, x, 64)]
    largest = e.splat(b.bitcast(largest_magnitude(e, values), I32))
    masks = [
        b.zext(b.bitcast(b.icmp_signed("==", b.bitcast(e.abs(value), I32X16), largest), I16), I32)
        for value in values
    ]
    which = b.or_(masks[0], b.shl(masks[1], e.int(16, I32)))
    first = e.call("llvm.cttz.i32", I32, which, ir.Constant(ir.IntType(1), 0))
    scale = b.fdiv(
        e.load(F32, x, b.zext(b.shl(b.and_(first, e.int(31, I32)), e.int(2, I32)), ir.IntType(64))),
        e.float(-8.0),
    )
    inverse = b.select(b.fcmp_ordered("==", scale, e.float(0.0)), e.float(0.0), b.fdiv(e.float(1.0), scale))
    quants = []
    for value in values:
        shifted = b.fadd(b.fmul(value, e.splat(inverse)), e.float(8.5, F32X16))
        for limit, order in (15.0, "<"), (0.0, ">"):
            shifted = b.select(
                b.fcmp_ordered(order, shifted, e.float(limit, F32X16)), shifted, e.float(limit, F32X16)
            )
        quants.append(b.trunc(b.fptosi(shifted, I32X16), I8X16))
    return scale, b.or_(quants[0], b.shl(quants[1], e.int(4, I8X16)))


def nibbles(e: Emitter, x: Any) -> Sequence[Any]:
    return e.b.and_(x, e.int(15, x.type)), e.b.lshr(x, e.int(4, x.type))


def value_half(e: Emitter, pair: Any, half: int) -> Any:
    return e.b.sub(e.b.zext(nibbles(e, e.load(I8X32, pair))[half], I16X32), e.int(8, I16X32))


FORMAT = Blocks(16, 8, False, quantize, nibbles, value_half)
