"""Products with float weights, activations in float32. For one token a row at a time, so that memory is read in order."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..simd import F32, F32X16, LANES, Emitter
from . import Args, clamped_rows, finish

ROWS_AT_ONCE = 1


def in_place(e: Emitter, quant: Any, a: Args, row: Any, token: Any) -> None:
    tile(e, quant, a, row, [token], ROWS_AT_ONCE)


def tile(e: Emitter, quant: Any, a: Args, row: Any, tokens: Sequence[Any], n_rows: int) -> None:
    b = e.b
    rows = clamped_rows(e, a, row, n_rows)
    acts = [b.add(a.x, b.mul(t, b.shl(a.n_cols, e.int(2)))) for t in tokens]
    sums = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in rows]
    rests = [[e.var(e.float(0.0)) for _ in tokens] for _ in rows]
    whole = b.lshr(a.n_cols, e.int(4))
    with e.loop(whole) as i:
        place = b.mul(i, e.int(LANES * quant.BYTES))
        xs = [e.load(F32X16, act, b.shl(i, e.int(6))) for act in acts]
        for r, address in enumerate(rows):
            weight = quant.load(e, b.add(address, place))
            for t, x in enumerate(xs):
                b.store(e.fma(weight, x, b.load(sums[r][t])), sums[r][t])
    done = b.shl(whole, e.int(4))
    with e.loop(b.sub(a.n_cols, done)) as i:
        column = b.add(done, i)
        for r, address in enumerate(rows):
            weight = quant.load_one(e, b.add(address, b.mul(column, e.int(quant.BYTES))))
            for t, act in enumerate(acts):
                b.store(e.fma(weight, e.load(F32, act, b.shl(column, e.int(2))), b.load(rests[r][t])), rests[r][t])
    for r in range(n_rows):
        this = b.add(row, e.int(r))
        with b.if_then(b.icmp_signed("<", this, a.n_rows)):
            for t, token in enumerate(tokens):
                finish(e, a, b.fadd(e.sum_f32(b.load(sums[r][t])), b.load(rests[r][t])), this, token)
