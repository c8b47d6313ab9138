"""Activations: emit norms and gates for one token's row, and quantize it exactly as llama.cpp does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from . import layout
from .simd import F32, F32X16, I8X16, I8X64, I16, I16X16, I32, I32X16, Address, Emitter, Vector

F32X1 = ir.VectorType(F32, 1)


def each_lane(e: Emitter, n: Any, body: Callable[[Any, Any], None]) -> None:
    """Emit body(byte offset, kind) over n floats: 16 at a time, then the rest one by one. `kind` is the vector type to load."""
    b = e.b
    whole = b.lshr(n, e.int(4))
    with e.loop(whole) as i:
        body(b.shl(i, e.int(6)), F32X16)
    done = b.shl(whole, e.int(4))
    with e.loop(b.sub(n, done)) as i:
        body(b.shl(b.add(done, i), e.int(2)), F32X1)


def lanes(e: Emitter, scalar: Any, kind: Any) -> Any:
    return e.splat(scalar, kind.count)


def sum_of(e: Emitter, n: Any, term: Callable[[Any, Any], Any]) -> Any:
    """Return the sum of term(byte offset, kind) over n floats: 16 running sums and one for the rest, added up by the tree."""
    accs = {16: e.var(e.float(0.0, F32X16)), 1: e.var(e.float(0.0, F32X1))}

    def body(offset: Any, kind: Any) -> None:
        acc = accs[kind.count]
        e.b.store(e.b.fadd(e.b.load(acc), term(offset, kind)), acc)

    each_lane(e, n, body)
    return e.b.fadd(e.sum_f32(e.b.load(accs[16])), e.sum_f32(e.b.load(accs[1])))


def rms_scale(e: Emitter, x: Address, n: Any, eps: Any) -> Any:
    """1 / sqrt(mean(x**2) + eps)"""
    b = e.b

    def square(offset: Any, kind: Any) -> Any:
        value = e.load(kind, x, offset)
        return b.fmul(value, value)

    mean = b.fdiv(sum_of(e, n, square), b.sitofp(n, F32))
    return b.fdiv(e.float(1.0), e.call("llvm.sqrt.f32", F32, b.fadd(mean, eps)))


def rms_norm(e: Emitter, x: Address, weight: Address, out: Address, n: Any, eps: Any) -> None:
    """out = x / sqrt(mean(x**2) + eps) * weight; out may be x."""
    b, scale = e.b, rms_scale(e, x, n, eps)

    def write(offset: Any, kind: Any) -> None:
        e.store(
            b.fmul(b.fmul(e.load(kind, x, offset), lanes(e, scale, kind)), e.load(kind, weight, offset)),
            out,
            offset,
        )

    each_lane(e, n, write)


def sigmoid(e: Emitter, x: Vector, numerator: Vector | None = None) -> Any:
    """numerator / (1 + exp(-x)); the numerator is 1 by default."""
    b = e.b
    # e.exp stops growing at e**88, so a gate of -1e38 would not become 0
    exponential = b.select(
        b.fcmp_ordered("<", x, e.float(-88.0, x.type)), e.float(float("inf"), x.type), e.exp(b.fneg(x))
    )
    one = e.float(1.0, x.type)
    return b.fdiv(one if numerator is None else numerator, b.fadd(one, exponential))


def silu(e: Emitter, x: Vector) -> Any:
    return sigmoid(e, x, x)


def swiglu(e: Emitter, gate: Address, up: Address, out: Address, n: Any) -> None:
    """out = gate / (1 + exp(-gate)) * up"""

    def write(offset: Any, kind: Any) -> None:
        e.store(e.b.fmul(silu(e, e.load(kind, gate, offset)), e.load(kind, up, offset)), out, offset)

    each_lane(e, n, write)


def gate(e: Emitter, x: Address, gate: Address, out: Address, n: Any) -> None:
    """out = x / (1 + exp(-gate))"""
    each_lane(
        e,
        n,
        lambda offset, kind: e.store(
            sigmoid(e, e.load(kind, gate, offset), e.load(kind, x, offset)), out, offset
        ),
    )


def share(e: Emitter, x: Address, gate: Address, other: Address, out: Address, n: Any) -> None:
    """out = x / (1 + exp(-gate)), plus `other` unless its address is 0. The gate is a single number."""
    b = e.b
    share = b.extract_element(sigmoid(e, e.load(F32X1, gate)), e.int(0, I32))
    with b.if_else(b.icmp_unsigned("!=", other, e.int(0))) as branches:
        for branch, added in zip(branches, (other, None)):
            with branch:

                def write(offset: Any, kind: Any, added: Any = added) -> None:
                    value = b.fmul(e.load(kind, x, offset), lanes(e, share, kind))
                    e.store(
                        value if added is None else b.fadd(value, e.load(kind, added, offset)), out, offset
                    )

                each_lane(e, n, write)


def gated_norm(
    e: Emitter, gate: Address, x: Address, weight: Address, out: Address, n: Any, eps: Any
) -> None:
    """out = gate / (1 + exp(-gate)) * (x / sqrt(mean(x**2) + eps) * weight)"""
    b, scale = e.b, rms_scale(e, x, n, eps)

    def write(offset: Any, kind: Any) -> None:
        normed = b.fmul(b.fmul(e.load(kind, x, offset), lanes(e, scale, kind)), e.load(kind, weight, offset))
        e.store(b.fmul(silu(e, e.load(kind, gate, offset)), normed), out, offset)

    each_lane(e, n, write)


def _largest(e: Emitter, vectors: list[Vector], larger: Callable[[Any, Any], Any]) -> Any:
    largest = vectors[0]
    for v in vectors[1:]:
        largest = larger(v, largest)
    return e.tree(larger, largest)


def largest_magnitude(e: Emitter, vectors: list[Vector]) -> Any:
    """Return the largest magnitude, NaN if a value is NaN, which must reach the logits. Compared as integers, NaN is above infinity."""
    b = e.b
    bits = [b.bitcast(e.abs(v), I32X16) for v in vectors]
    return b.bitcast(_largest(e, bits, lambda x, y: b.select(b.icmp_signed(">", x, y), x, y)), F32)


def neighbours(e: Emitter, x: Vector, y: Vector) -> Any:
    """Return the sums of pairs of neighbouring lanes: those of x, then those of y."""
    return e.b.add(e.shuffle(x, range(0, 32, 2), y), e.shuffle(x, range(1, 32, 2), y))


def quantize_q8k(e: Emitter, x: Address, q: Address, d: Address, sums: Address, n: Any) -> None:
    """Q8_K (quantize_row_q8_K_ref in ggml-quants.c): the scale is such that the value of largest magnitude becomes -127."""
    b = e.b
    with e.loop(b.udiv(n, e.int(layout.Q8K_BLOCK))) as i:
        xs = e.at(x, b.mul(i, e.int(4 * layout.Q8K_BLOCK)))
        qs = e.at(q, b.mul(i, e.int(layout.Q8K_BLOCK)))
        out_sums = e.at(sums, b.mul(i, e.int(layout.Q8K_SUMS_BYTES)))
        values = [e.load(F32X16, xs, 64 * k) for k in range(16)]
        high = _largest(e, values, e.larger)
        magnitude = largest_magnitude(e, values)
        largest = b.select(b.fcmp_ordered(">=", high, magnitude), high, b.fneg(magnitude))
        is_zero = b.fcmp_ordered("==", largest, e.float(0.0))
        inverse = b.select(is_zero, e.float(0.0), b.fdiv(e.float(-127.0), largest))
        scale = b.select(is_zero, e.float(0.0), b.fdiv(e.float(1.0), inverse))
        fours = []
        for k in range(0, 16, 4):
            ints = [e.nearest(b.fmul(value, e.splat(inverse))) for value in values[k : k + 4]]
            quants = [b.trunc(e.least(x, e.int(127, I32X16)), I8X16) for x in ints]
            together = e.concat(e.concat(*quants[:2]), e.concat(*quants[2:]))
            e.store(together, qs, 16 * k)
            fours.append(e.dot4(e.int(0, I32X16), e.int(1, I8X64), together))
        eights = [neighbours(e, *fours[:2]), neighbours(e, *fours[2:])]
        sixteens = neighbours(e, *eights)
        e.store(b.trunc(sixteens, I16X16), out_sums, layout.SUMS_OF_16)
        e.store(
            b.trunc(e.half(neighbours(e, sixteens, sixteens), 0), ir.VectorType(I16, 8)),
            out_sums,
            layout.SUMS_OF_32,
        )
        e.store(scale, d, b.shl(i, e.int(2)))


def quantize_q8_0(e: Emitter, x: Address, q: Address, d: Address, sums: Address, n: Any) -> None:
    """Q8_0 (quantize_row_q8_0 in ggml-cpu): the scale is the largest magnitude / 127, kept in half precision."""
    b = e.b
    with e.loop(b.udiv(n, e.int(layout.Q8_0_BLOCK))) as i:
        xs = e.at(x, b.mul(i, e.int(4 * layout.Q8_0_BLOCK)))
        qs = e.at(q, b.mul(i, e.int(layout.Q8_0_BLOCK)))
        values = [e.load(F32X16, xs), e.load(F32X16, xs, 64)]
        scale = b.fdiv(largest_magnitude(e, values), e.float(127.0))
        inverse = b.select(
            b.fcmp_ordered("==", scale, e.float(0.0)), e.float(0.0), b.fdiv(e.float(1.0), scale)
        )
        ints = [e.nearest(b.fmul(v, e.splat(inverse))) for v in values]
        for k, quants in enumerate(ints):
            e.store(b.trunc(quants, I8X16), qs, 16 * k)
        offset = b.shl(i, e.int(2))
        first, second = (e.sum_i32(i) for i in ints)
        e.store(
            b.or_(b.and_(b.add(first, second), e.int(0xFFFF, I32)), b.shl(first, e.int(16, I32))),
            sums,
            offset,
        )
        e.store(e.f16_to_f32(e.f32_to_f16(scale)), d, offset)


def quantize_row(
    e: Emitter, kind: str, x: Address, q: Address, d: Address, sums: Address, n: Any, token: Any
) -> None:
    """Quantize the n floats at x, a token's row, to its place in the arrays q, d and sums (see layout.py). The kind "bf16" only rounds,
    "f32" does nothing."""
    b = e.b
    if kind == "bf16":
        q = e.at(q, b.shl(b.mul(token, n), e.int(1)))
        each_lane(
            e,
            n,
            lambda offset, kind: e.store(e.f32_to_bf16(e.load(kind, x, offset)), q, b.lshr(offset, e.int(1))),
        )
    if kind in ("f32", "bf16"):
        return
    quantize, block, sum_bytes = {
        "q8k": (quantize_q8k, layout.Q8K_BLOCK, layout.Q8K_SUMS_BYTES),
        "q8_0": (quantize_q8_0, layout.Q8_0_BLOCK, layout.Q8_0_SUMS_BYTES),
    }[kind]
    blocks = b.mul(token, b.udiv(n, e.int(block)))
    quantize(
        e,
        x,
        e.at(q, b.mul(token, b.or_(n, e.int(layout.ODD_LINES)))),
        e.at(d, b.shl(blocks, e.int(2))),
        e.at(sums, b.mul(blocks, e.int(sum_bytes))),
        n,
    )
