"""Products with weights, one file a family of formats; here what they share: a product's arguments and its end.

A family's module emits code for some rows and tokens, given a format's module `quant` (see quants/) and the arguments `a`:

- `in_place(e, quant, a, row, token, ...)` multiplies ROWS_AT_ONCE rows from `row` on where they lie, and finishes them.
- `unpack(e, quant, a, row, panel)` unpacks 16 rows into a panel of `panel_bytes(e, quant, a)`.
- `tile(e, quant, a, tokens, panels, ahead)` multiplies unpacked rows: f32x16 for each 16 of them and each token. If `ahead` isn't 0 it
  fetches as many rows from that address on, evenly on its way: unpacking reads so much that they would wait for each other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from ..arguments import PRODUCT
from ..reading import load
from ..simd import F32, I32, I64, Address, Emitter, Vector

PREFETCH_AHEAD = 16384


def product(e: Emitter, quant: ModuleType, address: Address) -> Any:
    """The arguments as LLVM values by name, `scale` None where the format has none."""
    a = load(e, PRODUCT, address)
    return a if getattr(quant, "SCALED", False) else a._replace(scale=None)


def clamped_rows(e: Emitter, a: Any, row: Any, count: int) -> list[Any]:
    """The addresses of `count` rows from `row` on; after the last row the last one again, so that nothing outside is read."""
    last = e.b.sub(a.n_rows, e.int(1))
    return [e.b.add(a.w, e.b.mul(e.least(e.b.add(row, e.int(i)), last), a.row_bytes)) for i in range(count)]


def clamped_tokens(e: Emitter, a: Any, token: Any, count: int) -> list[Any]:
    """The numbers of `count` tokens from `token` on, the last one repeated at the end."""
    last = e.b.sub(e.load(I64, a.count), e.int(1))
    return [e.least(e.b.add(token, e.int(i)), last) for i in range(count)]


def if_token(e: Emitter, a: Any, token: Any) -> AbstractContextManager[Any]:
    """A context whose body runs if there is a token of that number."""
    return e.b.if_then(e.b.icmp_signed("<", token, e.load(I64, a.count)))


def prefetch_rows(e: Emitter, following: Address, i: Any, n_bytes: int, stride: int = 0) -> None:
    """Ask for step i's share, `n_bytes` of `stride`, by default all of them, of rows some way after those that follow."""
    prefetch_share(e, e.at(following, PREFETCH_AHEAD), i, n_bytes, stride)


def prefetch_share(e: Emitter, start: Address, i: Any, n_bytes: int, stride: int = 0) -> None:
    """Ask for `n_bytes` that lie i * `stride`, by default i * n_bytes, after `start`, in the order of memory and into the L2 cache.

    Rows that are read side by side are short streams, which the hardware doesn't foresee. For L1 there would be so many requests that
    some are lost. More than a dozen lines at once fill the queue of misses, and what is read meanwhile has to wait for them.
    """
    first = e.b.add(start, e.b.mul(i, e.int(stride or n_bytes)))
    for line in range(0, n_bytes, 64):
        e.prefetch(e.at(first, line), level=2)


def finish(e: Emitter, a: Any, value: Any, row: Any, token: Any) -> None:
    """Scale a value, or 16 rows' values, add bias and residual, and store."""
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
    """`finish` for some rows' values in lanes, of which only those before the last row exist."""
    b = e.b
    whole = b.icmp_signed("<=", b.add(row, e.int(values.type.count)), a.n_rows)
    with b.if_else(whole, likely=True) as (then, otherwise):
        with then:
            finish(e, a, values, row, token)
        with otherwise:
            for i in range(values.type.count):
                this = b.add(row, e.int(i))
                with b.if_then(b.icmp_signed("<", this, a.n_rows)):
                    finish(e, a, b.extract_element(values, e.int(i, I32)), this, token)
