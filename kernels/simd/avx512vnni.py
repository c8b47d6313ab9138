"""AVX-512 with VNNI: 64-byte registers and dot products of bytes in one instruction."""
from __future__ import annotations

from typing import Any

from . import I8X64, I32X16
from .avx2 import f16_to_f32, f32_to_f16, fma, pause

__all__ = ["dot2", "dot4", "dot4_signed", "f16_to_f32", "f32_to_f16", "fma", "pause"]


def dot4(e: Any, acc: Any, u: Any, s: Any, u_below_128: bool) -> Any:
    return e.call("llvm.x86.avx512.vpdpbusd.512", I32X16, acc, u, s)


def dot4_signed(e: Any, acc: Any, w: Any, s: Any) -> Any:
    """|w| times s with w's sign."""
    b = e.b
    negative = b.icmp_signed("<", w, e.int(0, I8X64))
    return dot4(e, acc, b.select(negative, b.neg(w), w), b.select(negative, b.neg(s), s), False)


def dot2(e: Any, acc: Any, x: Any, y: Any) -> Any:
    return e.call("llvm.x86.avx512.vpdpwssd.512", I32X16, acc, x, y)
