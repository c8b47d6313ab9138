"""Divide the scores and sums of a page so that they fit into registers, and prefetch what is read next."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..layout import PAGE
from ..products import prefetch_share
from ..simd import LANES, Emitter

VECTORS = PAGE // LANES


def side_by_side(e: Emitter) -> int:
    """Return how many vectors are summed at once for each of four queries: with more, the sums would not stay in registers."""
    return 4 if e.registers >= 32 else 1


class Ahead(NamedTuple):
    """Memory that is read next: `n_bytes` from the address `start` on, or nothing if `start` is 0."""

    start: Any
    n_bytes: int

    def fetch(self, e: Emitter, i: Any, n: int) -> None:
        """Prefetch the i-th of n shares."""
        with e.b.if_then(e.b.icmp_unsigned("!=", self.start, e.int(0))):
            prefetch_share(e, self.start, i, -(-self.n_bytes // n))
