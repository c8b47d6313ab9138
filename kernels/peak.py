"""Loops that measure the most that the machine can do: they read memory, or multiply values in registers. No part of a model runs here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .arguments import FILL, MULTIPLY, READ
from .reading import reader
from .simd import F32X16, I8X64, I32X16, Emitter, i64, intrinsic_of, void

LINE = 64
LINES_A_TURN = 4
DATA_BYTES = 4096
"""Bytes of factors that the arithmetic loops cycle through: they stay in the L1 cache."""


def build_fill() -> Any:
    """Write every byte, so that each memory page is really allocated, near the thread that reads it."""
    read_arguments = reader(FILL)

    @intrinsic_of(void, i64, i64)
    def fill_lines(e: Emitter, address: Any, n_bytes: Any) -> None:
        with e.loop(e.b.udiv(n_bytes, e.int(LINE))) as i:
            e.store(e.int(1, I32X16), e.at(address, e.b.mul(i, e.int(LINE))))

    def fill(args, chunk, scratch):
        a = read_arguments(args)
        fill_lines(a.address + chunk * a.unit, a.unit)

    return fill


def build_read(n_streams: str) -> Any:
    """Read a chunk as `n_streams` streams side by side."""
    read_arguments = reader(READ)
    streams = int(n_streams)

    @intrinsic_of(void, i64, i64, i64, i64)
    def read_lines(e: Emitter, address: Any, n_bytes: Any, ahead: Any, out: Any) -> None:
        b = e.b
        share = b.udiv(n_bytes, e.int(streams))
        sums = [e.var(e.int(0, I32X16)) for _ in range(LINES_A_TURN)]
        with e.loop(b.udiv(share, e.int(LINE * LINES_A_TURN))) as i:
            for s in range(streams):
                place = e.at(address, b.add(b.mul(share, e.int(s)), b.mul(i, e.int(LINE * LINES_A_TURN))))
                for j, total in enumerate(sums):
                    e.prefetch(b.add(e.at(place, LINE * j), ahead), level=2)
                    b.store(b.add(b.load(total), e.load(I32X16, place, LINE * j)), total)
        store_sum(e, sums, out)

    def read(args, chunk, scratch):
        a = read_arguments(args)
        read_lines(a.address + chunk * a.unit, a.unit, a.ahead, scratch)

    return read


def store_sum(e: Emitter, sums: list[Any], out: Any) -> None:
    """Store the sums: if they were never used, the loops would be optimized away."""
    b = e.b
    total = b.load(sums[0])
    for other in sums[1:]:
        total = (b.fadd if total.type == F32X16 else b.add)(total, b.load(other))
    e.store(total, out)


STEPS: dict[str, tuple[Any, Any, Callable[..., Any]]] = {
    "dot4": (I8X64, I32X16, lambda e, acc, x, y: e.dot4(acc, x, y)),
    "fma": (F32X16, F32X16, lambda e, acc, x, y: e.fma(x, y, acc)),
}
"""The type of the factors, the type of the sums, and the function that adds a product."""


def build_multiply(step: str, n_rows: str, n_columns: str) -> Any:
    """Add n_rows * n_columns products of 64 bytes by 64 bytes in each turn: rows stay in registers and columns are loaded, as in the tile
    of a product."""
    read_arguments = reader(MULTIPLY)
    rows, columns = int(n_rows), int(n_columns)
    kind, sum_kind, add_product = STEPS[step]

    @intrinsic_of(void, i64, i64, i64)
    def multiply_turns(e: Emitter, turns: Any, data: Any, out: Any) -> None:
        b = e.b
        xs = [e.load(kind, data, LINE * r) for r in range(rows)]
        zero = e.float(0.0, sum_kind) if sum_kind == F32X16 else e.int(0, sum_kind)
        sums = [[e.var(zero) for _ in range(columns)] for _ in range(rows)]
        with e.loop(turns) as i:
            place = e.at(data, b.and_(b.mul(i, e.int(LINE)), e.int(DATA_BYTES // 2 - 1)))
            for c in range(columns):
                y = e.load(kind, place, LINE * c)
                for x, totals in zip(xs, sums):
                    b.store(add_product(e, b.load(totals[c]), x, y), totals[c])
        store_sum(e, [total for totals in sums for total in totals], out)

    def multiply(args, chunk, scratch):
        a = read_arguments(args)
        multiply_turns(a.unit, a.address, scratch)

    return multiply
