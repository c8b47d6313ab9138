"""Multiply panels of K-quants by many tokens at once. See _kquants.py for the layout of panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from llvmlite import ir

from .. import layout
from ..simd import F32X16, I16, I16X32, I32, I32X16, Emitter
from ._kquants import Act, Panel
from ._quarts import VECTOR, add_products

Blocks = list[list[Any]]
"""[R][T] f32x16: the same as a format's `values`, with the rows in lanes."""


class MicroKernel:
    """The micro-kernel on a panel block of 256 weights: R vectors of 16 rows times T tokens, with integers until the end.

    Quants are bytes below 128, or if `wide` signed bytes, `raised` as the instruction set needs them. `minus` is subtracted from every
    quant. `largest` is the largest quant of a format that can be multiplied `by_words`, whose quants and scales aren't negative.
    """

    def __init__(
        self, panel: Panel, minus: int = 0, wide: bool = False, largest: int = 0, by_words: bool = False
    ) -> None:
        self.panel = panel
        self.minus = minus
        self.wide = wide
        self.largest = largest
        self._by_words = by_words

    def by_words(self) -> MicroKernel:
        """Return the same micro-kernel, which multiplies sums and scales as 16-bit numbers.

        On Intel's CPUs `vpmulld` and an addition take three slots, `vpdpwssd` takes one. So it pays to have more sums, small enough for 16
        bits. Raises ValueError for a format that can't be multiplied so.
        """
        if not self.largest:
            raise ValueError("the format's sums and scales can't be multiplied as words")
        return MicroKernel(self.panel, largest=self.largest, by_words=True)

    def block(
        self,
        e: Emitter,
        panels: Sequence[Any],
        acts: Sequence[Act],
        fetching: Callable[[Any], AbstractContextManager[None]],
    ) -> Blocks:
        """Multiply. fetching(number) is a context for the products of a part, which prefetches meanwhile."""
        b, p = e.b, self.panel
        totals = [[e.var(e.int(0, I32X16)) for _ in acts] for _ in panels]
        per_part = 64 // p.n_parts
        # four products a step; a product is at most 127 * largest
        at_once = per_part
        while self._by_words and 4 * at_once * 127 * self.largest > 0x7FFF:
            at_once //= 2
        start_of = self._starts(e, acts)
        # unrolled, all parts together would hold more values than there are registers
        with e.loop(e.int(p.n_parts)) as part:
            quarts = [b.add(address, b.mul(part, e.int(per_part * VECTOR))) for address in panels]
            quants = [b.add(act.q, b.mul(part, e.int(4 * per_part))) for act in acts]
            starts = [start_of(t, part) for t in range(len(acts))]
            dot4 = e.dot4_wide if self.wide else e.dot4
            with fetching(part):
                for first in range(0, per_part, at_once):
                    weights, x = (
                        [e.at(address, first * n) for address in each]
                        for each, n in ((quarts, VECTOR), (quants, 4))
                    )
                    partial = add_products(e, dot4, [starts] * len(panels), weights, x, at_once)
                    for address, of_row, sums in zip(panels, totals, partial):
                        scale = e.load(I32X16, b.add(address, b.mul(part, e.int(VECTOR))), p.scales)
                        for total, each in zip(of_row, sums):
                            b.store(self._plus_scaled(e, b.load(total), each, scale), total)
        return values_of(e, p, panels, acts, totals)

    def _plus_scaled(self, e: Emitter, total: Any, sums: Any, scale: Any) -> Any:
        if not self._by_words:
            return e.b.add(total, e.b.mul(sums, scale))
        # the upper words are 0 in scales, whatever they are in sums
        return e.dot2(total, e.b.bitcast(sums, I16X32), e.b.bitcast(scale, I16X32))

    def _starts(self, e: Emitter, acts: Sequence[Act]) -> Callable[[int, Any], Any]:
        """Return f(token, part): what a part's sum starts with, -minus times the part's activations."""
        minus = self.minus + e.raised_by * self.wide
        if not minus:
            return lambda token, part: e.int(0, I32X16)
        n = self.panel.n_parts
        kept = e.memory(VECTOR * len(acts))
        for t, act in enumerate(acts):
            sums = e.b.sext(e.load(ir.VectorType(I16, n), act.sums, sums_of_parts(n)), ir.VectorType(I32, n))
            e.store(e.b.mul(sums, e.int(-minus, sums.type)), kept, VECTOR * t)
        return lambda token, part: e.splat(
            e.load(I32, e.b.add(kept, e.b.shl(part, e.int(2))), VECTOR * token)
        )


