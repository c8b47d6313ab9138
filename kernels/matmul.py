"""y = W x for rows of weights read from the mapped file, in two forms that give the same bits.

"one" is for a single token: each row is multiplied in place. "many" is for two or more: 32 rows are unpacked into a panel, which stays in
the L2 cache while it is multiplied with all tokens. Both sum in the same order: integers inside a block, where order doesn't matter, then
floats across blocks in block order; for float weights 16 running sums over the columns, and one final tree.

The arguments are arguments.PRODUCT.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from numba import njit

from . import layout
from .arguments import PRODUCT
from .products import blocks, clamped_tokens, finish_rows, floats, if_token, kquants, product
from .reading import reader
from .simd import LANES, Emitter, i64, intrinsic_of, load_i64, void
from .tiles import Tile

FAMILIES = {"q8k": kquants, "q8_0": blocks, "float": floats, "bf16": floats}
SMALL_TILE_TOKENS = 2
"""Tokens in the tile for the remaining tokens."""
TOKENS_IN_CACHE = 32
"""Tokens whose float32 activations fit into the L2 cache together with a chunk of float weights."""


def build(name: str, form: str, *variant: str) -> Any:
    """Return the kernel for the format `name`. The variant of "many" is a tile; that of "one" is the number of lines that are prefetched
    together and, for the family "q8_0", the number of columns."""
    quant = import_module(f".quants.{name}", __package__)
    if form == "one":
        return build_one(quant, *map(int, variant))
    return (build_many_floats if FAMILIES[quant.KIND] is floats else build_many)(quant, Tile.parse(*variant))


read_product = reader(PRODUCT)


@njit(inline="always")
def rows_of(args, chunk):
    """Return the range of a chunk's rows: the first and the last + 1."""
    a = read_product(args)
    first = chunk * a.chunk_rows
    return first, min(first + a.chunk_rows, a.n_rows)


@njit(inline="always")
def n_tokens_of(args):
    return load_i64(read_product(args).count)


