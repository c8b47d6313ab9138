"""Products with K-quants: blocks of 256 weights, activations in Q8_K."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from .. import layout
from ..quants._kquants import Act
from ..simd import F32, F32X4, F32X16, LANES, Emitter
from . import clamped_rows, finish_rows, lines_of

ROWS_AT_ONCE = 4


def activations(e: Emitter, a: Any, tokens: Sequence[Any]) -> tuple[Any, list[Act], list[Any]]:
    """Return the number of blocks, and for each token its first block and the address of its scales."""
    b = e.b
    n_blocks = b.lshr(a.n_cols, e.int(8))
    acts = []
    for t in tokens:
        q = b.add(a.quants, b.mul(t, b.or_(a.n_cols, e.int(layout.ODD_LINES))))
        acts.append(Act(q, b.add(a.sums, b.mul(b.mul(t, n_blocks), e.int(layout.Q8K_SUMS_BYTES)))))
    return n_blocks, acts, [b.add(a.scales, b.shl(b.mul(t, n_blocks), e.int(2))) for t in tokens]


def at_block(e: Emitter, acts: Sequence[Act], i: Any) -> list[Act]:
    b = e.b
    return [
        Act(b.add(act.q, b.shl(i, e.int(8))), b.add(act.sums, b.mul(i, e.int(layout.Q8K_SUMS_BYTES))))
        for act in acts
    ]


def in_place(e: Emitter, quant: Any, a: Any, row: Any, token: Any, together: int) -> None:
    """Multiply four rows. If fewer are left, the last one is repeated."""
    b = e.b
    n_blocks, acts, (scale,) = activations(e, a, [token])
    rows = clamped_rows(e, a, row, ROWS_AT_ONCE)
    total = e.var(e.float(0.0, F32X4))
    following = e.at(b.add(rows[-1], a.row_bytes), a.ahead)
    share = ROWS_AT_ONCE * quant.BYTES
    with e.loop(n_blocks) as i:
        offset, (act,) = b.mul(i, e.int(quant.BYTES)), at_block(e, acts, i)
        with e.spreading(b.add(following, b.mul(i, e.int(share))), lines_of(share), together):
            values = quant.values(e, [b.add(address, offset) for address in rows], act)
        d = e.splat(e.load(F32, scale, b.shl(i, e.int(2))), ROWS_AT_ONCE)
        b.store(b.fadd(b.load(total), b.fmul(d, values)), total)
    finish_rows(e, a, b.load(total), row, token)


def panel_bytes(e: Emitter, quant: Any, a: Any) -> Any:
    return e.b.mul(e.b.lshr(a.n_cols, e.int(8)), e.int(quant.PANEL.n_bytes))


def unpack(e: Emitter, quant: Any, a: Any, row: Any, panel: Any, ahead: Any) -> None:
    b = e.b
    n_blocks = b.lshr(a.n_cols, e.int(8))
    rows = clamped_rows(e, a, row, LANES)
    share = LANES * quant.BYTES // 2
    with e.loop(n_blocks) as i:
        offset = b.mul(i, e.int(quant.BYTES))
        with e.spreading(b.add(ahead, b.mul(i, e.int(share))), lines_of(share)):
            quant.unpack(
                e,
                [b.add(address, offset) for address in rows],
                b.add(panel, b.mul(i, e.int(quant.PANEL.n_bytes))),
            )


def tile(
    e: Emitter,
    quant: Any,
    a: Any,
    tokens: Sequence[Any],
    panels: Sequence[Any],
    ahead: Any,
    halves: int,
    by_words: bool = False,
) -> list[list[Any]]:
    b = e.b
    micro_kernel = quant.TILE.by_words() if by_words else quant.TILE
    n_blocks, acts, scales = activations(e, a, tokens)
    sums = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in panels]
    n_parts = quant.PANEL.n_parts
    share = len(panels) * LANES * quant.BYTES * halves // 2 // n_parts
    with e.loop(n_blocks) as i:

        def fetching(part: Any, i: Any = i) -> AbstractContextManager[None]:
            number = b.add(b.mul(i, e.int(n_parts)), part)
            return e.spreading(b.add(ahead, b.mul(number, e.int(share))), lines_of(share))

        offset = b.mul(i, e.int(quant.PANEL.n_bytes))
        values = micro_kernel.block(
            e, [b.add(address, offset) for address in panels], at_block(e, acts, i), fetching
        )
        for row_sums, row_values in zip(sums, values):
            for scale, total, value in zip(scales, row_sums, row_values):
                d = e.splat(e.load(F32, scale, b.shl(i, e.int(2))))
                b.store(b.fadd(b.load(total), b.fmul(d, value)), total)
    return [[b.load(total) for total in row_sums] for row_sums in sums]
