"""K-quants: 256 weights per block; panels of 16 rows, with the rows in lanes. Activations are Q8_K.

For each block of 16 rows, a panel holds 64 vectors with four weights in each lane ("quarts"), a vector of 32-bit scales for each part of
the block, and the f32 scale d. Mins, if there are any, follow: their f32 scale dmin, then those of every two parts as pairs of i16. If
quants are so small that their products with the scales fit into bytes, the quarts hold these products, and the scales needn't be applied
for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from .. import layout
from ..simd import F32X4, I8X16, I8X32, I16, I16X16, I16X32, I32, I32X16, I64, Emitter, like
from ._quarts import VECTOR

QUARTS = 64 * VECTOR


class Act(NamedTuple):
    """An activation block: the address of its 256 quants and the address of its sums."""

    q: Any
    sums: Any


class Panel(NamedTuple):
    """Offsets in the block of a panel, with scales and perhaps `mins` for `n_parts` parts. A `scaled` panel has no scales: its quarts are
    already multiplied by them."""

    n_parts: int
    scaled: bool = False
    mins: bool = False

    @property
    def scales(self) -> int:
        return QUARTS

    @property
    def d(self) -> int:
        return self.scales + (0 if self.scaled else self.n_parts * VECTOR)

    @property
    def dmin(self) -> int:
        return self.d + VECTOR

    @property
    def pairs(self) -> int:
        return self.dmin + VECTOR

    @property
    def n_bytes(self) -> int:
        return self.pairs + self.n_parts // 2 * VECTOR if self.mins else self.dmin


def six_bit(e: Emitter, u0: Any, u1: Any, u2: Any) -> tuple[Any, Any, Any, Any]:
    """Unpack the 8 scales and 8 mins of Q4_K and Q5_K from three u32 (get_scale_min_k4 in ggml-quants.c). Returns scales 0-3, scales 4-7,
    mins 0-3 and mins 4-7, four bytes each. Works on scalars and on vectors with a row in each lane."""
    b, n = e.b, lambda value: e.int(value, u0.type)
    low, nibble, two = n(0x3F3F3F3F), n(0x0F0F0F0F), n(0x03030303)
    four, six = n(4), n(6)
    scales = b.or_(b.and_(u2, nibble), b.shl(b.and_(b.lshr(u0, six), two), four))
    mins = b.or_(b.and_(b.lshr(u2, four), nibble), b.shl(b.and_(b.lshr(u1, six), two), four))
    return b.and_(u0, low), scales, b.and_(u1, low), mins


def side_by_side(e: Emitter, rows: Sequence[Any], offset: int) -> Any:
    """Load 16 bytes from each of four rows, i8x64."""
    return e.join([e.load(I8X16, row, offset) for row in rows])


def of_each_row(numbers: Iterable[int], n_lanes: int) -> list[int]:
    """Return the indices of these lanes of every row, in a vector with `n_lanes` for each of four rows."""
    return [n_lanes * row + number for row in range(4) for number in numbers]


def scales_and_mins(e: Emitter, head: Any) -> tuple[Any, Any]:
    """Return the 8 scales and the 8 mins of four rows, each i16x32: `six_bit` with the parts in lanes."""
    b = e.b

    def parts(first: Sequence[int], second: Sequence[int]) -> Any:
        return b.zext(e.shuffle(head, of_each_row([*first, *second], 16)), I16X32)

    def each(low: int, high: int) -> Any:
        return ir.Constant(I16X32, ([low] * 4 + [high] * 4) * 4)

    u0, u1, u2 = range(4, 8), range(8, 12), range(12, 16)
    low_bits, two_bits, two = each(63, 15), each(0, 0x30), e.int(2, I16X32)
    scales = b.or_(b.and_(parts(u0, u2), low_bits), b.and_(b.lshr(parts(u0, u0), two), two_bits))
    mins = b.or_(
        b.and_(b.lshr(parts(u1, u2), each(0, 4)), low_bits), b.and_(b.lshr(parts(u1, u1), two), two_bits)
    )
    return scales, mins


def gathered(e: Emitter, rows: Sequence[Any], offset: int, kind: Any) -> Any:
    """Gather the i16, i32 or i64 at `offset` of each of 4, 8 or 16 rows into lanes. Uses integer instructions: the shuffle units are
    busy."""
    b, n = e.b, 64 // kind.width
    words = ir.Constant(ir.VectorType(I64, len(rows) // n), ir.Undefined)
    for i in range(0, len(rows), n):
        word = e.int(0)
        for j, row in enumerate(rows[i : i + n]):
            word = b.or_(word, b.shl(b.zext(e.load(kind, row, offset), I64), e.int(kind.width * j)))
        words = b.insert_element(words, word, e.int(i // n, I32))
    return b.bitcast(words, ir.VectorType(kind, len(rows)))


def gathered_halves(e: Emitter, rows: Sequence[Any], offset: int) -> Any:
    """Gather the half float at `offset` of each of 4, 8 or 16 rows, as f32 lanes."""
    return e.f16_to_f32(gathered(e, rows, offset, I16))


def low_and_high_halves(e: Emitter, words: Any) -> tuple[Any, Any]:
    """u32 lanes that hold two half floats -> both as f32 lanes."""
    low, high = words, e.b.lshr(words, e.int(16, words.type))
    return e.f16_to_f32(e.b.trunc(low, like(low, I16))), e.f16_to_f32(e.b.trunc(high, like(high, I16)))


def store_six_bit(e: Emitter, panel: Panel, address: Any, words: Sequence[Any]) -> None:
    """Store the scales and mins of 16 rows in a panel, from the three words of each row."""
    b, byte = e.b, e.int(0xFF, I32X16)
    s_low, s_high, m_low, m_high = six_bit(e, *words)

    def pick(word: Any, j: int) -> Any:
        return b.and_(b.lshr(word, e.int(8 * (j % 4), I32X16)), byte)

    for j in range(8):
        e.store(pick(s_low if j < 4 else s_high, j), address, panel.scales + j * VECTOR)
    for j in range(0, 8, 2):
        word = m_low if j < 4 else m_high
        e.store(
            b.or_(pick(word, j), b.shl(pick(word, j + 1), e.int(16, I32X16))),
            address,
            panel.pairs + j // 2 * VECTOR,
        )


def store_scales(e: Emitter, panel: Panel, address: Any, scales: Sequence[Any]) -> None:
    """Store the scale of each part (i32x16, with the rows in lanes) in a panel."""
    for j, scale in enumerate(scales):
        e.store(scale, address, panel.scales + j * VECTOR)


def sum_four(e: Emitter, vectors: Sequence[Any]) -> Any:
    """Return the sums of four i32x16, as i32x4."""
    total = e.sums_of_quarters(vectors)
    while total.type.count > 4:
        total = e.b.add(e.half(total, 0), e.half(total, 1))
    return total


def of_each(
    e: Emitter, rows: Sequence[Any], total_of: Callable[[Any, Any], Any], scales: Any = None
) -> list[Any]:
    """Return total_of(address, scales), an i32x16, for each of four rows. A row's scales are a quarter of the lanes of `scales`, 64 bytes.

    With few registers this is a loop: if it were unrolled, LLVM would start all rows at once and keep them on the stack.
    """
    b, n = e.b, len(rows)
    own_type = scales and ir.VectorType(scales.type.element, scales.type.count // n)
    if e.registers >= 8:
        lanes = range(own_type.count if scales else 0)
        return [
            total_of(row, scales and e.shuffle(scales, [len(lanes) * r + lane for lane in lanes]))
            for r, row in enumerate(rows)
        ]
    addresses, totals, kept = e.memory(64), e.memory(64 * n), e.memory(64)
    for r, row in enumerate(rows):
        e.store(row, addresses, 8 * r)
    if scales:
        e.store(scales, kept)
    with e.loop(e.int(n)) as r, e.sharing(r, n):
        own = scales and e.load(own_type, kept, b.shl(r, e.int(4)))
        e.store(total_of(e.load(I64, addresses, b.shl(r, e.int(3))), own), totals, b.shl(r, e.int(6)))
    return [e.load(I32X16, totals, 64 * r) for r in range(n)]


def values_with_mins(
    e: Emitter, rows: Sequence[Any], quants: Callable[[Emitter, Any], Iterable[Any]], act: Act
) -> Any:
    """Multiply a block of each of four rows by the activations, f32x4, for Q4_K and Q5_K.

    `quants` yields four i8x64 of a row: the 32-weight parts 0 and 2, 1 and 3, 4 and 6, 5 and 7.
    """
    b = e.b
    head = side_by_side(e, rows, 0)
    scales, mins = scales_and_mins(e, head)

    def total_of(row: Any, own: Any) -> Any:
        total = e.int(0, I32X16)
        for quant, (i, j) in zip(quants(e, row), ((0, 2), (1, 3), (4, 6), (5, 7))):
            activations = e.concat(e.load(I8X32, act.q, 32 * i), e.load(I8X32, act.q, 32 * j))
            total = e.dot2(total, e.pairs(quant, activations), e.shuffle(own, [i] * 16 + [j] * 16))
        return total

    totals = of_each(e, rows, total_of, scales)
    offset = times_sums_of_32(e, mins, act)
    halves = b.bitcast(head, I16X32)
    d, dmin = (e.f16_to_f32(e.shuffle(halves, of_each_row([i], 8))) for i in (0, 1))
    return b.fsub(b.fmul(d, b.sitofp(sum_four(e, totals), F32X4)), b.fmul(dmin, b.sitofp(offset, F32X4)))


def words_shifted(e: Emitter, shift: Callable[[Any, Any], Any], x: Any, n: Any) -> Any:
    """Shift bytes by n bits, as i16 since CPUs can't shift bytes. The caller has to mask out the bits that come in from the neighbour."""
    words = ir.VectorType(I16, x.type.count // 2)
    return e.b.bitcast(shift(e.b.bitcast(x, words), e.int(n, words)), x.type)


def products_of_parts(e: Emitter, quants: Iterable[Any], scales: Any, act: Act) -> Any:
    """Multiply a row's block by the activations, i32x16, for Q2_K and Q3_K. `scales` has 16 scales, i16x16.

    `quants` yields four i8x64 with values of at most 64: the i-th has 32 weights of each half of the block, from weight 32 * i of the half
    on.
    """
    total, sums = e.int(0, I32X16), []
    for i, quant in enumerate(quants):
        activations = e.concat(e.load(I8X32, act.q, 32 * i), e.load(I8X32, act.q, 128 + 32 * i))
        sums.append(e.dot4(e.int(0, I32X16), quant, activations))
        if i % 2:
            of_lanes = [
                8 * half + 2 * n + odd for half in (0, 1) for odd in (0, 1) for n in [i - 1] * 4 + [i] * 4
            ]
            total = e.dot2(total, e.packed(*sums[-2:]), e.shuffle(scales, of_lanes))
    return total


def times_sums_of_32(e: Emitter, numbers: Any, act: Act) -> Any:
    """Multiply 8 numbers of each of four rows, i16x32, by the sums of 32 activations, and add up: i32x4."""
    sums = e.shuffle(e.load(ir.VectorType(I16, 8), act.sums, layout.SUMS_OF_32), [*range(8)] * 4)
    return of_four_lanes(e, e.dot2(e.int(0, I32X16), numbers, sums))


def times_sums_of_16(e: Emitter, numbers: Any, act: Act) -> Any:
    """Multiply 16 signed bytes of each of four rows by the sums of 16 activations, and add up: i32x4."""
    b, eight, total = e.b, e.int(8, I16X32), e.int(0, I32X16)
    numbers, sums = b.bitcast(numbers, I16X32), e.load(I16X16, act.sums, layout.SUMS_OF_16)
    for first, each in enumerate((b.ashr(b.shl(numbers, eight), eight), b.ashr(numbers, eight))):
        total = e.dot2(total, each, e.shuffle(sums, [*range(first, 16, 2)] * 4))
    return of_four_lanes(e, total)


def of_four_lanes(e: Emitter, vector: Any) -> Any:
    """Return the sums of every four lanes of an i32x16, as i32x4."""
    for n in 4, 2:
        vector = e.b.add(*(e.shuffle(vector, of_each_row(range(first, n, 2), n)) for first in (0, 1)))
    return vector
