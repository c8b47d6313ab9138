"""What the K-quants share: 256 weights a block, panels of 16 rows with the rows in lanes, activations in Q8_K.

A panel holds, for each block of 16 rows: 64 vectors of four weights a lane ("quarts"), a vector of 32-bit scales for each part of the
block, the mins (or once more the scales) of each two parts as pairs of i16, and the f32 scales d and dmin.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from .. import layout
from ..simd import F32, F32X16, I8, I8X32, I8X64, I16, I16X16, I16X32, I32, I32X16, I64, Emitter

QUARTS = 64 * 64
VECTOR = 64


class Act(NamedTuple):
    """An activation block: the addresses of its 256 quants and of its sums."""
    q: Any
    sums: Any


class Dot(NamedTuple):
    """The integers of a block times activations, not yet added up: i32x16 with the scales in it, and i32x8 for the mins or None."""
    total: Any
    offset: Any


class Panel(NamedTuple):
    """Offsets in a panel block whose weights have `n_parts` scales."""
    n_parts: int

    @property
    def scales(self) -> int:
        return QUARTS

    @property
    def pairs(self) -> int:
        return self.scales + self.n_parts * VECTOR

    @property
    def d(self) -> int:
        return self.pairs + self.n_parts // 2 * VECTOR

    @property
    def dmin(self) -> int:
        return self.d + VECTOR

    @property
    def n_bytes(self) -> int:
        return self.dmin + VECTOR


def six_bit(e: Emitter, u0: Any, u1: Any, u2: Any) -> tuple[Any, Any, Any, Any]:
    """The 8 scales and 8 mins of Q4_K and Q5_K, packed in three u32 (get_scale_min_k4 in ggml-quants.c): four bytes each in
    scales 0-3, scales 4-7, mins 0-3, mins 4-7. Works on scalars and on vectors with a row in each lane."""
    b, n = e.b, lambda value: e.int(value, u0.type)
    low, nibble, two = n(0x3F3F3F3F), n(0x0F0F0F0F), n(0x03030303)
    four, six = n(4), n(6)
    scales = b.or_(b.and_(u2, nibble), b.shl(b.and_(b.lshr(u0, six), two), four))
    mins = b.or_(b.and_(b.lshr(u2, four), nibble), b.shl(b.and_(b.lshr(u1, six), two), four))
    return b.and_(u0, low), scales, b.and_(u1, low), mins


def eight_bytes(e: Emitter, low: Any, high: Any, kind: Any) -> Any:
    """Two u32 -> their 8 bytes as 8 lanes of `kind`."""
    both = e.b.or_(e.b.zext(low, I64), e.b.shl(e.b.zext(high, I64), e.int(32)))
    return e.b.zext(e.b.bitcast(both, ir.VectorType(I8, 8)), ir.VectorType(kind, 8))


def transposed_words(e: Emitter, rows: Sequence[Any], offset: int) -> list[Any]:
    """16 u32 from each of 16 rows -> 16 vectors with the rows in lanes."""
    return e.transpose16([e.load(I32X16, row, offset) for row in rows])


def gathered_halves(e: Emitter, rows: Sequence[Any], offset: int) -> Any:
    """The half float at `offset` of each of 16 rows, as f32x16."""
    halves = ir.Constant(I16X16, ir.Undefined)
    for i, row in enumerate(rows):
        halves = e.b.insert_element(halves, e.load(I16, row, offset), e.int(i, I32))
    return e.f16_to_f32(halves)


def low_and_high_halves(e: Emitter, words: Any) -> tuple[Any, Any]:
    """u32 lanes that hold two half floats -> both as f32x16."""
    return e.f16_to_f32(e.b.trunc(words, I16X16)), e.f16_to_f32(e.b.trunc(e.b.lshr(words, e.int(16, I32X16)), I16X16))


def store_six_bit(e: Emitter, panel: Panel, address: Any, words: Sequence[Any]) -> None:
    """Scales and mins of 16 rows, from the three words of each."""
    b, byte = e.b, e.int(0xFF, I32X16)
    s_low, s_high, m_low, m_high = six_bit(e, *words)

    def pick(word: Any, j: int) -> Any:
        return b.and_(b.lshr(word, e.int(8 * (j % 4), I32X16)), byte)

    for j in range(8):
        e.store(pick(s_low if j < 4 else s_high, j), address, panel.scales + j * VECTOR)
    for j in range(0, 8, 2):
        word = m_low if j < 4 else m_high
        e.store(b.or_(pick(word, j), b.shl(pick(word, j + 1), e.int(16, I32X16))), address, panel.pairs + j // 2 * VECTOR)


def dot_with_mins(e: Emitter, p: Any, quants: Iterable[Any], act: Act) -> Dot:
    """Scales * quants * activations and mins * sums for Q4_K and Q5_K.

    `quants` are four i8x64: the 32-weight parts 0 and 2, 1 and 3, 4 and 6, 5 and 7.
    """
    b = e.b
    s_low, s_high, m_low, m_high = six_bit(e, *(e.load(I32, p, 4 + 4 * i) for i in range(3)))
    scales, mins = eight_bytes(e, s_low, s_high, I16), eight_bytes(e, m_low, m_high, I32)
    parts = ((0, 2), (1, 3), (4, 6), (5, 7))
    total = e.int(0, I32X16)
    for quant, (i, j) in zip(quants, parts):
        activations = e.concat(e.load(I8X32, act.q, 32 * i), e.load(I8X32, act.q, 32 * j))
        total = e.dot2(total, e.pairs(quant, activations), e.shuffle(scales, [i] * 16 + [j] * 16))
    sums = b.sext(e.load(ir.VectorType(I16, 8), act.sums, layout.SUMS_OF_32), ir.VectorType(I32, 8))
    return Dot(total, b.mul(mins, sums))


def sum_four(e: Emitter, vectors: Sequence[Any]) -> Any:
    """The sums of four vectors of 16 or 8 lanes, as i32x4, by a transposed tree of additions."""
    b = e.b
    eight = [b.add(e.half(v, 0), e.half(v, 1)) if v.type.count == 16 else v for v in vectors]

    def step(x: Any, y: Any, low: Sequence[int], high: Sequence[int]) -> Any:
        return b.add(e.shuffle(x, low, y), e.shuffle(x, high, y))

    two = [step(x, y, (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)) for x, y in (eight[:2], eight[2:])]
    four = step(*two, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
    return b.add(e.half(four, 0), e.half(four, 1))


def values_of(e: Emitter, dots: Sequence[Dot], scales: Sequence[tuple[Any, Any]]) -> list[Any]:
    """d * total - dmin * offset for up to four dots, each with its block's (d, dmin): one f32 each. Without mins these are None."""
    b, n = e.b, len(dots)
    kind = ir.VectorType(F32, 4)

    def scaled(vectors: Sequence[Any], factors: Sequence[Any]) -> Any:
        both = ir.Constant(kind, ir.Undefined)
        for lane, factor in enumerate(factors):
            both = b.insert_element(both, factor, e.int(lane, I32))
        return b.fmul(both, b.sitofp(sum_four(e, vectors), kind))

    def four(items: Sequence[Any]) -> list[Any]:
        return [items[i % n] for i in range(4)]

    totals, d = [dot.total for dot in dots], [d for d, _ in scales]
    if dots[0].offset is None:
        return [b.extract_element(scaled(four(totals), four(d)), e.int(i, I32)) for i in range(n)]
    offsets, dmin = [dot.offset for dot in dots], [dmin for _, dmin in scales]
    if n <= 2:
        product = scaled([totals[0], totals[-1], offsets[0], offsets[-1]], [d[0], d[-1], dmin[0], dmin[-1]])
        value = b.fsub(e.half(product, 0), e.half(product, 1))
    else:
        value = b.fsub(scaled(four(totals), four(d)), scaled(four(offsets), four(dmin)))
    return [b.extract_element(value, e.int(i, I32)) for i in range(n)]


