"""How a page's scores and sums are divided into what registers hold."""
from __future__ import annotations

from ..layout import PAGE
from ..simd import LANES, Emitter

VECTORS = PAGE // LANES


def side_by_side(e: Emitter) -> int:
    """Vectors of a tile that are summed side by side for each of four queries: with more, sums would not stay in registers."""
    return 4 if e.registers >= 32 else 1
