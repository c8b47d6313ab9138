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


class MicroKernel:
    """The micro-kernel on a panel block of 256 weights: R vectors of 16 rows times T tokens, with integers until the end.

    Quants are bytes below 128, or if `wide` signed bytes, `raised` as the instruction set needs them. With `mins` the panel's pairs are
    mins, whose scale is dmin. Otherwise the pairs are the scales, and `minus` is subtracted from every quant.
    """

    def __init__(self, panel: Panel, mins: bool = False, minus: int = 0, wide: bool = False) -> None:
        self.panel = panel
        self.mins = mins
        self.minus = minus
        self.wide = wide

    def block(
        self,
        e: Emitter,
        panels: Sequence[Any],
        acts: Sequence[Act],
        fetching: Callable[[Any], AbstractContextManager[None]],
    ) -> list[list[Any]]:
        """Return [R][T] f32x16: the same as the format's `values`, with the rows in lanes. fetching(number) is a context for the products of a
        part, which prefetches meanwhile."""
        b, p = e.b, self.panel
        tokens = range(len(acts))
        totals = [[e.var(e.int(0, I32X16)) for _ in tokens] for _ in panels]
        per_part = 64 // p.n_parts
        # unrolled, all parts together would hold more values than there are registers
        with e.loop(e.int(p.n_parts)) as part:
            quarts = [b.add(address, b.mul(part, e.int(per_part * VECTOR))) for address in panels]
            scales = [b.add(address, b.mul(part, e.int(VECTOR))) for address in panels]
            quants = [b.add(act.q, b.mul(part, e.int(4 * per_part))) for act in acts]
            zeros = [[e.int(0, I32X16)] * len(acts)] * len(panels)
            with fetching(part):
                partial = add_products(
                    e, e.dot4_wide if self.wide else e.dot4, zeros, quarts, quants, per_part
                )
            for r, address in enumerate(scales):
                scale = e.load(I32X16, address, p.scales)
                for t in tokens:
                    b.store(b.add(b.load(totals[r][t]), b.mul(partial[r][t], scale)), totals[r][t])
        return [
            [self._scaled(e, address, b.load(totals[r][t]), acts[t]) for t in tokens]
            for r, address in enumerate(panels)
        ]

    def _scaled(self, e: Emitter, address: Any, total: Any, a: Act) -> Any:
        b, p = e.b, self.panel
        minus = self.minus + e.raised_by * self.wide
        d = e.load(F32X16, address, p.d)
        if not (self.mins or minus):
            return b.fmul(d, b.sitofp(total, d.type))
        offset = pairs_times_sums(e, p, address, a)
        if minus:
            return b.fmul(d, b.sitofp(b.sub(total, b.mul(offset, e.int(minus, I32X16))), d.type))
        return less_mins(e, p, address, total, offset)


class ScaledTile:
    """`MicroKernel` for a `scaled` panel, whose bytes are products of quants and scales. `minus` is subtracted from each of them."""

    def __init__(self, panel: Panel, mins: bool = False, minus: int = 0, wide: bool = False) -> None:
        self.panel = panel
        self.mins = mins
        self.minus = minus
        self.wide = wide

    def block(
        self,
        e: Emitter,
        panels: Sequence[Any],
        acts: Sequence[Act],
        fetching: Callable[[Any], AbstractContextManager[None]],
    ) -> list[list[Any]]:
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
        return [
            [self._value(e, address, b.load(total), act) for total, act in zip(of_row, acts)]
            for address, of_row in zip(panels, totals)
        ]

    def _start(self, e: Emitter, act: Act) -> Any:
        minus = self.minus + e.raised_by * self.wide
        return e.splat(e.b.mul(sum_of_block(e, act), e.int(-minus, I32))) if minus else e.int(0, I32X16)

    def _value(self, e: Emitter, address: Any, total: Any, act: Act) -> Any:
        if self.mins:
            return less_mins(e, self.panel, address, total, pairs_times_sums(e, self.panel, address, act))
        return e.b.fmul(e.load(F32X16, address, self.panel.d), e.b.sitofp(total, F32X16))


def sum_of_block(e: Emitter, act: Act) -> Any:
    """Return the sum of an activation block's 256 quants, an i32."""
    return e.sum_i32(
        e.b.sext(e.load(ir.VectorType(I16, 8), act.sums, layout.SUMS_OF_32), ir.VectorType(I32, 8))
    )


def pairs_times_sums(e: Emitter, panel: Panel, address: Any, act: Act) -> Any:
    """Multiply a panel's pairs by the sums of the parts' activations, and add up: i32x16."""
    b, offset = e.b, e.int(0, I32X16)
    first = layout.SUMS_OF_16 if panel.n_parts == 16 else layout.SUMS_OF_32
    for i in range(panel.n_parts // 2):
        sums = b.bitcast(e.splat(e.load(I32, act.sums, first + 4 * i)), I16X32)
        offset = e.dot2(offset, b.bitcast(e.load(I32X16, address, panel.pairs + i * VECTOR), I16X32), sums)
    return offset


def less_mins(e: Emitter, panel: Panel, address: Any, total: Any, offset: Any) -> Any:
    """d * total - dmin * offset"""
    b, d, dmin = e.b, e.load(F32X16, address, panel.d), e.load(F32X16, address, panel.dmin)
    return b.fsub(b.fmul(d, b.sitofp(total, d.type)), b.fmul(dmin, b.sitofp(offset, d.type)))
