"""What the formats of 32-weight groups share: panels of 16 rows with the rows in lanes, activations in Q8_0.

A panel holds, for each 32 weights of 16 rows: 8 vectors of four weights a lane, a vector of f32 scales, or two for 16 weights each, and
where there are mins a vector of these.
"""
from __future__ import annotations

from typing import Any, NamedTuple

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
