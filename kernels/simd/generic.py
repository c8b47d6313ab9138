"""Plain LLVM vector IR: correct on every target, and without calls into a library."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .. import isa
from .prefetch import anywhere, on_x86
from .vectors import F32, F32X16, I8X64, I16, I16X32, I32, I32X16, like

RAISED = True
REGISTERS = 4
PICKS_WORDS = False


def fma(e: Any, x: Any, y: Any, z: Any) -> Any:
    """Rounds twice: llvm.fma would call a library function if there is no instruction."""
    return e.b.fadd(e.b.fmul(x, y), z)


def fma_exact(e: Any, x: Any, y: Any, z: Any) -> Any:
    """Uses doubles, which hold a product of two floats exactly."""
    b, doubles = e.b, like(x, ir.DoubleType())
    return b.fptrunc(b.fadd(b.fmul(b.fpext(x, doubles), b.fpext(y, doubles)), b.fpext(z, doubles)), x.type)


def f16_to_f32(e: Any, halves: Any) -> Any:
    """Uses integers: `fpext half` calls a library function on a CPU without F16C."""
    b, kind, floats = e.b, like(halves, I32), like(halves, F32)
    wide = b.zext(halves, kind)
    magnitude = b.and_(wide, e.int(0x7FFF, kind))
    # this is right for subnormals too
    scaled = b.fmul(b.bitcast(b.shl(magnitude, e.int(13, kind)), floats), e.float(2.0**112, floats))
    bits = b.bitcast(scaled, kind)
    special = b.icmp_unsigned(">=", magnitude, e.int(0x7C00, kind))
    bits = b.select(special, b.or_(bits, e.int(0x7F800000, kind)), bits)
    return b.bitcast(b.or_(bits, b.shl(b.and_(wide, e.int(0x8000, kind)), e.int(16, kind))), floats)


def f32_to_f16(e: Any, x: Any) -> Any:
    """Rounds to nearest even: in the normal range with integers, below it by adding a power of two, so that the FPU rounds."""
    b, kind, floats = e.b, like(x, I32), like(x, F32)
    n = lambda value: e.int(value, kind)  # noqa: E731
    bits = b.bitcast(x, kind)
    sign = b.and_(bits, n(0x80000000))
    bits = b.xor(bits, sign)
    magic = ((127 - 15) + (23 - 10) + 1) << 23
    small = b.sub(b.bitcast(b.fadd(b.bitcast(bits, floats), b.bitcast(n(magic), floats)), kind), n(magic))
    odd = b.and_(b.lshr(bits, n(13)), n(1))
    normal = b.lshr(b.add(b.add(bits, n((((15 - 127) << 23) + 0xFFF) & 0xFFFFFFFF)), odd), n(13))
    large = b.select(b.icmp_unsigned(">", bits, n(255 << 23)), n(0x7E00), n(0x7C00))
    out = b.select(b.icmp_unsigned("<", bits, n(113 << 23)), small, normal)
    out = b.select(b.icmp_unsigned(">=", bits, n((127 + 16) << 23)), large, out)
    return b.trunc(b.or_(out, b.lshr(sign, n(16))), like(x, I16))


def _madd(e: Any, x: Any, y: Any) -> Any:
    """i16x32, i16x32 -> i32x16: sums of the products of two neighbours. LLVM knows this form: on x86 it is one instruction."""
    products = e.b.mul(*(e.b.sext(v, ir.VectorType(I32, 32)) for v in (x, y)))
    return e.b.add(e.shuffle(products, range(0, 32, 2)), e.shuffle(products, range(1, 32, 2)))


def _even_and_odd(e: Any, w: Any, s: Any) -> list[tuple[Any, Any]]:
    """u8x64, i8x64 -> two pairs of i16x32: the even bytes of both, then the odd bytes of both."""
    b, eight = e.b, e.int(8, I16X32)
    w, s = b.bitcast(w, I16X32), b.bitcast(s, I16X32)
    return [
        (b.and_(w, e.int(0xFF, I16X32)), b.ashr(b.shl(s, eight), eight)),
        (b.lshr(w, eight), b.ashr(s, eight)),
    ]


def dot4(e: Any, acc: Any, u: Any, s: Any) -> Any:
    even, odd = (_madd(e, *both) for both in _even_and_odd(e, u, s))
    return e.b.add(acc, e.b.add(even, odd))


dot4_wide = dot4


def lookup(e: Any, table: Any, indices: Any) -> Any:
    """A tree of selects by the bits of the index, the lowest bit first."""
    b = e.b
    values = [e.int(value, I8X64) for value in table]
    for bit in range(4):
        is_set = b.icmp_unsigned("!=", b.and_(indices, e.int(1 << bit, I8X64)), e.int(0, I8X64))
        values = [b.select(is_set, values[i + 1], values[i]) for i in range(0, len(values), 2)]
    return values[0]


def packed(e: Any, x: Any, y: Any) -> Any:
    """Takes the lower half of each lane: the 16-bit words with even numbers."""
    x, y = (e.b.bitcast(v, I16X32) for v in (x, y))
    return e.shuffle(x, [first + i for first in range(0, 32, 8) for i in (0, 2, 4, 6, 32, 34, 36, 38)], y)


def pairs(e: Any, u: Any, s: Any) -> Any:
    even, odd = (e.b.mul(*both) for both in _even_and_odd(e, u, s))
    return e.b.add(even, odd)


def dot2(e: Any, acc: Any, x: Any, y: Any) -> Any:
    return e.b.add(acc, _madd(e, x, y))


def dot_bf16(e: Any, acc: Any, x: Any, y: Any) -> Any:
    """A bf16 is the upper half of a float. So the odd lanes are floats once the even ones are masked out."""
    b, high = e.b, e.int(0xFFFF0000, I32X16)
    x, y = b.bitcast(x, I32X16), b.bitcast(y, I32X16)
    for part in lambda v: b.and_(v, high), lambda v: b.shl(v, e.int(16, I32X16)):
        acc = e.fma(b.bitcast(part(x), F32X16), b.bitcast(part(y), F32X16), acc)
    return acc


def pause(e: Any) -> None:
    """Does nothing: there is no portable instruction."""


def prefetch_with(e: Any, vector: Any, address: Any, offset: int) -> Any:
    return (
        on_x86(e, vector, address, offset, register=16)
        if isa.machine() in isa.X86
        else anywhere(e, vector, address, offset)
    )
