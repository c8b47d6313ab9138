"""Products with weights, one file per family of formats. This file has what they share: reading the arguments, prefetching, and storing.

The module of a family emits code for some rows and tokens, given the module `quant` of a format (see quants/) and the arguments `a`:

- `in_place(e, quant, a, row, token, ...)` multiplies ROWS_AT_ONCE rows from `row` on in place, and finishes them.
- `unpack(e, quant, a, row, panel, ahead)` unpacks 16 rows into a panel of `panel_bytes(e, quant, a)`. Meanwhile it prefetches half as many
  bytes from the address `ahead` on.
- `tile(e, quant, a, tokens, panels, ahead, halves)` multiplies unpacked rows and returns f32x16 for every 16 rows and each token. Meanwhile
  it prefetches one or two `halves` of as many bytes as these rows have, from `ahead` on.

Weights are prefetched into the L2 cache in the order of memory, since the hardware doesn't predict the short streams of rows that are read
side by side. Prefetching into L1 would make so many requests that some are lost. Requests are spread evenly over the arithmetic: more than
a dozen at once fill the queue of misses, and other reads then have to wait.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from ..arguments import PRODUCT
from ..reading import load
from ..simd import F32, I64, Address, Emitter, Vector

LINE = 64


def product(e: Emitter, quant: ModuleType, address: Address) -> Any:
    """Load the arguments, as LLVM values by name. `scale` is None if the format has none."""
    a = load(e, PRODUCT, address)
    return a if getattr(quant, "SCALED", False) else a._replace(scale=None)


def clamped_rows(e: Emitter, a: Any, row: Any, count: int) -> list[Any]:
    """Return the addresses of `count` rows from `row` on. After the last row it is repeated, so that nothing outside is read."""
    last = e.b.sub(a.n_rows, e.int(1))
    return [e.b.add(a.w, e.b.mul(e.least(e.b.add(row, e.int(i)), last), a.row_bytes)) for i in range(count)]


def clamped_tokens(e: Emitter, a: Any, token: Any, count: int) -> list[Any]:
    """Return the numbers of `count` tokens from `token` on. After the last token it is repeated."""
    last = e.b.sub(e.load(I64, a.count), e.int(1))
    return [e.least(e.b.add(token, e.int(i)), last) for i in range(count)]


def if_token(e: Emitter, a: Any, token: Any) -> AbstractContextManager[Any]:
    """Return a context whose body runs if there is a token with that number."""
    return e.b.if_then(e.b.icmp_signed("<", token, e.load(I64, a.count)))


def lines_of(n_bytes: int) -> int:
    """Return the number of cache lines that hold `n_bytes`, if they begin with a line."""
    return -(-n_bytes // LINE)


def finish(e: Emitter, a: Any, value: Any, row: Any, token: Any) -> None:
    """Finish one row's value, or the values of several rows in lanes: scale, add bias and residual, and store."""
    b = e.b
    if a.scale is not None:
        scale = e.load(F32, a.scale)
        value = b.fmul(value, scale if value.type == F32 else e.splat(scale, value.type.count))
    column = b.shl(row, e.int(2))
    place = b.add(b.mul(token, a.y_stride), column)
    slot = e.var(value)
    for base, offset in (a.bias, column), (a.residual, place):
        with b.if_then(b.icmp_unsigned("!=", base, e.int(0))):
            b.store(b.fadd(b.load(slot), e.load(value.type, base, offset)), slot)
    e.store(b.load(slot), a.y, place)


def finish_rows(e: Emitter, a: Any, values: Vector, row: Any, token: Any) -> None:
    """`finish` the values of several rows in lanes, leaving out lanes after the last row."""
    b = e.b
    whole = b.icmp_signed("<=", b.add(row, e.int(values.type.count)), a.n_rows)
    with b.if_else(whole, likely=True) as (then, otherwise):
        with then:
            finish(e, a, values, row, token)
        with (
            otherwise
        ):  # through memory: a copy of this code for each lane would make kernels several times as large
            lanes = e.memory(64)
            e.store(values, lanes)
            with e.loop(b.sub(a.n_rows, row)) as i:
                finish(e, a, e.load(F32, lanes, b.shl(i, e.int(2))), b.add(row, i), token)
