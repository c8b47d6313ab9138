"""Formats whose weights are rows of a grid: blocks of 256 weights, in which each index stands for 8 or 4 weights.

The module of such a format has a `GridFormat`, which reads the parts of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit

from .. import layout
from ..simd import F32X4, F32X16, I8, I8X32, I8X64, I16, I32, I32X16, I64, Emitter, i64, intrinsic_of
from . import _kquants as k
from ._blocks import nibbles
from ._ktiles import MicroKernel

RAISED_BY = 64
"""Added to signed numbers to make them unsigned in a panel. The largest number is 62."""


class Grid(NamedTuple):
    """The grid of the format `name`: rows of `n` bytes. Each is the grid's number times `times`, plus `plus`."""

    name: str
    n: int
    times: int = 1
    plus: int = 0

    def data(self) -> bytes:
        """Return the bytes. The numbers are those of ggml-common.h, taken from the `gguf` package."""
        import gguf
        import numpy as np

        quant = getattr(gguf.quants, self.name)
        quant.init_grid()
        return bytes((quant.grid * self.times + self.plus).astype(np.uint8).tobytes())

    def address(self, e: Emitter) -> Any:
        return e.constant(self.data())

    def rows(self, e: Emitter, indices: Sequence[Any]) -> Any:
        """Return the rows at 64 / n indices, i8x64."""
        b, kind, address = e.b, ir.IntType(8 * self.n), self.address(e)
        found = ir.Constant(ir.VectorType(kind, 64 // self.n), ir.Undefined)
        for i, index in enumerate(indices):
            row = e.load(kind, b.add(address, b.mul(index, e.int(self.n))))
            found = b.insert_element(found, row, e.int(i, I32))
        return b.bitcast(found, I8X64)

    def number(self) -> Any:
        """Return f(i) for Numba code: the i-th number of all rows, an i64."""
        return intrinsic_of(i64, i64)(lambda e, i: e.b.zext(e.load(I8, e.b.add(self.address(e), i)), I64))


def lanes(e: Emitter, vector: Any) -> Callable[[int], Any]:
    """Return f(i): lane i of a vector as an i64. Lanes are extracted 64 bits at a time: narrow loads from memory would wait for the wide
    store."""
    b, width = e.b, vector.type.element.width
    n = 64 // width
    words = b.bitcast(vector, ir.VectorType(I64, vector.type.count // n))
    taken = [b.extract_element(words, e.int(i, I32)) for i in range(words.type.count)]
    return lambda i: b.and_(b.lshr(taken[i // n], e.int(i % n * width)), e.int((1 << width) - 1))


def odd_signs(e: Emitter, sevens: Any) -> Any:
    """Bytes with seven signs -> bytes with eight signs, an even number of which is set."""
    kind = sevens.type
    ones = e.call(f"llvm.ctpop.v{kind.count}i8", kind, sevens)
    return e.b.or_(sevens, e.b.shl(ones, e.int(7, kind)))


def signs_of_words(e: Emitter, words: Any) -> Any:
    """i32x8, each with four times seven signs and a scale in the upper bits -> the signs, i8x32."""
    b, kind, total = e.b, words.type, None
    for i in range(4):
        seven = b.and_(b.shl(words, e.int(i, kind)), e.int(0x7F << 8 * i, kind))
        total = seven if total is None else b.or_(total, seven)
    return odd_signs(e, b.bitcast(total, I8X32))


def scales_of_words(e: Emitter, words: Any) -> Any:
    return odd(e, e.b.trunc(e.b.lshr(words, e.int(28, words.type)), ir.VectorType(I8, 8)))


@njit(inline="always")
def is_negative(signs, i):
    """Return sign i of eight. The lowest seven bits of `signs` hold the first seven; the last one makes the number of set signs even."""
    if i < 7:
        return signs >> i & 1
    signs &= 127
    signs ^= signs >> 4
    signs ^= signs >> 2
    return (signs ^ signs >> 1) & 1


def odd(e: Emitter, numbers: Any) -> Any:
    """2 * n + 1"""
    return e.b.or_(e.b.shl(numbers, e.int(1, numbers.type)), e.int(1, numbers.type))


def in_nibbles(e: Emitter, data: Any) -> Any:
    """i8 lanes -> twice as many, the lower four bits of each byte before the upper ones."""
    n = data.type.count
    low, high = nibbles(e, data)
    return e.shuffle(low, [i // 2 + i % 2 * n for i in range(2 * n)], high)


def half_at(offset: int) -> Callable[[Emitter, Sequence[Any]], Any]:
    return lambda e, rows: k.gathered_halves(e, rows, offset)


Emit = Callable[[Emitter, Any], Any]


@dataclass(frozen=True)
class GridFormat:
    """Blocks of 256 weights in `n_parts` parts: weight = d * factor * scale * (grid's number + delta - minus), with its sign.

    These functions emit code that reads the block at an address:

    - `indices` returns a function of i: the i-th index of a row in the grid, an i64;
    - `scales`: the scales of the parts, non-negative i8 lanes;
    - `signs`: a byte for every 8 weights, in which the bit of a negative weight is set, i8x32;
    - `deltas`: a byte for every 8 weights, i8x32;
    - `d`, for 4 or 16 addresses: f32 lanes.
    """

    grid: Grid
    n_parts: int
    factor: float
    indices: Callable[[Emitter, Any], Callable[[int], Any]]
    scales: Emit
    d: Callable[[Emitter, Sequence[Any]], Any]
    signs: Emit | None = None
    deltas: Emit | None = None
    minus: int = 0

    @property
    def panel(self) -> k.Panel:
        return k.Panel(self.n_parts)

    @property
    def tile(self) -> MicroKernel:
        return MicroKernel(self.panel, minus=RAISED_BY if self.signs else self.minus)

    def numbers(self, e: Emitter, p: Any) -> Iterator[tuple[Any, Any]]:
        """Yield four times 64 weights of the block at p, as bytes below 128; and, if there are signs, which weights are negative, as
        i1x64."""
        index = self.indices(e, p)
        signs, deltas = (each and each(e, p) for each in (self.signs, self.deltas))
        n = 64 // self.grid.n
        for i in range(4):
            numbers = self.grid.rows(e, [index(j) for j in range(n * i, n * i + n)])
            if deltas:
                numbers = e.b.add(numbers, e.shuffle(deltas, [8 * i + lane // 8 for lane in range(64)]))
            yield numbers, signs and e.bits(signs, range(64 * i, 64 * i + 64))

    def values(self, e: Emitter, rows: Sequence[Any], act: k.Act) -> Any:
        """Multiply a block of each of four rows by the activations, f32x4."""
        b = e.b
        activations = [e.load(I8X64, act.q, 64 * i) for i in range(4)]
        offset = self._offset(e, act) if self.minus else None

        def total_of(row: Any, _: Any) -> Any:
            scales = b.zext(self.scales(e, row), ir.VectorType(I16, self.n_parts))
            total = e.int(0, I32X16)
            if offset:
                total = b.mul(
                    b.sext(scales if self.n_parts == 16 else e.concat(scales, scales), I32X16), offset
                )
            for i, (numbers, negative) in enumerate(self.numbers(e, row)):
                x = activations[i]
                if negative:
                    x = b.select(negative, b.sub(e.int(0, I8X64), x), x)
                of_lanes = [(4 * i + lane // 8) * self.n_parts // 16 for lane in range(32)]
                total = e.dot2(total, e.pairs(numbers, x), e.shuffle(scales, of_lanes))
            return total

        d = b.fmul(self.d(e, rows), e.float(self.factor, F32X4))
        return b.fmul(d, b.sitofp(k.sum_four(e, k.of_each(e, rows, total_of)), F32X4))

    def _offset(self, e: Emitter, act: k.Act) -> Any:
        """Return the sums of the parts' activations times -minus, i32x16."""
        first = layout.SUMS_OF_16 if self.n_parts == 16 else layout.SUMS_OF_32
        sums = e.load(ir.VectorType(I16, self.n_parts), act.sums, first)
        if self.n_parts == 8:
            sums = e.concat(sums, e.int(0, sums.type))
        return e.b.mul(e.b.sext(sums, I32X16), e.int(-self.minus, I32X16))

    def unpack(self, e: Emitter, rows: Sequence[Any], panel: Any) -> None:
        """Unpack in two passes through memory: first each row's weights to bytes, row by row, then four weights of all rows at once."""
        b, n_rows, into = e.b, len(rows), self.panel
        addresses, weights, scales = (e.memory(n_bytes * n_rows) for n_bytes in (8, 256, 16))
        for i, row in enumerate(rows):
            e.store(row, addresses, 8 * i)
        raised = e.int(RAISED_BY, I8X64)
        with e.loop(e.int(n_rows)) as r:
            row = e.load(I64, addresses, b.shl(r, e.int(3)))
            place = b.add(weights, b.shl(r, e.int(8)))
            for i, (numbers, negative) in enumerate(self.numbers(e, row)):
                if negative:
                    numbers = b.select(negative, b.sub(raised, numbers), b.add(raised, numbers))
                e.store(numbers, place, 64 * i)
            e.store(self.scales(e, row), b.add(scales, b.shl(r, e.int(4))))
        with e.loop(e.int(4)) as part:
            first = b.add(weights, b.shl(part, e.int(6)))
            place = b.add(panel, b.shl(part, e.int(10)))
            for i, word in enumerate(
                e.transposed([b.add(first, e.int(256 * r)) for r in range(n_rows)], 0, 16)
            ):
                e.store(word, place, i * k.VECTOR)
        words = e.transposed([b.add(scales, e.int(16 * r)) for r in range(n_rows)], 0, 4)
        each = [
            b.and_(b.lshr(words[j // 4], e.int(8 * (j % 4), I32X16)), e.int(0xFF, I32X16))
            for j in range(self.n_parts)
        ]
        k.store_scales(e, into, panel, each)
        e.store(b.fmul(self.d(e, rows), e.float(self.factor, F32X16)), panel, into.d)
