"""What storing into slots of a page shares."""

from __future__ import annotations

from typing import Any

from ..simd import Emitter


def fetch_lines(e: Emitter, first: Any, n: Any, stride: Any) -> None:
    """Prefetch n cache lines to write to them: that of the address `first`, and the others `stride` bytes apart."""
    with e.loop(n) as i:
        e.prefetch(e.at(first, e.b.mul(i, stride)), write=True)
