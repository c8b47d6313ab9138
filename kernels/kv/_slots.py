"""What storing into slots of a page shares."""

from __future__ import annotations

from typing import Any

from ..simd import LANES, Emitter


def fetch_lines(e: Emitter, first: Any, n: Any, stride: Any) -> None:
    """Prefetch n cache lines to write to them: that of the address `first`, and the others `stride` bytes apart."""
    with e.loop(n) as i:
        e.prefetch(e.at(first, e.b.mul(i, stride)), write=True)


def rows_from(e: Emitter, first: Any, stride: Any) -> list[Any]:
    """Return the addresses of LANES rows, `stride` bytes apart."""
    rows = [first]
    while len(rows) < LANES:
        rows.append(e.at(rows[-1], stride))
    return rows
