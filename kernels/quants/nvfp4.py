"""NVFP4: 64 weights in 36 bytes (block_nvfp4 in ggml-common.h): four scales, one for every 16 weights, then 8 bytes for every 16
weights, with weights 0-7 in the low nibbles, 8-15 in the high ones.

weight = scale / 2 * DOUBLED[q] (see MXFP4). A scale is a float of seven bits, E4M3 without a sign; 127, which is NaN, counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit

from ..formats import FORMATS, sizes
from ..simd import F32, I8X16, I16, I16X16, Emitter, as_f32, f32, i64, intrinsic_of, like, load_u8
from . import mxfp4
from ._blocks import Form, Group, nibbles
from ._kquants import gathered

BLOCK, BYTES, KIND = sizes("NVFP4")
FORM = Form(offset=mxfp4.FORM.offset, n_scales=2)
SCALED = FORMATS["NVFP4"].scaled


def half_scale(e: Emitter, codes: Any) -> Any:
    """Return half of an E4M3 float as f32, for i16 lanes or one i16. Its bits, read as a half float, are 2**-8 of it: the bias is larger by
    8."""
    b, n = e.b, lambda value: e.int(value, codes.type)
    known = b.select(b.icmp_unsigned("==", codes, n(127)), n(0), b.shl(b.and_(codes, n(127)), n(7)))
    return b.fmul(e.f16_to_f32(known), e.float(2.0**7, like(codes, F32)))


half_scale_of_byte = intrinsic_of(f32, i64)(lambda e, code: half_scale(e, e.b.trunc(code, I16)))


@njit(inline="always")
def value(p, i):
    q = load_u8(p + 4 + i // 16 * 8 + i % 8) >> (i // 8 % 2 * 4) & 15
    return half_scale_of_byte(load_u8(p + i // 16)) * as_f32(mxfp4.entry(q))


def load_four(e: Emitter, groups: Sequence[Group]) -> tuple[Any, Any]:
    both = nibbles(e, e.join([e.load(I8X16, group.block, 4 + 16 * group.number) for group in groups]))
    low, high = (mxfp4.raised_entries(e, of_all) for of_all in both)
    first, second = (
        e.shuffle(low, [16 * (i // 16) + 8 * half + i % 8 + 64 * (i // 8 % 2) for i in range(64)], high)
        for half in (0, 1)
    )
    return first, second


def scales(e: Emitter, groups: Sequence[Group]) -> list[Any]:
    pairs = gathered(e, [e.at(group.block, 2 * group.number) for group in groups], 0, I16)
    return [
        half_scale(e, e.b.and_(pairs, e.int(255, I16X16))),
        half_scale(e, e.b.lshr(pairs, e.int(8, I16X16))),
    ]


def quarts(e: Emitter, rows: Sequence[Any], number: int) -> list[Any]:
    both = [
        [mxfp4.raised_entries(e, half) for half in nibbles(e, word)]
        for word in e.transposed(rows, 4 + 16 * number, 4)
    ]
    return [both[2 * part + i][half] for part in (0, 1) for half in (0, 1) for i in (0, 1)]