def build_one(quant: ModuleType, together: int, *n_cols: int) -> Any:
    family = FAMILIES[quant.KIND]
    step = family.ROWS_AT_ONCE

    @intrinsic_of(void, i64, i64, i64)
    def multiply(e: Emitter, args: Any, row: Any, token: Any) -> None:
        family.in_place(e, quant, product(e, quant, args), row, token, together, *n_cols)

    def one(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        for token in range(n_tokens_of(args)):
            for row in range(first, last, step):
                multiply(args, row, token)

    return one


def build_many(quant: ModuleType, shape: Tile) -> Any:
    family = FAMILIES[quant.KIND]
    n_vectors, n_tile, by_words = shape
    options = {"by_words": True} if by_words else {}
    n_small, tile_rows = min(SMALL_TILE_TOKENS, n_tile), n_vectors * LANES

    def address_of(e: Emitter, a: Any, row: Any) -> Any:
        return e.b.add(a.w, e.b.mul(row, a.row_bytes))

    def panel_at(e: Emitter, a: Any, panel: Any, vector: Any) -> Any:
        return e.b.add(panel, e.b.mul(vector, family.panel_bytes(e, quant, a)))

    @intrinsic_of(void, i64, i64)
    def fetch(e: Emitter, args: Any, row: Any) -> None:
        """Prefetch the panel from `row` on. It is the first of a chunk, so no panel before it could have prefetched its rows."""
        a = product(e, quant, args)
        start = address_of(e, a, row)
        # PANEL_ROWS (32) rows have half as many lines of 64 bytes as a row has bytes
        with e.loop(e.b.lshr(a.row_bytes, e.int(1))) as i:
            e.prefetch(e.b.add(start, e.b.shl(i, e.int(6))), level=2)

    @intrinsic_of(void, i64, i64, i64, i64)
    def unpack(e: Emitter, args: Any, row: Any, panel: Any, few: Any) -> None:
        """Unpack the panel from `row` on. If the tokens are few, prefetch the first half of the next one."""
        a = product(e, quant, args)
        few = e.b.icmp_signed("!=", few, e.int(0))
        with e.loop(e.int(layout.PANEL_ROWS // LANES)) as r:
            ahead = address_of(e, a, e.b.add(e.at(row, layout.PANEL_ROWS), e.b.mul(r, e.int(LANES // 2))))
            ahead = e.b.select(few, ahead, panel)
            family.unpack(e, quant, a, e.b.add(row, e.b.shl(r, e.int(4))), panel_at(e, a, panel, r), ahead)

    def tile_of(n_tile: int, halves: int) -> Any:
        @intrinsic_of(void, i64, i64, i64, i64, i64)
        def tile(e: Emitter, args: Any, row: Any, first: Any, token: Any, panel: Any) -> None:
            """Multiply the rows from `first` on of the panel that starts at `row`. The first tokens' tile prefetches the last one or two
            `halves` of the next panel, the others what is in the cache anyway."""
            b = e.b
            a = product(e, quant, args)
            start = e.at(row, layout.PANEL_ROWS * 2 - layout.PANEL_ROWS // 2 * halves)
            ahead = address_of(e, a, b.add(start, b.lshr(b.mul(first, e.int(halves)), e.int(1))))
            ahead = b.select(b.icmp_unsigned("==", token, e.int(0)), ahead, panel)
            panels = [
                panel_at(e, a, panel, b.add(b.lshr(first, e.int(4)), e.int(r))) for r in range(n_vectors)
            ]
            values = family.tile(
                e, quant, a, clamped_tokens(e, a, token, n_tile), panels, ahead, halves, **options
            )
            for t in range(n_tile):
                this = b.add(token, e.int(t))
                with if_token(e, a, this):
                    for r in range(n_vectors):
                        finish_rows(e, a, values[r][t], b.add(b.add(row, first), e.int(r * LANES)), this)

        return tile

    tile, small_tile = tile_of(n_tile, 2), tile_of(n_small, 1)
    n_few = 2 * n_small

    def many(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        n_tokens = n_tokens_of(args)
        if n_tokens > 0:
            fetch(args, first)
            for row in range(first, last, layout.PANEL_ROWS):
                unpack(args, row, scratch, n_tokens <= n_few)
                for part in range(0, layout.PANEL_ROWS, tile_rows):
                    token = 0
                    while n_tokens - token > n_few:
                        tile(args, row, part, token, scratch)
                        token += n_tile
                    while token < n_tokens:
                        small_tile(args, row, part, token, scratch)
                        token += n_small

    return many


def build_many_floats(quant: ModuleType, shape: Tile) -> Any:
    """Multiply float weights: nothing is unpacked. A tile is some rows and some tokens; rows are read again for every TOKENS_IN_CACHE
    tokens."""
    n_rows, n_tile, _ = shape

    def tile_of(n_tile: int) -> Any:
        @intrinsic_of(void, i64, i64, i64)
        def tile(e: Emitter, args: Any, row: Any, token: Any) -> None:
            a = product(e, quant, args)
            tokens = [e.b.add(token, e.int(t)) for t in range(n_tile)]
            # only once: the other tokens prefetch the rows themselves, which are in the cache
            is_first = e.b.icmp_unsigned("==", token, e.int(0))
            ahead = e.b.select(is_first, a.ahead, e.b.mul(a.row_bytes, e.int(-n_rows)))
            floats.tile(e, quant, a, row, tokens, n_rows, ahead)

        return tile

    tile, single = tile_of(n_tile), tile_of(1)

    def many(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        n_tokens = n_tokens_of(args)
        for start in range(0, n_tokens, TOKENS_IN_CACHE):
            end = min(start + TOKENS_IN_CACHE, n_tokens)
            for row in range(first, last, n_rows):
                token = start
                while token + n_tile <= end:
                    tile(args, row, token)
                    token += n_tile
                while token < end:
                    single(args, row, token)
                    token += 1

    return many
