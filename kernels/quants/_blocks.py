"""Formats with groups of 32 weights: panels of 16 rows, with the rows in lanes. Activations are Q8_0.

For every 32 weights of 16 rows, a panel holds 8 vectors with four weights in each lane, a vector of f32 scales (two vectors if each 16
weights have a scale) and a vector of mins if there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..simd import I8, I8X16, I8X64, I16X16, I16X32, I32X4, I32X16, I64, Emitter, i64, intrinsic_of
from ._kquants import gathered_halves
from ._quarts import VECTOR

SCALES = 8 * VECTOR


class Group(NamedTuple):
    """32 weights: the address of their block, and the number of the group in the block.

    When multiplied in place, four groups of a row are in the `n_bytes` from `start` on, and the block is `distance` bytes after `start`.
    Otherwise `n_bytes` is 0.
    """

    block: Any
    number: int
    start: Any = None
    distance: int = 0
    n_bytes: int = 0


class Form(NamedTuple):
    """How quants become weights. Quants are bytes below 128, or if `wide` signed bytes, `raised` as the instruction set needs them.

    weight = scale * (quant - offset) + min. 32 weights have `n_scales` scales, and a min if `mins` is true.
    """

    offset: int = 0
    wide: bool = False
    n_scales: int = 1
    mins: bool = False

    @property
    def panel_bytes(self) -> int:
        return SCALES + VECTOR * (self.n_scales + self.mins)


def nibbles(e: Emitter, data: Any) -> tuple[Any, Any]:
    """Return the lower four bits and the upper four bits of bytes, in lanes of any width."""
    kind = data.type
    mask = e.int(int.from_bytes(b"\x0f" * (kind.element.width // 8), "little"), kind)
    return e.b.and_(data, mask), e.b.and_(e.b.lshr(data, e.int(4, kind)), mask)


def are_picked(e: Emitter, groups: Sequence[Group], offset: int) -> bool:
    """Whether the instruction that picks any 32 words from two vectors can put the words of four groups into order."""
    whole_words = all((group.distance + offset) % 2 == 0 for group in groups)
    return e.picks_words and 64 <= groups[0].n_bytes <= 128 and whole_words


def sixteens(e: Emitter, groups: Sequence[Group], offset: int) -> Any:
    """Return the 16 bytes at `offset` in the blocks of four groups, i8x64."""
    if not are_picked(e, groups, offset):
        return e.join([e.load(I8X16, group.block, offset) for group in groups])
    start, second = groups[0].start, groups[0].n_bytes - 64
    places = [group.distance + offset + 2 * i for group in groups for i in range(8)]
    words = e.shuffle(
        e.load(I16X32, start),
        [i // 2 if i < 64 else 32 + (i - second) // 2 for i in places],
        e.load(I16X32, start, second),
    )
    return e.b.bitcast(words, I8X64)


def halves(e: Emitter, groups: Sequence[Group], offset: int) -> Any:
    """Return the half float at `offset` in the block of each group, f32x16."""
    places = [group.distance + offset for group in groups[::4]]
    if not (are_picked(e, groups, offset) and max(places) < 64):
        return gathered_halves(e, [group.block for group in groups], offset)
    pairs = []
    for i in 0, 2:  # two of the four rows
        x, y = (e.load(I16X32, groups[row].start) for row in (i, i + 1))
        pairs.append(
            e.b.bitcast(e.shuffle(x, [32 * row + place // 2 for place in places for row in (0, 1)], y), I32X4)
        )
    return e.f16_to_f32(e.b.bitcast(e.shuffle(pairs[0], [0, 4, 1, 5, 2, 6, 3, 7], pairs[1]), I16X16))


def four_nibbles(e: Emitter, groups: Sequence[Group], offset: int) -> tuple[Any, Any]:
    """`load_four` for 16 bytes at `offset` with weights 0-15 in the low nibbles, 16-31 in the high ones."""
    return nibbles(e, sixteens(e, groups, offset))


def nibble_quarts(e: Emitter, rows: Sequence[Any], offset: int) -> list[Any]:
    """`quarts` for the same layout as `four_nibbles`."""
    both = [nibbles(e, word) for word in e.transposed(rows, offset, 4)]
    return [low for low, _ in both] + [high for _, high in both]


def looked_up(e: Emitter, table: Sequence[int], indices: Any) -> Any:
    """Look up bytes, in lanes of any width, in a table of 16."""
    return e.b.bitcast(e.lookup(table, e.b.bitcast(indices, I8X64)), indices.type)


def with_bits(e: Emitter, low: Any, data: Any, bits: Sequence[int], value: int) -> Any:
    """Add `value` to byte i of `low` (64 bytes, in lanes of any width) if bit number `bits[i]` of `data` is set."""
    b = e.b
    added = b.select(
        e.bits(b.bitcast(data, I8X64) if data.type == I32X16 else data, bits),
        e.int(value, I8X64),
        e.int(0, I8X64),
    )
    return b.or_(low, b.bitcast(added, low.type))


def entry_of(table: Sequence[int]) -> Any:
    """Return f(index) for Numba code, which looks up a number in a table of bytes, as an i64."""
    data = bytes(value & 255 for value in table)
    return intrinsic_of(i64, i64)(lambda e, index: e.b.sext(e.load(I8, e.constant(data), index), I64))
