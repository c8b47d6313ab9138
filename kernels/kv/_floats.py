"""KV cache types with floats: keys are [head_dim][PAGE], values are [PAGE][head_dim], and both are converted to float32 when they are read.

Scores are summed over the head's values in order, results over positions in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from ..activations import each_lane
from ..layout import PAGE
from ..simd import F32, F32X16, LANES, Emitter
from ._slots import fetch_lines, rows_from
from ._tiles import VECTORS, Ahead, side_by_side


class Floats(NamedTuple):
    """A float type. `lane` is its LLVM type in memory; `widen(e, x)` converts lanes or one value to float32, `narrow(e, x)` rounds back."""

    n_bytes: int
    lane: Any
    widen: Callable[[Emitter, Any], Any]
    narrow: Callable[[Emitter, Any], Any]
    QUANTIZED = False

    def load(self, e: Emitter, address: Any, offset: Any) -> Any:
        return self.widen(e, e.load(ir.VectorType(self.lane, LANES), address, offset))

    def fetch_key(self, e: Emitter, keys: Any, slot: Any, head_dim: Any) -> None:
        fetch_lines(e, e.at(keys, e.b.mul(slot, e.int(self.n_bytes))), head_dim, e.int(self.n_bytes * PAGE))

    def fetch_value(self, e: Emitter, values: Any, slot: Any, head_dim: Any) -> None:
        row_bytes = e.b.mul(head_dim, e.int(self.n_bytes))
        n_lines = e.b.lshr(e.at(row_bytes, 63), e.int(6))
        fetch_lines(e, e.at(values, e.b.mul(slot, row_bytes)), n_lines, e.int(64))

    def store_key(self, e: Emitter, x: Any, keys: Any, slot: Any, head_dim: Any) -> None:
        b = e.b
        with e.loop(head_dim) as i:
            place = b.mul(b.add(b.mul(i, e.int(PAGE)), slot), e.int(self.n_bytes))
            e.store(self.narrow(e, e.load(F32, x, b.shl(i, e.int(2)))), keys, place)

    def store_value(self, e: Emitter, x: Any, values: Any, slot: Any, head_dim: Any) -> None:
        b = e.b
        row = e.at(values, b.mul(b.mul(slot, head_dim), e.int(self.n_bytes)))

        def write(offset: Any, kind: Any) -> None:
            e.store(
                self.narrow(e, e.load(kind, x, offset)),
                row,
                b.mul(b.lshr(offset, e.int(2)), e.int(self.n_bytes)),
            )

        each_lane(e, head_dim, write)

    def store_keys(self, e: Emitter, x: Any, stride: Any, keys: Any, slot: Any, head_dim: Any) -> None:
        b = e.b
        column = e.at(keys, b.mul(slot, e.int(self.n_bytes)))
        with e.loop(b.lshr(head_dim, e.int(4))) as i:
            place = e.at(column, b.mul(i, e.int(LANES * self.n_bytes * PAGE)))
            values = e.transposed(rows_from(e, e.at(x, b.shl(i, e.int(6))), stride), 0, LANES)
            for k, words in enumerate(values):
                e.store(self.narrow(e, b.bitcast(words, F32X16)), place, self.n_bytes * PAGE * k)

    def store_values(self, e: Emitter, x: Any, stride: Any, values: Any, slot: Any, head_dim: Any) -> None:
        with e.loop(e.int(LANES)) as i:
            self.store_value(e, e.at(x, e.b.mul(i, stride)), values, e.b.add(slot, i), head_dim)

    def score_tile(
        self,
        e: Emitter,
        queries: Sequence[Any],
        keys: Any,
        scale: Any,
        out: Sequence[Any],
        head_dim: int,
        ahead: Ahead,
    ) -> None:
        """queries: float32 [head_dim]."""
        b, n = e.b, side_by_side(e)
        with e.loop(e.int(VECTORS // n)) as part:
            column = b.mul(part, e.int(LANES * self.n_bytes * n))
            sums = [[e.var(e.float(0.0, F32X16)) for _ in range(n)] for _ in queries]
            with e.loop(e.int(head_dim)) as i:
                row = e.at(keys, b.add(column, b.mul(i, e.int(self.n_bytes * PAGE))))
                of_part = b.add(b.mul(part, e.int(head_dim)), i)
                with ahead.fetching(e, of_part, VECTORS // n * head_dim):
                    key = [self.load(e, row, LANES * self.n_bytes * j) for j in range(n)]
                    for query, total in zip(queries, sums):
                        value = e.splat(e.load(F32, query, b.shl(i, e.int(2))))
                        for j in range(n):
                            b.store(e.fma_exact(value, key[j], b.load(total[j])), total[j])
            for address, total in zip(out, sums):
                for j in range(n):
                    e.store(
                        b.fmul(b.load(total[j]), e.splat(scale)),
                        b.add(address, b.mul(part, e.int(4 * LANES * n))),
                        64 * j,
                    )

    def weigh_tile(
        self,
        e: Emitter,
        weights: Sequence[Any],
        values: Any,
        n_valid: Sequence[Any],
        accs: Sequence[Any],
        factors: Sequence[Any],
        head_dim: int,
        ahead: Ahead,
    ) -> None:
        """weights: float32 [PAGE]. Positions that a query doesn't see are skipped, not multiplied by 0: they may be infinite."""
        b = e.b
        n_all = b.select(b.icmp_signed(">", n_valid[0], e.int(0)), n_valid[0], e.int(0))
        width = side_by_side(e) * LANES
        for start in range(0, head_dim, width):
            columns = range(start, min(start + width, head_dim), LANES)
            sums = [
                [e.var(b.fmul(e.load(F32X16, acc, 4 * c), e.splat(factor))) for c in columns]
                for acc, factor in zip(accs, factors)
            ]

            def add_position(
                i: Any,
                seen: Sequence[Any],
                start: int = start,
                columns: Sequence[int] = columns,
                sums: Sequence[Any] = sums,
            ) -> None:
                row = e.at(values, b.mul(i, e.int(self.n_bytes * head_dim)))
                of_part = b.add(e.int(start // width * PAGE), i)
                with ahead.fetching(e, of_part, -(-head_dim // width) * PAGE):
                    value = [self.load(e, row, self.n_bytes * c) for c in columns]
                    for weight, totals, sees in zip(weights, sums, seen):
                        w = e.splat(e.load(F32, weight, b.shl(i, e.int(2))))
                        for v, total in zip(value, totals):
                            more = e.fma_exact(w, v, b.load(total))
                            b.store(more if sees is None else b.select(sees, more, b.load(total)), total)

            with e.loop(n_all) as i:
                add_position(i, [None] * len(weights))
            with e.loop(b.sub(n_valid[-1], n_all)) as k:
                i = b.add(n_all, k)
                add_position(i, [b.icmp_signed("<", i, n) for n in n_valid])
            for acc, totals in zip(accs, sums):
                for c, total in zip(columns, totals):
                    e.store(b.load(total), acc, 4 * c)
