"""Products with groups of 32 weights, activations in Q8_0."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from llvmlite import ir

from .. import layout
from ..quants._blocks import SCALES, VECTOR, Group
from ..quants._quarts import add_products
from ..simd import F32, F32X4, F32X16, I8X16, I16, I16X32, I32, I32X16, LANES, Emitter
from . import clamped_rows, finish, lines_of

ROWS_AT_ONCE = 8


def dot4(e: Emitter, quant: Any, acc: Any, weights: Any, quants: Any) -> Any:
    return (e.dot4_wide if quant.FORM.wide else e.dot4)(acc, weights, quants)


def weighted(e: Emitter, sums: Any, of_all: int, of_first: int) -> Any:
    """Return of_all * (sum of 32 activations) + of_first * (sum of the first 16), i32x16. `sums` has a pair in each lane, or one pair for
    all."""
    b = e.b
    if isinstance(sums.type, ir.VectorType):
        return e.dot2(
            e.int(0, I32X16), b.bitcast(sums, I16X32), ir.Constant(I16X32, [of_all, of_first] * LANES)
        )
    total = b.mul(b.sext(b.trunc(sums, I16), I32), e.int(of_all, I32))
    return e.splat(b.add(total, b.mul(b.ashr(sums, e.int(16, I32)), e.int(of_first, I32))))


def offset_sums(e: Emitter, quant: Any, sums: Any) -> list[Any]:
    """Return what has to be added to the products of quants, for each scale."""
    minus = -(quant.FORM.offset + e.raised_by * quant.FORM.wide)
    factors = [(minus, 0)] if quant.FORM.n_scales == 1 else [(0, minus), (minus, -minus)]
    return [weighted(e, sums, *pair) for pair in factors]


def sum_of_all(e: Emitter, sums: Any) -> Any:
    """Return the sums of 32 activations, f32x16."""
    return e.b.sitofp(weighted(e, sums, 1, 0), F32X16)


def scaled(e: Emitter, integers: Sequence[Any], scales: Sequence[Any], x_scale: Any) -> Any:
    """Return the product of 32 weights and 32 activations, f32x16, without the mins."""
    b = e.b
    first, *second = (b.fmul(b.sitofp(i, F32X16), b.fmul(d, x_scale)) for i, d in zip(integers, scales))
    return b.fadd(first, second[0]) if second else first


def in_place(e: Emitter, quant: Any, a: Any, row: Any, token: Any, together: int, n_cols: int) -> None:
    """Multiply 8 rows side by side. If fewer are left, they are multiplied one by one. `n_cols` is frozen, so distances between rows are
    fixed."""
    b = e.b
    left = b.sub(a.n_rows, row)
    whole = b.icmp_signed(">=", left, e.int(ROWS_AT_ONCE))
    with b.if_else(whole, likely=True) as (then, otherwise):
        with then:
            finish(e, a, rows_in_place(e, quant, a, row, token, n_cols, 1, together), row, token)
        with otherwise, e.loop(left) as i:
            this = b.add(row, i)
            values = rows_in_place(e, quant, a, this, token, n_cols, 0)
            finish(e, a, b.extract_element(values, e.int(0, I32)), this, token)


def rows_in_place(
    e: Emitter, quant: Any, a: Any, row: Any, token: Any, n_cols: int, stride: int, together: int = 0
) -> Any:
    """Return the products of 8 rows, f32x8, four groups of each row at once. The rows are `stride` rows apart; 0 is 8 times the same
    row. If `together` isn't 0 the following rows are prefetched, that many lines at a time."""
    b = e.b
    n_groups = n_cols // 32
    per_block = quant.BLOCK // 32
    row_bytes = n_groups // per_block * quant.BYTES * stride
    bytes_of_four = 4 * quant.BYTES // per_block
    first = b.add(a.w, b.mul(row, a.row_bytes))
    totals = [e.var(e.float(0.0, F32X4)) for _ in range(0, ROWS_AT_ONCE, 4)]

    def add_groups(i: Any, at: Any, numbers: Sequence[int]) -> None:
        """Add groups i to i + 3 of 8 rows to the totals, in this order; if `numbers` has one number, only group i. `at` is the block of
        group i."""
        step = len(numbers) > 1
        starts = [e.at(at, row_bytes * r) for r in range(ROWS_AT_ONCE)]
        places = [(n // per_block * quant.BYTES, n % per_block) for n in (list(numbers) * 4)[:4]]
        groups = [
            [Group(e.at(start, place), n, start, place, step * bytes_of_four) for place, n in places]
            for start in starts
        ]
        q = b.add(b.add(a.quants, b.mul(token, e.int(n_cols | layout.ODD_LINES))), b.shl(i, e.int(5)))
        low_x, high_x = (
            e.join([e.load(I8X16, q, 32 * step * k + 16 * half) for k in range(4)]) for half in (0, 1)
        )
        place = b.shl(b.add(b.mul(token, e.int(n_groups)), i), e.int(2))

        def by_group(base: Any, kind: Any) -> Any:
            values = e.load(ir.VectorType(kind, len(numbers)), b.add(base, place))
            return e.shuffle(values, [step * (lane // 4) for lane in range(LANES)])

        sums, x_scale = by_group(a.sums, I32), by_group(a.scales, F32)
        offsets = offset_sums(e, quant, sums)
        x_sum = b.fmul(x_scale, sum_of_all(e, sums)) if quant.FORM.mins else None
        for which, total in enumerate(totals):
            of_four: list[list[Group]] = groups[4 * which : 4 * which + 4]
            dots: list[list[Any]] = [[] for _ in offsets]
            for of_row in of_four:
                low, high = quant.load_four(e, of_row)
                lower = dot4(e, quant, e.int(0, I32X16), low, low_x)
                dots[0].append(lower if len(dots) > 1 else dot4(e, quant, lower, high, high_x))
                if len(dots) > 1:
                    dots[1].append(dot4(e, quant, e.int(0, I32X16), high, high_x))
            lanes = [of_four[lane % 4][lane // 4] for lane in range(LANES)]
            integers = [b.add(e.sums_of_quarters(four), offset) for four, offset in zip(dots, offsets)]
            products = scaled(e, integers, quant.scales(e, lanes), x_scale)
            if x_sum:
                products = b.fadd(products, b.fmul(quant.mins(e, lanes), x_sum))
            for k in range(len(numbers)):
                b.store(b.fadd(b.load(total), e.shuffle(products, range(4 * k, 4 * k + 4))), total)

    following, share = e.at(first, e.at(a.ahead, ROWS_AT_ONCE * row_bytes)), ROWS_AT_ONCE * bytes_of_four
    with e.loop(e.int(n_groups // 4)) as four:
        start = b.add(following, b.mul(four, e.int(share)))
        with e.spreading(start, lines_of(share), together) if together else nullcontext():
            add_groups(b.shl(four, e.int(2)), b.add(first, b.mul(four, e.int(bytes_of_four))), [0, 1, 2, 3])
    whole = n_groups // 4
    for rest in range(n_groups % 4):
        add_groups(e.int(4 * whole + rest), e.at(first, whole * bytes_of_four), [rest])
    return e.concat(*(b.load(total) for total in totals))


def panel_bytes(e: Emitter, quant: Any, a: Any) -> Any:
    return e.b.mul(e.b.lshr(a.n_cols, e.int(5)), e.int(quant.FORM.panel_bytes))


def unpack(e: Emitter, quant: Any, a: Any, row: Any, panel: Any, ahead: Any) -> None:
    b = e.b
    per_block = quant.BLOCK // 32
    rows = clamped_rows(e, a, row, LANES)
    share = LANES * quant.BYTES // 2
    with e.loop(b.udiv(a.n_cols, e.int(quant.BLOCK))) as i:
        offset = b.mul(i, e.int(quant.BYTES))
        with e.spreading(b.add(ahead, b.mul(i, e.int(share))), lines_of(share)):
            for number in range(per_block):
                group = b.add(b.mul(i, e.int(per_block)), e.int(number))
                out = b.add(panel, b.mul(group, e.int(quant.FORM.panel_bytes)))
                unpack_group(e, quant, [b.add(address, offset) for address in rows], number, out)


def unpack_group(e: Emitter, quant: Any, blocks: Sequence[Any], number: int, out: Any) -> None:
    """Unpack group `number` of the blocks of 16 rows."""
    for k, word in enumerate(quant.quarts(e, blocks, number)):
        e.store(word, out, k * VECTOR)
    groups = [Group(block, number) for block in blocks]
    mins = [quant.mins(e, groups)] if quant.FORM.mins else []
    for k, vector in enumerate([*quant.scales(e, groups), *mins]):
        e.store(vector, out, SCALES + k * VECTOR)


def tile(
    e: Emitter, quant: Any, a: Any, tokens: Sequence[Any], panels: Sequence[Any], ahead: Any, halves: int
) -> list[list[Any]]:
    b, form = e.b, quant.FORM
    n_groups = b.lshr(a.n_cols, e.int(5))
    totals = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in panels]
    row_bytes = b.or_(a.n_cols, e.int(layout.ODD_LINES))
    acts = [b.add(a.quants, b.mul(t, row_bytes)) for t in tokens]
    scale_rows = [b.shl(b.mul(t, n_groups), e.int(2)) for t in tokens]
    count = 8 // form.n_scales
    share = len(panels) * LANES * quant.BYTES * halves * 32 // quant.BLOCK // 2 // form.n_scales
    with e.loop(n_groups) as i:
        groups = [b.add(address, b.mul(i, e.int(form.panel_bytes))) for address in panels]
        places = [b.add(base, b.shl(i, e.int(2))) for base in scale_rows]
        sums = [e.load(I32, a.sums, place) for place in places]
        starts = [offset_sums(e, quant, of_token) for of_token in sums]
        quants = [b.add(act, b.shl(i, e.int(5))) for act in acts]
        integers = []
        for k in range(form.n_scales):
            part = b.add(b.mul(i, e.int(form.n_scales)), e.int(k))
            with e.spreading(b.add(ahead, b.mul(part, e.int(share))), lines_of(share)):
                integers.append(
                    add_products(
                        e,
                        partial(dot4, e, quant),
                        [[start[k] for start in starts]] * len(panels),
                        [e.at(group, k * count * VECTOR) for group in groups],
                        [e.at(q, 4 * k * count) for q in quants],
                        count,
                    )
                )
        for r, group in enumerate(groups):
            scales = [e.load(F32X16, group, SCALES + k * VECTOR) for k in range(form.n_scales)]
            for t, place in enumerate(places):
                x_scale = e.splat(e.load(F32, a.scales, place))
                products = scaled(e, [of_half[r][t] for of_half in integers], scales, x_scale)
                if form.mins:
                    least = e.load(F32X16, group, SCALES + form.n_scales * VECTOR)
                    products = b.fadd(products, b.fmul(least, b.fmul(x_scale, sum_of_all(e, sums[t]))))
                b.store(b.fadd(b.load(totals[r][t]), products), totals[r][t])
    return [[b.load(total) for total in row_totals] for row_totals in totals]
