"""Q8_0: 32 i8 quants and a scale (block_q8_0 in ggml-common.h), quantized as quantize_row_q8_0_ref in ggml-quants.c does."""

from __future__ import annotations

from typing import Any

from ..activations import largest_magnitude
from ..simd import F32X16, I8X16, I8X32, I16X32, I32X16, Emitter
from ._blocks import Blocks


def quantize(e: Emitter, x: Any) -> tuple[Any, Any]:
    """The scale is the largest magnitude / 127; quants are rounded half away from zero."""
    b = e.b
    values = [e.load(F32X16, x), e.load(F32X16, x, 64)]
    scale = b.fdiv(largest_magnitude(e, values), e.float(127.0))
    inverse = b.select(b.fcmp_ordered("==", scale, e.float(0.0)), e.float(0.0), b.fdiv(e.float(1.0), scale))
    quants = []
    for value in values:
        magnitude, most = e.abs(b.fmul(value, e.splat(inverse))), e.float(127.0, F32X16)
        magnitude = b.select(b.fcmp_ordered("<", magnitude, most), magnitude, most)
        # not 0.5, which would round the largest number below 0.5 up
        rounded = b.fptosi(b.fadd(magnitude, e.float(0.49999997, F32X16)), I32X16)
        quants.append(
            b.trunc(
                b.select(b.fcmp_ordered("<", value, e.float(0.0, F32X16)), b.neg(rounded), rounded), I8X16
            )
        )
    return scale, e.concat(*quants)


def value_half(e: Emitter, pair: Any, half: int) -> Any:
    return e.b.sext(e.load(I8X32, pair, 32 * half), I16X32)


FORMAT = Blocks(32, 0, True, quantize, lambda e, quants: [e.raised(quants)], value_half)
