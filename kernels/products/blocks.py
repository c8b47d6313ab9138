"""Products with blocks of 32 weights, activations in Q8_0."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llvmlite import ir

from ..quants._blocks import PANEL_BYTES, QUARTS, VECTOR
from ..quants._kquants import gathered_halves
from ..quants._quarts import add_products
from ..simd import F32, F32X4, F32X16, I8X16, I32, I32X16, LANES, Emitter
from . import Args, clamped_rows, finish, prefetch_rows, prefetch_share

ROWS_AT_ONCE = 8


def dot4(e: Emitter, quant: Any, acc: Any, weights: Any, quants: Any) -> Any:
    return (e.dot4_wide if quant.WIDE else e.dot4)(acc, weights, quants)


def offset_of(e: Emitter, quant: Any) -> int:
    """What is to be subtracted from each quant."""
    return quant.OFFSET + e.raised_by if quant.WIDE else quant.OFFSET


def in_place(e: Emitter, quant: Any, a: Args, row: Any, token: Any, n_cols: int) -> None:
    """8 rows side by side; where fewer are left each is read as if it were 8. The columns are frozen: rows are at fixed distances."""
    b = e.b
    left = b.sub(a.n_rows, row)
    whole = b.icmp_signed(">=", left, e.int(ROWS_AT_ONCE))
    with b.if_else(whole, likely=True) as (then, otherwise):
        with then:
            finish(e, a, rows_in_place(e, quant, a, row, token, n_cols, 1), row, token)
        with otherwise, e.loop(left) as i:
            this = b.add(row, i)
            values = rows_in_place(e, quant, a, this, token, n_cols, 0)
            finish(e, a, b.extract_element(values, e.int(0, I32)), this, token)


def rows_in_place(e: Emitter, quant: Any, a: Args, row: Any, token: Any, n_cols: int, stride: int) -> Any:
    """f32x8: the products of 8 rows, `stride` rows apart, four blocks of each at once."""
    b, n_blocks = e.b, n_cols // quant.BLOCK
    row_bytes = n_blocks * quant.BYTES * stride
    first = b.add(a.w, b.mul(row, a.row_bytes))
    totals = [e.var(e.float(0.0, F32X4)) for _ in range(0, ROWS_AT_ONCE, 4)]

    def add_blocks(i: Any, step: int) -> None:
        """Add blocks i to i + 3 of 8 rows to the totals, in this order; with step 0 block i alone."""
        at = b.add(first, b.mul(i, e.int(quant.BYTES)))
        blocks = [[e.at(at, row_bytes * r + step * quant.BYTES * k) for k in range(4)] for r in range(ROWS_AT_ONCE)]
        q = b.add(b.add(a.q, b.mul(token, e.int(n_cols))), b.shl(i, e.int(5)))
        low_x, high_x = (e.join([e.load(I8X16, q, 32 * step * k + 16 * half) for k in range(4)]) for half in (0, 1))
        place = b.shl(b.add(b.mul(token, e.int(n_blocks)), i), e.int(2))

        def by_block(base: Any, kind: Any) -> Any:
            values = e.load(ir.VectorType(kind, 1 + 3 * step), b.add(base, place))
            return e.shuffle(values, [step * (lane // 4) for lane in range(LANES)])

        offsets = b.mul(by_block(a.sums, I32), e.int(offset_of(e, quant), I32X16))
        scales = by_block(a.d, F32)
        for which, total in enumerate(totals):
            if step * stride:
                share = 2 * ROWS_AT_ONCE * quant.BYTES
                prefetch_rows(e, e.at(first, ROWS_AT_ONCE * row_bytes + which * share), b.lshr(i, e.int(2)), share, 2 * share)
            of_four, dots = blocks[4 * which:4 * which + 4], []
            for of_row in of_four:
                low, high = quant.load_four(e, of_row)
                dots.append(dot4(e, quant, dot4(e, quant, e.int(0, I32X16), low, low_x), high, high_x))
            d = gathered_halves(e, [of_four[lane % 4][lane // 4] for lane in range(LANES)], 0)
            integers = b.sub(e.sums_of_quarters(dots), offsets)
            products = b.fmul(b.sitofp(integers, F32X16), b.fmul(d, scales))
            for k in range(1 + 3 * step):
                b.store(b.fadd(b.load(total), e.shuffle(products, range(4 * k, 4 * k + 4))), total)

    with e.loop(e.int(n_blocks // 4)) as four:
        add_blocks(b.shl(four, e.int(2)), 1)
    with e.loop(e.int(n_blocks % 4)) as rest:
        add_blocks(b.add(rest, e.int(n_blocks // 4 * 4)), 0)
    return e.concat(*(b.load(total) for total in totals))


def panel_bytes(e: Emitter, quant: Any, a: Args) -> Any:
    return e.b.mul(e.b.lshr(a.n_cols, e.int(5)), e.int(PANEL_BYTES))


def unpack(e: Emitter, quant: Any, a: Args, row: Any, panel: Any) -> None:
    b = e.b
    rows = clamped_rows(e, a, row, LANES)
    with e.loop(b.lshr(a.n_cols, e.int(5))) as i:
        offset = b.mul(i, e.int(quant.BYTES))
        blocks, out = [b.add(address, offset) for address in rows], b.add(panel, b.mul(i, e.int(PANEL_BYTES)))
        for k, word in enumerate(quant.quarts(e, blocks)):
            e.store(word, out, k * VECTOR)
        e.store(gathered_halves(e, blocks, 0), out, QUARTS)


def tile(e: Emitter, quant: Any, a: Args, tokens: Sequence[Any], panels: Sequence[Any], ahead: Any) -> list[list[Any]]:
    b = e.b
    n_blocks = b.lshr(a.n_cols, e.int(5))
    sums = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in panels]
    acts = [b.add(a.q, b.mul(t, a.n_cols)) for t in tokens]
    scale_rows = [b.shl(b.mul(t, n_blocks), e.int(2)) for t in tokens]
    with e.loop(n_blocks) as i:
        with b.if_then(b.icmp_unsigned("!=", ahead, e.int(0))):
            prefetch_share(e, ahead, i, len(panels) * LANES * quant.BYTES)
        blocks = [b.add(address, b.mul(i, e.int(PANEL_BYTES))) for address in panels]
        places = [b.add(base, b.shl(i, e.int(2))) for base in scale_rows]
        starts = [e.splat(b.mul(e.load(I32, a.sums, place), e.int(-offset_of(e, quant), I32))) for place in places]
        quants = [b.add(act, b.shl(i, e.int(5))) for act in acts]
        integers = add_products(e, partial(dot4, e, quant), [starts] * len(panels), blocks, quants, 8)
        for r, block in enumerate(blocks):
            d = e.load(F32X16, block, QUARTS)
            for t, place in enumerate(places):
                act_d, total = e.load(F32, a.d, place), sums[r][t]
                b.store(b.fadd(b.load(total), b.fmul(b.sitofp(integers[r][t], F32X16), b.fmul(d, e.splat(act_d)))), total)
    return [[b.load(total) for total in row_sums] for row_sums in sums]
