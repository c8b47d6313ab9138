"""Divide the scores and sums of a page so that they fit into registers, and prefetch what is read next."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from ..layout import PAGE
from ..products import lines_of
from ..simd import LANES, Emitter

VECTORS = PAGE // LANES


def side_by_side(e: Emitter) -> int:
    """Return how many vectors are summed at once for each of four queries: with more, the sums would not stay in registers."""
    return 4 if e.registers >= 32 else 1


class Ahead(NamedTuple):
    """Memory that is read next: `n_bytes` from the address `start` on."""

    start: Any
    n_bytes: int

    def fetching(self, e: Emitter, i: Any, n: int) -> AbstractContextManager[None]:
        """Prefetch the i-th of n shares while the body computes."""
        share = -(-self.n_bytes // n)
        return e.spreading(e.b.add(self.start, e.b.mul(i, e.int(share))), lines_of(share))