class Tile:
    """The panel form of a K-quant's micro-kernel on one 256-block: R vectors of 16 rows times T tokens, integers until the end.

    With `minus` 0 the pairs are mins with a scale of their own, dmin; else they are the scales, and every weight is lessened by `minus`.
    """

    def __init__(self, panel: Panel, minus: int) -> None:
        self.panel, self.minus = panel, minus

    def block(self, e: Emitter, panels: Sequence[Any], acts: Sequence[Act]) -> list[list[Any]]:
        """[R][T] f32x16: what `dot` gives for a row, with the rows in lanes."""
        b, p = e.b, self.panel
        tokens = range(len(acts))
        totals = [[e.var(e.int(0, I32X16)) for _ in tokens] for _ in panels]
        per_part = 64 // p.n_parts
        with e.loop(e.int(p.n_parts)) as part:  # all parts in a row hold more values than there are registers
            quarts = [b.add(address, b.mul(part, e.int(per_part * VECTOR))) for address in panels]
            scales = [b.add(address, b.mul(part, e.int(VECTOR))) for address in panels]
            quants = [b.add(act.q, b.mul(part, e.int(4 * per_part))) for act in acts]
            partial = [[e.int(0, I32X16) for _ in tokens] for _ in panels]
            for k in range(per_part):
                weights = [b.bitcast(e.load(I32X16, address, k * VECTOR), I8X64) for address in quarts]
                for t in tokens:
                    activations = b.bitcast(e.splat(e.load(I32, quants[t], 4 * k)), I8X64)
                    for r, weight in enumerate(weights):
                        partial[r][t] = e.dot4(partial[r][t], weight, activations)
            for r, address in enumerate(scales):
                scale = e.load(I32X16, address, p.scales)
                for t in tokens:
                    b.store(b.add(b.load(totals[r][t]), b.mul(partial[r][t], scale)), totals[r][t])
        return [[self._scaled(e, address, b.load(totals[r][t]), acts[t]) for t in tokens] for r, address in enumerate(panels)]

    def _scaled(self, e: Emitter, address: Any, total: Any, a: Act) -> Any:
        b, p = e.b, self.panel
        offset = e.int(0, I32X16)
        first = layout.SUMS_OF_16 if self.minus else layout.SUMS_OF_32
        for i in range(p.n_parts // 2):
            sums = b.bitcast(e.splat(e.load(I32, a.sums, first + 4 * i)), I16X32)
            offset = e.dot2(offset, b.bitcast(e.load(I32X16, address, p.pairs + i * VECTOR), I16X32), sums)
        d = e.load(F32X16, address, p.d)
        if self.minus:
            return b.fmul(d, b.sitofp(b.sub(total, b.mul(offset, e.int(self.minus, I32X16))), d.type))
        dmin = e.load(d.type, address, p.dmin)
        return b.fsub(b.fmul(d, b.sitofp(total, d.type)), b.fmul(dmin, b.sitofp(offset, d.type)))
