"""Products with float weights. Activations are float32, or BF16 if the weights are. A single token is multiplied with one row at a time, so
that memory is read in order.

The module of a format multiplies `STEP` columns at once with `load`, `load_x` and `add_products`, and a single column with `load_one` and
`load_one_x`. `X_BYTES` is the size of an activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..simd import F32X16, Emitter
from . import clamped_rows, finish, lines_of

ROWS_AT_ONCE = 1


def in_place(e: Emitter, quant: Any, a: Any, row: Any, token: Any, together: int) -> None:
    tile(e, quant, a, row, [token], ROWS_AT_ONCE, a.ahead, together)


def tile(
    e: Emitter,
    quant: Any,
    a: Any,
    row: Any,
    tokens: Sequence[Any],
    n_rows: int,
    ahead: Any,
    together: int = 1,
) -> None:
    """Multiply some rows by some tokens. The rows that lie `ahead` bytes after them are prefetched, `together` lines at a time."""
    b = e.b
    rows = clamped_rows(e, a, row, n_rows)
    x = a.quants if quant.KIND == "bf16" else a.x
    acts = [b.add(x, b.mul(t, b.mul(a.n_cols, e.int(quant.X_BYTES)))) for t in tokens]
    sums = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in rows]
    rests = [[e.var(e.float(0.0)) for _ in tokens] for _ in rows]
    share = n_rows * quant.STEP * quant.BYTES
    following = e.at(b.add(rows[-1], a.row_bytes), ahead)
    whole = b.udiv(a.n_cols, e.int(quant.STEP))
    with e.loop(whole) as i:
        place = b.mul(i, e.int(quant.STEP * quant.BYTES))
        with e.spreading(b.add(following, b.mul(i, e.int(share))), lines_of(share), together):
            xs = [quant.load_x(e, b.add(act, b.mul(i, e.int(quant.STEP * quant.X_BYTES)))) for act in acts]
            for r, address in enumerate(rows):
                weights = quant.load(e, b.add(address, place))
                for t, values in enumerate(xs):
                    b.store(quant.add_products(e, b.load(sums[r][t]), weights, values), sums[r][t])
    done = b.mul(whole, e.int(quant.STEP))
    with e.loop(b.sub(a.n_cols, done)) as i:
        column = b.add(done, i)
        for r, address in enumerate(rows):
            weight = quant.load_one(e, b.add(address, b.mul(column, e.int(quant.BYTES))))
            for t, act in enumerate(acts):
                value = quant.load_one_x(e, b.add(act, b.mul(column, e.int(quant.X_BYTES))))
                b.store(e.fma(weight, value, b.load(rests[r][t])), rests[r][t])
    for r in range(n_rows):
        this = b.add(row, e.int(r))
        with b.if_then(b.icmp_signed("<", this, a.n_rows)):
            for t, token in enumerate(tokens):
                finish(e, a, b.fadd(e.sum_f32(b.load(sums[r][t])), b.load(rests[r][t])), this, token)