class ScaledTile:
    """`MicroKernel` for a `scaled` panel, whose bytes are products of quants and scales. `minus` is subtracted from each of them."""

    def __init__(self, panel: Panel, minus: int = 0, wide: bool = False) -> None:
        self.panel = panel
        self.minus = minus
        self.wide = wide

    def block(
        self,
        e: Emitter,
        panels: Sequence[Any],
        acts: Sequence[Act],
        fetching: Callable[[Any], AbstractContextManager[None]],
    ) -> Blocks:
        b, p = e.b, self.panel
        starts = [self._start(e, act) for act in acts]
        totals = [[e.var(start) for start in starts] for _ in panels]
        per_part = 64 // p.n_parts
        with e.loop(e.int(p.n_parts)) as part:
            quarts = [b.add(address, b.mul(part, e.int(per_part * VECTOR))) for address in panels]
            quants = [b.add(act.q, b.mul(part, e.int(4 * per_part))) for act in acts]
            before = [[b.load(total) for total in of_row] for of_row in totals]
            with fetching(part):
                after = add_products(
                    e, e.dot4_wide if self.wide else e.dot4, before, quarts, quants, per_part
                )
            for of_row, new in zip(totals, after):
                for total, value in zip(of_row, new):
                    b.store(value, total)
        return values_of(e, p, panels, acts, totals)

    def _start(self, e: Emitter, act: Act) -> Any:
        minus = self.minus + e.raised_by * self.wide
        return e.splat(e.b.mul(sum_of_block(e, act), e.int(-minus, I32))) if minus else e.int(0, I32X16)


def values_of(
    e: Emitter, panel: Panel, panels: Sequence[Any], acts: Sequence[Act], totals: Sequence[Sequence[Any]]
) -> Blocks:
    """Multiply the totals, variables with i32x16, by d, and subtract the mins if there are any."""
    b = e.b

    def value(address: Any, act: Act, total: Any) -> Any:
        scaled = b.fmul(e.load(F32X16, address, panel.d), b.sitofp(total, F32X16))
        if not panel.mins:
            return scaled
        offset = b.sitofp(pairs_times_sums(e, panel, address, act), F32X16)
        return b.fsub(scaled, b.fmul(e.load(F32X16, address, panel.dmin), offset))

    return [
        [value(address, act, b.load(total)) for act, total in zip(acts, of_row)]
        for address, of_row in zip(panels, totals)
    ]


def sums_of_parts(n_parts: int) -> int:
    """Return where the sums of the parts' activations start."""
    return layout.SUMS_OF_16 if n_parts == 16 else layout.SUMS_OF_32


def sum_of_block(e: Emitter, act: Act) -> Any:
    """Return the sum of an activation block's 256 quants, an i32."""
    return e.sum_i32(
        e.b.sext(e.load(ir.VectorType(I16, 8), act.sums, layout.SUMS_OF_32), ir.VectorType(I32, 8))
    )


def pairs_times_sums(e: Emitter, panel: Panel, address: Any, act: Act) -> Any:
    """Multiply a panel's pairs of mins by the sums of the parts' activations, and add up: i32x16."""
    b, offset = e.b, e.int(0, I32X16)
    for i in range(panel.n_parts // 2):
        sums = b.bitcast(e.splat(e.load(I32, act.sums, sums_of_parts(panel.n_parts) + 4 * i)), I16X32)
        offset = e.dot2(offset, b.bitcast(e.load(I32X16, address, panel.pairs + i * VECTOR), I16X32), sums)
    return offset
