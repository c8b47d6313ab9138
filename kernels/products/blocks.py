"""Products with blocks of 32 weights, activations in Q8_0."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llvmlite import ir

from ..quants._blocks import BLOCK_OF_LANE, PANEL_BYTES, QUARTS, ROW_OF_LANE, VECTOR, sums_of_rows
from ..quants._kquants import gathered_halves
from ..quants._quarts import add_products
from ..simd import F32, F32X16, I8X32, I32, I32X16, LANES, Emitter
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
    """f32x8: the products of 8 rows, `stride` rows apart, two blocks of each at once."""
    b, n_blocks = e.b, n_cols // quant.BLOCK
    row_bytes = n_blocks * quant.BYTES * stride
    first = b.add(a.w, b.mul(row, a.row_bytes))
    total = e.var(e.float(0.0, ir.VectorType(F32, ROWS_AT_ONCE)))

    def add_blocks(p: Any, i: Any, step: int) -> None:
        """Add blocks i and i + 1 of 8 rows to the sums, in this order; with step 0 block i alone."""
        rows = [e.at(p, row_bytes * r) for r in range(ROWS_AT_ONCE)]
        weights = [quant.load_pair(e, row, e.at(row, step * quant.BYTES)) for row in rows]
        d = gathered_halves(e, [e.at(rows[r], step * quant.BYTES * block) for r, block in zip(ROW_OF_LANE, BLOCK_OF_LANE)], 0)
        product = scaled_dots(e, quant, a, weights, d, token, n_cols, i, step)
        for which in range(1 + step):
            lanes = [lane for lane, block in enumerate(BLOCK_OF_LANE) if block == which]
            b.store(b.fadd(b.load(total), e.shuffle(product, lanes)), total)

    with e.loop(e.int(n_blocks // 2)) as pair:
        if stride:
            prefetch_rows(e, e.at(first, ROWS_AT_ONCE * row_bytes), pair, 2 * ROWS_AT_ONCE * quant.BYTES)
        add_blocks(e.at(first, b.mul(pair, e.int(2 * quant.BYTES))), b.shl(pair, e.int(1)), 1)
    if n_blocks % 2:
        last = n_blocks - 1
        add_blocks(e.at(first, last * quant.BYTES), e.int(last), 0)
    return b.load(total)


def scaled_dots(e: Emitter, quant: Any, a: Args, weights: Sequence[Any], d: Any, token: Any, n_cols: int, i: Any, step: int) -> Any:
    """Blocks i and i + `step` of 8 rows, with the scales `d`, times a token's, in the lanes of `sums_of_rows`."""
    b = e.b
    at = b.add(b.add(a.q, b.mul(token, e.int(n_cols))), b.shl(i, e.int(5)))
    quants = e.concat(e.load(I8X32, at), e.load(I8X32, at, 32 * step))
    dots = [dot4(e, quant, e.int(0, I32X16), weight, quants) for weight in weights]
    place = b.shl(b.add(b.mul(token, e.int(n_cols // quant.BLOCK)), i), e.int(2))

    def by_block(base: Any, kind: Any) -> Any:
        two = e.load(ir.VectorType(kind, 1 + step), b.add(base, place))
        return e.shuffle(two, [step * block for block in BLOCK_OF_LANE])

    offsets = by_block(a.sums, I32)
    integers = b.sub(sums_of_rows(e, dots), b.mul(offsets, e.int(offset_of(e, quant), I32X16)))
    return b.fmul(b.sitofp(integers, F32X16), b.fmul(d, by_block(a.d, F32)))


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
