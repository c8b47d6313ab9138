"""What the formats of 32-weight groups share: panels of 16 rows with the rows in lanes, activations in Q8_0.

A panel holds, for each 32 weights of 16 rows: 8 vectors of four weights a lane, a vector of f32 scales, or two for 16 weights each, and
where there are mins a vector of these.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..simd import I8, I8X16, I8X64, I32X16, I64, Emitter, i64, intrinsic_of
from ._quarts import VECTOR

SCALES = 8 * VECTOR


class Group(NamedTuple):
    """32 weights: the address of their block and which 32 of the block they are."""
    block: Any
    number: int


class Form(NamedTuple):
    """What quants are: below 128, or if `wide` signed bytes, `raised` as the instruction set wants them.

    Each is lessened by `offset` and multiplied by its scale, of which there are `n_scales` in 32 weights; then the min is added.
    """
    offset: int = 0
    wide: bool = False
    n_scales: int = 1
    mins: bool = False

    @property
    def panel_bytes(self) -> int:
        return SCALES + VECTOR * (self.n_scales + self.mins)


def nibbles(e: Emitter, data: Any) -> tuple[Any, Any]:
    """The lower four bits and the upper four bits of bytes, in lanes of any width."""
    kind = data.type
    mask = e.int(int.from_bytes(b"\x0f" * (kind.element.width // 8), "little"), kind)
    return e.b.and_(data, mask), e.b.and_(e.b.lshr(data, e.int(4, kind)), mask)


def four_nibbles(e: Emitter, groups: Sequence[Group], offset: int) -> tuple[Any, Any]:
    """`load_four` where 16 bytes from `offset` on have weights 0-15 in the low nibbles, 16-31 in the high ones."""
    return nibbles(e, e.join([e.load(I8X16, group.block, offset) for group in groups]))


def nibble_quarts(e: Emitter, rows: Sequence[Any], offset: int) -> list[Any]:
    """`quarts` for the same."""
    both = [nibbles(e, word) for word in e.transposed(rows, offset, 4)]
    return [low for low, _ in both] + [high for _, high in both]


def looked_up(e: Emitter, table: Sequence[int], indices: Any) -> Any:
    """Bytes of a table of 16, for bytes in lanes of any width."""
    return e.b.bitcast(e.lookup(table, e.b.bitcast(indices, I8X64)), indices.type)


def with_bits(e: Emitter, low: Any, data: Any, bits: Sequence[int], value: int) -> Any:
    """`value` added to those of 64 bytes, in lanes of any width, whose bit of `data` is set; `bits` are 64 numbers of bits."""
    b = e.b
    added = b.select(e.bits(b.bitcast(data, I8X64) if data.type == I32X16 else data, bits), e.int(value, I8X64), e.int(0, I8X64))
    return b.or_(low, b.bitcast(added, low.type))


def entry_of(table: Sequence[int]) -> Any:
    """A function for Numba code: the number in a table of bytes at an index, an i64."""
    data = bytes(value & 255 for value in table)
    return intrinsic_of(i64, i64)(lambda e, index: e.b.sext(e.load(I8, e.constant(data), index), I64))
